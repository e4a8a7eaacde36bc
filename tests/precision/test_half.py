"""FP16 and BF16 graphs: constants and tensors in the half type, float32 inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import optimizer
from optimizer.errors import GraphError
from optimizer.precision.half import LARGEST, out_of_range, overflowing_constants, to_half
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run, statistics

KINDS = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


@pytest.mark.parametrize("kind", KINDS)
def test_constants_and_inner_tensors_are_half(kind: ir.DataType) -> None:
    model = network(0)
    to_half(model, kind)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert {v.dtype for v in model.graph.initializers.values()} == {kind}
    inner = {v.dtype for n in list(model.graph)[:-1] for v in n.outputs}
    assert inner == {kind}
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert [v.name for v in model.graph.outputs] == ["logits"]


def test_fp16_is_close() -> None:
    model = network(3)
    to_half(model, ir.DataType.FLOAT16)
    batch = images(8)
    assert noise_db(run(network(3), batch)[0], run(model, batch)[0]) > 50


@pytest.mark.parametrize(("kind", "names"), [(KINDS[0], ["conv1.weight"]), (KINDS[1], [])])
def test_an_overflowing_constant_is_named(kind: ir.DataType, names: list[str]) -> None:
    model = network(0)
    weight = model.graph.initializers["conv1.weight"]
    assert weight.const_value is not None
    large = weight.const_value.numpy().copy()
    large.flat[0] = 1e6
    weight.const_value = ir.tensor(large, name="conv1.weight")
    assert overflowing_constants(model, kind) == names
    if names:
        with pytest.raises(GraphError, match=r"conv1\.weight has values outside the range of FP16"):
            to_half(model, kind)


def test_bf16_raises_the_opset(small_graph: Path, tmp_path: Path) -> None:
    from optimizer.precision import quantize

    artifact = quantize(small_graph, tmp_path / "b.onnx", precision="bf16")
    proto = onnx.load(artifact.path)
    assert proto.opset_import[0].version >= 22
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert metadata["resnet_opt.precision"] == "bf16"


def overflowing(seed: int, *, bottleneck: bool = True) -> ir.Model:
    """The residual stream of the second block exceeds FP16, and the classifier scales it back."""
    model = network(seed, bottleneck=bottleneck)

    def scale(name: str, factor: float) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy() * np.float32(factor)
        value.const_value = ir.tensor(array, name=name)

    first, last = ("conv2", "conv3") if bottleneck else ("conv1", "conv2")
    for part in ("weight", "bias"):
        scale(f"layer1.1.{first}.{part}", 300.0)
    scale(f"layer1.1.{last}.weight", 1000.0)  # its constants all fit
    scale("fc.weight", 1 / 3e5)
    return model


def largest_values(model: ir.Model) -> dict[str, float]:
    tensors = statistics(model, [images(64, 1)]).tensors
    return {name: float(tensor.absolute_maximum.max()) for name, tensor in tensors.items()}


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 10_000), bottleneck=st.booleans())
def test_tensors_that_overflow_in_calibration_stay_in_fp32(seed: int, bottleneck: bool) -> None:
    tensors = largest_values(overflowing(seed, bottleneck=bottleneck))
    assume(tensors["layer1.1.relu_2"] > 2 * LARGEST[KINDS[0]])
    kept = out_of_range(overflowing(seed, bottleneck=bottleneck), KINDS[0], tensors)
    last = "layer1.1.conv3" if bottleneck else "layer1.1.conv2"
    # The layer that produces it, and all nodes that read it until the average pooling.
    assert {last, "layer1.1.add", "layer1.1.relu_2", "avgpool"} <= set(kept)
    assert "on the calibration images, above the FP16 maximum of 65,504" in kept[last]
    assert not [name for name in kept if name.startswith(("conv1", "relu", "layer1.0"))]
    model = overflowing(seed, bottleneck=bottleneck)
    to_half(model, KINDS[0], kept)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for node in model.graph:
        if node.op_type in {"Conv", "Gemm"}:
            kind = ir.DataType.FLOAT if node.name in kept else KINDS[0]
            assert {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} == {kind}
    batch = images(8)
    (reference,) = run(overflowing(seed, bottleneck=bottleneck), batch)
    assert noise_db(reference, run(model, batch)[0]) > 40
    all_half = overflowing(seed, bottleneck=bottleneck)
    to_half(all_half, KINDS[0])
    # A CPU computes in FP32 between its Casts, so look at the tensor itself.
    (stream,) = run(all_half, batch, ["layer1.1.relu_2"])
    assert stream.dtype == np.float16
    assert not np.isfinite(stream).all(), "FP16 alone must overflow, otherwise nothing is tested"


def test_bf16_holds_what_fp16_cannot() -> None:
    assert out_of_range(overflowing(1), KINDS[1], largest_values(overflowing(1))) == {}


def test_no_node_is_kept_without_a_reason() -> None:
    assert out_of_range(network(2), KINDS[0], largest_values(network(2))) == {}
    assert out_of_range(network(2), KINDS[0]) == {}
    large = dict.fromkeys(largest_values(network(2)), LARGEST[KINDS[0]])
    assert out_of_range(network(2), KINDS[0], large) == {}


def test_a_constant_above_the_fp16_range_keeps_only_its_layer() -> None:
    def make() -> ir.Model:
        model = network(0)
        value = model.graph.initializers["fc.bias"]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[0] = 7e4
        value.const_value = ir.tensor(array, name="fc.bias")
        return model

    kept = out_of_range(make(), KINDS[0])
    assert kept == {"fc": "fc.bias has values above 65,504"}
    model = make()
    to_half(model, KINDS[0], kept)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.initializers["fc.weight"].dtype == ir.DataType.FLOAT
    batch = images(8)
    assert noise_db(run(make(), batch)[0], run(model, batch)[0]) > 50


def test_a_shared_constant_is_stored_in_both_types() -> None:
    model = network(0)
    shared = model.graph.initializers["layer1.0.conv1.bias"]
    conv1 = next(n for n in model.graph if n.name == "conv1")
    conv1.replace_input_with(2, shared)
    to_half(model, KINDS[0], ["conv1"])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.initializers["layer1.0.conv1.bias"].dtype == KINDS[0]
    assert model.graph.initializers["layer1.0.conv1.bias.float"].dtype == ir.DataType.FLOAT


def test_the_graph_and_its_engine_list_kept_layers(tmp_path: Path) -> None:
    """End to end, with calibration from a file; a storage-only CPU engine has the notes too."""
    from optimizer.evaluation.precision_audit import audit_manifest
    from optimizer.graphs.facts import graph_facts
    from tests.search.networks import data, graph_file

    graph = graph_file(tmp_path / "overflowing.onnx", overflowing(1))
    calib = data(tmp_path / "calib.npz", 64, 1)
    artifact = optimizer.quantize(graph, tmp_path / "half.onnx", precision="fp16", calib=calib)
    notes = artifact.manifest.details["notes"]
    assert any(note.startswith("layer1.1.conv3 stays in FP32: layer1.1.") for note in notes)
    facts = graph_facts(artifact.path)
    assert "layer1.1.conv3" in facts.keep
    assert facts.notes == notes
    engine = optimizer.build(
        artifact.path,
        tmp_path / "half.blob",
        precision="fp16",
        engine="openvino",
        storage_only=True,
    )
    assert set(notes) <= set(engine.manifest.details["notes"])
    assert audit_manifest(engine.manifest).verdict == "pass"


def test_an_output_that_overflows_stays_in_fp32(tmp_path: Path) -> None:
    from tests.search.networks import data, graph_file

    model = network(1)
    value = model.graph.initializers["fc.weight"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1e4), name="fc.weight")
    graph = graph_file(tmp_path / "large.onnx", model)
    calib = data(tmp_path / "calib.npz", 64, 1)
    artifact = optimizer.quantize(graph, tmp_path / "half.onnx", precision="fp16", calib=calib)
    (note,) = artifact.manifest.details["notes"]
    assert note.startswith("fc stays in FP32: logits reaches ")


def test_a_graph_without_types_inside_is_converted(tmp_path: Path) -> None:
    """Exporters need not write `value_info`; Casts around kept nodes depend on the types."""
    from tests.search.networks import data, graph_file

    proto = onnx.load(graph_file(tmp_path / "typed.onnx", overflowing(1)))
    del proto.graph.value_info[:]
    onnx.save(proto, tmp_path / "untyped.onnx")
    calib = data(tmp_path / "calib.npz", 64, 1)
    artifact = optimizer.quantize(
        tmp_path / "untyped.onnx", tmp_path / "half.onnx", precision="fp16", calib=calib
    )
    onnx.checker.check_model(onnx.load(artifact.path), full_check=True)
    assert any("stays in FP32" in note for note in artifact.manifest.details["notes"])


def test_without_calibration_the_note_says_what_was_not_done(tmp_path: Path) -> None:
    from optimizer.evaluation.chain import Step
    from optimizer.evaluation.executors import open_step
    from tests.search.networks import graph_file

    graph = graph_file(tmp_path / "overflowing.onnx", overflowing(1))
    artifact = optimizer.quantize(graph, tmp_path / "half.onnx", precision="fp16")
    (note,) = artifact.manifest.details["notes"]
    assert "overflow of FP16 was not looked for" in note
    step = Step(name="g", parent="r", kind="graph", path=artifact.path, precision="fp16")
    executor = open_step(step, 8)
    batch = images(8)
    assert not np.isfinite(executor.run(batch)).all()
    assert executor.explain is not None
    assert (executor.explain(batch) or "").startswith("layer1.1.")
    assert not optimizer.quantize(
        graph, tmp_path / "bf16.onnx", precision="bf16"
    ).manifest.details.get("notes")


def test_tensors_that_overflow_the_fp16_around_int8_are_noted() -> None:
    from optimizer.options import EncodingOptions
    from optimizer.precision.int8 import compute_encodings
    from optimizer.targets.rules import TARGETS

    options = EncodingOptions(method="minmax", bias_correction="none")
    observed = statistics(overflowing(1), [images(64, 1)])
    notes = compute_encodings(overflowing(1), observed, TARGETS["tensorrt"], "0", options).notes
    assert notes[0].startswith("layer1.1.")
    assert "--high-precision fp32" in notes[0]
    assert not compute_encodings(overflowing(1), observed, TARGETS["openvino"], "0", options).notes
