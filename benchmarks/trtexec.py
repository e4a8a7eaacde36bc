"""NVIDIA's own timing tool beside our sessions: its command line, and what it prints.

``trtexec`` comes with TensorRT, ``tensorrt_rtx`` with TensorRT-RTX; both time an engine file with
random input. Both are started here as our own measurement is made: 200 ms of warm-up, one CUDA
graph, no transfers, a spinning wait. From 11.0 on that is trtexec's default and the flags for it
are accepted and ignored, so the same command line serves all versions.

What it calls *throughput* counts a whole batch as one query: that is batches/s here, and images/s
is that times the batch.
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


class ToolFailed(Exception):  # noqa: N818 - reads as the sentence it is
    """The tool could not time the engine; the message is its own."""


@dataclass(frozen=True)
class Times:
    """One line of the performance summary, milliseconds."""

    minimum: float
    maximum: float
    mean: float
    median: float
    percentiles: dict[str, float]


@dataclass(frozen=True)
class ToolResult:
    """What the tool measured.

    Attributes:
        version: ``10.16.1`` as its banner tells it, ``""`` if it does not.
        batch: Images of a query.
        batches_per_s: Its throughput.
        gpu_compute_ms: GPU time between the first and the last kernel of a query.
        latency_ms: With transfers, where it makes any.
        enqueue_ms: Host time of starting a query.
        warnings: What it warns of, such as unstable clocks.
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
        """Throughput in images."""
        return self.batches_per_s * self.batch

    def as_json(self) -> dict[str, Any]:
        """All of it, with both kinds of throughput."""
        return {**asdict(self), "images_per_s": self.images_per_s}


def find_tool(backend: str) -> str | None:
    """The tool of a backend on the PATH, or ``None``."""
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
    """The command line that times an engine at one shape, the batch first."""
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
        ToolFailed: It ended with an error, printed no summary, or took too long.
    """
    line = command(tool, engine, input_name=input_name, shape=shape, seconds=seconds, device=device)
    try:
        done = subprocess.run(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{Path(tool).name} did not end within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise ToolFailed(_error(Path(tool).name, done.stdout, done.returncode))
    return parse(done.stdout, batch=shape[0])


def parse(text: str, *, batch: int) -> ToolResult:
    """Read the performance summary of trtexec 8 to 11 or tensorrt_rtx.

    Args:
        text: All that the tool printed.
        batch: Images of a query, which the tool does not print.

    Raises:
        ToolFailed: There is no complete summary.
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
    # "H2D Latency" ends in "Latency" too: the name must follow the tag "[I] ".
    found = re.search(rf"\[I\] {name}: (.+)", summary)
    if found is None:
        return None
    values = dict(re.findall(r"([\w()%.]+) = ([\d.e+-]+) ms", found[1]))
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
    """The banner has it as 8 and four digits (``v8602``), 10 and more with six, or with dots."""
    found = re.search(r"\[(?:TensorRT|TensorRT-RTX) v([\d.]+)\]", text)
    if found is None:
        return ""
    digits = found[1]
    if "." in digits:
        return digits
    if len(digits) == 4:
        return f"{digits[0]}.{digits[1]}.{int(digits[2:])}"
    return f"{int(digits[:-4])}.{int(digits[-4:-2])}.{int(digits[-2:])}"


def _error(name: str, text: str, code: int) -> str:
    errors = re.findall(r"\[E\] (.+)", text)
    lines = errors or [line for line in text.splitlines() if line.strip()][-1:]
    reason = lines[0].strip()[:300] if lines else "it printed nothing"
    return f"{name} {f'ended with code {code}' if code else 'printed no summary'}: {reason}"
