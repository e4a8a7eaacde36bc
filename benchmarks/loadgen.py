"""LoadGen's single-stream latency compared with our own timing of the same calls.

    python benchmarks/loadgen.py [--duration 30s]

ResNet-50 at 224 px with random seeded weights on OpenVINO and ONNX Runtime, FP32 and INT8. LoadGen
times each query from outside; the code that it calls times the same call from inside. The two medians
must agree within 0.5 %. Writes ``reports/cpu/loadgen.json`` and ``reports/cpu/loadgen.md``.
Exits with code 1 if they do not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from cpu import engines
from readme import machine

from optimizer.artifacts import write_text_atomically
from optimizer.environment import fingerprint
from optimizer.profiling.loadgen_request import Request
from optimizer.profiling.scenarios import check_scenarios, run_scenarios
from optimizer.progress import Silent
from optimizer.results import SCENARIO_LABEL, ScenarioResult
from optimizer.targets.hardware import cpu_features
from optimizer.units import parse_duration

REPORTS = Path(__file__).parent.parent / "reports" / "cpu"
LIMIT = 0.005
MEASURED = ("openvino fp32", "openvino int8", "onnxruntime fp32", "onnxruntime int8")


def agreement(scenarios: list[ScenarioResult]) -> dict[str, Any]:
    """The two medians of each engine and their relative difference."""
    rows: list[dict[str, Any]] = []
    for scenario in scenarios:
        if scenario.timed_p50_ms is None:
            raise SystemExit(f"{scenario.engine}: {scenario.error}")
        outside, inside = scenario.latency_ms["p50"], scenario.timed_p50_ms
        rows.append(
            {
                "engine": scenario.engine,
                "loadgen_p50_ms": outside,
                "timed_p50_ms": inside,
                "difference": outside / inside - 1,
                "queries": scenario.queries,
                "seconds": scenario.duration_s,
            }
        )
    held = all(abs(row["difference"]) <= LIMIT for row in rows)
    return {
        "label": SCENARIO_LABEL,
        "device": fingerprint(),
        "loadgen": scenarios[0].loadgen,
        "limit": LIMIT,
        "limit_held": held,
        "rows": rows,
        "scenarios": [scenario.model_dump(mode="json") for scenario in scenarios],
    }


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = (
        f"{report['label']}. LoadGen {report['loadgen']}, single-stream, on "
        f"{machine(report['device'])}; medians of the same calls, timed by LoadGen and by the code "
        f"it calls. They must agree within {report['limit']:.1%}: "
        f"{'they do' if report['limit_held'] else 'they do not'}."
    )
    lines = [
        "# LoadGen's latency and our own",
        "",
        head,
        "",
        "| engine | LoadGen p50, ms | ours p50, ms | difference | queries |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['engine']} | {r['loadgen_p50_ms']:.3f} | {r['timed_p50_ms']:.3f} | "
        f"{r['difference']:+.3%} | {r['queries']:,} |"
        for r in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write; returns 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--duration", default="30s")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the two files")
    options = parser.parse_args()
    scenarios = check_scenarios(["single-stream"])
    with tempfile.TemporaryDirectory() as name:
        built = {k: v for k, v in engines(Path(name)).items() if k in MEASURED}
        results = run_scenarios(
            built,
            scenarios,
            Request(
                engine="",
                scenario="offline",
                folder="",
                duration_s=parse_duration(options.duration),
                threads=cpu_features().physical_cores,
                batch=1,
                max_latency_ms=15.0,
            ),
            devices=dict.fromkeys(built.values()),
            progress=Silent(),
        )
    report = agreement(results)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(options.output / "loadgen.json", json.dumps(report, indent=2) + "\n")
    write_text_atomically(options.output / "loadgen.md", text(report))
    print(text(report))
    return 0 if report["limit_held"] else 1


if __name__ == "__main__":
    sys.exit(main())
