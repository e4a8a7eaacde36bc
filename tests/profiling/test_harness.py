"""The harness: order, warm-up, time budget and misbehaving engines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from optimizer.errors import UsageError
from optimizer.profiling import harness
from optimizer.profiling.harness import (
    MIN_ROUNDS,
    Cell,
    Limits,
    Measurement,
    leaked,
    measure,
    settled,
)
from optimizer.progress import Silent
from tests.profiling.conftest import MakeEngine

SHORT = Limits(duration_s=0.3)


def cells(*paths: Path, batch: int = 1) -> list[Cell]:
    return [
        Cell(name=path.stem, engine=path, batch=batch, image_size=None, threads=1) for path in paths
    ]


def run(requested: Sequence[Cell], limits: Limits = SHORT, seed: int = 0) -> Measurement:
    return measure(requested, limits, seed=seed, progress=Silent())


def order(session: Measurement) -> list[list[int]]:
    """Order of the cells in each round, from the start times of the raw samples."""
    orders = []
    for number in range(session.rounds):
        starts = [cell.blocks[number].calls[0, 0] for cell in session.cells]
        orders.append([int(i) for i in np.argsort(starts)])
    return orders


def test_every_round_has_every_cell_in_random_order(make_engine: MakeEngine) -> None:
    requested = cells(*(make_engine(name, busy_ms=1.0, wall_clock=True) for name in "abc"))
    session = run(requested, seed=3)
    assert [m.status for m in session.cells] == ["ok"] * 3
    assert session.rounds >= MIN_ROUNDS
    for measured in session.cells:
        assert [block.round for block in measured.blocks] == list(range(session.rounds))
    orders = order(session)
    assert len({tuple(o) for o in orders}) > 1
    generator = np.random.default_rng(3)
    assert orders == [generator.permutation(3).tolist() for _ in orders]
    ends = [m.blocks[i].calls[-1, 0] for i in range(session.rounds) for m in session.cells]
    assert max(ends[: len(session.cells)]) < min(ends[-len(session.cells) :])


def test_cells_never_compute_at_the_same_time(make_engine: MakeEngine) -> None:
    session = run(cells(*(make_engine(name, busy_ms=1.0, wall_clock=True) for name in "ab")))
    spans = sorted(
        (block.calls[0, 0], block.calls[-1, 0] + block.calls[-1, 1:].sum())
        for measured in session.cells
        for block in measured.blocks
    )
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_each_cell_gets_its_time_budget(make_engine: MakeEngine) -> None:
    session = run(cells(make_engine("fast", busy_ms=0.5), make_engine("slow", busy_ms=4.0)))
    for measured in session.cells:
        assert all(len(block.spans_ms) >= 1 for block in measured.blocks)
        assert all(block.lead_in >= 1 for block in measured.blocks)
    total = sum(block.calls[:, 1:].sum() for m in session.cells for block in m.blocks) / 1e9
    assert 0.5 * 2 * SHORT.duration_s < total < 2 * 2 * SHORT.duration_s


def test_a_slow_engine_still_gets_enough_rounds(make_engine: MakeEngine) -> None:
    session = run(cells(make_engine(busy_ms=30.0)), Limits(duration_s=0.1))
    assert session.rounds == MIN_ROUNDS
    assert any("longer than the requested 0.1 s" in note for note in session.conditions.notes)
    assert all(len(block.spans_ms) >= 1 for block in session.cells[0].blocks)


def test_warm_up_continues_until_the_engine_is_warm(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_WARM_UP", math.inf)  # no time limit on slow machines
    requested = cells(make_engine(busy_ms=0.5, cold_calls=60, cold_factor=5.0))
    (measured,) = run(requested, Limits(duration_s=1.0)).cells
    assert measured.settled
    assert not any("did not settle" in note for note in measured.notes)
    assert measured.first_inference_ms is not None
    assert measured.first_inference_ms == pytest.approx(0.5 * (1 + 4 * math.exp(-1 / 60)))
    assert measured.warmup_calls > 60
    samples = np.concatenate([block.spans_ms[:, 1] for block in measured.blocks])
    assert np.median(samples) < 0.6


def test_a_warm_up_that_takes_too_long_is_stopped_and_reported(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_WARM_UP", 0.0)
    requested = cells(make_engine(busy_ms=0.5, cold_calls=60, cold_factor=5.0))
    (measured,) = run(requested, Limits(duration_s=0.1)).cells
    assert not measured.settled
    assert any("did not settle" in note for note in measured.notes)
    assert len(measured.blocks) >= MIN_ROUNDS, "it is still measured"


def test_warm_up_ends_by_agreement_and_not_by_a_count() -> None:
    generator = np.random.default_rng(0)
    steady = [10 + generator.normal(0, 0.01, 20) for _ in range(4)]
    assert settled(steady)
    assert not settled(steady[:3]), "the first window does not count"
    assert not settled([x * f for x, f in zip(steady, (1, 1.5, 1.2, 1.1), strict=True)])
    assert settled([np.array([30.0]), *steady[:3]])
    noisy = [10 * np.exp(generator.normal(0, 0.3, 20)) for _ in range(4)]
    medians = [np.median(w) for w in noisy[1:]]
    assert max(medians) > 1.02 * min(medians)
    assert settled(noisy), "no warm-up would make a noisy machine quiet"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"crash": True}, "SIGSEGV"),
        ({"exit": 7}, "exit code 7"),
        ({"hang": True}, "hangs: no answer within"),
        ({"nan": True}, "NaN or infinity"),
        ({"raise": "device lost"}, "device lost"),
    ],
)
def test_an_engine_that_fails_midway_does_not_affect_others(
    make_engine: MakeEngine, tmp_path: Path, behaviour: dict, words: str
) -> None:
    fuse = tmp_path / "fuse"

    class LightingFuse(Silent):
        label = ""
        steps = 0

        def start(self, label: str, total: int | None = None) -> None:
            self.label = label

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            self.steps += self.label == "measure"
            if self.steps == 3:
                fuse.touch()

    good = make_engine("good", busy_ms=1.0)
    bad = make_engine("bad", busy_ms=1.0, once_exists=str(fuse), **behaviour)
    limits = Limits(duration_s=0.2, call_timeout_s=3.0 if "hang" in behaviour else 60.0)
    failed, kept = measure(cells(bad, good), limits, seed=0, progress=LightingFuse()).cells
    assert failed.status == "failed"
    assert failed.error is not None
    assert words in failed.error
    assert len(failed.blocks) == 3, "earlier rounds are kept"
    assert kept.status == "ok"
    assert len(kept.blocks) >= MIN_ROUNDS


def test_no_worker_is_left_behind(make_engine: MakeEngine) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    run(cells(make_engine("a"), make_engine("b", exit=1, after=1)), Limits(duration_s=0.1))

    class Interrupting(Silent):
        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(cells(make_engine("c")), SHORT, seed=0, progress=Interrupting())
    assert {p.pid for p in psutil.Process().children(recursive=True)} == before


def test_bad_input_is_refused_before_anything_is_measured(make_engine: MakeEngine) -> None:
    requested = cells(make_engine("good"), make_engine("fixed", batch=2), batch=3)
    with pytest.raises(UsageError, match="fixed: the engine has the fixed batch 2, not 3"):
        run(requested)


def test_an_engine_that_needs_another_device_is_no_failure(make_engine: MakeEngine) -> None:
    absent, kept = run(
        cells(make_engine("gpu", needs_device=True), make_engine("cpu")), Limits(duration_s=0.1)
    ).cells
    assert absent.status == "built-not-run"
    assert kept.status == "ok"


def test_leaks_are_distinguished_from_caches() -> None:
    base = 200 << 20
    steady = [base] * 30
    cache = [base] + [base + (150 << 20)] * 29
    leak = [base + i * (10 << 20) for i in range(30)]
    assert leaked(steady) is None
    assert leaked(cache) is None
    assert leaked(leak) == 29 * (10 << 20)
    assert leaked([base + i * (1 << 20) for i in range(30)]) is None, "too small to be a leak"
    assert leaked(leak[:3]) is None


def test_a_leaking_engine_is_named(make_engine: MakeEngine) -> None:
    session = run(cells(make_engine("sieve", busy_ms=10.0, leak_bytes=8 << 20)))
    assert any("sieve: its memory grew by" in note for note in session.conditions.notes)
    assert session.cells[0].peak_rss_bytes > 200 << 20


def test_threads_that_spin_between_blocks_are_reported(make_engine: MakeEngine) -> None:
    requested = cells(
        make_engine("spinner", busy_ms=1.0, spins=True), make_engine("b", busy_ms=1.0)
    )
    notes = run(requested, Limits(duration_s=0.1)).conditions.notes
    assert any("spinner: its threads keep running" in note for note in notes)
    assert not any("b: its threads keep running" in note for note in notes)
