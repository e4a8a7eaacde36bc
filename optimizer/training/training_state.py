"""The state of an unfinished training in a file, from which it continues bit for bit.

Random numbers need no state: the order of images and their augmentation are functions of seed and
epoch, and torch's generator is seeded anew in every step.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.artifacts import write_atomically, write_text_atomically
from optimizer.errors import ArtifactError, UsageError

__all__ = ["StateFile", "changed_settings", "check_folder", "claim_folder", "remove_training"]

_log = logging.getLogger(__name__)
_FORMAT = 1
_ELASTIC = {"batch_size", "accumulate", "processes"}
"""Settings that may change with ``--elastic``."""


_TAG = ".resnet-opt-training"
_FILES = (
    "last.pt", "previous.pt", "best.pth", "history.csv", "mlflow.db", "mlflow_run.txt",
)  # fmt: skip


def check_folder(folder: Path) -> None:
    """Refuse a folder of checkpoints that holds files of others where this training writes its own.

    Raises:
        UsageError: It does, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder} is a file, and checkpoints go into a folder of this name",
            hint="-o with another name",
        )
    if (folder / _TAG).exists():
        return
    for name in _FILES:
        if os.path.lexists(folder / name):
            raise UsageError(
                f"{folder / name} exists and was not written by resnet-opt train",
                hint="-o with another name, or --force to replace it",
            )


def claim_folder(folder: Path) -> None:
    """Mark a folder as one of this package's trainings."""
    if not (folder / _TAG).exists():
        write_text_atomically(folder / _TAG, "Checkpoints and history of resnet-opt train.\n")


def remove_training(folder: Path) -> None:
    """Delete what a finished training has left in its folder, and the folder if that was all."""
    file = StateFile(folder)
    file.clean()
    file.remove()
    for path in (file.best, folder / "history.csv", folder / _TAG):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it, or it is not there
        folder.rmdir()


class StateFile:
    """The last checkpoint of a training and the one before it.

    Attributes:
        folder: The folder of both.
        notes: What the user should know: a checkpoint that could not be written or read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    @property
    def path(self) -> Path:
        """The last checkpoint."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before it."""
        return self.folder / "previous.pt"

    @property
    def best(self) -> Path:
        """The weights with the best metric so far, a state dict."""
        return self.folder / "best.pth"

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint."""
        return self.path.is_file() or self.previous.is_file()

    def save(self, state: Mapping[str, Any]) -> bool:
        """Replace the last checkpoint; it becomes the previous one.

        Returns:
            Whether it was written. If the disk is full, the old ones stay and a note says so.
        """
        return self._write(self.path, {"format": _FORMAT, **state})

    def save_best(self, weights: Mapping[str, Any]) -> bool:
        """Replace the best weights so far; as `save`."""
        return self._write(self.best, weights)

    def _write(self, path: Path, content: Mapping[str, Any]) -> bool:
        import torch

        try:
            claim_folder(self.folder)
            with write_atomically(path) as temporary:
                torch.save(content, temporary)
                if path == self.path and path.is_file():
                    # A second name, so that at no moment there is neither of the two.
                    self.previous.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # some file systems have no hard links
                        os.link(path, self.previous)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.note_failure(f"the checkpoint {path}", error)
            return False
        return True

    def note_failure(self, what: str, error: Exception) -> None:
        """Note that something could not be written, once."""
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["no reason"])[0]
        full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if full or "inline_container" in reason:  # all that torch's writer says
            reason = "the disk is full, or files may not be so large"
        note = f"{what} could not be written: {reason}; training goes on"
        if note not in self.notes:
            self.notes.append(note)
        _log.warning("%s", note)

    def load(self) -> dict[str, Any]:
        """Read the last checkpoint, or the previous one if the last is damaged.

        Raises:
            UsageError: There is no checkpoint.
            ArtifactError: None can be read.
        """
        if not self.exists:
            raise UsageError(
                f"there is nothing to resume: no checkpoint in {self.folder}",
                hint="leave out --resume to start a training",
            )
        for path in (self.path, self.previous):
            if path.is_file() and (state := _read(path)) is not None:
                return state
            if path.is_file():
                self.notes.append(f"{path} is damaged; the checkpoint before it is used")
        raise ArtifactError(
            f"no checkpoint in {self.folder} can be read", hint="leave out --resume to start again"
        )

    def clean(self) -> None:
        """Delete what a training that was killed while it wrote has left: `write_atomically`'s files."""
        for path in self.folder.glob(".*.pt*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the checkpoints after the training is finished."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a file, without executing anything in it; ``None`` if it is damaged."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged archives raise exceptions of many kinds
        _log.warning("%s cannot be read: %s", path, error)
        return None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        return None
    return state


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], *, elastic: bool
) -> list[str]:
    """What differs between an unfinished training and the one that shall continue it.

    Args:
        before: Settings of the checkpoint.
        now: Settings of this call.
        elastic: Accept another batch size or number of processes.

    Returns:
        The accepted changes, for example ``batch_size 32 -> 64``.

    Raises:
        UsageError: Something else differs; the message names it.
    """
    names = sorted({*before, *now})
    different = {name for name in names if before.get(name) != now.get(name)}
    texts = {name: f"{name} {before.get(name)} -> {now.get(name)}" for name in different}
    refused = different - _ELASTIC
    if refused or (different and not elastic):
        hint = "pass the same options and data, or leave out --resume to start again"
        if not refused:
            hint = "pass the same, or --elastic to continue with the new ones"
        listed = ", ".join(texts[name] for name in sorted(refused or different))
        raise UsageError(f"the unfinished training has other settings: {listed}", hint=hint)
    return [texts[name] for name in sorted(different)]
