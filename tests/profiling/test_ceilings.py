"""Ceilings: measured once, kept by machine and threads, and what they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.artifacts import Anew, Cache
from optimizer.environment import fingerprint
from optimizer.profiling.ceilings import _read, ceilings, last_cache_bytes
from optimizer.progress import Silent
from optimizer.results import Ceilings
from tests.profiling.conftest import QUICK


@pytest.fixture(scope="module")
def measured(ceilings_cache: Cache) -> Ceilings:
    return ceilings(1, cache=ceilings_cache, effort=QUICK, progress=Silent())


def test_they_are_of_this_machine_and_say_what_they_are(measured: Ceilings) -> None:
    assert measured.device == fingerprint()
    assert measured.threads == 1
    assert {"fp32", "int8"} <= set(measured.compute)
    for one in (*measured.compute.values(), measured.memory, measured.cache):
        assert one.rate >= one.median > 1e8
        assert one.rounds == 3
    assert measured.compute["fp32"].how.startswith(("torch.mm", "oneDNN"))
    assert "8 MiB" in measured.memory.how
    # One core multiplies floats at some 4 to 500 GFLOP/s; another unit would be far outside.
    assert 1e9 < measured.compute["fp32"].rate < 1e12


def test_int8_is_no_plain_loop(measured: Ceilings) -> None:
    """Without VNNI torch._int_mm is one, a hundred times slower than FP32."""
    assert measured.compute["int8"].rate > 0.5 * measured.compute["fp32"].median


def test_they_are_kept_and_measured_again_when_asked(
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


def test_made_anew_they_are_neither_taken_nor_kept(
    measured: Ceilings, monkeypatch: pytest.MonkeyPatch, ceilings_cache: Cache
) -> None:
    """`--no-cache` of a search: the user's cache is left alone."""
    monkeypatch.setenv("RESNET_OPT_CACHE", str(ceilings_cache.root))
    before = {path: path.read_bytes() for path in (ceilings_cache.root / "measured").iterdir()}
    found = ceilings(1, cache=Anew(), effort=QUICK, progress=Silent())
    assert found.created >= measured.created
    assert found != measured
    assert {p: p.read_bytes() for p in (ceilings_cache.root / "measured").iterdir()} == before


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    assert _read(tmp_path / "none.json") is None
    (tmp_path / "damaged.json").write_text('{"created": 1')
    assert _read(tmp_path / "damaged.json") is None


def test_clearing_the_cache_knows_them(measured: Ceilings, tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "x.json").write_text(measured.model_dump_json())
    assert Cache(tmp_path).clear() > 0
    assert not (tmp_path / "measured").exists()


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) == 32 << 20
    for index, size in enumerate(("32K", "512K", "16M", "odd")):
        folder = tmp_path / f"devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert last_cache_bytes(tmp_path) == 16 << 20
