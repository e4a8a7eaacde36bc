"""Sensitivity of layers to INT8: the SQNR of the output with each layer alone in high precision.

It is measured at the output and not at the layer, because later layers may hide or amplify the error.
Biases are corrected again for every layer, as in the final graph; otherwise a mean error would offset
part of the gain.
Not handled: layers that help only in combination; `walk` measures again as layers are added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.search.variants import AT_ONCE, Variants

__all__ = ["Sensitivity", "noise_power", "rank"]


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of one layer.

    Attributes:
        layer: The layer.
        sqnr: SQNR of the output with only this layer (and those always kept) in high precision,
            dB; infinite without noise.
        baseline: The same with this layer in INT8 too.
    """

    layer: str
    sqnr: float
    baseline: float

    @property
    def removed(self) -> float:
        """Noise power removed by keeping the layer, relative to the signal power."""
        return noise_power(self.baseline) - noise_power(self.sqnr)


def noise_power(sqnr: float) -> float:
    """Noise power relative to the signal power, from SQNR in dB."""
    return float(10.0 ** (-sqnr / 10.0))


def rank(variants: Variants, advance: Callable[[int], None] = lambda _: None) -> list[Sensitivity]:
    """Measure the sensitivity of every layer that is not always kept.

    Args:
        variants: The graph.
        advance: Called with the number of layers just measured.

    Returns:
        The most sensitive layer first.
    """
    (baseline,) = variants.sqnr([variants.start])
    layers = [layer for layer in variants.layers if layer not in variants.start]
    ranked = []
    for first in range(0, len(layers), AT_ONCE):
        group = layers[first : first + AT_ONCE]
        measured = variants.sqnr([variants.start | {layer} for layer in group])
        ranked += [Sensitivity(*pair, baseline) for pair in zip(group, measured, strict=True)]
        advance(len(group))
    return sorted(ranked, key=lambda entry: -entry.sqnr)
