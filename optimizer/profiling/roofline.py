"""Roofline: the least time of a layer given the machine's ceilings, and the share it achieves.

Williams, Waterman and Patterson (CACM 52(4), 2009): a kernel of F operations that moves B bytes
takes at least ``max(F / peak, B / bandwidth)``. Here the peak is that of the layer's data type, and
the bandwidth is that of main memory. Weights, inputs and outputs each count once, which is the minimum
traffic; it is not known whether they come from memory or from a cache. A layer that is faster than
main memory allows must have used a cache, so it is compared with the cache's bandwidth instead.

The layers of a block run one after the other, so the least time of a block is the sum over its layers,
and its ceiling is the one that contributes most to this sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optimizer.results import BoundBy, Ceilings, TimedPart

__all__ = ["OVERHEAD_BELOW", "combine_layers", "roof_of", "with_verdict"]

OVERHEAD_BELOW = 0.5
"""A part that achieves less than this share of its ceiling is bound by overhead."""
CACHE, MEMORY = "cache", "memory"


def roof_of(part: TimedPart, ceilings: Ceilings) -> tuple[float, str] | None:
    """The least time of a layer in milliseconds, and the ceiling that sets it.

    Args:
        part: A layer; one without operations (pooling, addition, reorder) only moves bytes.
        ceilings: Ceilings of the machine it ran on.

    Returns:
        ``None`` if its bytes are unknown, or its data type has no measured ceiling.
    """
    if part.bytes is None:
        return None
    roofs = []
    if part.flops:
        peak = ceilings.compute.get(part.precision)
        if peak is None:
            return None
        roofs.append((1e3 * part.flops / peak.rate, part.precision))
    from_memory = (1e3 * part.bytes / ceilings.memory.rate, MEMORY)
    if from_memory[0] <= part.time_ms:
        return max([*roofs, from_memory])
    in_cache = max([*roofs, (1e3 * part.bytes / ceilings.cache.rate, CACHE)])
    return in_cache if in_cache[0] >= OVERHEAD_BELOW * part.time_ms else from_memory


def with_verdict(part: TimedPart, ceilings: Ceilings) -> TimedPart:
    """A layer with its roof and its verdict."""
    roof = roof_of(part, ceilings)
    if roof is None:
        return part
    roof_ms, ceiling = roof
    return part.model_copy(
        update={
            "roof_ms": roof_ms,
            "ceiling": ceiling,
            "bound": _verdict(roof_ms, ceiling, part.time_ms),
        }
    )


def combine_layers(parts: Sequence[TimedPart], **fields: object) -> TimedPart:
    """The layers of one block as one part.

    Args:
        parts: At least one layer, as returned by `with_verdict`.
        fields: ``name``, ``time_ms``, ``time_ci95_ms`` and ``share`` of the block.

    Returns:
        The sums over its layers; precisions and verdict come from layers with operations. No roof if a
        layer with operations has none. Layers with nothing but a time (Python code between modules)
        count as overhead.
    """
    computing = [part for part in parts if part.flops]
    all_roofs_known = all(part.roof_ms is not None for part in computing)
    roofs: dict[str, float] = {}
    for part in parts:
        if part.ceiling is not None and part.roof_ms is not None:
            roofs[part.ceiling] = roofs.get(part.ceiling, 0.0) + part.roof_ms
    names = dict.fromkeys(name for part in parts for name in part.torch_names)
    block = TimedPart.model_validate(
        {
            "torch_names": list(names),
            "type": parts[0].type if len(parts) == 1 else f"{len(parts)} layers",
            "precision": ", ".join(dict.fromkeys(p.precision for p in computing or parts)),
            "flops": _sum(part.flops for part in parts),
            "bytes": _sum(part.bytes for part in parts),
            **fields,
        }
    )
    if not roofs or not all_roofs_known:
        return block
    roof_ms, ceiling = sum(roofs.values()), max(roofs, key=lambda name: roofs[name])
    verdict = _verdict(roof_ms, ceiling, block.time_ms)
    return block.model_copy(update={"roof_ms": roof_ms, "ceiling": ceiling, "bound": verdict})


def _verdict(roof_ms: float, ceiling: str, time_ms: float) -> BoundBy:
    if roof_ms < OVERHEAD_BELOW * time_ms:
        return "overhead"
    return "memory" if ceiling in {MEMORY, CACHE} else "compute"


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
