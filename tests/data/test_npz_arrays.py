"""NPZ files that claim or inflate to more than they store are refused before memory is taken."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from optimizer.data import open_dataset
from optimizer.data.labels import MOST_CLASSES, as_labels
from optimizer.data.npz_arrays import NpzError, read_arrays
from optimizer.errors import DataError


def _header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def _write(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(["x", "yz"]),
        "d": np.array(7),
        "e": np.zeros((0, 3)),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    read = read_arrays(tmp_path / "a.npz")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert set(read_arrays(tmp_path / "a.npz", {"b"}.__contains__)) == {"b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_header((3_276_000, 256, 256, 3)), r"claims 644,087,808,000 bytes, but 0 are stored"),
        (_header((2**62, 2**62)), "claims"),
        (_header((-1, 3)) + bytes(9), "invalid shape"),
        (_header((3,), "|O") + bytes(24), "object array"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"{{{{{{{{{{{{{{{{", "damaged|header|Cannot"),
        (b"", "EOF|magic"),
        (b"not an array at all", "magic"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = _write(tmp_path / "a.npz", {"images.npy": content})
    tracemalloc.start()
    with pytest.raises(NpzError, match=message):
        try:
            read_arrays(path)
        except ValueError as error:
            raise NpzError(str(error)) from error
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    content = _header((300 << 20,)) + bytes(300 << 20)
    path = _write(tmp_path / "a.npz", {"images.npy": content}, zipfile.ZIP_DEFLATED)
    with pytest.raises(NpzError, match="decompression bomb"):
        read_arrays(path)


def test_encrypted_and_other_files(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.npz", {"a.npy": _header((1,)) + b"x"})
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(NpzError, match="encrypted"):
        read_arrays(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(NpzError, match="single array"):
        read_arrays(tmp_path / "b.npy")


@pytest.mark.parametrize("label", [2**64 - 1, 2**63, 10**9, MOST_CLASSES])
def test_labels_that_no_classifier_has(tmp_path: Path, label: int) -> None:
    labels = np.array([0, label, 1], np.uint64)
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=labels)
    with pytest.raises(DataError, match=f"label {label} of image 1 is out of range"):
        open_dataset(tmp_path / "d.npz")


def test_labels_of_every_integer_type() -> None:
    for kind in (np.uint8, np.int8, np.uint64, np.int64, ">i4"):
        labels = as_labels(np.array([0, 4], kind), "x", 5)
        assert labels.dtype == np.int64
        assert labels.tolist() == [0, 4]
    with pytest.raises(DataError, match="label 5 of image 0"):
        as_labels([5, 0], "x", 5)
    with pytest.raises(DataError, match="label -1 of image 1"):
        as_labels(np.array([0, -1], np.int8), "x")


@pytest.mark.parametrize("label", ["9999999999", "1" * 5000])
def test_long_labels_in_a_list(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "val.txt").write_text(f"a.jpg {label}\n")
    with pytest.raises(DataError, match="is out of range"):
        open_dataset(tmp_path / "val.txt")
