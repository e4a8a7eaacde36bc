"""Which layers hurt most as INT8: the signal to noise at the output with each one alone kept.

Measured at the output and not at the layer, since what a layer loses may be drowned later on or
amplified. Biases are corrected anew for every layer, as they will be in the graph that is written:
otherwise a part of what is gained would be given away as a wrong mean.
Not handled: layers that help only together; `walk` measures again as layers are added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.search.variants import AT_ONCE, Variants

__all__ = ["Sensitivity", "noise_power", "rank"]


@dataclass(frozen=True)
class Sensitivity:
    """One layer's share of the noise.

    Attributes:
        layer: The layer.
        sqnr: Signal to noise at the output with it alone in high precision, dB; infinite without
            noise.
        without: The same with every layer in INT8.
    """

    layer: str
    sqnr: float
    without: float

    @property
    def removed(self) -> float:
        """Noise power that keeping the layer takes away, in units of the signal's power."""
        return noise_power(self.without) - noise_power(self.sqnr)


def noise_power(sqnr: float) -> float:
    """Power of the noise in units of the signal's, from decibels."""
    return float(10.0 ** (-sqnr / 10.0))


def rank(variants: Variants, advance: Callable[[int], None] = lambda _: None) -> list[Sensitivity]:
    """Keep each layer alone (beside those that are kept anyway).

    Args:
        variants: The graph.
        advance: Told how many layers were measured.

    Returns:
        The most sensitive layer first.
    """
    (without,) = variants.sqnr([variants.start])
    layers = [layer for layer in variants.layers if layer not in variants.start]
    found = []
    for first in range(0, len(layers), AT_ONCE):
        some = layers[first : first + AT_ONCE]
        measured = variants.sqnr([variants.start | {layer} for layer in some])
        found += [Sensitivity(*pair, without) for pair in zip(some, measured, strict=True)]
        advance(len(some))
    return sorted(found, key=lambda one: -one.sqnr)
