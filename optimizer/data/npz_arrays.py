"""Reads arrays from NPZ files that may be hostile: headers are checked before memory is taken.

`numpy.load` allocates what a header claims (a file of 300 bytes can claim 586 GiB) and inflates
whatever an archive holds.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NpzError", "read_arrays"]

_ENCRYPTED = 1
_LARGEST_HEADER = 10_000
_SMALL = 256 << 20
_MOST_EXPANDED = 100
"""How many times as large as the file the arrays may be, above 256 MiB."""
_MOST_MEMBERS = 100_000


class NpzError(ValueError):
    """The file is not an NPZ file, is damaged, or needs more memory than there is."""


def read_arrays(
    path: Path, wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, NDArray[Any]]:
    """Read arrays by name; object arrays are refused.

    Args:
        path: The file.
        wanted: Which arrays to read, by name.

    Raises:
        NpzError: See there; the message does not name the file.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise NpzError("it is a single array, not an NPZ file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            chosen = {name: info for name, info in members.items() if wanted(name)}
            _check_sizes(path, list(chosen.values()))
            return {name: _read(archive, name, info) for name, info in chosen.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise NpzError(" ".join(str(error).split()) or type(error).__name__) from error
    except (
        TypeError,
        OverflowError,
        LookupError,
        SyntaxError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        raise NpzError(f"an array in it is damaged ({type(error).__name__})") from error


def _check_sizes(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    import psutil

    if len(infos) > _MOST_MEMBERS:
        raise NpzError(f"it holds {len(infos):,} arrays, more than {_MOST_MEMBERS:,}")
    for info in infos:
        if info.flag_bits & _ENCRYPTED:
            raise NpzError(f"{info.filename} is encrypted")
    needed = sum(info.file_size for info in infos)
    size = path.stat().st_size
    if needed > _SMALL and needed > _MOST_EXPANDED * size:
        raise NpzError(
            f"its arrays are {needed / max(size, 1):,.0f} times as large as the file "
            f"({needed / 2**30:.1f} GiB): a decompression bomb?"
        )
    free = psutil.virtual_memory().available
    if needed > free:
        raise NpzError(
            f"its arrays need {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free"
        )


def _read(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as stream:
        shape, kind = _header(stream, name)
        values = math.prod(shape)
        stored = info.file_size - stream.tell()
        if values * kind.itemsize > stored:
            raise NpzError(
                f"{name} claims {values * kind.itemsize:,} bytes, but {max(stored, 0):,} are stored"
            )
    with archive.open(info) as stream:
        array: NDArray[Any] = np.lib.format.read_array(
            stream, allow_pickle=False, max_header_size=_LARGEST_HEADER
        )
        return array


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype; the stream is then at the first value."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(stream, _LARGEST_HEADER)
    elif version == (2, 0):
        shape, _, kind = np.lib.format.read_array_header_2_0(stream, _LARGEST_HEADER)
    else:
        raise NpzError(f"{name} has version {version} of the format, which is not supported")
    if kind.hasobject:
        raise NpzError(f"{name} is an object array, which could run code when it is read")
    if any(not isinstance(side, int) or side < 0 for side in shape) or len(shape) > 32:
        raise NpzError(f"{name} has the invalid shape {str(shape)[:80]}")
    return shape, kind
