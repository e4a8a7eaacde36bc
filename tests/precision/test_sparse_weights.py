"""2:4 sparse weights keep their zeros through every pass of quantization."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from optimizer.graphs.sparse_layers import sparse_layers
from optimizer.graphs.topology import analyse
from optimizer.targets.rules import TARGETS
from optimizer.targets.structured_sparsity import magnitude_mask
from tests.precision.networks import network
from tests.precision.test_int8_graphs import lowered


def pruned_network() -> ir.Model:
    """All layers but the first with 2:4 sparse weights."""
    model = network(3, width=8)
    topology = analyse(model)
    for node in topology.layers():
        weight = topology.weight(node)
        if weight.shape[1] % 4 == 0:
            value = node.inputs[1]
            assert value is not None
            value.const_value = ir.tensor(weight * magnitude_mask(weight), name=value.name)
    return model


def _saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_quantization_keeps_the_pattern(target: str, tmp_path: Path) -> None:
    """Ranges, equalization, bias correction, shift and FP16 constants are all on."""
    float_file = _saved(pruned_network(), tmp_path / "float.onnx")
    model, encodings = lowered(pruned_network, TARGETS[target])
    assert any(layer.input_factor for layer in encodings.layers.values())
    before, after = sparse_layers(float_file), sparse_layers(_saved(model, tmp_path / "int8.onnx"))
    assert before.names == after.names
    assert (len(after.names), after.layers) == (8, 9)
    assert "conv1" not in after.names
    assert 0 < after.flop_share < 1
    assert after.flop_share == pytest.approx(before.flop_share)


def test_dense_layers_have_no_pattern(tmp_path: Path) -> None:
    found = sparse_layers(_saved(network(3, width=8), tmp_path / "dense.onnx"))
    assert (found.names, found.layers, found.flop_share) == ((), 9, 0.0)
