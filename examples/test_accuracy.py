"""Validating in a test: the fixture ``assert_accuracy`` comes with resnet-opt.

Run it with ``pytest examples/test_accuracy.py`` in a folder where the engine may be built.
"""

import optimizer


def test_the_engine_is_as_accurate_as_its_checkpoint(assert_accuracy):
    optimizer.train("model.safetensors", arch="resnet18", data="digits:train", epochs=3)
    optimizer.export("model.safetensors", "model.onnx")
    optimizer.build("model.onnx", "model.blob", engine="openvino")
    assert_accuracy("model.blob", "digits:test", reference="model.safetensors", max_drop="2pp")
