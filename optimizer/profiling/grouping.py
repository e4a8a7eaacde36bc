"""Which workers are there at the same time: all of them, if there is memory for that.

Where there is not, settings are measured one after the other; and where the workers of one setting are
still too many, its engines in groups of about the same size. Every group has the baseline and its
control with it, started anew: only what was measured in the same rounds is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.engines.placement import runs_on
from optimizer.errors import UsageError
from optimizer.nvml import Nvml
from optimizer.profiling.conditions import joined
from optimizer.profiling.harness import Cell, Measured, Measurement
from optimizer.results import Conditions

__all__ = ["Grouped", "Key", "check_max_workers", "in_groups", "key_of", "put_together"]

_PROCESS = 512 << 20
"""Bytes of a worker without its engine: Python and the library, and on a GPU the CUDA context."""
Key = tuple[str, int, int, int]
"""Name of an engine, batch, threads and streams."""


def key_of(cell: Cell) -> Key:
    """What tells a cell from all others."""
    return cell.name, cell.batch, cell.threads, cell.streams


def check_max_workers(most: int | None, cells: Sequence[Cell], shared: Collection[str]) -> None:
    """Refuse a number of workers in which nothing could be compared.

    Raises:
        UsageError: It has no room for the baseline, its control and one engine.
    """
    if most is None:
        return
    names = {cell.name for cell in cells}
    together = len(names & set(shared))
    least = together + (1 if names - set(shared) else 0)
    if most < least:
        raise UsageError(
            f"{most} workers at a time are too few: what is compared is measured side by side",
            hint=f"--max-workers {least} or more",
        )


def in_groups(
    cells: Sequence[Cell], *, shared: Collection[str] = (), most: int | None = None
) -> list[list[Cell]]:
    """All cells together, or in groups whose workers fit into memory.

    Args:
        cells: What is to be measured.
        shared: Names of the baseline and its control, which are in every group of a setting; with
            none, the engines of a setting stay together.
        most: Workers at the same time, at most; ``None`` for as many as memory allows.

    Returns:
        The groups; those of one setting follow each other.
    """
    if _fit(cells, most):
        return [list(cells)]
    settings: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in cells:
        settings.setdefault(key_of(cell)[1:], []).append(cell)
    return [group for alike in settings.values() for group in _of_one_setting(alike, shared, most)]


def _of_one_setting(
    cells: list[Cell], shared: Collection[str], most: int | None
) -> list[list[Cell]]:
    common = [cell for cell in cells if cell.name in shared]
    others = [cell for cell in cells if cell.name not in shared]
    if not common:
        return [cells]
    for count in range(1, len(others) + 1):
        groups = [[*common, *others[first::count]] for first in range(count)]
        if all(_fit(group, most) for group in groups):
            return groups
    # Too little memory even for one engine beside the baseline: whoever gets none says so.
    return [[*common, other] for other in others] or [cells]


def _fit(cells: Sequence[Cell], most: int | None) -> bool:
    few = most is None or len(cells) <= most
    return few and _fit_in_memory(cells) and _fit_on_gpus(cells)


@dataclass(frozen=True)
class Grouped:
    """What groups measured, together.

    Attributes:
        found: Every cell; the baseline's with the blocks of all of its groups.
        pairs: For every cell but the baseline's, the baseline as it was measured beside it and the
            cell; once for each group it was in.
        groups: The names of the workers that were there at the same time.
    """

    found: Mapping[Key, Measured]
    pairs: Mapping[Key, list[tuple[Measured, Measured]]]
    conditions: Conditions
    groups: list[list[str]]


def put_together(sessions: Sequence[Measurement], baseline: str) -> Grouped:
    """Join the measurements of the groups, in the order in which they were made."""
    parts: dict[Key, list[Measured]] = {}
    pairs: dict[Key, list[tuple[Measured, Measured]]] = {}
    before = 0
    for session in sessions:
        beside = {key_of(one.cell)[1:]: one for one in session.cells if one.cell.name == baseline}
        for one in session.cells:
            one.first_round = before
            key = key_of(one.cell)
            parts.setdefault(key, []).append(one)
            if key[0] != baseline and key[1:] in beside:
                pairs.setdefault(key, []).append((beside[key[1:]], one))
        before += session.rounds
    conditions = joined([(one.conditions, one.rounds) for one in sessions])
    if len(sessions) > 1:
        conditions.notes.append(_words(parts, baseline))
    return Grouped(
        {key: _joined(same) for key, same in parts.items()},
        pairs,
        conditions,
        [[one.cell.name for one in session.cells] for session in sessions],
    )


def _words(parts: Mapping[Key, Sequence[Measured]], baseline: str) -> str:
    times = max((len(same) for key, same in parts.items() if key[0] == baseline), default=1)
    note = (
        "not all workers were there at once: settings were measured one after the other, and what "
        "the machine did meanwhile is in the differences between them"
    )
    if times > 1:
        note += (
            f"; the engines of a setting in {times} groups, each compared with {baseline} as it ran "
            "in the same group, whose own figures are of all groups together"
        )
    return note


def _joined(parts: Sequence[Measured]) -> Measured:
    """One cell of several groups that followed each other; it failed if it failed in one of them."""
    if len(parts) == 1:
        return parts[0]
    whole = next((part for part in parts if part.status != "ok"), parts[0])
    peaks = [part.peak_rss_bytes for part in parts if part.peak_rss_bytes is not None]
    joules = [part.joules for part in parts]
    return replace(
        whole,
        first_round=parts[0].first_round,
        warmup_calls=sum(part.warmup_calls for part in parts),
        settled=all(part.settled for part in parts),
        blocks=[
            replace(block, round=part.first_round - parts[0].first_round + block.round)
            for part in parts
            for block in part.blocks
        ],
        peak_rss_bytes=max(peaks) if peaks else None,
        joules=None if None in joules else sum(one for one in joules if one is not None),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


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
