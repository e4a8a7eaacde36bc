"""The gate's error rates where the truth is known (a reduced grid; the full one is a benchmark)."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from gate_simulation import Cell, enumerate_cell, grid, simulate_cell

MARGIN = 0.01
CELLS = list(grid((500, 2000, 10_000), (0.002, 0.01, 0.03), (0.0, 0.005, 0.01, 0.02)))


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.n}-{c.discordant}-{c.drop}")
def test_error_rates_and_coverage(cell: Cell) -> None:
    exact = enumerate_cell(cell, MARGIN)
    drawn = simulate_cell(cell, MARGIN, 2000, np.random.default_rng(7))
    for shares in (exact, drawn):
        assert shares.covered >= 0.94
        if cell.drop == MARGIN:
            assert shares.passed <= 0.05
        if cell.drop == 0:
            assert shares.failed <= 0.05
        total = shares.passed + shares.failed + shares.inconclusive
        assert total == pytest.approx(1, abs=1e-9)
    assert drawn.covered == pytest.approx(exact.covered, abs=0.025)
    assert drawn.passed == pytest.approx(exact.passed, abs=0.05)


def test_the_gate_is_not_only_careful_but_of_use() -> None:
    assert enumerate_cell(Cell(2000, 0.01, 0.0), MARGIN).passed > 0.9
    assert enumerate_cell(Cell(10_000, 0.03, 0.02), MARGIN).failed > 0.99


def test_enumeration_agrees_with_independent_draws() -> None:
    cell = Cell(540, 0.02, 0.01)
    loss, gain = cell.rates
    from optimizer.evaluation.statistics import drop_intervals

    drawn = np.random.default_rng(3).multinomial(540, [loss, gain, 1 - loss - gain], size=20_000)
    low, high = drop_intervals(drawn[:, 0], drawn[:, 1], 540)
    exact = enumerate_cell(cell, MARGIN)
    assert np.mean((low <= 0.01) & (high >= 0.01)) == pytest.approx(exact.covered, abs=0.006)
    assert np.mean(high < MARGIN) == pytest.approx(exact.passed, abs=0.006)


def test_the_textbook_interval_would_not_do() -> None:
    """Wald's interval is [0, 0] without discordant images: that is why it is not used."""
    cell = Cell(500, 0.002, 0.001)
    counts = np.random.default_rng(0).multinomial(
        500, [*cell.rates, 1 - cell.discordant], size=4000
    )
    drop = (counts[:, 0] - counts[:, 1]) / 500
    half = 1.96 * np.sqrt((counts[:, :2].sum(axis=1) / 500 - drop**2) / 500)
    assert np.mean(np.abs(drop - cell.drop) <= half) < 0.65
    assert enumerate_cell(cell, MARGIN).covered >= 0.94


def test_cells_that_cannot_be_are_left_out() -> None:
    assert list(grid((500,), (0.002,), (0.0, 0.01))) == [Cell(500, 0.002, 0.0)]


ROOT = Path(__file__).resolve().parents[2]


def _report() -> dict[str, object]:
    path = ROOT / "reports" / "statistics" / "simulation.json"
    report: dict[str, object] = json.loads(path.read_text())
    return report


def test_the_report_covers_the_whole_promise_and_keeps_it() -> None:
    report = _report()
    cells = report["cells"]
    assert isinstance(cells, list)
    assert (report["margin"], report["draws"]) == (0.01, 2000)
    found = {(c["images"], c["discordant"], c["drop"]) for c in cells}
    images, discordances, drops = (sorted({key[i] for key in found}) for i in range(3))
    assert (images[0], images[-1]) == (500, 50_000)
    assert (discordances[0], discordances[-1]) == (0.002, 0.05)
    assert (drops[0], drops[-1]) == (0.0, 0.02)
    assert found == {k for k in itertools.product(images, discordances, drops) if k[2] <= k[1]}
    for cell, kind in itertools.product(cells, ("exact", "simulated")):
        assert cell[kind]["covered"] >= 0.94
        if cell["drop"] == 0.01:
            assert cell[kind]["passed"] <= 0.05
        if cell["drop"] == 0:
            assert cell[kind]["failed"] <= 0.05


def test_the_page_says_what_the_report_says() -> None:
    cells = _report()["cells"]
    assert isinstance(cells, list)
    passed = {(c["images"], c["discordant"]): c["exact"]["passed"] for c in cells if c["drop"] == 0}
    page = (ROOT / "docs" / "accuracy.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| (.+ %) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for images, shares in rows:
        for discordant, share in zip((0.002, 0.01, 0.03, 0.05), shares.split(" | "), strict=True):
            assert share == f"{100 * passed[int(images.replace(',', '')), discordant]:.0f} %"
