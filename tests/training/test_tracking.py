from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optimizer.errors import EnvironmentFault, MissingLibrary
from optimizer.training.tracking import open_trackers

ROWS = [{"epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch} for epoch in (1, 2)]


def test_tensorboard_gets_every_row(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(("tensorboard",), tmp_path, {"lr": 0.1})
    for row in ROWS:
        tracker.row(row)
    tracker.close(finished=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


@pytest.mark.filterwarnings("ignore:The ``noload``")  # of SQLAlchemy, in MLflow
def test_mlflow_gets_every_row_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the training is interrupted after the first."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    folder = tmp_path / "m.training"
    for row, resume in zip(ROWS, (False, True), strict=True):
        (tracker,) = open_trackers(("mlflow",), folder, {"lr": 0.1}, resume=resume)
        tracker.row(row)
        tracker.close(finished=resume)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resnet-opt")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "m", {"lr": "0.1"})
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]


def test_a_store_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://there")
    with pytest.raises(EnvironmentFault, match="cannot use nothing://there"):
        open_trackers(("mlflow",), tmp_path, {})


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibrary, match=rf"--track {name}.*resnet-opt\[{name}\]"):
        open_trackers((name,), tmp_path, {})
