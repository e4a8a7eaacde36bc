"""Runs NVIDIA's timing tools for comparison with our sessions, and parses their output.

``trtexec`` comes with TensorRT and ``tensorrt_rtx`` with TensorRT-RTX; both time an engine file with
random input. They run with the settings of our own measurement: 200 ms of warm-up, one CUDA graph, no
transfers, spin wait. Since 11.0 these are trtexec's defaults and the flags are ignored, so the same
command line works for all versions.

The tools' *throughput* counts a batch as one query: it is called batches/s here; images/s is that
times the batch size.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "TOOLS",
    "Times",
    "ToolFailed",
    "ToolResult",
    "command",
    "find_tool",
    "parse",
    "time_engine",
]

TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
WARM_UP_MS = 200


class ToolFailed(Exception):  # noqa: N818 - reads better
    """The tool could not time the engine; the message is from the tool."""


@dataclass(frozen=True)
class Times:
    """One line of the performance summary, in milliseconds."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: dict[str, float]


@dataclass(frozen=True)
class ToolResult:
    """The measurements of the tool.

    Attributes:
        version: Version from the banner, such as ``10.16.1``; ``""`` without one.
        batch: Images per query.
        batches_per_s: Throughput in queries per second.
        gpu_compute_ms: GPU time between the first and the last kernel of a query.
        latency_ms: Latency of a query, including transfers if there are any.
        enqueue_ms: Host time for enqueuing a query.
        warnings: Warnings, such as unstable clocks.
    """

    version: str
    batch: int
    batches_per_s: float
    gpu_compute_ms: Times
    latency_ms: Times
    enqueue_ms: Times | None
    warnings: list[str]

    @property
    def images_per_s(self) -> float:
        """Throughput in images per second."""
        return self.batches_per_s * self.batch

    def as_json(self) -> dict[str, Any]:
        """All fields, with both kinds of throughput."""
        return {**asdict(self), "images_per_s": self.images_per_s}


def find_tool(backend: str) -> str | None:
    """The path of a backend's tool; ``None`` if it is not on the PATH."""
    return shutil.which(TOOLS[backend])


def command(
    tool: str,
    engine: Path,
    *,
    input_name: str,
    shape: Sequence[int],
    seconds: float,
    device: int = 0,
) -> list[str]:
    """The command line that times an engine at one input shape (batch first)."""
    return [
        tool,
        f"--loadEngine={engine}",
        f"--shapes={input_name}:{'x'.join(map(str, shape))}",
        f"--device={device}",
        f"--warmUp={WARM_UP_MS}",
        f"--duration={max(1, round(seconds))}",
        "--useCudaGraph",
        "--noDataTransfers",
        "--useSpinWait",
        "--percentile=90,95,99",
    ]


def time_engine(
    tool: str,
    engine: Path,
    *,
    input_name: str,
    shape: Sequence[int],
    seconds: float,
    device: int = 0,
    timeout_s: float = 300.0,
) -> ToolResult:
    """Run the tool on an engine.

    Raises:
        ToolFailed: The tool failed, printed no summary, or timed out.
    """
    line = command(tool, engine, input_name=input_name, shape=shape, seconds=seconds, device=device)
    try:
        completed = subprocess.run(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{Path(tool).name} timed out after {timeout_s:.0f} s") from None
    if completed.returncode != 0:
        raise ToolFailed(_error(Path(tool).name, completed.stdout, completed.returncode))
    return parse(completed.stdout, batch=shape[0])


def parse(text: str, *, batch: int) -> ToolResult:
    """Read the performance summary of trtexec 8 to 11 or tensorrt_rtx.

    Args:
        text: The output of the tool.
        batch: Images per query, which the tool does not print.

    Raises:
        ToolFailed: The summary is missing or incomplete.
    """
    _, mark, summary = text.rpartition("=== Performance summary ===")
    throughput = re.search(r"Throughput: ([\d.e+-]+) qps", summary)
    gpu, latency = _times(summary, "GPU Compute Time"), _times(summary, "Latency")
    if not mark or throughput is None or gpu is None or latency is None:
        raise ToolFailed(_error("the tool", text, 0))
    return ToolResult(
        version=_version(text),
        batch=batch,
        batches_per_s=float(throughput[1]),
        gpu_compute_ms=gpu,
        latency_ms=latency,
        enqueue_ms=_times(summary, "Enqueue Time"),
        warnings=[line.strip() for line in re.findall(r"\[W\] \* (.+)", summary)],
    )


def _times(summary: str, name: str) -> Times | None:
    # The name must follow the tag "[I] ", because "H2D Latency" also ends in "Latency".
    match = re.search(rf"\[I\] {name}: (.+)", summary)
    if match is None:
        return None
    values = dict(re.findall(r"([\w()%.]+) = ([\d.e+-]+) ms", match[1]))
    try:
        minimum, maximum, mean, median = (
            float(values.pop(key)) for key in ("min", "max", "mean", "median")
        )
    except KeyError:
        return None
    percentiles = {
        key.removeprefix("percentile(").removesuffix("%)"): float(value)
        for key, value in values.items()
        if key.startswith("percentile(")
    }
    return Times(minimum, maximum, mean, median, percentiles)


def _version(text: str) -> str:
    """Parse the banner: four digits for version 8 (``v8602``), six since 10, or with dots."""
    match = re.search(r"\[(?:TensorRT|TensorRT-RTX) v([\d.]+)\]", text)
    if match is None:
        return ""
    digits = match[1]
    if "." in digits:
        return digits
    if len(digits) == 4:
        return f"{digits[0]}.{digits[1]}.{int(digits[2:])}"
    return f"{int(digits[:-4])}.{int(digits[-4:-2])}.{int(digits[-2:])}"


def _error(name: str, text: str, code: int) -> str:
    errors = re.findall(r"\[E\] (.+)", text)
    lines = errors or [line for line in text.splitlines() if line.strip()][-1:]
    reason = lines[0].strip()[:300] if lines else "no output"
    return f"{name} {f'failed with exit code {code}' if code else 'printed no summary'}: {reason}"
