"""The networks that a latency table measures, and the table that their times make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optimizer.models import Widths
from optimizer.results import BlockTimes

__all__ = ["block_times", "inner_channels", "scaled_inner", "table_widths"]

_EIGHTHS = 8
_ROUNDED_TO = 8
"""Widths are multiples of this where the network's are: vectors of INT8 are no shorter."""


def scaled_inner(inner: tuple[int, ...], shares: Sequence[float], unit: int) -> tuple[int, ...]:
    """Inner widths at a share of each layer's channels, in whole units.

    Args:
        inner: The widths of the whole block.
        shares: A share for each layer; the last one is used for all further ones.
        unit: Channels that stay together: those of a group, or 1.
    """
    scaled = []
    for number, width in enumerate(inner):
        share = shares[min(number, len(shares) - 1)]
        step = unit if unit > 1 or width % _ROUNDED_TO else _ROUNDED_TO
        units = max(1, round(width * share / step))
        scaled.append(min(width, units * step))
    return tuple(scaled)


def table_widths(widths: Widths, units: Mapping[str, int]) -> list[Widths]:
    """The networks to measure: all inner layers at eight eighths, seven eighths … one eighth."""
    networks: list[Widths] = []
    for eighths in range(_EIGHTHS, 0, -1):
        share = [eighths / _EIGHTHS]
        blocks = {
            name: (*scaled_inner(block[:-1], share, units[name]), block[-1])
            for name, block in widths.blocks
        }
        network = widths.replaced(blocks)
        if network not in networks:
            networks.append(network)
    return networks


def inner_channels(whole: Widths, narrow: Widths) -> dict[str, tuple[int, int]]:
    """Input and output channels of each convolution that the narrow network changes."""
    changed: dict[str, tuple[int, int]] = {}
    stream = whole.stem
    for (name, before), (_, after) in zip(whole.blocks, narrow.blocks, strict=True):
        old, new = _pairs(stream, before), _pairs(stream, after)
        for number, (one, other) in enumerate(zip(old, new, strict=True), start=1):
            if one != other:
                changed[f"{name}.conv{number}"] = other
        stream = before[-1]
    return changed


def _pairs(stream: int, block: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return zip((stream, *block[:-1]), block, strict=True)


def block_times(
    name: str, networks: Sequence[Widths], layers: Sequence[Mapping[str, float]], *, droppable: bool
) -> BlockTimes:
    """One block of the table.

    Args:
        name: The block.
        networks: The measured networks.
        layers: Of each network: milliseconds by module.
        droppable: Whether the block is an identity without its branch.
    """
    blocks = [network.by_block[name] for network in networks]
    convs = [f"{name}.conv{number}" for number in range(1, len(blocks[0]) + 1)]
    rest = [
        sum(
            ms
            for module, ms in own.items()
            if module.startswith(f"{name}.") and module not in convs
        )
        for own in layers
    ]
    return BlockTimes(
        inner=[list(block[:-1]) for block in blocks],
        layers_ms=[[own.get(conv, 0.0) for conv in convs] for own in layers],
        rest_ms=sum(rest) / len(rest),
        droppable=droppable,
    )
