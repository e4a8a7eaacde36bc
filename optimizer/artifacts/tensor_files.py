"""Arrays in one safetensors file with a checksum, for what the cache keeps between runs.

The format is safetensors because it is safe to read, maps plain arrays without copying and is kept by
others. What these files hold can be computed again, so a damaged one counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts.atomic_files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_tensors", "write_tensors"]

_CHECKSUM = "sha256"
Arrays = Mapping[str, "NDArray[Any]"]


def write_tensors(path: Path, arrays: Arrays, note: str = "") -> None:
    """Write arrays atomically.

    Args:
        path: The file.
        arrays: By name.
        note: Text that is stored with them.

    Raises:
        OSError, ArtifactError: The file cannot be written, e.g. because the disk is full.
    """
    import numpy as np
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {_CHECKSUM: _checksum(arrays, note), "note": note}
    with write_atomically(path) as temporary:
        # `save_file` hides a full disk in an error that is no OSError.
        temporary.write_bytes(save(arrays, metadata))


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], str] | None:
    """The arrays of a file, and its note; ``None`` if it is missing or damaged.

    A damaged file is removed. An intact one counts as recently used.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, SafetensorError):
        arrays, metadata = {}, {}
    note = metadata.get("note", "")
    if metadata.get(_CHECKSUM) != _checksum(arrays, note):
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return arrays, note


def _checksum(arrays: Arrays, note: str) -> str:
    import numpy as np

    hasher = hashlib.sha256(note.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hasher.update(array.data if array.size else b"")
    return hasher.hexdigest()
