"""Layers of two engines, paired by the PyTorch modules that they compute."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer.evaluation.engine_diff import compare_layers
from optimizer.results import LayerInfo


def layer(*modules: str, flops: int | None = 100, **more: Any) -> LayerInfo:
    plain = {"name": "+".join(modules), "type": "conv", "precision": "fp16", "bytes": 10}
    return LayerInfo(**{**plain, "torch_names": list(modules), "flops": flops, **more})


ENGINE = [
    layer("conv1", "relu"),
    layer("layer1.0.conv1", flops=300),
    layer(flops=None, name="cast"),
]


def test_an_engine_does_not_differ_from_itself() -> None:
    assert compare_layers(ENGINE, ENGINE) == []
    renamed = [one.model_copy(update={"name": "other"}) for one in ENGINE]
    assert compare_layers(ENGINE, renamed[:2]) == []


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"precision": "int8"}, ["precision"]),
        ({"tactic": "sm80_xmma"}, ["tactic"]),
        ({"type": "gemm"}, ["type"]),
        ({"bytes": 11}, ["size"]),
        ({"flops": 700}, ["FLOP share"]),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], differing: list[str]) -> None:
    other = [ENGINE[0].model_copy(update=change), *ENGINE[1:]]
    first, *rest = compare_layers(ENGINE, other)
    assert first.modules == ["conv1", "relu"]
    assert first.differing == differing
    # If the FLOPs change, so does the FLOP share of the other layers, and nothing else.
    assert [one.differing for one in rest] == ([["FLOP share"]] if "flops" in change else [])
    assert first.a is not None
    assert first.a.flop_share == pytest.approx(0.25)


def test_a_different_fusion() -> None:
    """In b the ReLU has its own kernel, which also rescales conv1; conv1 has the FLOPs."""
    apart = [ENGINE[0].model_copy(update={"torch_names": ["conv1"]}), ENGINE[1],
             layer("relu", "conv1", flops=None, type="kgen")]  # fmt: skip
    conv, relu = compare_layers(ENGINE, apart)
    assert (conv.modules, conv.differing) == (["conv1"], ["fusion"])
    assert conv.a is not None
    assert conv.b is not None
    assert (conv.a.fused_with, conv.b.fused_with) == (["relu"], [])
    assert relu.modules == ["relu"]
    assert relu.b is not None
    assert relu.b.type == "kgen"
    assert relu.b.flop_share is None


def test_a_layer_that_only_one_engine_lists() -> None:
    (difference,) = compare_layers(ENGINE, [*ENGINE[:2], layer("fc", flops=0)])
    assert difference.modules == ["fc"]
    assert difference.a is None
    assert difference.differing == ["presence"]
