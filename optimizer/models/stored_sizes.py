"""Bounds on the memory that a checkpoint takes, checked before it is taken."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["check_archive", "check_stored"]

_SMALL = 64 << 20
_ENCRYPTED = 1


def check_archive(path: Path) -> None:
    """Refuse an archive that inflates to much more than the file, or is encrypted.

    PyTorch stores its records uncompressed.

    Raises:
        CheckpointError: See above. A file that is no ZIP archive passes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise CheckpointError(f"{path} is encrypted", hint="save it without a password")
    inflated, size = sum(member.file_size for member in members), path.stat().st_size
    if inflated > 2 * size + _SMALL:
        raise CheckpointError(
            f"{path} has {size / 1e6:,.1f} MB, but inflates to {inflated / 1e6:,.1f} MB: a "
            "decompression bomb?",
            hint="save it with torch.save, which does not compress",
        )


def check_stored(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse tensors that stand for more values than are stored: copying them would take memory.

    Raises:
        CheckpointError: A tensor is an expanded view, sparse or quantized; the message names it.
    """
    import torch

    for name, tensor in state.items():
        dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
        if not dense:
            raise CheckpointError(
                f"{source}: {name} is a {tensor.layout} tensor of type {tensor.dtype}, not numbers",
                hint="save it as a dense tensor of floats: tensor.to_dense(), tensor.dequantize()",
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source}: {name} stands for {tensor.numel():,} values, more than the file stores",
                hint="save it as contiguous tensors: tensor.contiguous()",
            )
