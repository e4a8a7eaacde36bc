"""Injected faults on a trained network: each is detected and attributed to the right hop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from optimizer.artifacts import digest, manifest_path, read_manifest
from optimizer.data import open_dataset
from optimizer.engines import BuildSettings
from optimizer.engines.building import build_engine
from optimizer.errors import AccuracyGateFailed, DataError
from optimizer.evaluation import Chain, layerwise, raise_for_verdict, validate
from optimizer.exporting import export_onnx
from optimizer.models import load_model
from optimizer.results import Gates, ValidateResult
from tests.evaluation.conftest import Workshop, largest_fall
from tests.manifests import edit_manifest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

GATES = Gates(max_drop_pp=5.0)
IMAGES = np.arange(200, dtype=np.int64)


def _validate(workshop: Workshop, *chains: Chain, **options: Any) -> ValidateResult:
    data = workshop.data.select(IMAGES)
    return validate(list(chains), workshop.model, data, GATES, **options)


def _edited(
    source: Path, target: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> Path:
    """A copy of a graph, without its manifest, with some initializers replaced."""
    proto = onnx.load(source)
    tensors = {t.name: t for t in proto.graph.initializer}
    arrays = {name: numpy_helper.to_array(t) for name, t in tensors.items()}
    for name, array in edit(arrays).items():
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.save(proto, target)
    return target


def _engine(graph: Path, precision: str = "int8") -> Path:
    path = graph.with_suffix(".blob")
    build_engine(graph, path, "openvino", BuildSettings(precision=precision))
    return path


# --- no fault ------------------------------------------------------------------------------


def test_a_correct_chain_passes_in_every_hop(workshop: Workshop) -> None:
    result = _validate(
        workshop,
        Chain(label="ov", model=workshop.onnx, graph=workshop.int8, engine=workshop.engine),
    )
    assert [(h.name, h.parent, h.status) for h in result.hops] == [
        ("reference", None, "ok"),
        ("onnx fp32", "reference", "ok"),
        ("graph int8", "onnx fp32", "ok"),
        ("ov", "graph int8", "ok"),
    ]
    assert (result.verdict, result.first_failing_hop) == ("pass", None)
    reference, export, graph, engine = result.hops
    assert reference.top1 is not None
    assert reference.top1 > 0.93
    assert (export.flips, export.drop_pp) == (0, 0.0)
    assert export.sqnr_db is not None
    assert export.sqnr_db > 100
    assert graph.sqnr_db is not None
    assert 20 < graph.sqnr_db < 60
    assert engine.sqnr_vs_parent_db is not None
    assert engine.sqnr_vs_parent_db > 20
    assert engine.executor.startswith("openvino ")
    (consistency,) = result.batch_consistency
    assert (consistency.engine, consistency.verdict) == ("ov", "pass")
    assert result.audits["ov"].asked == "int8"
    raise_for_verdict(result)


def test_the_users_onnx_file_can_be_the_reference(workshop: Workshop) -> None:
    data = workshop.data.select(IMAGES)
    chain = Chain(label="ov", model=workshop.onnx, graph=workshop.int8, engine=workshop.engine)
    result = validate([chain], workshop.onnx, data, GATES)
    assert [h.name for h in result.hops] == ["reference", "graph int8", "ov"]
    assert result.hops[0].executor.startswith("ONNX Runtime")
    assert result.verdict == "pass"


def test_half_precision_graphs_are_executed_as_written(workshop: Workshop, tmp_path: Path) -> None:
    from optimizer.precision import quantize

    chains = []
    for precision in ("fp16", "bf16"):
        path = tmp_path / f"{precision}.onnx"
        quantize(workshop.onnx, path, precision=precision)
        chains.append(Chain.of(path, model=workshop.onnx))
    result = _validate(workshop, *chains)
    noise = {hop.precision: hop.sqnr_db for hop in result.hops[2:]}
    assert noise["fp16"] is not None
    assert noise["bf16"] is not None
    assert 55 < noise["fp16"] < 90
    assert 35 < noise["bf16"] < 60
    assert result.verdict == "pass"


# --- preprocessing and labels ------------------------------------------------------------------------


def test_swapped_colour_channels_are_attributed_to_the_export(
    workshop: Workshop, tmp_path: Path
) -> None:
    swapped = _edited(
        workshop.onnx,
        tmp_path / "bgr.onnx",
        lambda arrays: {"conv1.weight": arrays["conv1.weight"][:, ::-1]},
    )
    result = _validate(workshop, Chain.of(workshop.int8, model=swapped))
    assert result.first_failing_hop == "onnx fp32"
    assert "the loss comes from the export (onnx fp32), not from quantization" in result.finding
    with pytest.raises(AccuracyGateFailed):
        raise_for_verdict(result)


@pytest.mark.long
def test_a_wrong_mean_in_a_graph_with_uint8_input_is_attributed_to_the_export(
    workshop: Workshop, tmp_path: Path
) -> None:
    right = tmp_path / "pixels.onnx"
    export_onnx(workshop.model, right, input="uint8-nhwc")
    correct = _validate(workshop, Chain.of(right))
    assert correct.verdict == "pass"
    assert correct.hops[1].flips == 0
    wrong = _edited(
        right,
        tmp_path / "wrong.onnx",
        lambda arrays: {"normalize.shift": arrays["normalize.shift"] - 3.0},
    )
    result = _validate(workshop, Chain.of(wrong), Chain.of(workshop.int8, model=workshop.onnx))
    assert result.first_failing_hop == "onnx fp32"
    assert "the loss comes from the export" in result.finding
    by_name = {hop.name: hop.verdict for hop in result.hops}
    assert by_name["graph int8"] == "pass"


@pytest.mark.parametrize("change", [{"color": "BGR"}, {"mean": (0.9, 0.9, 0.9)}])
def test_wrong_preprocessing_of_the_reference_is_an_error(
    workshop: Workshop, change: dict[str, Any]
) -> None:
    wrong = replace(workshop.model, preprocessing=replace(workshop.model.preprocessing, **change))
    object.__setattr__(wrong, "expected_top1", 0.97)
    with pytest.raises(AccuracyGateFailed, match="the data or the preprocessing is wrong"):
        validate([Chain.of(workshop.onnx)], wrong, workshop.data.select(IMAGES), GATES)


@pytest.mark.parametrize("change", [{"color": "BGR"}, {"mean": (0.9, 0.9, 0.9)}])
def test_an_engine_for_other_preprocessing_fails_without_being_run(
    workshop: Workshop, change: dict[str, Any]
) -> None:
    wrong = replace(workshop.model, preprocessing=replace(workshop.model.preprocessing, **change))
    result = validate(
        [Chain(label="ov", engine=workshop.engine)], wrong, workshop.data.select(IMAGES), GATES
    )
    assert (result.verdict, result.first_failing_hop) == ("fail", "ov")
    assert f"int8.blob expects images with {next(iter(change))}" in result.finding


def test_a_shuffled_class_list_of_the_data_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with np.load(workshop.folder / "test.npz") as file:
        arrays = dict(file)
    arrays["classes"] = arrays["classes"][[1, 0, *range(2, 10)]]
    np.savez(tmp_path / "shuffled.npz", **arrays)
    with pytest.raises(DataError, match="classes in another order"):
        validate(
            [Chain.of(workshop.onnx)],
            workshop.model,
            open_dataset(tmp_path / "shuffled.npz"),
            GATES,
        )


def test_shuffled_labels_without_class_names_are_an_error(
    workshop: Workshop, tmp_path: Path
) -> None:
    with np.load(workshop.folder / "test.npz") as file:
        images, labels = file["images"], file["labels"]
    np.savez(tmp_path / "shuffled.npz", images=images, labels=(labels + 1) % 10)
    known = replace(workshop.model)
    object.__setattr__(known, "expected_top1", 0.97)
    with pytest.raises(AccuracyGateFailed, match="the data or the preprocessing is wrong"):
        validate([Chain.of(workshop.onnx)], known, open_dataset(tmp_path / "shuffled.npz"), GATES)


def test_a_shuffled_class_list_of_an_engine_is_attributed_to_the_engine(
    workshop: Workshop, tmp_path: Path
) -> None:
    engine = tmp_path / "shuffled.blob"
    shutil.copyfile(workshop.engine, engine)
    manifest = read_manifest(workshop.engine)
    assert manifest.classes is not None
    shuffled = [manifest.classes[1], manifest.classes[0], *manifest.classes[2:]]
    shutil.copyfile(manifest_path(workshop.engine), manifest_path(engine))
    edit_manifest(engine, classes=shuffled, file=engine.name)
    result = _validate(workshop, Chain(label="ov", graph=workshop.int8, engine=engine))
    assert result.first_failing_hop == "ov"
    assert "in a different order: output 0 is '1', not '0'" in result.finding
    assert result.hops[1].verdict == "pass"


# --- quantization and engines ------------------------------------------------------------------------


def _scaled(workshop: Workshop, layer: str, folder: Path) -> Path:
    name = f"{layer}.weight.scale"
    return _edited(workshop.int8, folder / "broken.onnx", lambda arrays: {name: arrays[name] * 4})


def test_a_scale_times_four_is_attributed_to_quantization_and_located(
    workshop: Workshop, tmp_path: Path
) -> None:
    broken = _scaled(workshop, "layer2.0.downsample.0", tmp_path)
    chain = Chain(label="ov", model=workshop.onnx, graph=broken, engine=_engine(broken))
    result = _validate(workshop, chain, layers=True)
    assert (result.verdict, result.first_failing_hop) == ("fail", "graph int8")
    source = "the loss comes from quantization (graph int8), not from the export or the engine"
    assert source in result.finding
    fall = largest_fall(result.layers["graph int8"])
    assert fall is not None
    assert fall[0] == "layer2.0"
    assert [b.module for b in result.layers["graph int8"]] == [
        "maxpool",
        *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
        "logits",
    ]


def test_a_fault_with_a_small_loss_is_inconclusive_but_located(
    workshop: Workshop, tmp_path: Path
) -> None:
    broken = _scaled(workshop, "layer2.0.conv2", tmp_path)
    result = _validate(workshop, Chain.of(broken, model=workshop.onnx), layers=True)
    assert result.verdict == "inconclusive"
    assert "the loss comes from quantization (graph int8), not from the export" in result.finding
    fall = largest_fall(result.layers["graph int8"])
    assert fall is not None
    assert fall[0] == "layer2.0"


def test_a_correct_int8_graph_has_no_large_fall(workshop: Workshop) -> None:
    few = workshop.data.select(IMAGES[:64])
    blocks = layerwise(workshop.model, workshop.int8, few)
    assert all(block.sqnr_db is not None and block.sqnr_db > 20 for block in blocks)
    fall = largest_fall(blocks)
    assert fall is not None
    assert fall[1] < 12
    by_file = layerwise(workshop.onnx, workshop.int8, few)
    assert [b.module for b in by_file] == [b.module for b in blocks]
    for from_file, from_model in zip(by_file, blocks, strict=True):
        assert from_file.sqnr_db == pytest.approx(from_model.sqnr_db, abs=0.1)


def test_an_engine_of_another_checkpoint_is_attributed_to_the_engine(
    workshop: Workshop, tmp_path: Path
) -> None:
    """The engine's graph is missing, so only the outputs show the fault."""
    other = tmp_path / "other.onnx"
    export_onnx(load_model(str(workshop.other_checkpoint)), other)
    with torch.no_grad():
        proto = ir.load(other)
        weight = proto.graph.initializers["fc.weight"]
        assert weight.const_value is not None
        turned = np.roll(weight.const_value.numpy(), 1, axis=0)
        weight.const_value = ir.tensor(turned, name="fc.weight")
        ir.save(proto, other)
    manifest_path(other).unlink()  # it describes the file before
    engine = _engine(other, "fp32")
    edit_manifest(engine, inputs=[])
    result = _validate(workshop, Chain(label="ov", model=workshop.onnx, engine=engine))
    assert result.first_failing_hop == "ov"
    assert "the loss comes from the engine (ov), not from the export" in result.finding


def test_an_engine_of_another_graph_is_detected_by_its_manifest(
    workshop: Workshop, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    export_onnx(load_model(str(workshop.other_checkpoint)), other)
    engine = _engine(other, "fp32")
    result = _validate(workshop, Chain(label="ov", graph=workshop.onnx, engine=engine))
    assert result.first_failing_hop == "ov"
    assert "was built from a different graph (other.onnx), not the given one" in result.finding
    assert result.hops[1].verdict == "pass"


@pytest.mark.long
def test_a_consistent_chain_of_another_checkpoint_is_attributed_to_the_export(
    workshop: Workshop, tmp_path: Path
) -> None:
    """The engine and its graph agree with each other but come from different weights."""
    other = tmp_path / "other.onnx"
    model = load_model(str(workshop.other_checkpoint))
    with torch.no_grad():
        model.module.fc.weight.copy_(model.module.fc.weight.roll(1, dims=0))
    export_onnx(replace(model, sha256="0" * 64), other)
    engine = _engine(other, "fp32")
    result = _validate(workshop, Chain.of(engine))
    assert result.first_failing_hop == "onnx fp32"
    assert "was exported from a different checkpoint" in result.finding


def test_a_fixed_batch_size_is_attributed_to_the_graph(workshop: Workshop, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.onnx"
    proto = onnx.load(workshop.onnx)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, frozen)
    result = _validate(workshop, Chain.of(frozen), Chain.of(workshop.int8, model=workshop.onnx))
    assert result.first_failing_hop == "onnx fp32"
    assert "the batch size of frozen.onnx is fixed at 2" in result.finding
    by_name = {hop.name: hop.verdict for hop in result.hops}
    assert by_name["graph int8"] == "pass"


def test_a_modified_engine_file_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    from optimizer.errors import ArtifactError

    engine = tmp_path / "e.blob"
    engine.write_bytes(workshop.engine.read_bytes() + b"x")
    shutil.copyfile(manifest_path(workshop.engine), manifest_path(engine))
    assert digest(engine) != digest(workshop.engine)
    with pytest.raises(ArtifactError, match="was changed since its manifest was written"):
        _validate(workshop, Chain(label="ov", engine=engine))
