"""Files of fitted detectors."""
