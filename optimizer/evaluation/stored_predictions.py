"""What a network predicts, stored shard by shard, so that it is computed once.

A shard's file is named after everything that its predictions depend on: the network, what computes
it on which machine, the preprocessing, the images per call, and the contents of the images in their
order. A killed validation therefore loses the shard that it was computing, a second engine of the
same network finds the reference's predictions, and an image that changed costs its own shard.

The files are those of `optimizer.artifacts.tensor_files`. A damaged one is computed again.

Whoever computes predictions opens its stores through `open_stores`, which limits their space at the end.
A store that a living process has opened is marked and stays. If another process removes one between
the mark's check and its use, its predictions are computed again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import (
    Cache,
    content_key,
    in_use,
    leftovers,
    names_in_use,
    read_tensors,
    remove,
    write_tensors,
)
from optimizer.environment import fingerprint
from optimizer.errors import ArtifactError

__all__ = ["PredictionStore", "PredictionStores", "StoredShard", "open_stores"]

_REVISION = 1
"""Raised when the same network would give other predictions than those stored."""
_KEPT, _SHAPE = "kept", "shape"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredShard:
    """Predictions of one network for one shard.

    Attributes:
        kept: Positions within the shard of the images that could be read, int64.
        shape: Shape of the network's output for one image.
        arrays: From `Task.pack`, one row per image.
    """

    kept: NDArray[np.int64]
    shape: tuple[int, ...]
    arrays: Arrays


@contextlib.contextmanager
def open_stores(cache: Cache, limit: int) -> Iterator[PredictionStores | None]:
    """The stores of a cache while predictions are computed.

    Args:
        cache: The cache.
        limit: Bytes that all stores together may take at the end; 0 stores nothing.

    Yields:
        The stores; ``None`` if nothing is stored, or nothing can be.
    """
    root = cache.lasting_folder("predictions") if limit else None
    if root is None:
        yield None
        return
    try:
        with PredictionStores(root) as stores:
            yield stores
    finally:
        _limit(root, limit)


class PredictionStores(contextlib.ExitStack):
    """All stores in a folder; those that were opened are in use until the ``with`` block ends."""

    def __init__(self, root: Path) -> None:
        """Nothing is read or written yet.

        Args:
            root: The folder of all stores.
        """
        super().__init__()
        self._root = root

    def store(self, network: Mapping[str, Any]) -> PredictionStore:
        """The store of one network, which nobody removes before the ``with`` block ends.

        Args:
            network: As in `PredictionStore`.
        """
        store = PredictionStore(self._root, network)
        self.enter_context(in_use(self._root, store.key))
        return store


class PredictionStore:
    """Predictions of one network; never an error: what cannot be stored is computed again."""

    def __init__(self, root: Path, network: Mapping[str, Any]) -> None:
        """Nothing is read or written yet.

        Args:
            root: The folder of all stores.
            network: What the predictions depend on, apart from the images and this machine.
        """
        self._root = root
        machine = {"machine": fingerprint()["sha256"], "threads": os.environ.get("OMP_NUM_THREADS")}
        self.key = content_key({**network, **machine, "revision": _REVISION})
        """Digest of what the predictions depend on; the files' names begin with it."""
        self.error: str | None = None
        """Why nothing more is stored, e.g. a full disk."""

    def has(self, images: str) -> bool:
        """Whether there is a file for these images, which may be damaged."""
        return self._file(images).is_file()

    def load(self, images: str) -> StoredShard | None:
        """The predictions for images with this digest; ``None`` if missing or damaged."""
        found = read_tensors(self._file(images))
        if found is None:
            return None
        arrays, _ = found
        try:
            kept, shape = arrays.pop(_KEPT), arrays.pop(_SHAPE)
        except KeyError:
            return None
        return StoredShard(kept, tuple(map(int, shape)), arrays)

    def save(self, images: str, shard: StoredShard) -> None:
        """Store the predictions for images with this digest; after an error nothing more."""
        if self.error is not None:
            return
        arrays = {**shard.arrays, _KEPT: shard.kept, _SHAPE: np.array(shard.shape, np.int64)}
        try:
            write_tensors(self._file(images), arrays)
        except (OSError, ArtifactError) as error:
            self.error = getattr(error, "strerror", None) or str(error)

    def _file(self, images: str) -> Path:
        return self._root / f"{self.key}.{images}.safetensors"


def _limit(root: Path, limit: int) -> None:
    """Remove the stores that were not used for longest until all take at most ``limit`` bytes.

    Stores in use stay, even if they take more. What killed processes left is removed too.
    """
    for path in leftovers([root]):
        remove(path)
    used: dict[str, float] = {}
    files: dict[str, list[tuple[Path, int]]] = {}
    with contextlib.suppress(OSError):
        for path in root.glob("*.safetensors"):
            network, status = path.name.partition(".")[0], path.stat()
            used[network] = max(used.get(network, 0.0), status.st_mtime)
            files.setdefault(network, []).append((path, status.st_size))
    sizes = {network: sum(size for _, size in found) for network, found in files.items()}
    excess = sum(sizes.values()) - limit
    for network in sorted(files.keys() - names_in_use(root), key=used.__getitem__):
        if excess <= 0:
            break
        for path, _ in files[network]:
            remove(path)
        excess -= sizes[network]
