"""The predictions file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import ArtifactError
from optimizer.tasks.predictions import Recorder, read_predictions

LABELS = np.arange(20) % 8


def _recorded(seed: int = 0) -> tuple[Recorder, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    logits = {hop: rng.normal(size=(20, 8)).astype(np.float32) for hop in ("reference", "x.blob")}
    recorder = Recorder()
    order = rng.permutation(20)
    for chosen in (order[:7], order[7:]):
        recorder.start_batch(chosen)
        for hop, values in logits.items():
            recorder.add(hop, values[chosen])
    return recorder, logits


def test_predictions_are_read_back_in_dataset_order(tmp_path: Path) -> None:
    recorder, logits = _recorded()
    ids = [f"i{k}" for k in range(20)]
    recorder.finish("abc", LABELS, ids).write(tmp_path / "p.npz")
    again = read_predictions(tmp_path / "p.npz")
    assert again.dataset_sha256 == "abc"
    assert again.image_ids == tuple(ids)
    assert (again.labels == LABELS).all()
    for hop, values in logits.items():
        assert (again.top1(hop) == values.argmax(axis=1)).all()
        assert again.classes[hop].shape == (20, 5)
        expected = -np.sort(-values, axis=1)[:, :5]
        assert (again.logits[hop] == expected).all()


def test_ties_are_broken_like_argmax() -> None:
    recorder = Recorder()
    recorder.start_batch(np.arange(2))
    logits = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)
    recorder.add("r", logits)
    predictions = recorder.finish("", np.zeros(2, np.int64), ["a", "b"])
    assert (predictions.classes["r"] == [[1, 2, 0, 3], [0, 1, 2, 3]]).all()


def test_a_failed_hop_is_dropped() -> None:
    recorder, _ = _recorded()
    recorder.forget("x.blob")
    assert set(recorder.finish("", LABELS, [""] * 20).classes) == {"reference"}


def test_processes_are_merged_and_a_failure_in_one_counts_for_all() -> None:
    whole, logits = _recorded()
    parts = []
    for rank in range(2):
        part = Recorder()
        chosen = np.arange(rank, 20, 2)
        part.start_batch(chosen)
        for hop, values in logits.items():
            part.add(hop, values[chosen])
        parts.append(part)
    parts[1].forget("x.blob")
    parts[0].merge(parts[1])
    ids = [str(k) for k in range(20)]
    merged, expected = parts[0].finish("", LABELS, ids), whole.finish("", LABELS, ids)
    assert set(merged.classes) == {"reference"}
    assert (merged.classes["reference"] == expected.classes["reference"]).all()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 broken"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a predictions file"):
        read_predictions(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no predictions file at"):
        read_predictions(tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", images=np.zeros(3))
    with pytest.raises(ArtifactError, match="is not a predictions file"):
        read_predictions(tmp_path / "p.npz")
    np.savez(tmp_path / "q.npz", head=np.array('{"schema_version": 99}'))
    with pytest.raises(ArtifactError, match="schema version 99"):
        read_predictions(tmp_path / "q.npz")
