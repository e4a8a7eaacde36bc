"""Which workers are there at the same time: all of them, if there is memory for that."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.engines.placement import runs_on
from optimizer.nvml import Nvml
from optimizer.profiling.harness import Cell

__all__ = ["in_groups"]

_PROCESS = 512 << 20
"""Bytes of a worker without its engine: Python and the library, and on a GPU the CUDA context."""


def in_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """All cells together, or one setting after the other if their workers need too much memory.

    Only engines at the same setting are compared, so this costs no comparison its pairing.
    """
    if _fit_in_memory(cells) and _fit_on_gpus(cells):
        return [list(cells)]
    groups: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.batch, cell.threads, cell.streams), []).append(cell)
    return list(groups.values())


def _fit_in_memory(cells: Sequence[Cell]) -> bool:
    import psutil

    needed = sum(_PROCESS + 8 * cell.engine.stat().st_size for cell in cells)
    return bool(needed < 0.6 * psutil.virtual_memory().available)


def _fit_on_gpus(cells: Sequence[Cell]) -> bool:
    needed: dict[str, int] = {}
    for cell in cells:
        where = runs_on(cell.engine, cell.device)
        if where is not None and where != "cpu":
            size = _PROCESS + 3 * cell.engine.stat().st_size
            needed[where] = needed.get(where, 0) + size
    if not needed:
        return True
    with Nvml() as nvml:
        free = {f"cuda:{index}": nvml.free_memory(handle) for index, handle in nvml.handles}
    known = ((size, free.get(where)) for where, size in needed.items())
    return all(size < 0.8 * left for size, left in known if left is not None)
