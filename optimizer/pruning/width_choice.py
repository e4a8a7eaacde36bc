"""The choice: widths of every block that keep the most saliency within the latency.

Each block takes one of its options (a width for each inner layer, or no block at all), each with a
saliency and a time per batch size: a multiple-choice knapsack (Shen et al. 2022, "Structural Pruning
via Latency-Saliency Knapsack", NeurIPS). It is solved exactly by branch and bound (HiGHS in
`scipy.optimize.milp`), after dropping options that another one beats in saliency and in every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.errors import UsageError
from optimizer.models import Widths
from optimizer.pruning.latency_model import block_ms, candidate_widths
from optimizer.pruning.prunable import Prunable
from optimizer.pruning.saliency import Saliency
from optimizer.results import TimesAtBatch

__all__ = ["Choice", "Limits", "choose_widths"]

_SOLVER_SECONDS = 120.0
_ABOVE = 1e-9


@dataclass(frozen=True)
class _Option:
    block: str
    widths: tuple[int, ...] | None
    saliency: float
    ms: tuple[float, ...]


@dataclass(frozen=True)
class Limits:
    """What must not be exceeded.

    Attributes:
        times: The table's costs at each batch size.
        values: The largest cost of a call at each of them.
        unit: Of the costs.
        reachable: The flag that asks for no more than is possible, given the least cost of a call at
            one of them, by its number.
    """

    times: Sequence[TimesAtBatch]
    values: Sequence[float]
    unit: str
    reachable: Callable[[int, float], str]


@dataclass(frozen=True)
class Choice:
    """The chosen widths.

    Attributes:
        widths: Of the narrow network.
        kept_saliency: Share of the saliency that stays, a fraction.
        predicted_ms: Predicted time of a call for each batch size.
    """

    widths: Widths
    kept_saliency: float
    predicted_ms: tuple[float, ...]


def choose_widths(
    present: Widths,
    saliency: Saliency,
    prunable: Prunable,
    limits: Limits,
    step: int,
) -> Choice:
    """Choose the widths.

    Args:
        present: The widths of the network to cut.
        saliency: Of its channels and branches.
        prunable: What can be cut.
        limits: What must not be exceeded.
        step: Widths are multiples of this, or as they are.

    Raises:
        UsageError: Even the narrowest network is slower; the message names its time.
    """
    times = limits.times
    groups = {
        name: _undominated(_options(name, block, saliency, prunable, times, step))
        for name, block in present.blocks
    }
    options = [option for group in groups.values() for option in group]
    budgets = [limit - at.outside_ms for limit, at in zip(limits.values, times, strict=True)]
    _check_floor(groups, limits)
    chosen = _solve(options, list(groups), budgets)
    whole = sum(max(option.saliency for option in group) for group in groups.values())
    widths = present.replaced({option.block: option.widths for option in chosen})
    predicted = tuple(
        at.outside_ms + sum(option.ms[index] for option in chosen) for index, at in enumerate(times)
    )
    kept = sum(option.saliency for option in chosen)
    return Choice(widths, kept / whole if whole else 1.0, predicted)


def _options(
    name: str,
    block: tuple[int, ...],
    saliency: Saliency,
    prunable: Prunable,
    times: Sequence[TimesAtBatch],
    step: int,
) -> list[_Option]:
    """All widths of a block, and its absence if it can go."""
    unit = prunable.units[name]
    inner = block[:-1]
    candidates = candidate_widths(times[0].blocks, name, inner, max(step, unit))
    sums = [
        np.concatenate([[0.0], np.cumsum(np.sort(saliency.units(f"{name}.conv{n}", unit))[::-1])])
        for n in range(1, len(inner) + 1)
    ]
    options = []
    for widths in itertools.product(*candidates):
        if unit > 1 and len(set(widths)) > 1:
            continue  # a group goes as a whole, in the layers before and behind it
        kept = sum(float(total[w // unit]) for total, w in zip(sums, widths, strict=True))
        ms = tuple(block_ms(at.blocks[name], widths) for at in times)
        options.append(_Option(name, (*widths, block[-1]), kept, ms))
    if name in prunable.droppable:
        # Against keeping all channels, a block without its branch loses what the branch does.
        most = max(option.saliency for option in options)
        options.append(
            _Option(name, None, most - max(saliency.blocks[name], most), (0.0,) * len(times))
        )
    return options


def _undominated(options: Sequence[_Option]) -> list[_Option]:
    """Options that no other one beats in saliency and in every time."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda one: (-one.saliency, one.ms)):
        if not any(all(a <= b for a, b in zip(k.ms, option.ms, strict=True)) for k in kept):
            kept.append(option)
    return kept


def _check_floor(groups: Mapping[str, Sequence[_Option]], limits: Limits) -> None:
    for index, (at, limit) in enumerate(zip(limits.times, limits.values, strict=True)):
        least = at.outside_ms + sum(
            min(option.ms[index] for option in group) for group in groups.values()
        )
        if least > limit * (1 + _ABOVE):
            raise UsageError(
                f"no cut is enough: {limit:.3g} {limits.unit} at batch {at.batch} are wanted, but what "
                f"remains of {len(groups)} blocks after everything was cut takes {least:.3g} {limits.unit}",
                hint=limits.reachable(index, least),
            )


def _solve(
    options: Sequence[_Option], blocks: Sequence[str], budgets: Sequence[float]
) -> list[_Option]:
    from scipy.optimize import Bounds, LinearConstraint, milp

    one_each = np.zeros((len(blocks), len(options)))
    for column, option in enumerate(options):
        one_each[blocks.index(option.block), column] = 1.0
    ms = np.array([option.ms for option in options]).T
    values = np.array([option.saliency for option in options])
    scale = values.max(initial=0.0) or 1.0
    solved = milp(
        -values / scale,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(ms, -np.inf, np.array(budgets) * (1 + _ABOVE)),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": _SOLVER_SECONDS},
    )
    if solved.x is None:
        raise UsageError(
            f"the choice of widths has no solution: {solved.message}",
            hint="a smaller --speedup, or fewer --batch sizes",
        )
    return [option for option, taken in zip(options, solved.x, strict=True) if taken > 0.5]
