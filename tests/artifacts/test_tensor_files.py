"""Arrays with a checksum, for what the cache keeps."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from optimizer.artifacts import read_tensors, write_tensors

ARRAYS = {"a": np.arange(1000, dtype=np.float32), "b": np.zeros((2, 0), np.int64)}


def test_arrays_come_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", ARRAYS, "a note")
    found = read_tensors(tmp_path / "x.safetensors")
    assert found is not None
    arrays, note = found
    assert note == "a note"
    assert arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.parametrize("place", [0, 20, 300, -1])
def test_a_damaged_file_is_missing_and_removed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, ARRAYS, "a note")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert read_tensors(path) is None
    assert not path.exists()
    assert read_tensors(path) is None


def test_a_file_that_cannot_grow_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As on a full disk; nothing half-written is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_tensors(tmp_path / "x.safetensors", ARRAYS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
