"""Error rates of the gate for known drops (a reduced grid; the full one is a benchmark)."""

from __future__ import annotations

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


def test_the_gate_has_enough_power() -> None:
    assert enumerate_cell(Cell(2000, 0.01, 0.0), MARGIN).passed > 0.9
    assert enumerate_cell(Cell(10_000, 0.03, 0.02), MARGIN).failed > 0.99


def test_enumeration_agrees_with_independent_draws() -> None:
    cell = Cell(540, 0.02, 0.01)
    loss, gain = cell.rates
    from optimizer.tasks.paired_statistics import drop_intervals

    drawn = np.random.default_rng(3).multinomial(540, [loss, gain, 1 - loss - gain], size=20_000)
    low, high = drop_intervals(drawn[:, 0], drawn[:, 1], 540)
    exact = enumerate_cell(cell, MARGIN)
    assert np.mean((low <= 0.01) & (high >= 0.01)) == pytest.approx(exact.covered, abs=0.006)
    assert np.mean(high < MARGIN) == pytest.approx(exact.passed, abs=0.006)


def test_the_wald_interval_undercovers() -> None:
    """Without discordant images the Wald interval is [0, 0], so it is not used."""
    cell = Cell(500, 0.002, 0.001)
    counts = np.random.default_rng(0).multinomial(
        500, [*cell.rates, 1 - cell.discordant], size=4000
    )
    drop = (counts[:, 0] - counts[:, 1]) / 500
    half = 1.96 * np.sqrt((counts[:, :2].sum(axis=1) / 500 - drop**2) / 500)
    assert np.mean(np.abs(drop - cell.drop) <= half) < 0.65
    assert enumerate_cell(cell, MARGIN).covered >= 0.94


def test_impossible_cells_are_omitted() -> None:
    assert list(grid((500,), (0.002,), (0.0, 0.01))) == [Cell(500, 0.002, 0.0)]
