"""Times PyTorch eager module by module, with forward hooks.

Hooks instead of ``torch.profiler``: a hook costs a function call before and after each of about 150
modules, and its time belongs to the module directly. The profiler records several operators per module,
allocates an event for each, and reports operators instead of modules.

What a module does besides calling others (the residual addition, which is not a module, and Python) is
its own time and a layer too, so that no time between the first and the last hook is lost.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from optimizer.engines.protocol import Bound
from optimizer.results import LayerInfo

__all__ = ["time_modules"]

_WARM_UP = 2
"""Warm-up calls, which are not counted."""


def time_modules(module: Any, bound: Bound, calls: int) -> list[LayerInfo]:
    """Time the modules of a network.

    Args:
        module: The network, in evaluation mode.
        bound: A batch bound to it.
        calls: The number of timed calls.

    Returns:
        A layer for every module, in the order in which they first finish, with its median own time,
        the FLOPs per image and the bytes of the batch. Containers have their own type and no bytes.
    """
    runs: list[dict[str, float]] = []
    with _hooked(module, bound, runs) as work:
        for _ in range(_WARM_UP + calls):
            runs.append({})
            bound.enqueue()
            bound.wait()
    counted = runs[_WARM_UP:]
    kinds = {name: type(part).__name__ for name, part in module.named_modules()}
    return [
        LayerInfo(
            name=name or kinds[name],
            torch_names=[name] if name else [],
            type=kinds[name],
            precision="fp32",
            time_ms=median(run.get(name, 0.0) for run in counted),
            flops=work[name][0] or None,
            bytes=work[name][1] or None,
        )
        for name in counted[0]
    ]


@contextlib.contextmanager
def _hooked(
    module: Any, bound: Bound, runs: list[dict[str, float]]
) -> Iterator[dict[str, tuple[int, int]]]:
    """Install hooks on every module that add its own milliseconds to the last entry of ``runs``.

    Yields:
        FLOPs per image and bytes of the batch by module, filled in by the first run.
    """
    work: dict[str, tuple[int, int]] = {}
    handles = []
    inside = [0.0]  # milliseconds spent in the callees of each running module
    started: list[float] = []

    def clock() -> float:
        bound.wait()  # on a GPU the work has only been started
        return time.perf_counter() * 1e3

    def before(_module: Any, _inputs: Any) -> None:
        inside.append(0.0)
        started.append(clock())

    def after(name: str) -> Any:
        def hook(part: Any, inputs: Any, output: Any) -> None:
            spent = clock() - started.pop()
            own_ms = spent - inside.pop()
            inside[-1] += spent
            runs[-1][name] = runs[-1].get(name, 0.0) + own_ms
            if len(runs) == 1:
                flops, moved = work.get(name, (0, 0))
                more = (0, 0) if any(part.children()) else _work(part, inputs, output)
                work[name] = (flops + more[0], moved + more[1])

        return hook

    try:
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(before))
            handles.append(part.register_forward_hook(after(name)))
        yield work
    finally:
        for handle in handles:
            handle.remove()


def _work(part: Any, inputs: Any, output: Any) -> tuple[int, int]:
    """FLOPs per image (of modules with a weight matrix) and bytes of the call."""
    stored = [*part.parameters(), *part.buffers()]
    tensors = [tensor for tensor in (*stored, *inputs, output) if hasattr(tensor, "element_size")]
    moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    weight = getattr(part, "weight", None)
    if weight is None or weight.dim() < 2:
        return 0, moved
    positions = output[0, 0].numel()  # one for a fully connected layer
    return 2 * weight.numel() * positions, moved
