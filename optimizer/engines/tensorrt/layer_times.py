"""What the library's profiler reports, beside what the inspector knows of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from optimizer.engines.tensorrt.names import split_profile
from optimizer.results import LayerInfo

__all__ = ["attach_profiler", "make_profiler", "with_times"]


def make_profiler(trt: Any) -> Any:
    """A profiler that adds up the milliseconds of every layer, run by run.

    It counts into the last entry of its list ``runs``; before a run one is appended.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs: list[dict[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            run = self.runs[-1]
            run[layer_name] = run.get(layer_name, 0.0) + ms

    return Profiler()


def attach_profiler(trt: Any, context: Any) -> Any:
    """Let a context report the time of its layers, from now on and for good; the profiler."""
    profiler = make_profiler(trt)
    context.nvtx_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    context.profiler = profiler
    return profiler


def with_times(
    layers: Sequence[LayerInfo], runs: Sequence[dict[str, float]], *, profile: int = 0
) -> list[LayerInfo]:
    """The layers of the profile that ran, each with its median time.

    Args:
        layers: All layers that the inspector lists.
        runs: Milliseconds by the profiler's names, a dictionary a run.
        profile: The optimization profile that ran.

    Returns:
        The layers that have a time, then what the inspector does not list under that name (a
        synchronization, say) as layers of type ``unknown``: no time is lost.
    """
    names = dict.fromkeys(name for run in runs for name in run)
    times = {name: median(run.get(name, 0.0) for run in runs) for name in names}
    timed = []
    for layer in layers:
        if layer.profile != profile:
            continue
        # Whether the profiler marks its names as the inspector does is not documented.
        name = layer.name if layer.name in times else split_profile(layer.name)[0]
        if name in times:
            timed.append(layer.model_copy(update={"time_ms": times.pop(name)}))
    return timed + [
        LayerInfo(name=name, type="unknown", precision="unknown", time_ms=spent, profile=profile)
        for name, spent in times.items()
    ]
