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


def test_all_layers_in_the_requested_precision_pass() -> None:
    result = audit("int8", [_layer("conv1", "int8"), _layer("fc", "int8")])
    assert (result.verdict, result.share, result.computed) == ("pass", 1.0, {"int8": 1.0})
    assert result.differing == []


def test_a_small_layer_in_another_precision_is_named_and_passes() -> None:
    layers = [_layer("layer1.0.conv1", "int8", 990), _layer("fc", "fp32", 10)]
    result = audit("int8", layers)
    assert result.verdict == "pass"
    assert [layer.name for layer in result.differing] == ["fc"]
    assert "fc (fp32)" in result.reason


def test_a_large_layer_in_another_precision_fails_and_is_named() -> None:
    result = audit("int8", [_layer("conv1", "int8", 80), _layer("layer4.0.conv2", "fp32", 20)])
    assert result.verdict == "fail"
    assert result.share == pytest.approx(0.8)
    assert "layer4.0.conv2 (fp32)" in result.reason


def test_layers_without_weights_do_not_count() -> None:
    result = audit("int8", [_layer("conv1", "int8"), _layer("relu", "fp32", None)])
    assert result.verdict == "pass"
    assert result.share == 1.0


def test_tf32_counts_as_fp32_only_if_requested() -> None:
    layers = [_layer("conv1", "tf32")]
    assert audit("fp32", layers).verdict == "fail"
    assert audit("tf32", layers).verdict == "pass"


@pytest.mark.parametrize("layers", [[], [_layer("relu", "fp32", None)]])
def test_an_engine_that_reports_nothing_is_inconclusive(layers: list[LayerInfo]) -> None:
    result = audit("int8", layers)
    assert result.verdict == "inconclusive"
    assert result.share is None


def test_layers_of_unknown_precision_are_inconclusive_only_if_they_matter() -> None:
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
def test_shares_add_up_and_the_differing_layers_are_the_rest(
    drawn: list[tuple[str, int]], requested: str
) -> None:
    layers = [_layer(f"l{i}", precision, flops) for i, (precision, flops) in enumerate(drawn)]
    result = audit(requested, layers)
    assert sum(result.computed.values()) == pytest.approx(1)
    total = sum(flops for _, flops in drawn)
    assert result.share is not None
    assert result.share + sum(x.flops or 0 for x in result.differing) / total == pytest.approx(1)
    assert (result.verdict == "pass") == (result.share >= 0.95)


def test_fp8_passes_with_a_stem_kept_in_high_precision() -> None:
    layers = [
        LayerInfo(name="a", torch_names=["conv1", "relu"], type="Conv", precision="fp16", flops=20),
        LayerInfo(name="b", torch_names=["fc"], type="Gemm", precision="fp8", flops=80),
    ]
    assert audit("fp8", layers).verdict == "fail"
    result = audit("fp8", layers, keep=["conv1"])
    assert (result.verdict, result.share) == ("pass", 1.0)
    assert result.reason == (
        "100.0 % of the FLOPs are computed in the requested precision (80.0 % FP8, 20.0 % FP16)"
    )
    assert audit("fp8", layers, keep=["fc"]).verdict == "fail"


def test_mixed_precision_passes_if_the_kept_layers_are_not_int8() -> None:
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
    ("backend", "precision", "options", "computed", "requested", "verdict"),
    [
        ("openvino", "fp16", {"storage_only": True}, "fp32", "fp32", "pass"),
        ("tensorrt-rtx", "int8", {"storage_only": True}, "fp16", "int8", "fail"),
        ("tensorrt", "fp32", {"tf32": True}, "tf32", "tf32", "pass"),
        ("tensorrt", "fp32", {}, "tf32", "fp32", "fail"),
        ("tensorrt-rtx", "fp32", {"tf32": True}, "fp32", "fp32", "pass"),  # it ignores the option
    ],
)
def test_the_requested_precision_follows_from_the_settings(
    backend: str, precision: str, options: dict, computed: str, requested: str, verdict: str
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
    result = audit_manifest(manifest)
    assert (result.asked, result.verdict) == (requested, verdict)
