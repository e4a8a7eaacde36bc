"""`build` on a checkpoint: it is exported first, and the whole chain can be validated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import optimizer
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.torch import TorchEager
from optimizer.errors import DataError, UsageError
from optimizer.models import load_model
from optimizer.options import BuildOptions
from optimizer.progress import Silent


@pytest.fixture(scope="module")
def one_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another trainer: one output, one channel, a loss, a ``.pth.tar``."""
    folder = tmp_path_factory.mktemp("one")
    state = load_model("resnet18:random:10").module.state_dict()
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    state["fc.weight"] = state["fc.weight"][:1]
    state["fc.bias"] = torch.zeros(1)
    content = {f"model.{name}": tensor for name, tensor in state.items()}
    content["criterion.pos_weight"] = torch.ones(1)
    path = folder / "model_best.pth.tar"
    torch.save({"state_dict": content}, path)
    preprocessing = {"resize": 32, "crop": 32, "mean": [0.3], "std": [0.4]}
    card = {"classes": ["even", "odd"], "preprocessing": preprocessing}
    path.with_name(f"{path.name}.card.json").write_text(json.dumps(card), encoding="utf-8")
    return path


def test_a_checkpoint_is_exported_built_validated_and_run(one_output: Path, tmp_path: Path) -> None:
    engine = optimizer.build(
        one_output, tmp_path / "one.ort.onnx", engine="onnxruntime", precision="fp32"
    )
    assert engine.remarks == (
        "left out 1 tensor that the ResNet does not have: criterion.pos_weight",
    )
    assert engine.manifest.classes == ["even", "odd"]
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    images = tmp_path / "images.npz"
    np.savez(images, images=pixels, labels=np.arange(24) % 2)
    result = optimizer.validate(engine.path, reference=str(one_output), data=str(images))
    assert [hop.name for hop in result.hops][1:] == ["onnx fp32", "one.ort.onnx"]
    assert all(hop.flips == 0 and hop.sqnr_db > 80 for hop in result.hops[1:])
    Image.fromarray(pixels[0, ..., 0]).save(tmp_path / "a.png")
    by_engine, by_checkpoint = (
        optimizer.predict(file, tmp_path / "a.png")[0] for file in (engine.path, one_output)
    )
    assert sorted(by_engine.classes) == ["even", "odd"]
    assert sum(by_engine.probabilities) == pytest.approx(1)
    assert by_engine.probabilities == pytest.approx(by_checkpoint.probabilities, abs=1e-4)


def test_pytorchs_engine_takes_any_checkpoint(one_output: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    TorchEager().build(one_output, plain, BuildSettings(precision="fp32"), Silent())
    assert load_model(plain).sha256 == load_model(one_output).sha256
    assert load_model(plain).classes == ("even", "odd")
    larger = optimizer.build(one_output, tmp_path / "l.safetensors", engine="torch", image_size=64)
    assert load_model(larger.path).image_size == 64
    assert load_model(larger.path).num_outputs == 1


def test_missing_images_are_reported_before_the_export(one_output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="INT8 needs calibration data"):
        optimizer.build(one_output, tmp_path / "m.blob", precision="int8")
    images = tmp_path / "four.npz"
    np.savez(images, images=np.zeros((8, 8, 8, 4), np.uint8), labels=np.arange(8))
    with pytest.raises(DataError, match="have 4 channels, but the network takes 1"):
        optimizer.build(one_output, tmp_path / "m.blob", precision="int8", calib=str(images))
    assert not list(tmp_path.glob("m.blob*"))


@pytest.mark.parametrize("verb", ["quantize", "calibrate"])
def test_other_verbs_name_the_commands_that_work(
    verb: str, one_output: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"is a model.*resnet-opt export .*resnet-opt {verb}"):
        getattr(optimizer, verb)(one_output, tmp_path / "out.onnx", calib="digits:train")


def test_options_of_the_export_are_for_models(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--weights: m\.onnx is a graph.*leave out --weights"):
        optimizer.build(tmp_path / "m.onnx", tmp_path / "m.blob", BuildOptions(weights="ema"))
    with pytest.raises(UsageError, match=r"--labels-from: INT8 uses no labels"):
        optimizer.build(tmp_path / "m.onnx", tmp_path / "m.blob", precision="int8", labels_from=1)
    with pytest.raises(UsageError, match=r"--cache-limit: INT8 stores no predictions"):
        optimizer.build(
            tmp_path / "m.onnx", tmp_path / "m.blob", precision="int8", cache_limit="1GiB"
        )
