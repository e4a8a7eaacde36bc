"""Times PyTorch eager module by module, with forward hooks.

Hooks are used instead of ``torch.profiler`` because they cost one function call before and after
each of about 150 modules, and they name the module. The profiler records every operator, several
per module, allocates an event for each, and names operators instead of modules.

Time that a module spends outside its submodules (residual additions, Python) counts as its own
layer, so no time between the first and the last hook is lost.
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

_WARMUP_CALLS = 2
"""Calls that are not measured."""


def time_modules(module: Any, bound: Bound, calls: int) -> list[LayerInfo]:
    """Time the modules of a network.

    Args:
        module: The network, in evaluation mode.
        bound: A batch bound to the network.
        calls: Measured calls.

    Returns:
        One layer per module, in the order in which modules first finish, with the median time
        excluding submodules, the FLOPs per image and the bytes of the batch. A module that contains
        others has no bytes.
    """
    runs: list[dict[str, float]] = []
    with _hooked(module, bound, runs) as work:
        for _ in range(_WARMUP_CALLS + calls):
            runs.append({})
            bound.enqueue()
            bound.wait()
    counted = runs[_WARMUP_CALLS:]
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
    """Install hooks that add each module's time without submodules, in ms, to the last run.

    Yields:
        FLOPs per image and bytes per batch by module, filled in by the first run.
    """
    work: dict[str, tuple[int, int]] = {}
    handles = []
    inside = [0.0]  # ms spent in submodules, for each module that is running
    started: list[float] = []

    def clock() -> float:
        bound.wait()  # GPU work is asynchronous; on a CPU this returns at once
        return time.perf_counter() * 1e3

    def before(_module: Any, _inputs: Any) -> None:
        inside.append(0.0)
        started.append(clock())

    def after(name: str) -> Any:
        def hook(part: Any, inputs: Any, output: Any) -> None:
            spent = clock() - started.pop()
            exclusive = spent - inside.pop()
            inside[-1] += spent
            runs[-1][name] = runs[-1].get(name, 0.0) + exclusive
            if len(runs) == 1:
                flops, moved = work.get(name, (0, 0))
                added = (0, 0) if any(part.children()) else _work(part, inputs, output)
                work[name] = (flops + added[0], moved + added[1])

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
    """FLOPs per image (for modules with a weight matrix) and bytes of the call."""
    state = [*part.parameters(), *part.buffers()]
    tensors = [tensor for tensor in (*state, *inputs, output) if hasattr(tensor, "element_size")]
    moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    weight = getattr(part, "weight", None)
    if weight is None or weight.dim() < 2:
        return 0, moved
    positions = output[0, 0].numel()  # 1 for a fully connected layer
    return 2 * weight.numel() * positions, moved
