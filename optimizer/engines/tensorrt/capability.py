"""Which precisions a compute capability supports, checked before a build instead of letting it fail.

Sources: TensorRT's hardware support matrix, and builds with TensorRT-RTX 1.7.1. The latter rejects
BF16 below sm80, FP8 below sm89 and FP32 matrix products on sm75. For sm75 it silently compiles INT8
convolutions to half precision (matrix products stay INT8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from optimizer.engines.tensorrt.library import Library
from optimizer.errors import MissingDevice, UnsupportedPrecision, UsageError

__all__ = [
    "PRECISIONS",
    "check_capability",
    "check_high_precision",
    "check_precision",
    "parse_targets",
    "sm_name",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")
_NEEDS = {"bf16": 80, "fp8": 89}
_TURING = 75
_HALF_INT8 = (
    "INT8 convolutions compute in half precision on sm75: TensorRT-RTX dequantizes their weights, "
    "for every target of an engine whose targets include sm75"
)


def sm_name(capability: tuple[int, int] | int) -> str:
    """``(8, 6)`` or ``86`` as ``sm86``."""
    number = capability if isinstance(capability, int) else capability[0] * 10 + capability[1]
    return f"sm{number}"


def parse_targets(library: Library, targets: Sequence[str]) -> tuple[int, ...]:
    """Read ``("sm86", "8.9", "120")`` and check that the library compiles for each.

    Raises:
        UsageError: Not a compute capability, or one the library does not compile for.
    """
    numbers = []
    for target in targets:
        match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", target.strip().lower())
        if match is None:
            raise UsageError(f"{target!r} is not a compute capability", hint="sm86, sm89, sm120")
        numbers.append(int(match[1]) * 10 + int(match[2]))
    for number in numbers:
        _check_supported(library, number)
    return tuple(sorted(set(numbers)))


def _check_supported(library: Library, number: int) -> None:
    if library.capabilities is None or number in library.capabilities:
        return
    supported = ", ".join(map(sm_name, library.capabilities))
    hopper = " (Hopper)" if number == 90 else ""
    raise UsageError(
        f"{library.title} does not compile for {sm_name(number)}{hopper}, only for {supported}",
        hint="--engine tensorrt on a machine with that GPU"
        if number >= 90
        else f"one of {supported}",
    )


def check_capability(library: Library, capability: tuple[int, int]) -> None:
    """Check that the library runs on a GPU.

    Raises:
        MissingDevice: It does not.
    """
    number = capability[0] * 10 + capability[1]
    if library.capabilities is None or number in library.capabilities or number > 121:
        return
    hopper = " (Hopper)" if number == 90 else ""
    raise MissingDevice(
        f"{library.title} does not run on {sm_name(number)}{hopper}",
        hint='--engine tensorrt: pip install "resnet-opt[tensorrt]"',
    )


def check_precision(
    library: Library, precision: str, targets: Iterable[int], *, storage_only: bool = False
) -> list[str]:
    """Check that every target supports a precision.

    Args:
        library: The library that compiles.
        precision: The requested precision.
        targets: Compute capabilities; empty if not yet known.
        storage_only: Accept an engine that stores the precision and computes in another one.

    Returns:
        Notes for the user.

    Raises:
        UnsupportedPrecision: The library or a target does not support it.
    """
    targets = tuple(targets)
    if precision not in PRECISIONS:
        raise UnsupportedPrecision(
            f"{library.title} does not compute {precision}", hint=f"one of {', '.join(PRECISIONS)}"
        )
    needed = _NEEDS.get(precision, 0)
    lacking = [sm_name(target) for target in targets if target < needed]
    if lacking:
        raise UnsupportedPrecision(
            f"{precision.upper()} needs {sm_name(needed)} or later, "
            f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} among the targets",
            hint=f"--target {sm_name(needed)}, or another precision",
        )
    if not library.portable or _TURING not in targets:
        return []
    if precision == "fp32":
        raise _no_fp32_on_turing(library)
    if precision in {"int8", "mixed"}:
        if not storage_only:
            raise UnsupportedPrecision(
                _HALF_INT8, hint="leave sm75 out, or --storage-only to build it anyway"
            )
        return [f"INT8 storage, FP16 compute: {_HALF_INT8}"]
    return []


def check_high_precision(library: Library, high: set[str], targets: Iterable[int]) -> None:
    """Check that FP32 layers around the requested precision are supported.

    Raises:
        UnsupportedPrecision: TensorRT-RTX has no FP32 matrix products on sm75, and it is a target.
    """
    if library.portable and _TURING in targets and "fp32" in high:
        raise _no_fp32_on_turing(library)


def _no_fp32_on_turing(library: Library) -> UnsupportedPrecision:
    return UnsupportedPrecision(
        f"{library.title} has no FP32 matrix product on sm75",
        hint="leave sm75 out, or --precision fp16 (around INT8: --high-precision fp16)",
    )
