"""INT8 for TensorRT: calibrate, and write the graph with Q/DQ.

Compile the graph on the machine with the GPU: ``resnet-opt build int8.onnx --int8 --engine tensorrt
-o model.plan``. TensorRT-RTX can also compile without a GPU, for the architectures in ``target``.
"""

import optimizer

optimizer.train("model.safetensors", arch="resnet18", data="digits:train", epochs=3)
optimizer.export("model.safetensors", "model.onnx")
statistics = optimizer.calibrate("model.onnx", "model.stats.npz", calib="digits:train")
graph = optimizer.quantize("model.onnx", "int8.onnx", target="tensorrt", stats=statistics.path)
print(graph.manifest.details["pairs"], "tensors with Q/DQ")

if optimizer.doctor().backends["tensorrt-rtx"].can_build:
    engine = optimizer.build(
        graph.path, "model.rtx", precision="int8", engine="tensorrt-rtx", target="sm89"
    )
    print("audit:", engine.audit.verdict, "-", engine.audit.reason)
