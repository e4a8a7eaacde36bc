"""Ceilings: measurement and caching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from optimizer.artifacts import Cache, DisabledCache
from optimizer.environment import fingerprint
from optimizer.profiling.ceilings import (
    _copying,
    _product,
    _read,
    ceilings,
    last_cache_bytes,
)
from optimizer.progress import Silent
from optimizer.results import Ceilings
from tests.profiling.conftest import QUICK


@pytest.fixture(scope="module")
def measured(ceilings_cache: Cache) -> Ceilings:
    return ceilings(1, cache=ceilings_cache, effort=QUICK, progress=Silent())


def test_ceilings_describe_this_machine_and_the_method(measured: Ceilings) -> None:
    assert measured.device == fingerprint()
    assert measured.threads == 1
    assert {"fp32", "int8"} <= set(measured.compute)
    for ceiling in (*measured.compute.values(), measured.memory, measured.cache):
        assert ceiling.rate >= ceiling.median > 0
        assert ceiling.rounds == 3
    assert measured.compute["fp32"].how.startswith(("torch.mm", "oneDNN"))
    assert "8 MiB" in measured.memory.how


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the measurement, in seconds; advanced by the measured functions."""
    passed = [0.0]
    monkeypatch.setattr(
        "optimizer.profiling.ceilings.time", SimpleNamespace(perf_counter=lambda: passed[0])
    )
    return passed


def lasting(passed: list[float], rate: float, sizes: list[int]) -> Callable:
    """Returns a maker of products that run at this rate of operations per second."""

    def make(size: int) -> Callable[[], None]:
        sizes.append(size)
        slow = iter((9, 9, 1, 4, 2))  # two warm-up rounds, then fastest 1 and median 2

        def product() -> None:
            passed[0] += next(slow, 1) * 2 * size**3 / rate

        return product

    return make


def test_the_fastest_library_counts_and_slow_loops_are_skipped(clock: list[float]) -> None:
    plain, good, better = [], [], []
    notes: list[str] = []

    def broken(size: int) -> Callable[[], None]:
        raise RuntimeError("not compiled in\nat some line")

    result = _product(
        QUICK,
        [
            ("plain", lasting(clock, 1e9, plain)),
            ("good", lasting(clock, 8e9, good)),
            ("better", lasting(clock, 1e10, better)),
            ("broken", broken),
        ],
        notes,
    )
    assert result is not None
    assert result.rate == pytest.approx(1e10)
    assert result.median == pytest.approx(0.5e10)
    assert result.how.startswith("better, ")
    assert plain == [256], "probed once and not measured at every size"
    assert good == better == [256, *QUICK.sizes]
    assert notes == ["broken was not measured: not compiled in"]
    assert _product(QUICK, [("broken", broken)], notes) is None


def test_bytes_read_and_bytes_written_both_count(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def copy(self: torch.Tensor, source: torch.Tensor) -> None:
        clock[0] += 0.5

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    assert _copying(QUICK, 1 << 20).rate == 2 * (1 << 20) / 0.5


def test_ceilings_are_cached_and_measured_again_on_request(
    ceilings_cache: Cache, measured: Ceilings
) -> None:
    (file,) = (ceilings_cache.root / "measured").iterdir()
    assert ceilings(1, cache=ceilings_cache, effort=QUICK, progress=Silent()) == measured
    marked = measured.model_copy(update={"notes": ["marked"]})
    file.write_text(marked.model_dump_json())
    assert ceilings(1, cache=ceilings_cache, effort=QUICK, progress=Silent()).notes == ["marked"]
    again = ceilings(1, cache=ceilings_cache, remeasure=True, effort=QUICK, progress=Silent())
    assert again.notes != ["marked"]
    assert Ceilings.model_validate_json(file.read_text()) == again


def test_without_a_cache_they_are_neither_read_nor_stored(
    measured: Ceilings, monkeypatch: pytest.MonkeyPatch, ceilings_cache: Cache
) -> None:
    """`--no-cache` of a search: the user's cache is left alone."""
    monkeypatch.setenv("RESNET_OPT_CACHE", str(ceilings_cache.root))
    before = {path: path.read_bytes() for path in (ceilings_cache.root / "measured").iterdir()}
    result = ceilings(1, cache=DisabledCache(), effort=QUICK, progress=Silent())
    assert result.created >= measured.created
    assert result != measured
    assert {p: p.read_bytes() for p in (ceilings_cache.root / "measured").iterdir()} == before


def test_a_damaged_file_is_ignored(tmp_path: Path) -> None:
    assert _read(tmp_path / "none.json") is None
    (tmp_path / "damaged.json").write_text('{"created": 1')
    assert _read(tmp_path / "damaged.json") is None


def test_clearing_the_cache_removes_ceilings(measured: Ceilings, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (cache.folder("measured") / f"{'0' * 64}.json").write_text(measured.model_dump_json())
    assert cache.clear() > 0
    assert not (tmp_path / "measured").exists()


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) == 32 << 20
    for index, size in enumerate(("32K", "512K", "16M", "odd")):
        folder = tmp_path / f"devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 16 << 20
