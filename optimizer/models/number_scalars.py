"""NumPy's numbers in pickled files, read without calling NumPy's unpickling functions.

Trainers store the best accuracy as ``np.float64``. Its pickle calls ``numpy.dtype`` and
``numpy.core.multiarray.scalar``, which accept far more than numbers. The stand-ins here accept only
booleans, integers and floats of up to 8 bytes, and return Python's own numbers.
"""

from __future__ import annotations

import pickle
import struct

__all__ = ["ScalarType", "number"]

_FORMATS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


class ScalarType:
    """Stands in for ``numpy.dtype``: the type of one number."""

    def __init__(self, code: object, *_flags: object) -> None:
        if not isinstance(code, str) or code not in _FORMATS:
            raise pickle.UnpicklingError(f"Unsupported class numpy.dtype of {code!r}")
        self._format = "<" + _FORMATS[code]

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take the byte order, the second item of a pickled ``numpy.dtype``."""
        if len(state) > 1 and state[1] == ">":
            self._format = ">" + self._format[1:]

    def read(self, data: bytes) -> float | int | bool:
        """The number in ``data``."""
        value: float | int | bool = struct.unpack(self._format, data)[0]
        return value


def number(kind: ScalarType, data: bytes) -> float | int | bool:
    """Stands in for ``numpy.core.multiarray.scalar``.

    Raises:
        pickle.UnpicklingError: The arguments are not those of one number.
    """
    try:
        return kind.read(data)
    except (AttributeError, TypeError, struct.error) as error:
        raise pickle.UnpicklingError("Unsupported class numpy scalar") from error
