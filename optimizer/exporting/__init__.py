"""Exports PyTorch models to ONNX and verifies the graph against the model."""

from optimizer.exporting.exporter import export_onnx

__all__ = ["export_onnx"]
