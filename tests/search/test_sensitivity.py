"""The most sensitive layer comes first."""

from __future__ import annotations

import pytest

from optimizer.search.sensitivity import noise_power, rank
from optimizer.search.variants import Variants
from tests.search.networks import HOSTILE


def test_the_hostile_layer_is_the_most_sensitive(variants: Variants) -> None:
    advances: list[int] = []
    ranked = rank(variants, advances.append)
    assert sum(advances) == len(variants.layers)
    assert {one.layer for one in ranked} == set(variants.layers)
    assert ranked[0].layer == HOSTILE
    assert ranked[0].sqnr > ranked[1].sqnr + 5
    assert ranked[0].removed > 2 * ranked[1].removed
    assert [one.sqnr for one in ranked] == sorted((one.sqnr for one in ranked), reverse=True)


@pytest.mark.parametrize(("db", "power"), [(0.0, 1.0), (20.0, 0.01), (float("inf"), 0.0)])
def test_noise_power(db: float, power: float) -> None:
    assert noise_power(db) == pytest.approx(power)
