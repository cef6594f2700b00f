"""Files: fitted detectors, saved and loaded."""
