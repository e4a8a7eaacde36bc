"""How often is the accuracy gate wrong? Writes ``reports/statistics/simulation.json``.

Run: ``python benchmarks/statistics_simulation.py`` (two minutes on one core; no data needed).

Every cell is enumerated exactly and simulated with 2,000 random draws. Exit code 1 if a limit is
broken by either: passes at a true drop equal to the margin at most 5 %, fails at a true drop of
zero at most 5 %, coverage at least 94 %; or if a simulated share is further from the exact one
than 2,000 independent draws would explain (p < 1e-6).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gate_simulation import Cell, enumerate_cell, grid, simulate_cell
from scipy.stats import binomtest

from optimizer.artifacts import write_text_atomically

IMAGES = (500, 540, 750, 1000, 1500, 2000, 3000, 5000, 10_000, 20_000, 50_000)
DISCORDANCES = (0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
DROPS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02)
MARGIN = 0.01
DRAWS = 2000
SEED = 20_250_101


def one_cell(cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    """Exact and simulated shares of one cell, and how surprising their distance is."""
    exact = enumerate_cell(cell, MARGIN)
    drawn = simulate_cell(cell, MARGIN, DRAWS, rng)
    surprise = min(
        float(binomtest(round(getattr(drawn, name) * DRAWS), DRAWS, share).pvalue)
        for name, share in asdict(exact).items()
    )
    return {
        "images": cell.n,
        "discordant": cell.discordant,
        "drop": cell.drop,
        "exact": asdict(exact),
        "simulated": asdict(drawn),
        "p_simulated_given_exact": surprise,
    }


def main() -> int:
    """Run the grid, write the report, say whether the limits hold."""
    rng = np.random.default_rng(SEED)
    cells = [one_cell(cell, rng) for cell in grid(IMAGES, DISCORDANCES, DROPS)]
    at_margin = [c for c in cells if c["drop"] == MARGIN]
    at_zero = [c for c in cells if c["drop"] == 0]
    summary = {
        kind: {
            "largest_share_of_passes_at_the_margin": max(c[kind]["passed"] for c in at_margin),
            "largest_share_of_fails_without_a_drop": max(c[kind]["failed"] for c in at_zero),
            "smallest_coverage": min(c[kind]["covered"] for c in cells),
            "cells_below_94_percent_coverage": sum(c[kind]["covered"] < 0.94 for c in cells),
        }
        for kind in ("exact", "simulated")
    }
    surprise = min(c["p_simulated_given_exact"] for c in cells)
    held = surprise > 1e-6 and all(
        s["largest_share_of_passes_at_the_margin"] <= 0.05
        and s["largest_share_of_fails_without_a_drop"] <= 0.05
        and s["smallest_coverage"] >= 0.94
        for s in summary.values()
    )
    report = {
        "margin": MARGIN,
        "draws": DRAWS,
        "seed": SEED,
        "limits_held": held,
        "summary": summary,
        "smallest_p_simulated_given_exact": surprise,
        "cells": cells,
    }
    path = Path(__file__).resolve().parent.parent / "reports" / "statistics" / "simulation.json"
    write_text_atomically(path, json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "cells"}, indent=2))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
