"""Layers that stay in high precision: lowering, simulation and rejected input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import ArtifactError, UsageError
from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import Encodings, compute_encodings, lower
from optimizer.precision.int8.simulation import Simulation, batches, quantized_parameters
from optimizer.targets.rules import TARGETS
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run, statistics

RULES = {
    name: replace(rules, high_precision="fp32", constants="fp32", weight_max=127)
    for name, rules in TARGETS.items()
}
LAYERS = {
    kind: [str(node.name) for node in analyse(network(0, bottleneck=kind)).layers()]
    for kind in (True, False)
}


@st.composite
def kept(draw: st.DrawFn) -> tuple[int, bool, tuple[str, ...]]:
    bottleneck = draw(st.booleans())
    names = draw(st.sets(st.sampled_from(LAYERS[bottleneck])))
    return draw(st.integers(0, 10_000)), bottleneck, tuple(names)


def _encode(
    seed: int, target: str, options: EncodingOptions, *, bottleneck: bool = True
) -> tuple[ir.Model, Encodings]:
    model = network(seed, bottleneck=bottleneck)
    observed = statistics(network(seed, bottleneck=bottleneck), [images(64, 1)])
    return model, compute_encodings(model, observed, RULES[target], "0", options)


@settings(max_examples=8)
@given(case=kept())
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_kept_layers_compute_in_high_precision(
    target: str, case: tuple[int, bool, tuple[str, ...]]
) -> None:
    """As written and as simulated, with no pair on input or weight."""
    seed, bottleneck, keep = case
    options = EncodingOptions(method="minmax", keep=keep)
    model, encodings = _encode(seed, target, options, bottleneck=bottleneck)
    assert set(encodings.keep) == set(keep)
    simulation = Simulation(analyse(model), RULES[target], encodings.keep)
    batch = images(16, 9)
    (tensor,) = batches(batch, 16)
    stored = quantized_parameters(simulation.topology, encodings)
    actual = simulation.run(tensor, stored, encodings)["logits"].numpy()
    (reference,) = run(network(seed, bottleneck=bottleneck), batch)
    lower(model, encodings, RULES[target])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (written,) = run(model, batch)
    # Only ties may differ, where sums in another order round the other way.
    assert noise_db(written, actual) > min(noise_db(reference, written) + 6, 90)
    for node in model.graph:
        if node.op_type in {"Conv", "Gemm"}:
            sources = [v.producer() for v in node.inputs[:2] if v is not None]
            pairs = [p is not None and p.op_type == "DequantizeLinear" for p in sources]
            assert pairs == ([False, False] if node.name in keep else [True, True]), node.name


@settings(max_examples=5)
@given(seed=st.integers(0, 10_000), bottleneck=st.booleans())
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_keeping_all_layers_gives_the_fp32_network(
    target: str, seed: int, bottleneck: bool
) -> None:
    options = EncodingOptions(keep=tuple(LAYERS[bottleneck]))
    model, encodings = _encode(seed, target, options, bottleneck=bottleneck)
    lower(model, encodings, RULES[target])
    batch = images(8, 3)
    (expected,), (actual,) = run(network(seed, bottleneck=bottleneck), batch), run(model, batch)
    np.testing.assert_array_equal(actual, expected)
    assert not [n for n in model.graph if n.op_type.endswith("Linear")]
    assert model.metadata_props["resnet_opt.precision"] == "fp32"


@settings(max_examples=8)
@given(case=kept())
@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_keeping_more_layers_only_removes_pairs(
    target: str, case: tuple[int, bool, tuple[str, ...]]
) -> None:
    seed, bottleneck, keep = case
    topology = analyse(network(seed, bottleneck=bottleneck))
    some = topology.quantized_edges(RULES[target], keep)
    assert set(some) <= set(topology.quantized_edges(RULES[target]))
    assert set(topology.quantized_edges(RULES[target], (*keep, "fc"))) <= set(some)


def test_an_add_is_kept_with_the_layer_it_fuses_with() -> None:
    topology = analyse(network(0))

    def places(*keep: str, target: str = "openvino") -> set[tuple[str, int]]:
        edges = topology.quantized_edges(RULES[target], keep)
        return {(edge.node, edge.index) for edge in edges}

    everything = places()
    assert everything - places("layer1.0.conv3") == {("layer1.0.conv3", 0), ("layer1.0.add", 1)}
    on_integers = places(target="onnxruntime") - places("layer1.0.conv3", target="onnxruntime")
    assert on_integers == {("layer1.0.conv3", 0), ("layer1.0.add", 0), ("layer1.0.add", 1)}
    assert everything - places("layer1.0.downsample.0") == {
        ("layer1.0.downsample.0", 0), ("maxpool", 0),
    }  # fmt: skip
    assert everything - places("fc") == {("fc", 0), ("avgpool", 0)}


def test_an_unknown_layer_is_rejected_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no layer 'layer1\.0\.cov2'.*mean layer1\.0\.conv2"):
        _encode(0, "openvino", EncodingOptions(keep=("layer1.0.cov2",)))


def test_layers_can_be_added_to_and_removed_from_the_list(tmp_path: Path) -> None:
    _, encodings = _encode(1, "openvino", EncodingOptions(keep=("fc", "conv1")))
    encodings.save(tmp_path / "e.json")
    text = (tmp_path / "e.json").read_text()
    assert ' "keep": ["conv1", "fc"],' in text
    (tmp_path / "e.json").write_text(text.replace('["conv1", "fc"]', '["layer1.1.conv2", "fc"]'))
    model = network(1)
    lower(model, Encodings.load(tmp_path / "e.json"), RULES["openvino"])
    names = {str(node.name) for node in model.graph}
    assert "conv1.weight.dequantize" in names
    assert not names & {"layer1.1.conv2.weight.dequantize", "fc.weight.dequantize"}


def test_a_kept_layer_cannot_read_a_shifted_tensor() -> None:
    """Only possible in an edited file: computed encodings never shift inputs of kept layers."""
    model, encodings = _encode(1, "tensorrt", EncodingOptions())
    assert encodings.tensors["layer1.0.relu_1"].shifted
    with pytest.raises(ArtifactError, match=r"layer1\.0\.relu_1 is shifted"):
        lower(model, encodings.model_copy(update={"keep": ["layer1.0.conv3"]}), RULES["tensorrt"])
    _, computed = _encode(1, "tensorrt", EncodingOptions(keep=("layer1.0.conv3",)))
    assert not computed.tensors["layer1.0.relu_1"].shifted
