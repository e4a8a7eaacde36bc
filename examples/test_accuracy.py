"""Validate an engine in a test, with the fixture ``assert_accuracy`` of resnet-opt.

Run ``pytest examples/test_accuracy.py``; it writes the engine into the current folder.
"""

import optimizer


def test_the_engine_is_as_accurate_as_its_checkpoint(assert_accuracy):
    optimizer.train("model.safetensors", arch="resnet18", data="digits:train", epochs=3)
    optimizer.export("model.safetensors", "model.onnx")
    optimizer.build("model.onnx", "model.blob", engine="openvino")
    assert_accuracy("model.blob", "digits:test", reference="model.safetensors", max_drop="2pp")
