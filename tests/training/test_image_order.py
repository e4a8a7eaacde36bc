from __future__ import annotations

import numpy as np
import pytest

from optimizer.data import open_dataset
from optimizer.data.preprocessing import Preprocessing
from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.training.distribution import World
from optimizer.training.image_order import draws, epoch_order, share
from optimizer.training.labelled_reading import LabelledReading
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_recipe import complete


def test_an_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(3, epoch, 50) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(orders[1], epoch_order(3, 1, 50))
    assert not np.array_equal(orders[1], epoch_order(4, 1, 50))
    assert not np.array_equal(draws(3, 1, 50), draws(3, 2, 50))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_each_global_batch(size: int) -> None:
    order = epoch_order(0, 0, 50)
    for step in range(6):
        parts = [share(order, step, 8, rank, size) for rank in range(size)]
        assert {len(part) for part in parts} == {8 // size}
        assert sorted(np.concatenate(parts)) == sorted(order[8 * step : 8 * step + 8])


def settings(**given: object) -> TrainOptions:
    return complete(TrainOptions.parse({"image_size": 8, **given}), default="digits")


def stream(first: int, end: int, *, world: World | None = None, **given: object) -> list:
    data = open_dataset("digits:train", limit=40)
    digits, chosen = Preprocessing.digits(8), settings(**given)
    reading = LabelledReading(data, digits, chosen)
    images = TrainingImages(data, digits, chosen, world or World(), reading)
    return list(images.stream(first, end))


def test_a_stream_that_starts_later_has_the_same_batches() -> None:
    whole = stream(0, 6, batch_size=16)  # 40 images: two steps per epoch
    rest = stream(3, 6, batch_size=16)
    for (a,), (b,) in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.indices, b.indices)


def test_an_image_is_augmented_alike_in_any_process() -> None:
    (alone,) = stream(0, 1, batch_size=16)[0]
    of_two = [stream(0, 1, batch_size=8, world=World(rank, 2))[0][0] for rank in (0, 1)]
    for rank, part in enumerate(of_two):
        np.testing.assert_array_equal(part.images, alone.images[rank::2])


def test_accumulation_divides_the_step() -> None:
    (alone,) = stream(0, 1, batch_size=16)[0]
    parts = stream(0, 1, batch_size=8, accumulate=2)[0]
    np.testing.assert_array_equal(np.concatenate([p.images for p in parts]), alone.images)


def test_too_few_images_for_the_processes() -> None:
    with pytest.raises(UsageError, match="40 images, too few for 32 batches"):
        stream(0, 1, world=World(0, 32))
