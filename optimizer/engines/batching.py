"""Checks batches, and runs batches of any size on engines of a fixed size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optimizer.engines.protocol import Array, TensorSpec
from optimizer.errors import UsageError
from optimizer.graphs.taps import chunks

__all__ = ["check_batch", "compiled_profiles", "run_in_chunks"]


def check_batch(batch: Array, spec: TensorSpec) -> None:
    """Refuse a batch that does not match an engine's input.

    Raises:
        UsageError: Wrong rank, image size or dtype, or an empty batch.
    """
    expected = spec.shape[1:]
    fits = batch.ndim == len(spec.shape) and all(
        want is None or want == have for want, have in zip(expected, batch.shape[1:], strict=True)
    )
    if not fits or batch.dtype != np.dtype(spec.dtype) or len(batch) == 0:
        wanted = " x ".join("?" if d is None else str(d) for d in ("N", *expected))
        raise UsageError(
            f"the engine takes {wanted} {spec.dtype}, not "
            f"{' x '.join(map(str, batch.shape))} {batch.dtype}",
            hint="build the engine for this image size and input kind",
        )


def compiled_profiles(settings: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The (min, opt, max) batch sizes that an engine was compiled for.

    Args:
        settings: The settings of its manifest.

    Returns:
        One profile of three equal sizes for a fixed batch; empty if the manifest records none.
    """
    if batch := settings.get("batch"):
        return [(int(batch),) * 3]
    further = (settings.get("options") or {}).get("profiles") or []
    profiles = [*([settings["profile"]] if settings.get("profile") else []), *further]
    return [(int(low), int(best), int(high)) for low, best, high in profiles]


def run_in_chunks(compute: Callable[[Array], Array], batch: Array, size: int) -> Array:
    """Compute a batch of any size in chunks of exactly ``size`` images.

    Padding rows of the last chunk are dropped; see `chunks`.
    """
    return np.concatenate([compute(chunk)[:count] for chunk, count in chunks(batch, size)])
