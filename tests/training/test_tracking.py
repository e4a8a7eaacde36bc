from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import MissingLibrary
from optimizer.training.tracking import open_trackers

ROWS = [{"epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch} for epoch in (1, 2)]


def test_tensorboard_gets_every_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(("tensorboard",), tmp_path, {"lr": 0.1})
    for row in ROWS:
        tracker.row(row)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingLibrary, match=r"--track tensorboard.*resnet-opt\[tensorboard\]"):
        open_trackers(("tensorboard",), tmp_path, {})
