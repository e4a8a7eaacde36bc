"""The search keeps the layers that have to be kept, and no others."""

from __future__ import annotations

import pytest

from optimizer.search.cost import Costs
from optimizer.search.sensitivity import rank
from optimizer.search.split import Budget, Split
from optimizer.search.variants import Variants
from optimizer.search.walk import Point, Walk
from tests.search.networks import HOSTILE, labelled


def _costs(variants: Variants, **more: float) -> Costs:
    return Costs(
        source="model",
        reason="one unit each",
        int8_ms=dict.fromkeys(variants.layers, 1.0),
        high_ms={name: more.get(name, 2.0) for name in variants.layers},
    )


@pytest.fixture(scope="module")
def split(variants: Variants) -> Split:
    images, labels = labelled(384, 7)
    return Split(variants, [images], labels)


def test_the_hostile_layer_is_kept_first(variants: Variants, split: Split) -> None:
    walk = Walk(variants, split, Budget(4.0), _costs(variants))
    first = walk.start()
    assert not first.inside
    chosen = walk.run(rank(variants))
    assert HOSTILE in chosen.kept
    assert walk.front[1].kept == {HOSTILE}
    assert chosen.inside
    assert chosen.measured.counts.changed < first.measured.counts.changed
    assert chosen.encodings.keep == variants.in_order(chosen.kept)
    assert first.predicted_ms == len(variants.layers)
    assert chosen.predicted_ms == first.predicted_ms + len(chosen.kept)
    # No kept layer can go back to INT8 without a loss.
    for layer in chosen.kept if len(chosen.kept) > 1 else ():
        (fewer,) = [p for p in walk.front if p.kept == chosen.kept - {layer}]
        assert not fewer.inside or fewer.measured.db < chosen.measured.db - 0.5


def test_a_budget_that_always_holds_keeps_no_layers(variants: Variants, split: Split) -> None:
    walk = Walk(variants, split, Budget(100.0), _costs(variants))
    assert walk.start().inside
    assert walk.run(rank(variants)) is walk.front[0]
    assert len(walk.front) == 1


def test_a_budget_of_zero_ends_without_a_flip(variants: Variants, split: Split) -> None:
    points: list[Point] = []
    walk = Walk(variants, split, Budget(0.0), _costs(variants))
    walk.start()
    chosen = walk.run(rank(variants), points.append)
    assert chosen.inside
    assert chosen.measured.counts.changed == 0
    assert walk.front[1:] == points
    # Layers of equal cost go back to INT8 in the order of the graph, in every process.
    grown = max(walk.front, key=lambda point: len(point.kept))
    later = walk.front[walk.front.index(grown) + 1 :]
    last = [max(map(variants.layers.index, grown.kept - point.kept)) for point in later]
    assert len(last) > 2
    assert last == sorted(last)


def test_expensive_layers_are_kept_late(variants: Variants, split: Split) -> None:
    ranked = rank(variants)
    second = ranked[1].layer
    walk = Walk(variants, split, Budget(0.0), _costs(variants, **{HOSTILE: 1e6, second: 1.001}))
    walk.start()
    walk.run(ranked)
    assert walk.front[1].kept == {second}
