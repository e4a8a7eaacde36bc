"""The models of an OpenVINO engine: packed into one file and opened by batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.artifacts import read_manifest
from optimizer.engines import BuildSettings, open_engine
from optimizer.engines.building import build_engine
from optimizer.engines.opening import closing, rebuild_command
from optimizer.engines.openvino_layers import layers_of
from optimizer.engines.openvino_models import Models, _restore, _split, config, pack
from optimizer.errors import ArtifactError, UsageError
from optimizer.precision import quantize

_EDIT = st.tuples(st.integers(0, 20_000), st.binary(max_size=64))


@given(
    st.binary(max_size=12_000),
    st.lists(_EDIT, max_size=4),
    st.integers(-9_000, 9_000),
)
def test_packing_round_trips(model: bytes, edits: list[tuple[int, bytes]], longer: int) -> None:
    other = bytearray(model[: len(model) + min(longer, 0)] + bytes(max(longer, 0)))
    for at, new in edits:
        other[at : at + len(new)] = new
    fixed = {1: bytes(other), 8: model}
    first, differences = _split(pack(model, fixed))
    assert first == model
    assert {size: _restore(first, one) for size, one in differences.items()} == fixed
    assert pack(model, {}) == model


def test_equal_weights_are_stored_once() -> None:
    weights = np.random.default_rng(0).bytes(4_000_000)
    model, fixed = b"any" + weights + b"<net>", {1: b"one" + weights + b"<net batch='1'>"}
    assert len(pack(model, fixed)) < len(model) + 20_000


def test_a_truncated_file_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="models for fixed batches are damaged"):
        _split(pack(b"model", {1: b"another"})[:-9])


@pytest.fixture(scope="module")
def engine(small_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fixed") / "fixed.blob"
    settings = BuildSettings(precision="fp32", options={"fixed_batch": (1, 4)})
    build_engine(small_graph, output, "openvino", settings)
    return output


def _models(engine: Path) -> Models:
    return Models(engine.read_bytes(), config("f32", 1))


def test_each_fixed_size_has_its_own_model(engine: Path) -> None:
    models = _models(engine)
    shapes = {
        size: str(models.for_batch(size).inputs[0].partial_shape).split(",")[0].strip("[")
        for size in (1, 2, 4)
    }
    assert shapes == {1: "1", 2: "?", 4: "4"}
    assert models.for_batch(4) is models.for_batch(4)
    assert models.reopen(4, PERF_COUNT="YES") is not models.for_batch(4)
    assert models.for_batch(2) is models.any_batch


def test_every_model_computes_the_same(engine: Path) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    with closing(open_engine(engine)) as session:
        together, alone = session.run(images), [session.run(image[None]) for image in images]
        in_pairs = np.concatenate([session.run(images[:2]), session.run(images[2:])])
        bound = session.bind(images)
        bound.enqueue()
        assert np.allclose(bound.output(), together, atol=1e-4)
    assert np.allclose(np.concatenate(alone), together, atol=1e-4)
    assert np.allclose(in_pairs, together, atol=1e-4)


def test_residual_sums_stay_fused_into_convolutions(
    small_graph: Path, small_statistics: Path, tmp_path: Path
) -> None:
    """Also in fixed-size models, where the plugin by default splits most of them off."""
    graph = quantize(
        small_graph, tmp_path / "int8.onnx", precision="int8", target="openvino",
        stats=small_statistics,
    ).path  # fmt: skip
    engine = tmp_path / "int8.blob"
    options = {"fixed_batch": (1,)}
    build_engine(graph, engine, "openvino", BuildSettings(precision="int8", options=options))
    sums = {node.name for node in onnx.load(graph).graph.node if node.op_type == "Add"}
    models = _models(engine)
    for model in (models.any_batch, models.for_batch(1)):
        fused = {
            name
            for layer in layers_of(model)
            if layer.type == "Convolution"
            for name in layer.torch_names
        }
        assert len(sums) == 8
        assert sums <= fused


def test_plain_openvino_imports_the_file(engine: Path) -> None:
    import openvino as ov

    model = ov.Core().import_model(engine.read_bytes(), "CPU", {})
    assert model.inputs[0].partial_shape[0].is_dynamic


def test_the_manifest_records_the_sizes(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest.settings["fixed_batches"] == [1, 4]
    assert "--fixed-batch 1,4" in rebuild_command(engine, manifest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            BuildSettings(precision="fp32", options={"fixed_batch": (0,)}),
            "--fixed-batch must be at least 1, not 0",
        ),
        (
            BuildSettings(precision="fp32", batch=2, options={"fixed_batch": (1,)}),
            "the graph has a fixed batch of 2",
        ),
    ],
)
def test_invalid_sizes_are_refused(
    small_graph: Path, tmp_path: Path, settings: BuildSettings, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_engine(small_graph, tmp_path / "x.blob", "openvino", settings)
    assert not list(tmp_path.iterdir())


def test_other_engines_have_no_fixed_batches(small_graph: Path, tmp_path: Path) -> None:
    settings = BuildSettings(precision="fp32", options={"fixed_batch": (1,)})
    with pytest.raises(UsageError, match="--fixed-batch is for openvino, not for onnxruntime"):
        build_engine(small_graph, tmp_path / "x.ort.onnx", "onnxruntime", settings)
