"""Keras files against the logits that Keras computed for them (see benchmarks/keras_record.py)."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from keras_values import images

import optimizer
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import CheckpointError
from optimizer.graphs.metadata import metadata_of
from optimizer.models import Model, keras_source, load_model, save_checkpoint
from optimizer.models.checkpoint import with_card_file
from optimizer.models.keras_graph import Layer, Network, Operand
from optimizer.models.keras_head import Dense, read_head
from optimizer.models.model_sources import is_checkpoint

from .keras_files import Change, logits, write_keras

QUICK = [("application", ".weights.h5")]
LONG = [
    ("application", ".keras"),
    ("sequential", ".keras"),
    ("transfer", ".h5"),
    ("application", ".h5"),
    ("sequential", ".weights.h5"),
    ("application-keras2", ".keras"),
    ("application-keras2", ".h5"),
    ("application-keras2", ".weights.h5"),
    ("transfer-keras2", ".h5"),
]
CAFFE = (0.4076, 0.4580, 0.4850)
WHITE = (0.5, 0.5, 0.5)
LIMIT = 1e-5


def outputs(model: Model, size: int = 64) -> np.ndarray:
    pixels = images(size)
    if model.preprocessing.color == "BGR":
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    with torch.inference_mode():
        return model.module(torch.from_numpy(model.preprocessing.normalize(pixels))).numpy()


@pytest.mark.parametrize(
    ("name", "suffix"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)]
)
def test_outputs_are_those_of_keras(name: str, suffix: str, tmp_path: Path) -> None:
    path = write_keras(name, suffix, tmp_path)
    card = tmp_path / f"{path.name}.card.json"
    if name == "sequential" and suffix == ".weights.h5":  # its Rescaling is not in the file
        halves = [0.5, 0.5, 0.5]
        preprocessing = {"color": "RGB", "mean": halves, "std": halves}
        card.write_text(json.dumps({"preprocessing": preprocessing}))
    model = load_model(path)
    expected = logits(name)
    assert np.abs(outputs(model) - expected).max() < LIMIT * np.abs(expected).max()
    assert (model.arch, model.num_classes) == ("resnet50_v1", 10)
    assert model.preprocessing_assumed == name.startswith("application")
    mean = WHITE if name == "sequential" else CAFFE
    assert model.preprocessing.mean == pytest.approx(mean, abs=1e-4)
    assert model.preprocessing.color == ("RGB" if name == "sequential" else "BGR")
    assert model.image_size == (224 if suffix == ".weights.h5" else 64)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_keras("transfer", ".keras", tmp_path_factory.mktemp("keras")))


def test_a_head_of_two_layers_survives_a_checkpoint(transfer: Model, tmp_path: Path) -> None:
    expected = logits("transfer")
    assert np.abs(outputs(transfer) - expected).max() < LIMIT * np.abs(expected).max()
    assert transfer.preprocessing.mean == pytest.approx(CAFFE, abs=1e-4)
    assert not transfer.preprocessing_assumed
    path = save_checkpoint(transfer, tmp_path / "model.safetensors", details={}).path
    again = load_model(path)
    assert np.array_equal(outputs(again), outputs(transfer))
    assert (again.arch, again.num_classes) == ("resnet50_v1", 10)
    assert again.preprocessing == transfer.preprocessing
    assert again.sha256 == transfer.sha256


# --- refusals that need only the structure ---------------------------------------------------------


def layers_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["config"]["layers"])


def named(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(x for x in layers_of(config) if x["name"] == name)


def as_lambda(config: dict[str, Any]) -> None:
    layer = named(config, "conv1_pad")
    layer.update(class_name="Lambda", config={"name": "conv1_pad", "function": "4wEAAAA"})


def as_custom(config: dict[str, Any]) -> None:
    named(config, "conv1_bn").update(
        class_name="MyNorm", module="mine.layers", registered_name="mine>MyNorm"
    )


def as_other_layer(config: dict[str, Any]) -> None:
    named(config, "conv1_conv").update(class_name="DepthwiseConv2D")


def as_subclass(config: dict[str, Any]) -> None:
    config.update(class_name="MyModel", module="mine", registered_name="mine>MyModel")


def in_float16(config: dict[str, Any]) -> None:
    named(config, "conv1_conv")["config"]["dtype"]["config"]["name"] = "float16"


def quantized(config: dict[str, Any]) -> None:
    named(config, "predictions")["config"]["dtype"] = {
        "class_name": "QuantizedDTypePolicy",
        "config": {"mode": "int8", "source_name": "float32"},
    }


def channels_first(config: dict[str, Any]) -> None:
    named(config, "conv1_conv")["config"]["data_format"] = "channels_first"


def called_twice(config: dict[str, Any]) -> None:
    named(config, "conv1_relu")["inbound_nodes"] *= 2


def two_outputs(config: dict[str, Any]) -> None:
    config["config"]["output_layers"] = [["predictions", 0, 0], ["avg_pool", 0, 0]]


def missing_layer(config: dict[str, Any]) -> None:
    config["config"]["layers"] = [x for x in layers_of(config) if x["name"] != "conv1_pad"]


def nested_deeply(config: dict[str, Any]) -> None:
    inner = {k: config[k] for k in ("class_name", "config")}
    for _ in range(12):
        inner = {
            "class_name": "Sequential",
            "config": {"name": "m", "layers": [{**inner, "name": "m"}]},
        }
    config.clear()
    config.update(inner)


STRUCTURES: dict[str, tuple[Change, str]] = {
    "lambda": (as_lambda, r"conv1_pad is a Lambda layer.*nothing in a file is executed"),
    "custom": (as_custom, r"conv1_bn is the custom layer MyNorm, whose code is not in the file"),
    "other": (as_other_layer, r"conv1_conv is a DepthwiseConv2D.*model\.export"),
    "subclass": (as_subclass, r"the model is the custom class MyModel"),
    "float16": (in_float16, r"conv1_conv has the dtype policy float16.*set_dtype_policy"),
    "quantized": (quantized, r"predictions has the dtype policy int8"),
    "channels_first": (channels_first, r"conv1_conv has data_format='channels_first'"),
    "twice": (called_twice, r"conv1_relu is called 2 times"),
    "outputs": (two_outputs, r"the model has 2 outputs"),
    "missing": (
        missing_layer,
        r"damaged or from an unknown version of Keras \(KeyError: 'conv1_pad'",
    ),
    "nested": (nested_deeply, r"nested more than 8 deep"),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_structures_that_are_not_read_are_named(case: str, tmp_path: Path) -> None:
    change, message = STRUCTURES[case]
    path = write_keras("application", ".keras", tmp_path, change=change, only="none")
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


# --- refusals where the network is followed ------------------------------------------------------------


def settings(name: str, **changed: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        named(config, name)["config"].update(changed)

    return change


NETWORKS: dict[str, tuple[Change, str]] = {
    "same padding": (
        settings("conv1_conv", padding="same"),
        r"conv1_conv has stride 2 and padding='same', which pads one side",
    ),
    "one-sided": (settings("conv1_pad", padding=[[2, 3], [2, 3]]), "conv1_pad pads one side more"),
    "dilated": (settings("conv1_conv", dilation_rate=[2, 2]), "conv1_conv is dilated"),
    "activation": (settings("conv1_conv", activation="relu"), "conv1_conv has its own activation"),
    "other activation": (settings("conv1_relu", activation="gelu"), "conv1_relu is a Activation"),
    "pooling": (settings("pool1_pool", pool_size=[2, 2]), "pool1_pool is a MaxPooling2D, where"),
}


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The structure with the weights of the stem only."""
    return write_keras("application", ".keras", tmp_path_factory.mktemp("stem"), only="conv1_")


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_that_are_not_resnets_are_named(case: str, stem: Path, tmp_path: Path) -> None:
    change, message = NETWORKS[case]
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(stem) as source, zipfile.ZipFile(path, "w") as target:
        config = json.loads(source.read("config.json"))
        change(config)
        target.writestr("config.json", json.dumps(config))
        target.writestr("model.weights.h5", source.read("model.weights.h5"))
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


# --- hostile and damaged files ---------------------------------------------------------------------


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name.replace("__", "."), content)
    return path


def hdf5(fill: Any) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)
    return content.getvalue()


def config_bytes() -> bytes:
    from .keras_files import recorded

    return json.dumps(recorded("application")["files"][".keras"]["config"]).encode()


def link_out(file: Any) -> None:
    file.create_group("layers/conv2d")["vars"] = h5py.ExternalLink("/etc/other.h5", "/vars")


def soft_link(file: Any) -> None:
    file.create_group("layers/conv2d/vars")["0"] = h5py.SoftLink("/elsewhere")


def external_data(file: Any) -> None:
    group = file.create_group("layers/conv2d/vars")
    group.create_dataset("0", (7, 7, 3, 64), "f4", external=[("/etc/passwd", 0, 37632)])
    group["1"] = np.zeros(64, np.float32)


def bomb(file: Any) -> None:
    group = file.create_group("layers/conv2d/vars")
    group.create_dataset("0", (7, 7, 3, 2**34), "f4", chunks=(7, 7, 3, 64), compression="gzip")
    group["1"] = np.zeros(64, np.float32)


def integers(file: Any) -> None:
    group = file.create_group("layers/conv2d/vars")
    group["0"], group["1"] = np.zeros((7, 7, 3, 64), np.int8), np.zeros(64, np.int8)


def not_a_number(file: Any) -> None:
    group = file.create_group("layers/conv2d/vars")
    group["0"], group["1"] = np.full((7, 7, 3, 64), np.nan), np.zeros(64)


def group_for_data(file: Any) -> None:
    file.create_group("layers/conv2d/vars/0")


def looped(file: Any) -> None:
    layers = file.create_group("layers/functional").create_group("layers")
    layers["functional"] = file["layers/functional"]


HOSTILE = {
    "external link": (link_out, "vars is a link, and links may lead out of the file"),
    "soft link": (soft_link, "0 is a link"),
    "external data": (external_data, "is stored in another file"),
    "bomb": (bomb, "claims to hold far more than its size"),
    "integers": (integers, "is stored as int8, not as a float32"),
    "nan": (not_a_number, "contains NaN or infinite values"),
    "group": (group_for_data, "0 is a Group, not a Dataset"),
    "loop": (looped, "groups are nested in each other"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_weights_are_refused_before_they_are_read(case: str, tmp_path: Path) -> None:
    fill, message = HOSTILE[case]
    members = {"config__json": config_bytes(), "model__weights__h5": hdf5(fill)}
    path = archive(tmp_path / "model.keras", **members)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    good = {"config__json": config_bytes(), "model__weights__h5": hdf5(lambda file: None)}
    broken: dict[str, tuple[dict[str, bytes], str]] = {
        "no weights": ({"config__json": good["config__json"]}, r"without model\.weights\.h5"),
        "no json": ({**good, "config__json": b"{"}, "damaged or not a Keras file"),
        "a list": ({**good, "config__json": b"[]"}, "its configuration is not a model"),
        "deep": ({**good, "config__json": b"[" * 200_000}, "nested too deeply"),
        "no hdf5": ({**good, "model__weights__h5": b"\0" * 4096}, "damaged or not a Keras file"),
        "no layers": (good, "not one that Keras wrote"),
        "zip bomb": ({**good, "config__json": b" " * 2**28}, "claims to hold far more"),
    }
    for name, (members, message) in broken.items():
        with pytest.raises(CheckpointError, match=message):
            load_model(archive(tmp_path / f"{name}.keras", **members))
    path = tmp_path / "text.h5"
    path.write_text("weights")
    with pytest.raises(CheckpointError, match="damaged or not a Keras file"):
        load_model(path)


def weights_file(path: Path, fill: Any) -> Path:
    path.write_bytes(hdf5(fill))
    return path


def test_weights_alone_must_be_of_a_known_network(tmp_path: Path) -> None:
    def v2(file: Any) -> None:
        for index in range(4):
            file[f"layers/batch_normalization/vars/{index}"] = np.zeros(64, np.float32)
        file["layers/batch_normalization/vars"].attrs["name"] = "conv2_block1_preact_bn"

    def small(file: Any) -> None:
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 8), np.float32)

    with pytest.raises(CheckpointError, match=r"ResNet V2 \(pre-activation\), not V1"):
        load_model(weights_file(tmp_path / "v2.weights.h5", v2))
    with pytest.raises(CheckpointError, match=r"1 convolutions with 0 BatchNorms.*save the whole"):
        load_model(weights_file(tmp_path / "small.weights.h5", small))

    def empty(file: Any) -> None:
        file.attrs["layer_names"] = []

    with pytest.raises(CheckpointError, match="not one of ResNet50"):
        load_model(weights_file(tmp_path / "empty.h5", empty))


def test_a_card_states_classes_and_what_was_assumed(transfer: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(b"")
    card = tmp_path / "model.keras.card.json"
    classes = [f"kind {index}" for index in range(10)]
    card.write_text(json.dumps({"classes": classes, "preprocessing": {"resize": 64}}))
    model = with_card_file(transfer, path)
    assert model.classes == tuple(classes)
    assert (model.preprocessing.resize, model.preprocessing.color) == (64, "BGR")
    card.write_text(json.dumps({"classes": classes[:3]}))
    with pytest.raises(CheckpointError, match=r"names 3 classes, but model\.keras has 10 outputs"):
        with_card_file(transfer, path)
    card.write_text(json.dumps({"arch": "resnet50"}))
    with pytest.raises(CheckpointError, match=r"is a resnet50_v1, but .* states resnet50"):
        with_card_file(transfer, path)


def test_names_are_looked_up_in_the_folder_of_keras(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not at .*resnet50_weights.*download https"):
        load_model("keras:ResNet50")
    with pytest.raises(CheckpointError, match=r"keras:ResNet50V2 .*goes over ONNX"):
        load_model("keras:ResNet50V2")
    with pytest.raises(CheckpointError, match=r"use one of keras:ResNet50, keras:ResNet101"):
        load_model("keras:VGG16")


def test_published_weights_are_recognized_by_their_digest(
    transfer: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "renamed.h5"
    path.write_bytes(b"weights")
    digest = hashlib.md5(b"weights", usedforsecurity=False).hexdigest()
    known = replace(keras_source._PUBLISHED[0], md5=digest)
    monkeypatch.setattr(keras_source, "_PUBLISHED", (known,))
    model = replace(transfer, num_classes=1000, preprocessing_assumed=True)
    found = keras_source._with_published(model, path)
    assert found.classes is not None
    assert (found.classes[0], found.source) == ("tench", "keras:ResNet50")
    assert (found.expected_top1, found.preprocessing_assumed) == (0.749, False)
    path.write_bytes(b"other weights")
    assert keras_source._with_published(model, path) == model


def test_keras_files_are_checkpoints_wherever_engines_are() -> None:
    for name in ("m.keras", "m.h5", "m.weights.h5", "m.safetensors", "m.pth"):
        assert is_checkpoint(Path(name)), name
    for name in ("m.onnx", "m.blob", "m.plan", "keras", "h5"):
        assert not is_checkpoint(Path(name)), name


@pytest.mark.long
def test_a_keras_model_is_exported_with_its_preprocessing(tmp_path: Path) -> None:
    path = write_keras("transfer", ".keras", tmp_path)
    exported = optimizer.export(path, tmp_path / "model.onnx")
    assert exported.max_relative_difference is not None
    assert exported.max_relative_difference < LIMIT
    assert not exported.preprocessing_assumed
    metadata = metadata_of(exported.path)
    model = load_model(path)
    assert metadata.arch == "resnet50_v1"
    assert metadata.preprocessing == json.loads(json.dumps(model.preprocessing.to_dict()))
    session = as_written(exported.path)
    pixels = np.ascontiguousarray(images(64)[..., ::-1])
    expected = logits("transfer")
    got = session.run(model.preprocessing.normalize(pixels))
    assert np.abs(got - expected).max() < LIMIT * np.abs(expected).max()


# --- heads, without a backbone ---------------------------------------------------------------------


def head_of(*layers: tuple[str, dict[str, Any], dict[str, Any]]) -> list[Dense]:
    """Read a head of layers, each with its class, settings and weights, behind a pooling."""
    chain = [("GlobalAveragePooling2D", {}, {}), *layers]
    found, weights, source = {}, {}, "input"
    for index, (kind, config, tensors) in enumerate(chain):
        name = f"{kind.lower()}_{index}"
        found[name] = Layer(name=name, kind=kind, config=config, operands=(Operand(source),))
        weights[name], source = tensors, name
    network = Network(layers=found, input="input", input_shape=(), output=source)
    return read_head(network, "input", lambda layer: weights[layer.name], Path("model.keras"))


def dense(inputs: int, outputs: int, activation: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(inputs)
    tensors = {
        "kernel": rng.normal(size=(inputs, outputs)).astype(np.float32),
        "bias": rng.normal(size=outputs).astype(np.float32),
    }
    return "Dense", {"activation": activation}, tensors


def norm(channels: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(channels + 99)
    tensors = {
        name: rng.uniform(0.5, 1.5, channels).astype(np.float32)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    return "BatchNormalization", {"epsilon": 1e-3}, tensors


def expected_of(layers: list[Any], x: np.ndarray) -> np.ndarray:
    for kind, config, t in layers:
        if kind == "Dense":
            x = x @ t["kernel"].astype(np.float64) + t["bias"]
            x = np.maximum(x, 0) if config["activation"] == "relu" else x
        else:
            scale = t["gamma"] / np.sqrt(t["moving_variance"] + config["epsilon"])
            x = (x - t["moving_mean"]) * scale + t["beta"]
    return x


HEADS = {
    "before": [norm(6), dense(6, 3, "softmax")],
    "behind": [dense(6, 5, "linear"), norm(5), dense(5, 3, "linear")],
    "behind a relu": [dense(6, 5, "relu"), norm(5), dense(5, 3, "softmax")],
    "both": [norm(6), dense(6, 5, "linear"), norm(5), dense(5, 3, "log_softmax")],
}


@pytest.mark.parametrize("case", HEADS)
def test_batchnorms_of_a_head_are_folded_exactly(case: str) -> None:
    x = np.random.default_rng(0).normal(size=(4, 6))
    expected = expected_of(HEADS[case], x)
    for layer in head_of(*HEADS[case]):
        x = x @ layer.weight.T.astype(np.float64) + layer.bias
        x = np.maximum(x, 0) if layer.activation == "relu" else x
    assert np.abs(x - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_sigmoid_becomes_two_logits() -> None:
    layer = dense(6, 1, "sigmoid")
    (found,) = head_of(layer)
    x = np.random.default_rng(0).normal(size=(4, 6))
    logits_ = x @ found.weight.T + found.bias
    softmax = np.exp(logits_) / np.exp(logits_).sum(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-expected_of([layer], x)))
    assert np.allclose(softmax, np.concatenate([1 - sigmoid, sigmoid], axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([dense(6, 1, "linear")], "one output without a sigmoid"),
        ([dense(6, 3, "sigmoid")], "ends in sigmoid, not in a softmax"),
        ([dense(6, 3, "relu")], "ends in relu, not in a softmax"),
        ([dense(6, 3, "gelu")], "the activation gelu of dense_1 is not supported"),
        ([dense(6, 3, "softmax"), dense(3, 2, "softmax")], "follow the softmax"),
        ([("MaxPooling2D", {}, {})], "is a MaxPooling2D, where a ResNet has a fully connected"),
        ([], "no classifier"),
    ],
)
def test_heads_that_are_no_classifiers_are_refused(layers: list[Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        head_of(*layers)
