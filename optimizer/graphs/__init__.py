"""ONNX graphs: read, described, edited, written and run; precision and engines build on this."""
