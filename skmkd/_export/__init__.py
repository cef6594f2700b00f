"""Detectors as ONNX files: writing, and scoring without torch."""
