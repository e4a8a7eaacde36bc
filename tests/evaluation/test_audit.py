"""The precision audit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.artifacts import Manifest
from optimizer.evaluation.precision_audit import audit, audit_manifest
from optimizer.results import LayerInfo

PRECISIONS = ["fp32", "tf32", "fp16", "bf16", "int8", "fp8", "unknown"]


def _layer(name: str, precision: str, flops: int | None = 100) -> LayerInfo:
    return LayerInfo(name=name, torch_names=[name], type="Conv", precision=precision, flops=flops)


def test_all_layers_in_the_asked_precision_pass() -> None:
    found = audit("int8", [_layer("conv1", "int8"), _layer("fc", "int8")])
    assert (found.verdict, found.share, found.computed) == ("pass", 1.0, {"int8": 1.0})
    assert found.differing == []


def test_a_small_layer_in_another_precision_is_named_and_passes() -> None:
    layers = [_layer("layer1.0.conv1", "int8", 990), _layer("fc", "fp32", 10)]
    found = audit("int8", layers)
    assert found.verdict == "pass"
    assert [layer.name for layer in found.differing] == ["fc"]
    assert "fc (fp32)" in found.reason


def test_a_large_layer_in_another_precision_fails_and_is_named() -> None:
    found = audit("int8", [_layer("conv1", "int8", 80), _layer("layer4.0.conv2", "fp32", 20)])
    assert found.verdict == "fail"
    assert found.share == pytest.approx(0.8)
    assert "layer4.0.conv2 (fp32)" in found.reason


def test_layers_without_weights_do_not_count() -> None:
    found = audit("int8", [_layer("conv1", "int8"), _layer("relu", "fp32", None)])
    assert found.verdict == "pass"
    assert found.share == 1.0


def test_tf32_is_not_fp32_unless_it_was_asked_for() -> None:
    layers = [_layer("conv1", "tf32")]
    assert audit("fp32", layers).verdict == "fail"
    assert audit("tf32", layers).verdict == "pass"


@pytest.mark.parametrize("layers", [[], [_layer("relu", "fp32", None)]])
def test_an_engine_that_tells_nothing_is_inconclusive(layers: list[LayerInfo]) -> None:
    found = audit("int8", layers)
    assert found.verdict == "inconclusive"
    assert found.share is None


def test_unknown_precision_decides_only_where_it_cannot_matter() -> None:
    assert (
        audit("int8", [_layer("a", "int8", 90), _layer("b", "unknown", 10)]).verdict
        == "inconclusive"
    )
    assert audit("int8", [_layer("a", "int8", 96), _layer("b", "unknown", 4)]).verdict == "pass"
    assert audit("int8", [_layer("a", "fp32", 90), _layer("b", "unknown", 10)]).verdict == "fail"


@given(
    st.lists(st.tuples(st.sampled_from(PRECISIONS), st.integers(1, 10**9)), min_size=1),
    st.sampled_from(PRECISIONS[:-1]),
)
def test_shares_add_up_and_the_differing_layers_make_the_rest(
    made: list[tuple[str, int]], asked: str
) -> None:
    layers = [_layer(f"l{i}", precision, flops) for i, (precision, flops) in enumerate(made)]
    found = audit(asked, layers)
    assert sum(found.computed.values()) == pytest.approx(1)
    total = sum(flops for _, flops in made)
    assert found.share is not None
    assert found.share + sum(x.flops or 0 for x in found.differing) / total == pytest.approx(1)
    assert (found.verdict == "pass") == (found.share >= 0.95)


def test_a_stem_kept_high_is_as_asked_of_fp8() -> None:
    layers = [
        LayerInfo(name="a", torch_names=["conv1", "relu"], type="Conv", precision="fp16", flops=20),
        LayerInfo(name="b", torch_names=["fc"], type="Gemm", precision="fp8", flops=80),
    ]
    assert audit("fp8", layers).verdict == "fail"
    found = audit("fp8", layers, keep=["conv1"])
    assert (found.verdict, found.share) == ("pass", 1.0)
    assert found.reason == "100.0 % of the FLOPs are as asked (80.0 % FP8, 20.0 % FP16)"
    assert audit("fp8", layers, keep=["fc"]).verdict == "fail"


def test_a_mix_is_as_asked_where_kept_layers_are_not_int8() -> None:
    layers = [_layer("a", "int8", 60), _layer("b", "fp32", 40)]
    named = [layer.model_copy(update={"torch_names": [layer.name]}) for layer in layers]
    good = audit("mixed", named, keep=["b"])
    assert (good.verdict, good.share) == ("pass", 1.0)
    assert "60.0 % INT8, 40.0 % FP32" in good.reason
    wrong = audit("mixed", named, keep=["a"])
    assert (wrong.verdict, wrong.share) == ("fail", 0.0)
    assert len(wrong.differing) == 2
    assert audit("mixed", named).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("backend", "precision", "options", "computed", "asked", "verdict"),
    [
        ("openvino", "fp16", {"storage_only": True}, "fp32", "fp32", "pass"),
        ("tensorrt-rtx", "int8", {"storage_only": True}, "fp16", "int8", "fail"),
        ("tensorrt", "fp32", {"tf32": True}, "tf32", "tf32", "pass"),
        ("tensorrt", "fp32", {}, "tf32", "fp32", "fail"),
        ("tensorrt-rtx", "fp32", {"tf32": True}, "fp32", "fp32", "pass"),  # it ignores the option
    ],
)
def test_what_was_asked_of_an_engine(
    backend: str, precision: str, options: dict, computed: str, asked: str, verdict: str
) -> None:
    manifest = Manifest(
        kind="engine",
        file="e",
        sha256="0",
        created="now",
        tool={},
        key="0",
        settings={"backend": backend, "precision": precision, "options": options},
        details={"layers": [_layer("conv1", computed).model_dump()]},
    )
    found = audit_manifest(manifest)
    assert (found.asked, found.verdict) == (asked, verdict)
