"""Batch consistency on real sessions, correct and faulty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from optimizer.artifacts import Manifest
from optimizer.engines.onnxruntime import as_written
from optimizer.evaluation.consistency import batch_consistency, batches_to_check
from optimizer.results import BatchConsistency
from tests.evaluation.graphs import classifier

IMAGES = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)
IDS = [f"image{i}" for i in range(12)]


def _check(graph: Path, batches: list[int], precision: str = "fp32") -> BatchConsistency:
    session = as_written(graph)
    return batch_consistency("engine", session, IMAGES, IDS, batches=batches, precision=precision)


def test_a_correct_engine_passes(tmp_path: Path) -> None:
    result = _check(classifier(tmp_path / "g.onnx"), [1, 2, 8, 20])
    assert (result.verdict, result.failing, result.batches) == ("pass", [], [1, 2, 8, 20])
    assert result.max_abs_diff <= result.tolerance


def test_a_fixed_batch_is_checked_at_its_size(tmp_path: Path) -> None:
    assert _check(classifier(tmp_path / "g.onnx", batch=4), [4]).verdict == "pass"


def test_rows_that_depend_on_the_batch_mean_fail_and_are_named(tmp_path: Path) -> None:
    center = [
        helper.make_node("ReduceMean", ["features"], ["mean"], "mean", axes=None, keepdims=1),
        helper.make_node("Sub", ["features", "mean"], ["seen"], "center"),
    ]
    result = _check(classifier(tmp_path / "g.onnx", middle=center), [1, 4])
    assert result.verdict == "fail"
    assert any(
        f.startswith("batch 4, in order: image1 in row 1 differs by") for f in result.failing
    )
    assert any("permuted" in f for f in result.failing)
    assert "batch 4, in order: image0" in result.reason


def test_ranges_over_the_whole_batch_fail(tmp_path: Path) -> None:
    """Dynamic quantization: the range of one image affects the rounding of the others."""
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["features"], ["q", "scale", "zero"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["seen"], "dequantize"),
    ]
    result = _check(classifier(tmp_path / "g.onnx", middle=dynamic), [1, 8], "int8")
    assert result.verdict == "fail"
    assert not any("batch 1," in failure for failure in result.failing)


def test_an_engine_that_uses_the_first_image_for_every_row_fails(tmp_path: Path) -> None:
    path = classifier(
        tmp_path / "g.onnx",
        middle=[
            helper.make_node("Gather", ["features", "first"], ["one"], "gather"),
            helper.make_node("Shape", ["features"], ["shape"], "shape"),
            helper.make_node("Expand", ["one", "shape"], ["seen"], "expand"),
        ],
        constants={"first": np.array([0])},
    )
    result = _check(path, [1, 8])
    assert result.verdict == "fail"
    assert not any("repeated" in failure for failure in result.failing)


def test_a_batch_that_cannot_run_is_a_failure_with_its_error(tmp_path: Path) -> None:
    reshape = [helper.make_node("Reshape", ["features", "two"], ["seen"], "reshape")]
    two = {"two": np.array([2, 5])}
    path = classifier(tmp_path / "g.onnx", middle=reshape, constants=two)
    result = _check(path, [2, 4])
    assert result.verdict == "fail"
    assert any(
        f.startswith("batch 4, in order: ") and "reshape" in f.lower() for f in result.failing
    )
    assert _check(path, [4]).verdict == "fail"


def _manifest(**settings: object) -> Manifest:
    return Manifest(
        kind="engine", file="e", sha256="", created="", tool={}, settings=settings, key=""
    )


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (None, [1, 2, 32]),
        (_manifest(batch=None, profile=None), [1, 2, 32]),
        (_manifest(batch=4), [4]),
        (_manifest(batch=None, profile=[2, 8, 32]), [2, 8, 32]),
        (_manifest(batch=None, profile=[1, 8, 8]), [1, 8]),
        (_manifest(profile=[1, 1, 1], options={"profiles": [[8, 32, 64]]}), [1, 8, 32, 64]),
    ],
)
def test_batches_follow_the_engine(manifest: Manifest | None, expected: list[int]) -> None:
    assert batches_to_check(manifest, 32) == expected


@pytest.mark.parametrize(
    ("precision", "images", "difference", "verdict"),
    [
        ("int8", 1, 0.02, "pass"),
        ("int8", 3, 0.02, "pass"),
        ("int8", 4, 0.02, "fail"),
        ("int8", 1, 0.08, "fail"),
        ("fp32", 1, 0.02, "fail"),
    ],
)
def test_values_that_round_the_other_way_are_tolerated_in_few_images(
    precision: str, images: int, difference: float, verdict: str
) -> None:
    """A quarter of 12 images may differ by one step; ranges over the batch would change all."""

    class RoundingSession:
        """Rounds some images the other way if the batch is larger than one."""

        def run(self, batch: np.ndarray) -> np.ndarray:
            logits = np.tile(np.linspace(-1.0, 1.0, 10, dtype=np.float32), (len(batch), 1))
            if len(batch) > 1:
                for row, image in enumerate(batch):
                    if any(np.array_equal(image, other) for other in IMAGES[:images]):
                        logits[row, 3] += difference
            return logits

    result = batch_consistency(
        "engine",
        RoundingSession(),
        IMAGES,
        IDS,
        batches=[1, 8],
        precision=precision,  # type: ignore[arg-type]
    )
    assert result.verdict == verdict
