"""Compare two checkpoints of one network: build, validate and compare the results."""

import optimizer

for name, seed in (("monday", 0), ("tuesday", 1)):
    optimizer.train(
        f"{name}.safetensors", arch="resnet18", data="digits:train", epochs=3, seed=seed
    )
    optimizer.export(f"{name}.safetensors", f"{name}.onnx")
    optimizer.build(f"{name}.onnx", "engine.blob", engine="openvino")
    result = optimizer.validate(
        "engine.blob",
        reference=f"{name}.safetensors",
        data="digits:test",
        output=f"{name}.json",
    )
    print(name, f"{result.hops[-1].top1:.2%}")

comparison = optimizer.compare("monday.json", "tuesday.json", max_drop="5pp")
print(comparison.verdict)
print(comparison.as_text())
