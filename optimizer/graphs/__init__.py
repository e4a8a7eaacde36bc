"""ONNX graphs: reading, inspecting, editing, writing and running them."""
