"""The history of a training: one row per epoch, in ``history.csv`` and in the manifest."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from optimizer.artifacts import write_text_atomically

__all__ = ["write_history"]


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write one line per epoch; the first names the columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _readable(value) for name, value in row.items()})
    write_text_atomically(path, text.getvalue())


def _readable(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
