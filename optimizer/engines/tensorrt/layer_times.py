"""Layer times from the library's profiler, joined with the layers from its inspector."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from optimizer.engines.tensorrt.names import split_profile
from optimizer.results import LayerInfo

__all__ = ["attach_profiler", "make_profiler", "with_times"]


def make_profiler(trt: Any) -> Any:
    """A profiler that sums up the milliseconds of every layer, separately for each run.

    It adds to the last entry of its list ``runs``; the caller appends an entry before each run.
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
    """Attach a profiler to a context permanently, and return the profiler."""
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
        runs: Milliseconds by the profiler's layer names, one dictionary per run.
        profile: The optimization profile that ran.

    Returns:
        The layers that have a time, followed by the profiler's entries that the inspector does not list
        (such as a synchronization) as layers of type ``unknown``, so that no time is lost.
    """
    names = dict.fromkeys(name for run in runs for name in run)
    times = {name: median(run.get(name, 0.0) for run in runs) for name in names}
    timed = []
    for layer in layers:
        if layer.profile != profile:
            continue
        # It is not documented whether the profiler's names include the profile, as the inspector's do.
        name = layer.name if layer.name in times else split_profile(layer.name)[0]
        if name in times:
            timed.append(layer.model_copy(update={"time_ms": times.pop(name)}))
    return timed + [
        LayerInfo(name=name, type="unknown", precision="unknown", time_ms=spent, profile=profile)
        for name, spent in times.items()
    ]
