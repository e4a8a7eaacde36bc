"""Groups of workers: which cells run together, and how their measurements are merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.profiling.benchmark import CONTROL_SUFFIX, bench
from optimizer.profiling.grouping import check_max_workers, key_of, merge_groups, split_into_groups
from optimizer.profiling.harness import MIN_ROUNDS, Block, Cell, Measured, Measurement
from optimizer.progress import Silent
from optimizer.results import Conditions

from .conftest import MakeEngine

BASE = "base"
SHARED = {BASE, BASE + CONTROL_SUFFIX}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "engine"
    path.write_bytes(b"x")
    return path


def cells(engine: Path, *names: str, batch: int = 1) -> list[Cell]:
    return [
        Cell(name=name, engine=engine, batch=batch, image_size=None, threads=1) for name in names
    ]


def names(groups: list[list[Cell]]) -> list[str]:
    return [
        " ".join(cell.name.replace(BASE + CONTROL_SUFFIX, "control") for cell in group)
        for group in groups
    ]


def test_a_setting_is_split_into_balanced_groups_with_the_baseline(engine: Path) -> None:
    requested = cells(engine, BASE, BASE + CONTROL_SUFFIX, *"abcdefg")
    assert names(split_into_groups(requested, shared=SHARED, max_workers=9)) == [
        "base control a b c d e f g"
    ]
    assert names(split_into_groups(requested, shared=SHARED, max_workers=5)) == [
        "base control a d g",
        "base control b e",
        "base control c f",
    ]
    assert names(split_into_groups(requested, shared=SHARED, max_workers=3)) == [
        f"base control {name}" for name in "abcdefg"
    ]


def test_settings_are_split_before_engines(engine: Path) -> None:
    """Only the first setting has the control."""
    requested = [
        *cells(engine, BASE, BASE + CONTROL_SUFFIX, "a", "b"),
        *cells(engine, BASE, "a", "b", batch=8),
    ]
    assert names(split_into_groups(requested, shared=SHARED, max_workers=4)) == [
        "base control a b",
        "base a b",
    ]
    assert names(split_into_groups(requested, shared=SHARED, max_workers=3)) == [
        "base control a",
        "base control b",
        "base a b",
    ]


def test_a_limit_too_low_for_comparisons_is_refused(engine: Path) -> None:
    requested = cells(engine, BASE, BASE + CONTROL_SUFFIX, "a")
    check_max_workers(None, requested, SHARED)
    check_max_workers(3, requested, SHARED)
    with pytest.raises(UsageError, match="--max-workers 2 is too low") as caught:
        check_max_workers(2, requested, SHARED)
    assert caught.value.hint == "--max-workers 3 or more"
    check_max_workers(1, cells(engine, BASE), SHARED)
    with pytest.raises(UsageError):
        check_max_workers(0, cells(engine, BASE), SHARED)


def measured(cell: Cell, rounds: int, ms: float, **fields: object) -> Measured:
    one = np.array([[0, 0, int(ms * 1e6), 0]] * 4, np.int64)
    blocks = [Block(number, one, 1, np.zeros(4, np.int32)) for number in range(rounds)]
    return Measured(cell, blocks=blocks, **fields)  # type: ignore[arg-type]


def conditions() -> Conditions:
    return Conditions(cpu="a processor", governor=None)


def test_the_baseline_is_merged_and_kept_per_group(engine: Path) -> None:
    base, a, b = cells(engine, BASE, "a", "b")
    first = Measurement([measured(base, 12, 1.0), measured(a, 12, 2.0)], conditions(), 12)
    second = Measurement(
        [measured(base, 15, 3.0, joules=1.0), measured(b, 15, 6.0)], conditions(), 15
    )
    grouped = merge_groups([first, second], BASE)
    whole = grouped.cells[key_of(base)]
    assert [block.round for block in whole.blocks] == list(range(27))
    assert grouped.cells[key_of(b)].first_round == 12
    (beside_a, cell_a), *_ = grouped.pairs[key_of(a)]
    (beside_b, cell_b), *_ = grouped.pairs[key_of(b)]
    assert (len(beside_a.blocks), len(beside_b.blocks)) == (12, 15)
    assert beside_a.blocks[0].spans_ms[0, 1] == 1.0
    assert beside_b.blocks[0].spans_ms[0, 1] == 3.0
    assert (cell_a.cell.name, cell_b.cell.name) == ("a", "b")
    (note,) = grouped.conditions.notes
    assert "in 2 groups and compared with base in the same group" in note
    assert grouped.groups == [[BASE, "a"], [BASE, "b"]]


def test_a_single_group_is_unchanged(engine: Path) -> None:
    base, a = cells(engine, BASE, "a")
    session = Measurement([measured(base, 12, 1.0), measured(a, 12, 2.0)], conditions(), 12)
    grouped = merge_groups([session], BASE)
    assert grouped.cells[key_of(base)] is session.cells[0]
    assert grouped.conditions.notes == []


def test_a_baseline_that_failed_in_one_group_has_failed(engine: Path) -> None:
    base, a, b = cells(engine, BASE, "a", "b")
    fine = Measurement([measured(base, 12, 1.0), measured(a, 12, 2.0)], conditions(), 12)
    lost = measured(base, 3, 1.0, status="failed", error="lost")
    grouped = merge_groups(
        [fine, Measurement([lost, measured(b, 12, 1.0)], conditions(), 12)], BASE
    )
    assert grouped.cells[key_of(base)].status == "failed"
    assert grouped.pairs[key_of(a)][0][0].status == "ok"


def test_a_bench_in_groups(make_engine: MakeEngine) -> None:
    """Each engine is compared with the baseline of its group; the result states the groups."""
    engines = [make_engine(name, sleep_ms=ms) for name, ms in (("a", 4.0), ("b", 1.0), ("c", 16.0))]
    result = bench(engines, duration="0.4s", threads=1, max_workers=3)
    assert result.settings["max_workers"] == 3
    assert [len(group) for group in result.settings["workers"]] == [3, 3]
    ratios = {one.b: one.ratio for one in result.comparisons}
    assert ratios["b.tiny"] > 1.5
    assert ratios["c.tiny"] < 0.6
    assert result.a_a_control is not None
    by_name = {one.name: one for one in result.engines}
    assert by_name["a.tiny"].rounds == by_name["b.tiny"].rounds + by_name["c.tiny"].rounds
    assert any("in 2 groups" in note for note in result.conditions.notes)


class Losing(Silent):
    """Progress that creates the signal file after a number of rounds."""

    def __init__(self, signal: Path, rounds: int) -> None:
        self.signal, self.rounds, self.measuring = signal, rounds, False

    def start(self, label: str, total: int | None = None) -> None:
        self.measuring = label == "measure"

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        if self.measuring:
            self.rounds -= 1
            if self.rounds == 0:
                self.signal.touch()


def test_rounds_before_a_failure_are_kept(make_engine: MakeEngine, tmp_path: Path) -> None:
    """For example a lost GPU: the engine has failed, but its previous rounds are kept."""
    signal = tmp_path / "lost"
    behaviour = {"raise": "the device is lost", "once_exists": str(signal), "sleep_ms": 1.0}
    lost, fine = make_engine("lost", **behaviour), make_engine("fine", sleep_ms=1.0)
    result = bench(
        [fine, lost],
        duration="1.0s",
        threads=1,
        control=False,
        raw_dir=tmp_path,
        progress=Losing(signal, MIN_ROUNDS),
    )
    by_name = {one.name: one for one in result.engines}
    gone = by_name["lost.tiny"]
    assert gone.status == "failed"
    assert "the device is lost" in str(gone.error)
    assert gone.rounds == MIN_ROUNDS
    assert gone.latency_ms is not None
    assert gone.latency_ms.p50 > 1.0
    assert (tmp_path / Path(str(gone.raw_file)).name).is_file()
    assert by_name["fine.tiny"].status == "ok"
    assert result.comparisons == []
    assert result.failed
