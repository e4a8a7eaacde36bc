"""PyTorch to ONNX, checked: the graph that leaves this room computes what the model computes."""

from optimizer.exporting.exporter import export_onnx

__all__ = ["export_onnx"]
