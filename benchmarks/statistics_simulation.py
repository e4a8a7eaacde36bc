"""Error rates of the accuracy gate. Writes ``reports/statistics/simulation.json``.

Run: ``python benchmarks/statistics_simulation.py`` (two minutes on one core; no data needed). The
table in docs/accuracy.md is generated from it; ``--write-only`` writes only the table.

Every cell is enumerated exactly and simulated with 2,000 random draws. Exits with code 1 if either
exceeds a limit (at most 5 % passes at a true drop equal to the margin, at most 5 % fails at a true
drop of zero, at least 94 % coverage), or if a simulated share differs from the exact one by more
than 2,000 independent draws explain (p < 1e-6).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from gate_simulation import Cell, enumerate_cell, grid, simulate_cell
from readme import write_between_marks
from scipy.stats import binomtest

from optimizer.artifacts import write_text_atomically

IMAGES = (500, 540, 750, 1000, 1500, 2000, 3000, 5000, 10_000, 20_000, 50_000)
DISCORDANCES = (0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
DROPS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02)
MARGIN = 0.01
DRAWS = 2000
SEED = 20_250_101
SHOWN_IMAGES = (500, 1000, 2000, 5000, 10_000)
SHOWN_DISCORDANCES = (0.002, 0.01, 0.03, 0.05)
ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "statistics" / "simulation.json"


def evaluate_cell(cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    """Exact and simulated shares of one cell, and the p-value of their difference."""
    exact = enumerate_cell(cell, MARGIN)
    drawn = simulate_cell(cell, MARGIN, DRAWS, rng)
    p_value = min(
        float(binomtest(round(getattr(drawn, name) * DRAWS), DRAWS, share).pvalue)
        for name, share in asdict(exact).items()
    )
    return {
        "images": cell.n,
        "discordant": cell.discordant,
        "drop": cell.drop,
        "exact": asdict(exact),
        "simulated": asdict(drawn),
        "p_simulated_given_exact": p_value,
    }


def table(report: dict[str, Any]) -> str:
    """The table of docs/accuracy.md: how often an engine without loss passes, by image count."""
    passed = {
        (c["images"], c["discordant"]): c["exact"]["passed"]
        for c in report["cells"]
        if c["drop"] == 0
    }
    lines = [
        f"| images | {' | '.join(f'{100 * share:.4g} %' for share in SHOWN_DISCORDANCES)} |",
        "|---" * (1 + len(SHOWN_DISCORDANCES)) + "|",
    ]
    for n in SHOWN_IMAGES:
        cells = [f"{100 * passed[n, share]:.0f} %" for share in SHOWN_DISCORDANCES]
        lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured() -> dict[str, Any]:
    """Evaluate the whole grid and check the limits."""
    rng = np.random.default_rng(SEED)
    cells = [evaluate_cell(cell, rng) for cell in grid(IMAGES, DISCORDANCES, DROPS)]
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
    smallest_p = min(c["p_simulated_given_exact"] for c in cells)
    held = smallest_p > 1e-6 and all(
        s["largest_share_of_passes_at_the_margin"] <= 0.05
        and s["largest_share_of_fails_without_a_drop"] <= 0.05
        and s["smallest_coverage"] >= 0.94
        for s in summary.values()
    )
    return {
        "margin": MARGIN,
        "draws": DRAWS,
        "seed": SEED,
        "limits_held": held,
        "summary": summary,
        "smallest_p_simulated_given_exact": smallest_p,
        "cells": cells,
    }


def main() -> int:
    """Run the grid, and write the report and the table; returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write-only", action="store_true", help="only regenerate the table")
    if not parser.parse_args().write_only:
        write_text_atomically(REPORT, json.dumps(measured(), indent=1) + "\n")
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    write_between_marks(ROOT / "docs" / "accuracy.md", "images", f"\n{table(report)}\n")
    print(json.dumps({k: v for k, v in report.items() if k != "cells"}, indent=2))
    return 0 if report["limits_held"] else 1


if __name__ == "__main__":
    sys.exit(main())
