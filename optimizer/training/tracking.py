"""Reports a training to TensorBoard or MLflow; by default in local files beside the checkpoints."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from optimizer.artifacts import write_text_atomically
from optimizer.errors import EnvironmentFault, MissingLibrary

__all__ = ["Tracker", "open_trackers"]

_EXPERIMENT = "resnet-opt"
_MOST_CHARACTERS = 500
"""Of a parameter, MLflow's own limit on older servers."""


class Tracker(Protocol):
    """Receives the rows of the history."""

    def row(self, values: Mapping[str, float]) -> None:
        """One finished epoch: its number, step, and quantities by name.

        Raises:
            OSError: It cannot be written; the training goes on.
        """

    def close(self, *, finished: bool) -> None:
        """Write what is pending.

        Args:
            finished: Whether the training came to its end.
        """


def open_trackers(
    names: tuple[str, ...], folder: Path, settings: Mapping[str, Any], *, resume: bool = False
) -> list[Tracker]:
    """Open trackers.

    Args:
        names: ``tensorboard``, ``mlflow``.
        folder: Folder of the training; TensorBoard's files, and MLflow's if ``MLFLOW_TRACKING_URI``
            names no server, are written there.
        settings: Options of the training, to be recorded.
        resume: Continue what the interrupted training reported.

    Raises:
        MissingLibrary: The package of a tracker is not installed.
        EnvironmentFault: MLflow's store cannot be opened.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any], bool], Tracker]] = {
        "tensorboard": _TensorBoard,
        "mlflow": _MLflow,
    }
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(kinds[name](folder, settings, resume))
        except ImportError as error:
            raise MissingLibrary(
                f"--track {name} needs a package that is not installed",
                hint=f"pip install 'resnet-opt[{name}]'",
            ) from error
    return trackers


class _TensorBoard:
    """Event files in ``tensorboard/``; those of a continued training are added to the others."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        if not resume:
            text = "  \n".join(f"{name}: {value}" for name, value in settings.items())
            self._writer.add_text("settings", text)

    def row(self, values: Mapping[str, float]) -> None:
        """See `Tracker.row`."""
        for name, value in _quantities(values).items():
            self._writer.add_scalar(name, value, int(values["epoch"]))
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """See `Tracker.close`."""
        del finished  # event files have no end
        self._writer.close()


class _MLflow:
    """A run of MLflow, in ``mlflow.db`` or on the server of ``MLFLOW_TRACKING_URI``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        self._failure = MlflowException
        for name in ("mlflow", "alembic"):  # they report each change of the database's schema
            logging.getLogger(name).setLevel(logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        store = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or store
        known = folder / "mlflow_run.txt"
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            if resume and known.is_file():
                self._run = known.read_text(encoding="utf-8").strip()
                self._client.update_run(self._run, status="RUNNING")
                return
            self._run = self._new_run(folder, settings)
        except MlflowException as error:
            raise EnvironmentFault(
                f"--track mlflow cannot use {uri}: {_first_line(error)}",
                hint="check MLFLOW_TRACKING_URI, or unset it to write beside the checkpoints",
            ) from error
        write_text_atomically(known, f"{self._run}\n")

    def _new_run(self, folder: Path, settings: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        number = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        run = self._client.create_run(number, run_name=folder.stem)
        for key, value in settings.items():
            self._client.log_param(run.info.run_id, key, str(value)[:_MOST_CHARACTERS])
        return str(run.info.run_id)

    def row(self, values: Mapping[str, float]) -> None:
        """See `Tracker.row`."""
        from mlflow.entities import Metric

        now, epoch = time.time_ns() // 1_000_000, int(values["epoch"])
        metrics = [Metric(name, float(v), now, epoch) for name, v in _quantities(values).items()]
        try:
            self._client.log_batch(self._run, metrics=metrics)
        except self._failure as error:
            raise OSError(f"MLflow: {_first_line(error)}") from error

    def close(self, *, finished: bool) -> None:
        """See `Tracker.close`."""
        try:
            self._client.set_terminated(self._run, status="FINISHED" if finished else "KILLED")
        except self._failure as error:
            logging.getLogger(__name__).warning("MLflow: %s", _first_line(error))


def _quantities(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in ("epoch", "step")}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
