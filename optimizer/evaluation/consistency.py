"""Whether an image's outputs depend on its neighbours in the batch.

They must not; they do when a batch dimension was frozen into the graph, when ranges are computed
over the whole batch (dynamic quantization), when an engine pads badly or leaves stale memory.

Tolerance, relative to the largest logit of these images. Kernels chosen for another batch size add
in another order, so outputs need not be equal bit by bit:

* FP32 1e-4: sums of up to 4,608 products in another order differ by about 4e-6, and 50 layers
  add up to well below 1e-4. TF32 rounds its inputs to 11 bits whatever the order, so a changed
  order shows as in FP32; still it gets the tolerance of the half types, for kernels that split.
* INT8 1e-3: integer sums are exact. Now and then a rounding falls the other way, and one step of an
  early tensor may become 2e-2 of the logits (5 of 100 images of noise through a ResNet-18 that OpenVINO
  has compiled for batch 1 and for any). That concerns single images, while ranges over the whole batch
  change all of them: up to a quarter of the images (one of few) may differ by up to 5e-2.
* FP16, BF16, FP8 2e-2: a changed order makes some values of every layer round to a neighbour,
  2^-10 (2^-8, 2^-3) of themselves apart.
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
_STEPPED = {"int8": 5e-2, "mixed": 5e-2}
"""How far single images may differ where a value was rounded the other way."""
_SHARE_STEPPED = 0.25
_IMAGES = 32
_NAMED = 20


def batches_to_check(manifest: Manifest | None, batch: int) -> list[int]:
    """Batch sizes that an engine must agree with itself on.

    Args:
        manifest: Of the engine; min, opt and max of its profiles, or its fixed batch, or the sizes
            that it has models of their own for.
        batch: The batch of the validation, for an engine that takes any.
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
    """Compare each image's outputs alone with its outputs in company.

    At every batch size: the images in order, in another order, and one image repeated.

    Args:
        name: The engine's name in results.
        session: The engine.
        images: N x 3 x H x W float32 or N x H x W x 3 uint8, N at least 1; the first 32 are used.
        image_ids: Their names.
        batches: Batch sizes the engine takes, ascending.
        precision: What it computes in; decides the tolerance.

    Returns:
        The result; a batch the engine cannot run is a failure with its error.
    """
    images = images[:_IMAGES]
    smallest = min(batches)
    failing: list[str] = []
    worst = 0.0
    try:
        # An engine whose smallest batch is not 1 is filled up with the image itself.
        alone = np.stack([session.run(np.repeat(x[None], smallest, axis=0))[0] for x in images])
    except Exception as error:  # noqa: BLE001 - a library's failure is the result
        return _result(name, batches, 0.0, 0.0, [f"batch {smallest}: {_one_line(error)}"])
    largest = float(np.abs(alone).max())
    tolerance = TOLERANCES.get(precision, 2e-2) * largest
    beyond = _STEPPED.get(precision, 0.0) * largest
    stepped: dict[int, str] = {}
    for size in batches:
        for check, chosen in _arrangements(size, len(images)):
            try:
                outputs = session.run(images[chosen])
            except Exception as error:  # noqa: BLE001 - as above
                failing.append(f"batch {size}, {check}: {_one_line(error)}")
                continue
            difference = np.abs(outputs - alone[chosen]).max(axis=1)
            worst = max(worst, float(difference.max()))
            for row in np.flatnonzero(~(difference <= tolerance)):
                said = (
                    f"batch {size}, {check}: {image_ids[chosen[row]]} in row {row} differs by "
                    f"{difference[row]:.2g}"
                )
                if difference[row] <= beyond:
                    stepped.setdefault(int(chosen[row]), said)
                else:
                    failing.append(said)
    if len(stepped) > max(1, _SHARE_STEPPED * len(images)):
        failing += stepped.values()
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
        reason = f"{len(failing)} rows or batches differ: {failing[0]}"
    else:
        reason = f"each image alone and in batches of {sizes}: at most {worst:.2g} apart"
    more = [f"and {len(failing) - _NAMED} more"] if len(failing) > _NAMED else []
    return BatchConsistency(
        engine=name,
        batches=batches,
        max_abs_diff=worst,
        tolerance=tolerance,
        failing=failing[:_NAMED] + more,
        verdict="fail" if failing else "pass",
        reason=reason,
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, ResnetOptError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
