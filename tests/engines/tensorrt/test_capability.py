from __future__ import annotations

import pytest

from optimizer.engines.tensorrt.capability import (
    check_capability,
    check_high_precision,
    check_precision,
    parse_targets,
    sm_name,
)
from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX
from optimizer.errors import MissingDevice, UnsupportedPrecision, UsageError


def test_targets_are_read_in_every_spelling() -> None:
    assert parse_targets(TENSORRT_RTX, ["sm120", "8.6", "SM_89", "75", "8.6"]) == (75, 86, 89, 120)
    assert sm_name((12, 0)) == "sm120"


@pytest.mark.parametrize("target", ["ampere", "", "8", "sm", "sm86a", "-86"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(UsageError, match="is not a compute capability"):
        parse_targets(TENSORRT_RTX, [target])


def test_rtx_has_no_hopper() -> None:
    with pytest.raises(UsageError, match=r"does not compile for sm90 \(Hopper\)") as caught:
        parse_targets(TENSORRT_RTX, ["sm86", "sm90"])
    assert "--engine tensorrt" in str(caught.value.hint)
    with pytest.raises(MissingDevice, match=r"does not run on sm90 \(Hopper\)"):
        check_capability(TENSORRT_RTX, (9, 0))
    assert parse_targets(TENSORRT, ["sm90"]) == (90,)
    check_capability(TENSORRT, (9, 0))
    check_capability(TENSORRT_RTX, (8, 6))


@pytest.mark.parametrize("library", [TENSORRT, TENSORRT_RTX])
@pytest.mark.parametrize(
    ("precision", "target", "needed"),
    [("fp8", 86, "sm89"), ("fp8", 80, "sm89"), ("bf16", 75, "sm80")],
)
def test_precisions_that_need_a_newer_gpu(
    library: object, precision: str, target: int, needed: str
) -> None:
    with pytest.raises(UnsupportedPrecision) as caught:
        check_precision(library, precision, [120, target])  # type: ignore[arg-type]
    assert caught.value.message.startswith(f"{precision.upper()} needs {needed} or later")
    assert sm_name(target) in caught.value.message


def test_precisions_that_a_gpu_has() -> None:
    for precision, target in (("fp8", 89), ("bf16", 80), ("fp16", 75), ("int8", 80), ("fp32", 80)):
        assert check_precision(TENSORRT_RTX, precision, [target]) == []
    assert check_precision(TENSORRT, "fp32", [75]) == []
    assert check_precision(TENSORRT, "int8", [75]) == []
    assert check_precision(TENSORRT_RTX, "fp8", []) == []


def test_fp32_on_turing_with_rtx() -> None:
    with pytest.raises(UnsupportedPrecision, match="no FP32 matrix product on sm75"):
        check_precision(TENSORRT_RTX, "fp32", [75, 86])
    with pytest.raises(UnsupportedPrecision, match="no FP32 matrix product on sm75"):
        check_high_precision(TENSORRT_RTX, {"fp32"}, [75])
    check_high_precision(TENSORRT_RTX, {"fp16"}, [75])
    check_high_precision(TENSORRT, {"fp32"}, [75])


def test_int8_on_turing_computes_in_half_with_rtx() -> None:
    with pytest.raises(UnsupportedPrecision, match="compute in half precision on sm75") as caught:
        check_precision(TENSORRT_RTX, "int8", [75, 89])
    assert "--storage-only" in str(caught.value.hint)
    (note,) = check_precision(TENSORRT_RTX, "int8", [75, 89], storage_only=True)
    assert note.startswith("INT8 storage, FP16 compute")


def test_a_precision_that_does_not_exist() -> None:
    with pytest.raises(UnsupportedPrecision, match="int3"):
        check_precision(TENSORRT, "int3", [])
