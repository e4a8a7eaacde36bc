"""Mixed precision: keep out of INT8 only the layers that accuracy requires."""

import optimizer

optimizer.train("model.safetensors", arch="resnet18", data="digits:train", epochs=3)
optimizer.export("model.safetensors", "model.onnx")
engine = optimizer.build(
    "model.onnx",
    "mixed.blob",
    precision="mixed",
    engine="openvino",
    calib="digits:train",
    calib_images=64,
    data="digits:test",
    max_drop="5pp",
)
print(engine.search.finding)
print("validation:", engine.search.validation.verdict)
print("audit:", engine.audit.verdict)
