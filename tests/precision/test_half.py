"""FP16 and BF16 graphs: every constant and tensor in the half type, float32 outside."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from optimizer.errors import GraphError
from optimizer.precision.half import overflowing, to_half
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run

KINDS = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_inside_is_half(kind: ir.DataType) -> None:
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
def test_what_does_not_fit_is_named(kind: ir.DataType, names: list[str]) -> None:
    model = network(0)
    weight = model.graph.initializers["conv1.weight"]
    assert weight.const_value is not None
    large = weight.const_value.numpy().copy()
    large.flat[0] = 1e6
    weight.const_value = ir.tensor(large, name="conv1.weight")
    assert overflowing(model, kind) == names
    if names:
        with pytest.raises(GraphError, match=r"conv1\.weight has values that FP16 cannot hold"):
            to_half(model, kind)


def test_bf16_takes_the_opset_it_needs(small_graph: Path, tmp_path: Path) -> None:
    from optimizer.precision import quantize

    made = quantize(small_graph, tmp_path / "b.onnx", precision="bf16")
    proto = onnx.load(made.path)
    assert proto.opset_import[0].version >= 22
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert metadata["resnet_opt.precision"] == "bf16"
