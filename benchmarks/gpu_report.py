"""Writes the GPU suite's results: ``suite.json``, and ``suite.md`` rendered from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optimizer.artifacts import write_text_atomically

__all__ = ["markdown", "slug", "write"]


def slug(device: str) -> str:
    """A device name such as ``NVIDIA H100 80GB HBM3`` as a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write both files into a folder named after the device.

    Args:
        results: What `gpu.Suite.results` returns.
        folder: The parent folder for all devices, ``reports/gpu``.

    Returns:
        The device's folder.
    """
    target = folder / slug(results["device"]["name"])
    target.mkdir(parents=True, exist_ok=True)
    write_text_atomically(target / "suite.json", json.dumps(results, indent=2) + "\n")
    read_back = json.loads((target / "suite.json").read_text(encoding="utf-8"))
    write_text_atomically(target / "suite.md", markdown(read_back))
    return target


def markdown(results: dict[str, Any]) -> str:
    """The report in Markdown."""
    device = results["device"]
    lines = [
        f"# {device['name']}",
        "",
        ", ".join(
            f"{key} {value}" for key, value in device.items() if key != "name" and value is not None
        ),
        "",
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in results["libraries"].items()),
        "",
        f"`make test-gpu`, {results['created']}.",
        "",
        *_built(results["cases"]),
        *_speed(results["bench"]),
        *_tool(results["trtexec"]),
        *_overhead(results["overhead"]),
        *_skipped(results["cases"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, head: list[str], rows: Iterable[list[str]], remark: str = "") -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    if not body:
        return []
    rule = "|" + "---|" * len(head)
    remarks = [remark, ""] if remark else []
    return [f"## {title}", "", *remarks, "| " + " | ".join(head) + " |", rule, *body, ""]


def _built(cases: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            case["model"],
            case["engine"],
            case["precision"].upper(),
            f"{case['build_s']:.1f}" if case.get("build_s") is not None else "–",
            f"{case['engine_bytes'] / 1e6:.1f}" if case.get("engine_bytes") else "–",
            _verdict(case.get("audit"), "reason"),
            _verdict(case.get("validate"), "finding"),
            f"{case['relative_error']:.2e}" if case.get("relative_error") is not None else "–",
            case["status"] + (f": {case['reason']}" if case.get("reason") else ""),
        ]
        for case in cases
        if case["status"] != "skipped"
    ]
    head = ["model", "engine", "precision", "build, s", "MB", "audit", "accuracy"]
    return _table("Built, audited, validated", [*head, "error of the logits", "outcome"], rows)


def _verdict(check: dict[str, Any] | None, field: str) -> str:
    return "–" if check is None else f"{check['verdict']}: {check[field]}"


def _speed(benches: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            bench["model"],
            engine["name"],
            str(engine["batch"]),
            _number(engine.get("images_per_s"), ".1f"),
            _interval(engine.get("images_per_s_ci95")),
            _number(engine.get("batches_per_s"), ".1f"),
            _number((engine.get("latency_ms") or {}).get("p50"), ".3f"),
            engine["status"] + (f": {engine['error']}" if engine.get("error") else ""),
        ]
        for bench in benches
        for engine in bench["engines"]
    ]
    head = ["model", "engine", "batch", "images/s", "95 % interval", "batches/s", "median, ms", ""]
    headline = benches[0]["headline"] if benches else ""
    return _table("Speed", head, rows, f"{headline}." if headline else "")


def _tool(runs: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            run["model"],
            run["engine"],
            str(run["batch"]),
            _number(run["ours"]["gpu_ms"], ".3f"),
            _number(run["tool"]["gpu_compute_ms"]["median"], ".3f") if run.get("tool") else "–",
            _number(run["ours"]["images_per_s"], ".1f"),
            _number(run["tool"]["images_per_s"], ".1f") if run.get("tool") else "–",
            _number(run["ours"]["batches_per_s"], ".1f"),
            _number(run["tool"]["batches_per_s"], ".1f") if run.get("tool") else "–",
            run.get("error") or "; ".join((run.get("tool") or {}).get("warnings", [])) or "–",
        ]
        for run in runs
    ]
    head = ["model", "engine", "batch", "GPU, ms: ours", "the tool's", "images/s: ours"]
    head += ["the tool's", "batches/s: ours", "the tool's", "remarks"]
    remark = (
        "The same engine file, 200 ms of warm-up, a CUDA graph, no transfers. Ours waits for every "
        "batch before it starts the next; the tool starts one ahead, so its throughput may be "
        "higher at the same GPU time."
    )
    return _table("Beside trtexec and tensorrt_rtx", head, rows, remark)


def _overhead(runs: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            run["model"],
            run["engine"],
            f"{run['ours_ms'] * 1e3:.1f}",
            f"{run['raw_ms'] * 1e3:.1f}",
            f"{run['share']:+.2%}",
            f"{run['ci95'][0]:+.2%} to {run['ci95'][1]:+.2%}",
            run["verdict"],
        ]
        for run in runs
    ]
    head = ["model", "engine", "ours, µs", "raw, µs", "overhead", "95 % interval", "at most 1 %"]
    return _table("Our session over the library's own calls, batch 1, CUDA graph", head, rows)


def _skipped(cases: list[dict[str, Any]]) -> list[str]:
    rows = [
        [case["model"], case["engine"], case["precision"].upper(), str(case["reason"])]
        for case in cases
        if case["status"] == "skipped"
    ]
    return _table("Not run here", ["model", "engine", "precision", "why"], rows)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _interval(value: list[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.1f} to {value[1]:.1f}"
