"""Write the raw samples of a measurement, from which all figures can be recomputed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from optimizer.artifacts import mark_zip, write_atomically
from optimizer.profiling.harness import Measured

__all__ = ["save_raw"]


def save_raw(measured: Measured, raw_dir: Path | None, *, swept: bool) -> str | None:
    """Write all calls of all rounds to an NPZ file, with lead-ins marked.

    Args:
        measured: The measurement of one cell.
        raw_dir: The folder; ``None`` writes nothing.
        swept: Whether the file name contains threads and streams.

    Returns:
        The path relative to ``bench.json``; ``None`` if nothing was written.
    """
    if raw_dir is None or not measured.blocks:
        return None
    name = re.sub(r"[^\w.()-]+", "_", measured.cell.name)
    cell = measured.cell
    suffix = f"-threads{cell.threads}-streams{cell.streams}" if swept else ""
    path = raw_dir / f"{name}-batch{cell.batch}{suffix}.npz"
    blocks = measured.blocks
    calls = np.concatenate([b.calls for b in blocks])
    lengths = [len(b.calls) for b in blocks]
    position = np.concatenate([np.arange(n) for n in lengths])
    with write_atomically(path) as temporary:
        np.savez(
            temporary,
            round=np.repeat([b.round for b in blocks], lengths).astype(np.int32),
            lead_in=position < np.repeat([b.lead_in for b in blocks], lengths),
            start_ns=calls[:, 0],
            host_to_device_ns=calls[:, 1],
            compute_ns=calls[:, 2],
            device_to_host_ns=calls[:, 3],
            stream=np.concatenate([b.stream for b in blocks]),
        )
        mark_zip(temporary, "samples")
    return f"{raw_dir.name}/{path.name}"
