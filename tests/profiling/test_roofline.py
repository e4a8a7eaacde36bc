"""Roofline arithmetic with known ceilings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.profiling.blocks import block_names
from optimizer.profiling.roofline import OVERHEAD_BELOW, combine_layers, roof_of, with_verdict
from optimizer.results import Ceiling, Ceilings, LayerInfo, TimedPart


def _ceiling(rate: float) -> Ceiling:
    return Ceiling(rate=rate, median=rate, rounds=1, how="given")


CEILINGS = Ceilings(
    created="2026-01-01T00:00:00+00:00",
    device={},
    threads=1,
    libraries={},
    compute={"fp32": _ceiling(100e9), "int8": _ceiling(400e9)},
    memory=_ceiling(10e9),
    cache=_ceiling(50e9),
)


def _part(name: str = "conv", **fields: Any) -> TimedPart:
    defaults = {"type": "Convolution", "precision": "fp32", "time_ms": 1.0, "share": 1.0}
    return TimedPart.model_validate({"name": name, **defaults, **fields})


@pytest.mark.parametrize(
    ("fields", "roof_ms", "ceiling", "bound"),
    [
        # 80 MFLOP at 100 GFLOP/s are 0.8 ms, 1 MB at 10 GB/s are 0.1 ms.
        ({"flops": 80_000_000, "bytes": 1_000_000}, 0.8, "fp32", "compute"),
        ({"flops": 80_000_000, "bytes": 1_000_000, "precision": "int8"}, 0.2, "int8", "overhead"),
        ({"flops": 10_000_000, "bytes": 9_000_000}, 0.9, "memory", "memory"),
        ({"bytes": 6_000_000}, 0.6, "memory", "memory"),
        ({"bytes": 1_000_000}, 0.1, "memory", "overhead"),
        # Faster than memory allows: bound by compute, by the cache, or between memory and cache.
        ({"flops": 60_000_000, "bytes": 20_000_000}, 0.6, "fp32", "compute"),
        ({"bytes": 40_000_000}, 0.8, "cache", "memory"),
        ({"bytes": 12_000_000}, 1.2, "memory", "memory"),
    ],
)
def test_a_layer_is_compared_with_the_ceiling_that_limits_it(
    fields: dict[str, Any], roof_ms: float, ceiling: str, bound: str
) -> None:
    layer = with_verdict(_part(**fields), CEILINGS)
    assert layer.roof_ms == pytest.approx(roof_ms)
    assert (layer.ceiling, layer.bound) == (ceiling, bound)
    assert layer.ceiling_share == pytest.approx(roof_ms)


@pytest.mark.parametrize(
    "fields", [{}, {"flops": 1}, {"flops": 1, "bytes": 1, "precision": "fp16"}]
)
def test_a_layer_with_unknown_work_has_no_verdict(fields: dict[str, Any]) -> None:
    layer = with_verdict(_part(**fields), CEILINGS)
    assert (layer.roof_ms, layer.ceiling, layer.bound, layer.ceiling_share) == (None,) * 4


@given(st.integers(1, 10**12), st.integers(1, 10**10), st.floats(1e-3, 1e3))
def test_a_slower_layer_never_reaches_more_of_its_ceiling(
    flops: int, size: int, time_ms: float
) -> None:
    fast = with_verdict(_part(flops=flops, bytes=size, time_ms=time_ms), CEILINGS)
    slow = with_verdict(_part(flops=flops, bytes=size, time_ms=8 * time_ms), CEILINGS)
    assert fast.ceiling_share is not None
    assert slow.ceiling_share is not None
    # A layer faster than memory may get the cache's roof; a slower one always has the same roof.
    assert slow.ceiling_share <= max(fast.ceiling_share, 1.0) * (1 + 1e-9)
    assert (slow.bound == "overhead") == (slow.ceiling_share < OVERHEAD_BELOW)


def test_a_block_is_the_sum_of_its_layers() -> None:
    parts = [
        with_verdict(_part("a", flops=80_000_000, bytes=1_000_000, torch_names=["a"]), CEILINGS),
        with_verdict(_part("b", bytes=5_000_000, torch_names=["b"]), CEILINGS),
        _part("python"),  # only its time is known
    ]
    block = combine_layers(parts, name="block", time_ms=3.0, share=1.0)
    assert (block.flops, block.bytes) == (80_000_000, 6_000_000)
    assert block.torch_names == ["a", "b"]
    assert block.roof_ms == pytest.approx(0.8 + 0.5)
    assert (block.ceiling, block.bound) == ("fp32", "overhead")
    faster = combine_layers(parts, name="block", time_ms=2.0, share=1.0)
    assert faster.bound == "compute"
    assert faster.intensity == pytest.approx(80 / 6)
    assert faster.flops_per_s == pytest.approx(40e9)


def test_a_block_with_an_unknown_ceiling_has_no_verdict() -> None:
    known = with_verdict(_part("a", bytes=5_000_000), CEILINGS)
    half = with_verdict(_part("b", flops=10, bytes=10, precision="fp16"), CEILINGS)
    block = combine_layers([known, half], name="block", time_ms=2.0, share=1.0)
    assert (block.precision, block.bound, block.roof_ms) == ("fp16", None, None)


def test_the_roof_of_a_layer_is_none_without_bytes() -> None:
    assert roof_of(_part(flops=10), CEILINGS) is None


def test_layers_are_assigned_to_blocks() -> None:
    modules = [
        [], ["conv1", "relu"], ["maxpool"], ["layer1.0.conv1"], [], ["layer1.0.conv2", "layer1.1"],
        ["layer1"], ["layer1.1.conv1"], ["avgpool"], ["fc"], [],
    ]  # fmt: skip
    layers = [LayerInfo(name="l", torch_names=m, type="t", precision="fp32") for m in modules]
    assert block_names(layers) == [
        None, "stem", "stem", "layer1.0", None, "layer1.0 + layer1.1",
        None, "layer1.1", "head", "head", None,
    ]  # fmt: skip
    assert block_names(layers[:3]) == [None, "stem", "stem"]
