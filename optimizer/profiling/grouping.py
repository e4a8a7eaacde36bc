"""Split cells into groups whose workers fit into memory together.

If not all workers fit, settings are measured one after the other; if the workers of one setting still
do not fit, its engines are split into groups of about the same size. Each group restarts the baseline
and its control, because only cells measured in the same rounds are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.engines.cuda import free_memory
from optimizer.engines.placement import runs_on
from optimizer.errors import UsageError
from optimizer.processes import available_memory
from optimizer.profiling.conditions import merge_conditions
from optimizer.profiling.harness import Cell, Measured, Measurement
from optimizer.results import Conditions

__all__ = ["Grouped", "Key", "check_max_workers", "key_of", "merge_groups", "split_into_groups"]

_WORKER_BYTES = 512 << 20
"""Memory of a worker without its engine: Python and the library; on a GPU the CUDA context."""
_BYTES_A_PIXEL = 3 * 4 * 64
"""GPU memory for activations and workspace. The largest tensors of a ResNet have 5 times the elements of
its input; PyTorch holds several at once, and cuDNN's workspaces come on top."""
_IMAGE_SIZE = 224  # assumed for engines that state none
Key = tuple[str, int, int, int]
"""Engine name, batch, threads and streams."""


def key_of(cell: Cell) -> Key:
    """The unique key of a cell."""
    return cell.name, cell.batch, cell.threads, cell.streams


def check_max_workers(
    max_workers: int | None, cells: Sequence[Cell], shared: Collection[str]
) -> None:
    """Check that the limit allows comparisons.

    Raises:
        UsageError: The baseline, its control and one engine exceed the limit.
    """
    if max_workers is None:
        return
    names = {cell.name for cell in cells}
    required = len(names & set(shared)) + (1 if names - set(shared) else 0)
    if max_workers < required:
        raise UsageError(
            f"--max-workers {max_workers} is too low: baseline, control and engine must run "
            "side by side",
            hint=f"--max-workers {required} or more",
        )


def split_into_groups(
    cells: Sequence[Cell], *, shared: Collection[str] = (), max_workers: int | None = None
) -> list[list[Cell]]:
    """Split cells into as few groups as memory and ``max_workers`` allow.

    Args:
        cells: The cells to measure.
        shared: Names of the baseline and its control, which belong to every group of a setting; if
            empty, the engines of a setting stay together.
        max_workers: Largest number of simultaneous workers; ``None`` for as many as memory allows.

    Returns:
        The groups; those of one setting are consecutive.
    """
    if _fit(cells, max_workers):
        return [list(cells)]
    by_setting: dict[tuple[int, int, int], list[Cell]] = {}
    for cell in cells:
        by_setting.setdefault(key_of(cell)[1:], []).append(cell)
    return [
        group
        for same_setting in by_setting.values()
        for group in _split_setting(same_setting, shared, max_workers)
    ]


def _split_setting(
    cells: list[Cell], shared: Collection[str], max_workers: int | None
) -> list[list[Cell]]:
    common = [cell for cell in cells if cell.name in shared]
    others = [cell for cell in cells if cell.name not in shared]
    if not common:
        return [cells]
    for count in range(1, len(others) + 1):
        groups = [[*common, *others[first::count]] for first in range(count)]
        if all(_fit(group, max_workers) for group in groups):
            return groups
    # Not even one engine fits beside the baseline: try, and let the worker report the failure.
    return [[*common, other] for other in others] or [cells]


def _fit(cells: Sequence[Cell], max_workers: int | None) -> bool:
    allowed = max_workers is None or len(cells) <= max_workers
    return allowed and _fit_in_memory(cells) and _fit_on_gpus(cells)


@dataclass(frozen=True)
class Grouped:
    """The merged measurements of all groups.

    Attributes:
        cells: All cells; the baseline has the blocks of all its groups.
        pairs: For each cell except the baseline, pairs of the baseline and the cell as measured in
            the same group, one pair per group.
        conditions: Machine state over all rounds.
        groups: Names of the workers in each group.
    """

    cells: Mapping[Key, Measured]
    pairs: Mapping[Key, list[tuple[Measured, Measured]]]
    conditions: Conditions
    groups: list[list[str]]


def merge_groups(measurements: Sequence[Measurement], baseline: str) -> Grouped:
    """Merge the measurements of the groups, in the order in which they were made."""
    parts: dict[Key, list[Measured]] = {}
    pairs: dict[Key, list[tuple[Measured, Measured]]] = {}
    rounds_before = 0
    for measurement in measurements:
        baselines = {
            key_of(cell.cell)[1:]: cell for cell in measurement.cells if cell.cell.name == baseline
        }
        for cell in measurement.cells:
            cell.first_round = rounds_before
            key = key_of(cell.cell)
            parts.setdefault(key, []).append(cell)
            if key[0] != baseline and key[1:] in baselines:
                pairs.setdefault(key, []).append((baselines[key[1:]], cell))
        rounds_before += measurement.rounds
    conditions = merge_conditions([(m.conditions, m.rounds) for m in measurements])
    if len(measurements) > 1:
        conditions.notes.append(_groups_note(parts, baseline))
    return Grouped(
        {key: _merge_cell(cells) for key, cells in parts.items()},
        pairs,
        conditions,
        [[cell.cell.name for cell in m.cells] for m in measurements],
    )


def _groups_note(parts: Mapping[Key, Sequence[Measured]], baseline: str) -> str:
    count = max((len(cells) for key, cells in parts.items() if key[0] == baseline), default=1)
    note = (
        "not all workers ran at the same time: settings were measured one after the other, so "
        "differences between settings include changes of the machine"
    )
    if count > 1:
        note += (
            f"; the engines of a setting were measured in {count} groups and compared with "
            f"{baseline} in the same group; the figures of {baseline} are of all groups together"
        )
    return note


def _merge_cell(parts: Sequence[Measured]) -> Measured:
    """Merge one cell's measurements in consecutive groups; it failed if it failed in any of them."""
    if len(parts) == 1:
        return parts[0]
    base = next((part for part in parts if part.status != "ok"), parts[0])
    peaks = [part.peak_rss_bytes for part in parts if part.peak_rss_bytes is not None]
    joules = [part.joules for part in parts]
    return replace(
        base,
        first_round=parts[0].first_round,
        warmup_calls=sum(part.warmup_calls for part in parts),
        settled=all(part.settled for part in parts),
        blocks=[
            replace(block, round=part.first_round - parts[0].first_round + block.round)
            for part in parts
            for block in part.blocks
        ],
        peak_rss_bytes=max(peaks) if peaks else None,
        joules=None if None in joules else sum(j for j in joules if j is not None),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _fit_in_memory(cells: Sequence[Cell]) -> bool:
    needed = sum(_WORKER_BYTES + 8 * cell.engine.stat().st_size for cell in cells)
    return needed < 0.6 * available_memory()


def _fit_on_gpus(cells: Sequence[Cell]) -> bool:
    needed: dict[str, int] = {}
    for cell in cells:
        device = runs_on(cell.engine, cell.device)
        if device is not None and device != "cpu":
            needed[device] = needed.get(device, 0) + _gpu_bytes(cell)
    free = free_memory() if needed else {}
    return all(size < 0.8 * free[device] for device, size in needed.items() if device in free)


def _gpu_bytes(cell: Cell) -> int:
    """An estimate of the GPU memory that a worker uses, on the safe side."""
    pixels = (cell.image_size or _IMAGE_SIZE) ** 2
    activations = cell.batch * cell.streams * pixels * _BYTES_A_PIXEL
    return _WORKER_BYTES + 3 * cell.engine.stat().st_size + activations
