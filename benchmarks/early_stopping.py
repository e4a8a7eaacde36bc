"""Error rates of `validate --until-decided`, and how many images it looks at.

Writes ``reports/statistics/early_stopping.json`` and the table in docs/accuracy.md
(``--write-only``: only the table). Run: ``python benchmarks/early_stopping.py`` (minutes on one
core; no data needed).

Each cell simulates 10,000 validations of up to 50,000 images that are looked at after every batch of
32. At a true drop equal to the margin every pass is false; without a drop every fail is. Beside the
average number of images stands the number that theory gives for a player who knows the true rates and
bets best: ``log(40)`` over the largest expected growth of the logarithm of the wealth for one image.
Exits with code 1 if more than 2.5 % of a cell's verdicts are false.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gate_simulation import Cell
from numpy.typing import NDArray
from readme import write_between_marks

from optimizer.artifacts import write_text_atomically
from optimizer.tasks.anytime_statistics import log_wealth
from optimizer.tasks.paired_statistics import drop_intervals

MARGIN = 0.01
RUNS = 10_000
IMAGES = 50_000
BATCH = 32
SEED = 20_261_201
CELLS = (
    (0.0, 0.0), (0.002, 0.0), (0.01, 0.0), (0.03, 0.0), (0.05, 0.0),
    (0.01, 0.01), (0.02, 0.01), (0.05, 0.01),
    (0.03, 0.03),
)  # fmt: skip
"""Share of discordant images, and true drop."""
ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "statistics" / "early_stopping.json"
_LIMIT = math.log(40)
_CHUNK = 250
Counts = NDArray[np.float64]


def simulate(
    cell: Cell, runs: int, rng: np.random.Generator, *, images: int = IMAGES
) -> dict[str, Any]:
    """Simulate validations of one cell.

    Returns:
        Shares of passes and fails, the average number of images, and what theory gives; for
        comparison the share that the interval for a fixed number of images passes when it is looked
        at after every batch.
    """
    passed, failed, looked, peeked = 0, 0, 0, 0
    for start in range(0, runs, _CHUNK):
        losses, gains, n = _counts(cell, min(_CHUNK, runs - start), images, rng)
        passes = _first(_exceeds(losses, gains, n, MARGIN))
        fails = _first(_exceeds(gains, losses, n, -MARGIN))
        decided = np.minimum(passes, fails)
        passed += int((passes < fails).sum())
        failed += int((fails < passes).sum())
        looked += int(np.minimum((decided + 1) * BATCH, images).sum())
        some = slice(0, 20)  # the fixed interval is slow, and its errors are not rare
        peeked += int((_fixed_passes(losses[some], gains[some], n)).sum())
    fixed_runs = sum(min(20, _CHUNK, runs - start) for start in range(0, runs, _CHUNK))
    return {
        "discordant": cell.discordant,
        "drop": cell.drop,
        "passed": passed / runs,
        "failed": failed / runs,
        "images": looked / runs,
        "images_in_theory": _in_theory(cell),
        "fixed_interval_looked_at_after_each_batch_passed": peeked / fixed_runs,
    }


def _counts(
    cell: Cell, runs: int, images: int, rng: np.random.Generator
) -> tuple[Counts, Counts, Counts]:
    """Losses and gains, runs x looks, and images, looks."""
    loss, gain = cell.rates
    drawn = rng.multinomial(BATCH, [loss, gain, 1 - loss - gain], size=(runs, images // BATCH))
    totals = drawn.cumsum(axis=1).astype(np.float64)
    return totals[..., 0], totals[..., 1], BATCH * np.arange(1.0, images // BATCH + 1)


def _exceeds(above: Counts, below: Counts, n: Counts, supposed: float) -> NDArray[np.bool_]:
    total = np.broadcast_to(n, above.shape)
    flat = log_wealth(above.ravel(), below.ravel(), total.ravel(), np.full(above.size, supposed))
    return np.asarray(flat.reshape(above.shape) > _LIMIT)


def _first(exceeds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first look of each run at which the wealth is large enough; past the end if none."""
    first = exceeds.argmax(axis=1)
    return np.asarray(np.where(exceeds.any(axis=1), first, exceeds.shape[1]))


def _fixed_passes(losses: Counts, gains: Counts, n: Counts) -> NDArray[np.bool_]:
    _, high = drop_intervals(losses, gains, np.broadcast_to(n, losses.shape))
    return np.asarray((high < MARGIN).any(axis=1))


def _in_theory(cell: Cell) -> int | None:
    """Images that the best constant bet needs on average; ``None`` at the margin."""
    if cell.drop == MARGIN:
        return None
    loss, gain = cell.rates
    supposed = MARGIN
    if cell.drop > MARGIN:  # the mirrored problem: a fail
        loss, gain, supposed = gain, loss, -MARGIN
    bets = -np.linspace(1e-3, 1 - 1e-6, 4000) / (1 - supposed)
    growth = (
        loss * np.log1p(bets * (1 - supposed))
        + gain * np.log1p(bets * (-1 - supposed))
        + (1 - loss - gain) * np.log1p(-bets * supposed)
    )
    return math.ceil(_LIMIT / float(growth.max()))


def table(report: dict[str, Any]) -> str:
    """The table of docs/accuracy.md."""
    lines = [
        "| discordant | true drop | passes | fails | images looked at | at least, in theory |",
        "|---|---|---|---|---|---|",
    ]
    for cell in report["cells"]:
        theory = cell["images_in_theory"]
        lines.append(
            f"| {100 * cell['discordant']:.4g} % | {100 * cell['drop']:.4g} pp "
            f"| {100 * cell['passed']:.4g} % | {100 * cell['failed']:.4g} % "
            f"| {cell['images']:,.0f} | {'–' if theory is None else format(theory, ',')} |"
        )
    return "\n".join(lines)


def measured(runs: int) -> dict[str, Any]:
    """Simulate every cell and check the limits."""
    rng = np.random.default_rng(SEED)
    cells = [simulate(Cell(IMAGES, *cell), runs, rng) for cell in CELLS]
    false_passes = max(c["passed"] for c in cells if c["drop"] >= MARGIN)
    false_fails = max(c["failed"] for c in cells if c["drop"] <= MARGIN)
    return {
        "margin": MARGIN,
        "runs": runs,
        "images": IMAGES,
        "batch": BATCH,
        "seed": SEED,
        "largest_share_of_false_passes": false_passes,
        "largest_share_of_false_fails": false_fails,
        "limits_held": max(false_passes, false_fails) <= 0.025,
        "cells": cells,
    }


def main() -> int:
    """Simulate, and write the report and the table; returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write-only", action="store_true", help="only regenerate the table")
    parser.add_argument("--runs", type=int, default=RUNS, help="validations per cell")
    arguments = parser.parse_args()
    if not arguments.write_only:
        write_text_atomically(REPORT, json.dumps(measured(arguments.runs), indent=1) + "\n")
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    write_between_marks(ROOT / "docs" / "accuracy.md", "early", f"\n{table(report)}\n")
    print(json.dumps({k: v for k, v in report.items() if k != "cells"}, indent=2))
    return 0 if report["limits_held"] else 1


if __name__ == "__main__":
    sys.exit(main())
