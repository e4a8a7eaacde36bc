"""Which hops see which images, and stopping as soon as the verdict is decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from optimizer.data import ImageDataset, open_dataset
from optimizer.engines.onnxruntime import as_written
from optimizer.evaluation import Chain, validate
from optimizer.evaluation.image_shards import plan_shards
from optimizer.options import HopOptions
from optimizer.results import Gates, ValidateResult
from optimizer.tasks.predictions import read_predictions
from tests.evaluation.graphs import PREPROCESSING, classifier

IMAGES = 2500
GATES = Gates(max_drop_pp=2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, its export, graphs that lose nothing and much, and labelled images."""
    folder = tmp_path_factory.mktemp("looked")
    reference = classifier(folder / "reference.onnx")
    for name, share, precision in (
        ("export", 1e-6, "fp32"), ("good", 1e-3, "int8"), ("bad", 1.0, "int8"),
    ):  # fmt: skip
        noise = np.random.default_rng(1).normal(scale=share, size=(1, 5))
        gain = {"gain": (1 + noise).astype(np.float32)}
        nodes = [helper.make_node("Mul", ["features", "gain"], ["seen"], "gain")]
        classifier(folder / f"{name}.onnx", middle=nodes, constants=gain, precision=precision)
    pixels = np.random.default_rng(2).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    # Means that differ between images, so that the classes do.
    pixels = (pixels * np.random.default_rng(3).random((IMAGES, 1, 1, 3))).astype(np.uint8)
    logits = as_written(reference).run(PREPROCESSING.normalize(pixels))
    np.savez(folder / "data.npz", images=pixels, labels=logits.argmax(axis=1))
    return folder


@pytest.fixture
def data(folder: Path) -> ImageDataset:
    return open_dataset(folder / "data.npz")


def _validate(folder: Path, data: ImageDataset, graph: str, **options: Any) -> ValidateResult:
    chain = Chain(label=graph, model=folder / "export.onnx", graph=folder / f"{graph}.onnx")
    result = validate([chain], folder / "reference.onnx", data, GATES, batch=32, **options)
    return result.model_copy(update={"created": "", "timing": None})


# --- hops between the ends -----------------------------------------------------------------------


def test_hops_between_see_a_sample_while_the_end_passes(folder: Path, data: ImageDataset) -> None:
    reference, export, graph = _validate(folder, data, "good").hops
    assert (reference.n, graph.n) == (IMAGES, IMAGES)
    assert export.n == 1000
    assert (graph.n_vs_parent, graph.flips_vs_parent) == (1000, 0)
    whole = _validate(folder, data, "good", hops="all").hops
    assert [hop.n for hop in whole] == [IMAGES] * 3
    assert whole[2].n_vs_parent is None
    assert whole[2].sqnr_db == pytest.approx(graph.sqnr_db)
    rounded = {"sqnr_db": 0.0, "sqnr_vs_parent_db": 0.0, "n_vs_parent": 0}
    assert whole[2].model_copy(update=rounded) == graph.model_copy(update=rounded)


def test_hops_between_see_all_images_if_the_end_does_not_pass(
    folder: Path, data: ImageDataset
) -> None:
    sampled, whole = (_validate(folder, data, "bad", hops=hops) for hops in ("sample", "all"))
    assert [hop.n for hop in sampled.hops] == [IMAGES] * 3
    assert sampled.finding == whole.finding
    assert [(h.flips, h.flips_vs_parent) for h in sampled.hops] == [
        (h.flips, h.flips_vs_parent) for h in whole.hops
    ]


def test_only_the_ends_are_computed_while_they_pass(folder: Path, data: ImageDataset) -> None:
    _, export, graph = _validate(folder, data, "good", hops="ends").hops
    assert (export.status, export.verdict, export.n) == ("skipped", None, 0)
    assert (graph.verdict, graph.flips_vs_parent) == ("pass", None)
    bad = _validate(folder, data, "bad", hops="ends")
    assert [hop.status for hop in bad.hops] == ["ok"] * 3
    assert "quantization (bad.onnx" in bad.finding or "quantization (graph int8" in bad.finding


def test_predictions_of_a_sample_are_not_written(
    folder: Path, data: ImageDataset, tmp_path: Path
) -> None:
    """Each hop in the file has all images, so that any two can be compared."""
    _validate(folder, data, "good", predictions=tmp_path / "p.npz")
    predictions = read_predictions(tmp_path / "p.npz")
    assert set(predictions.classes) == {"reference", "graph int8"}
    assert len(predictions.image_ids) == IMAGES


def test_the_sample_is_stratified_and_comes_first(data: ImageDataset) -> None:
    shards = plan_shards(data, HopOptions(batch=32), 2.0)
    sample = np.concatenate([shard.indices for shard in shards if shard.sampled])
    assert len(sample) == 1000
    assert [shard.sampled for shard in shards] == sorted(
        (shard.sampled for shard in shards), reverse=True
    )
    whole = np.sort(np.concatenate([shard.indices for shard in shards]))
    assert np.array_equal(whole, np.arange(IMAGES))
    shares = np.bincount(data.labels[sample]) / 1000 - np.bincount(data.labels) / IMAGES
    assert np.abs(shares).max() < 0.001


@pytest.mark.parametrize(("limit", "sample"), [(0.0, 2500), (0.5, 2500), (1.0, 1537), (5.0, 1000)])
def test_the_sample_is_large_enough_for_the_limit(
    data: ImageDataset, limit: float, sample: int
) -> None:
    shards = plan_shards(data, HopOptions(batch=8), limit)
    assert sum(len(shard.indices) for shard in shards if shard.sampled) == sample


@pytest.mark.parametrize(("batch", "size"), [(1, 256), (32, 256), (100, 300), (1000, 1000)])
def test_a_shard_is_a_multiple_of_the_batch(data: ImageDataset, batch: int, size: int) -> None:
    shards = plan_shards(data, HopOptions(batch=batch, hops="all"), 1.0)
    assert len(shards[0].indices) == size


# --- stopping early -------------------------------------------------------------------------------


def test_a_validation_stops_when_it_is_decided(folder: Path, data: ImageDataset) -> None:
    result = _validate(folder, data, "good", until_decided=True)
    assert result.verdict == "pass"
    assert result.intervals == "anytime"
    assert result.early_stop is not None
    assert result.early_stop.decided
    assert (result.dataset.n, result.early_stop.available) == (256, IMAGES)
    assert result.hops[2].drop_ci95_pp is not None
    assert 0 < result.hops[2].drop_ci95_pp[1] < 2
    assert "at any number of images" in result.finding


def test_a_bad_engine_fails_early_and_its_hops_are_compared_on_the_same_images(
    folder: Path, data: ImageDataset
) -> None:
    result = _validate(folder, data, "bad", until_decided=True, hops="ends")
    assert result.verdict == "fail"
    assert result.dataset.n < IMAGES
    assert {hop.n for hop in result.hops} == {result.dataset.n}


def test_without_a_decision_all_images_are_looked_at(folder: Path, data: ImageDataset) -> None:
    chain = Chain.of(folder / "good.onnx")
    result = validate(
        [chain], folder / "reference.onnx", data, Gates(max_drop_pp=0.0), until_decided=True
    )
    assert result.verdict == "inconclusive"
    assert result.early_stop is not None
    assert not result.early_stop.decided
    assert result.dataset.n == IMAGES


def test_all_engines_must_be_decided(folder: Path, data: ImageDataset) -> None:
    chains = [Chain.of(folder / "good.onnx"), Chain.of(folder / "bad.onnx")]
    gates = Gates(max_drop_pp=2.0, max_flips=0.004)
    result = validate(chains, folder / "reference.onnx", data, gates, until_decided=True)
    assert [hop.verdict for hop in result.hops] == [None, "pass", "fail"]
    assert 800 < result.dataset.n < IMAGES


def test_three_images_decide_nothing(folder: Path, data: ImageDataset) -> None:
    few = data.select(np.arange(3))
    result = _validate(folder, few, "good", until_decided=True)
    assert (result.verdict, result.dataset.n) == ("inconclusive", 3)


def test_the_order_depends_on_the_seed_alone(data: ImageDataset) -> None:
    orders = [
        np.concatenate(
            [s.indices for s in plan_shards(data, HopOptions(until_decided=True, seed=seed), 1.0)]
        )
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert np.array_equal(np.sort(orders[2]), np.arange(IMAGES))
