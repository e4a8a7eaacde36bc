"""Checkpoints that would take more memory than the file explains are refused before they do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from optimizer.errors import CheckpointError
from optimizer.models.weights import fit_weights, read_weights


def test_a_compressed_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"fc.bias": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(100 << 20) if "/data/" in name else content)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="decompression bomb"):
        read_weights(path)


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"fc.bias": torch.zeros(4)}, path)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is encrypted"):
        read_weights(path)


def test_a_tensor_of_more_values_than_are_stored() -> None:
    state = {"fc.weight": torch.zeros(1).expand(10**9, 2048), "fc.bias": torch.zeros(10)}
    with pytest.raises(CheckpointError, match=r"fc\.weight stands for 2,048,000,000,000 values"):
        fit_weights(state, "resnet50", "w.pth")


def test_sparse_tensors_are_named() -> None:
    state = {"fc.bias": torch.ones(3).to_sparse()}
    with pytest.raises(CheckpointError, match=r"fc\.bias is a .* tensor"):
        fit_weights(state, "resnet50", "w.pth")
