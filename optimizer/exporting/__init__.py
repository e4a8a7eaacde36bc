"""PyTorch to ONNX, checked: the graph that leaves this room computes what the model computes."""

from optimizer.exporting.exporter import INPUT_KINDS, export_onnx

__all__ = ["INPUT_KINDS", "export_onnx"]
