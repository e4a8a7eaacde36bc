from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.engines.protocol import BuildSettings, TensorSpec
from optimizer.engines.tensorrt.graph_check import CheckedGraph
from optimizer.engines.tensorrt.options import Options
from optimizer.engines.tensorrt.profiles import ProfileRange, batch_profiles, pick_profile
from optimizer.errors import UsageError


def graph(batch: int | None) -> CheckedGraph:
    return CheckedGraph(
        path=Path("model.onnx"),
        input=TensorSpec("images", (batch, 3, 224, 224), "float"),
        output=TensorSpec("logits", (batch, 1000), "float"),
        weights={},
        gemms=frozenset(),
        nodes=frozenset(),
    )


def profiles(
    batch: int | None,
    *,
    given_batch: int | None = None,
    profile: tuple[int, int, int] | None = None,
    more: tuple[tuple[int, int, int], ...] = (),
) -> list[tuple[int, int, int]]:
    settings = BuildSettings(precision="fp32", batch=given_batch, profile=profile)
    return batch_profiles(graph(batch), settings, Options(profiles=more))


def test_the_profiles_of_a_build() -> None:
    assert profiles(None) == [(1, 8, 32)]
    assert profiles(None, profile=(2, 4, 8)) == [(2, 4, 8)]
    assert profiles(None, profile=(1, 1, 1), more=((8, 16, 64),)) == [(1, 1, 1), (8, 16, 64)]
    assert profiles(None, given_batch=4) == [(4, 4, 4)]
    assert profiles(4) == []
    assert profiles(4, given_batch=4) == []
    assert profiles(4, profile=(4, 4, 4)) == []


@pytest.mark.parametrize(
    ("batch", "given_batch", "profile", "wrong"),
    [
        (None, None, (8, 4, 32), "not in ascending order"),
        (None, None, (1, 64, 32), "not in ascending order"),
        (None, None, (0, 8, 32), "starts at batch 0"),
        (None, None, (-1, 8, 32), "starts at batch -1"),
        (None, 0, None, "a batch of 0"),
        (None, 4, (1, 8, 32), "contradict"),
        (4, None, (1, 8, 32), "fixed batch of 4"),
        (4, 8, None, "fixed batch of 4, not 8"),
    ],
)
def test_contradicting_profile_is_rejected(
    batch: int | None, given_batch: int | None, profile: tuple[int, int, int] | None, wrong: str
) -> None:
    with pytest.raises(UsageError, match=wrong) as caught:
        profiles(batch, given_batch=given_batch, profile=profile)
    assert caught.value.hint


ranges = st.lists(
    st.tuples(st.integers(1, 64), st.integers(0, 64), st.integers(0, 64)).map(
        lambda t: (t[0], t[0] + t[1], t[0] + t[1] + t[2])
    ),
    min_size=1,
    max_size=4,
)


@given(ranges, st.integers(1, 300))
def test_a_batch_gets_a_profile_that_accepts_it(
    profiles_: list[tuple[int, int, int]], images: int
) -> None:
    every = [ProfileRange(index, *profile) for index, profile in enumerate(profiles_)]
    chosen, computed = pick_profile(every, images)
    assert chosen.takes(computed)
    fits = any(profile.takes(images) for profile in every)
    assert (computed == images) == fits
    largest = max(profile.high for profile in every)
    assert computed <= largest
    # At least one image is computed, and only batches below every minimum are padded.
    assert computed == min(images, largest) or images < chosen.low


def test_the_tightest_profile_is_preferred() -> None:
    every = [ProfileRange(0, 1, 16, 32), ProfileRange(1, 1, 1, 1)]
    assert pick_profile(every, 1) == (every[1], 1)
    assert pick_profile(every, 2) == (every[0], 2)
