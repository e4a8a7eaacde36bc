"""Whether an image's outputs depend on the other images in the batch.

They must not. They do if a batch dimension was baked into the graph, if ranges are computed over
the whole batch (dynamic quantization), or if an engine pads incorrectly or reads stale memory.

Tolerances are relative to the largest logit of the images. Kernels chosen for another batch size
sum in a different order, so outputs need not be bitwise equal:

* FP32 1e-4: sums of up to 4,608 products in a different order differ by about 4e-6, and over 50
  layers by well below 1e-4. TF32 rounds its inputs to 11 bits whatever the order, so the effect of
  order is as in FP32; it still gets the tolerance of the half types, for kernels that split sums.
* INT8 1e-3: integer sums are exact. Occasionally a value rounds the other way, and one quantization
  step in an early tensor may become 2e-2 of the logits (5 of 100 noise images through a ResNet-18
  that OpenVINO compiled for batch 1 and for any batch). This affects single images, whereas ranges
  over the whole batch change all of them: up to a quarter of the images (at least one) may differ by
  up to 5e-2.
* FP16, BF16, FP8 2e-2: a different order makes some values of every layer round to a neighbouring
  value, 2^-10 (2^-8, 2^-3) of their magnitude away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import Manifest
from optimizer.engines.batching import compiled_profiles
from optimizer.engines.protocol import Session
from optimizer.errors import ResnetOptError
from optimizer.results import BatchConsistency

__all__ = ["TOLERANCES", "batch_consistency", "batches_to_check"]

Array = NDArray[Any]
TOLERANCES = {
    "fp32": 1e-4, "tf32": 2e-2, "int8": 1e-3, "mixed": 1e-3,
    "fp16": 2e-2, "bf16": 2e-2, "fp8": 2e-2,
}  # fmt: skip
_ROUNDING_TOLERANCES = {"int8": 5e-2, "mixed": 5e-2}
"""How far single images may differ because a value rounded the other way."""
_ROUNDING_SHARE = 0.25
"""Largest share of images that may differ in this way."""
_IMAGES = 32
_MAX_LISTED = 20


def batches_to_check(manifest: Manifest | None, batch: int) -> list[int]:
    """Batch sizes at which an engine must give the same outputs.

    Args:
        manifest: Manifest of the engine. Its sizes are min, opt and max of its profiles, its fixed
            batch, or the sizes that it has separate models for.
        batch: Batch size of the validation, for engines that accept any.
    """
    settings = manifest.settings if manifest is not None else {}
    if profiles := compiled_profiles(settings):
        return sorted({size for profile in profiles for size in profile})
    return sorted({1, 2, max(batch, 2), *settings.get("fixed_batches", [])})


def batch_consistency(
    name: str,
    session: Session,
    images: Array,
    image_ids: list[str],
    *,
    batches: list[int],
    precision: str,
) -> BatchConsistency:
    """Compare each image's outputs alone with its outputs in a batch.

    At every batch size: the images in order, permuted, and one image repeated.

    Args:
        name: The engine's name in results.
        session: The engine.
        images: N x 3 x H x W float32 or N x H x W x 3 uint8, N at least 1; the first 32 are used.
        image_ids: Names of the images.
        batches: Batch sizes that the engine accepts, ascending.
        precision: Precision of the engine; decides the tolerance.

    Returns:
        The result. A batch that the engine cannot run counts as a failure, with its error.
    """
    images = images[:_IMAGES]
    smallest = min(batches)
    failing: list[str] = []
    worst = 0.0
    try:
        # If the smallest batch is not 1, it is filled with copies of the image.
        alone = np.stack([session.run(np.repeat(x[None], smallest, axis=0))[0] for x in images])
    except Exception as error:  # noqa: BLE001 - a library's failure is the result
        return _result(name, batches, 0.0, 0.0, [f"batch {smallest}: {_one_line(error)}"])
    largest = float(np.abs(alone).max())
    tolerance = TOLERANCES.get(precision, 2e-2) * largest
    rounding_tolerance = _ROUNDING_TOLERANCES.get(precision, 0.0) * largest
    rounded: dict[int, str] = {}
    for size in batches:
        for check, chosen in _arrangements(size, len(images)):
            try:
                outputs = session.run(images[chosen])
            except Exception as error:  # noqa: BLE001 - as above
                failing.append(f"batch {size}, {check}: {_one_line(error)}")
                continue
            differences = np.abs(outputs - alone[chosen])
            difference = differences.reshape(len(chosen), -1).max(axis=1)
            worst = max(worst, float(difference.max()))
            for row in np.flatnonzero(~(difference <= tolerance)):
                message = (
                    f"batch {size}, {check}: {image_ids[chosen[row]]} in row {row} differs by "
                    f"{difference[row]:.2g}"
                )
                if difference[row] <= rounding_tolerance:
                    rounded.setdefault(int(chosen[row]), message)
                else:
                    failing.append(message)
    if len(rounded) > max(1, _ROUNDING_SHARE * len(images)):
        failing += rounded.values()
    return _result(name, batches, worst, tolerance, failing)


def _arrangements(size: int, count: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    for start in range(0, count, size):
        yield "in order", np.arange(start, start + size) % count
    if size > 1:
        permuted = np.random.default_rng(size).permutation(np.arange(size) % count)
        yield "permuted", permuted
        yield "repeated", np.zeros(size, dtype=np.int64)


def _result(
    name: str, batches: list[int], worst: float, tolerance: float, failing: list[str]
) -> BatchConsistency:
    sizes = ", ".join(map(str, batches))
    if failing:
        reason = f"{len(failing)} rows or batches differ, first: {failing[0]}"
    else:
        reason = (
            f"logits of each image alone and in batches of {sizes} differ by at most {worst:.2g}"
        )
    more = [f"and {len(failing) - _MAX_LISTED} more"] if len(failing) > _MAX_LISTED else []
    return BatchConsistency(
        engine=name,
        batches=batches,
        max_abs_diff=worst,
        tolerance=tolerance,
        failing=failing[:_MAX_LISTED] + more,
        verdict="fail" if failing else "pass",
        reason=reason,
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, ResnetOptError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
