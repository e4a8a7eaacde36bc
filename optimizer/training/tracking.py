"""Reports a training to TensorBoard, in local files beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from optimizer.errors import MissingLibrary

__all__ = ["Tracker", "open_trackers"]


class Tracker(Protocol):
    """Receives the rows of the history."""

    def row(self, values: Mapping[str, float]) -> None:
        """One finished epoch: its number, step, and quantities by name."""

    def close(self) -> None:
        """Write what is pending."""


def open_trackers(
    names: tuple[str, ...], folder: Path, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Open trackers that write into a folder.

    Args:
        names: ``tensorboard``.
        folder: Folder of the training.
        settings: Options of the training, to be recorded.

    Raises:
        MissingLibrary: The package of a tracker is not installed.
    """
    kinds: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"tensorboard": _TensorBoard}
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(kinds[name](folder, settings))
        except ImportError as error:
            raise MissingLibrary(
                f"--track {name} needs a package that is not installed",
                hint=f"pip install 'resnet-opt[{name}]'",
            ) from error
    return trackers


class _TensorBoard:
    """Event files in ``tensorboard/``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "  \n".join(f"{k}: {v}" for k, v in settings.items()))

    def row(self, values: Mapping[str, float]) -> None:
        """See `Tracker.row`."""
        for name, value in values.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(values["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()
