"""Decodes images in worker processes, ahead of the reader and in its order.

Workers are plain child processes with pipes. `multiprocessing` (and torch's DataLoader) either
forks, which is unsafe once torch, ONNX Runtime or OpenVINO have started threads, or spawns, which
runs the user's script again unless it has a main guard. A child of `optimizer.processes` does
neither, and its death shows as the end of a pipe.

Pixels are passed as uint8 (a quarter of float32) through a memory-mapped file; paths and responses
go through the pipes; nothing is pickled. ``/dev/shm`` is not used because most containers limit it
to 64 MB. Image n goes to worker n modulo workers, which keeps the order and gives each slot one owner.

Pillow's draft mode, which decodes JPEGs at a reduced size, is not used because it changes pixels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts import scratch_folder
from optimizer.data.preprocessing import Preprocessing
from optimizer.data.tar_members import ImagePlace
from optimizer.errors import DataError, EnvironmentFault
from optimizer.processes import Child, hardware_threads

__all__ = ["Decoded", "Operation", "decode_ahead", "workers_for"]

_MAX_WORKERS = 16
_IMAGES_PER_WORKER = 64
_SLOTS_BYTES = 256 * 2**20
# A pipe buffers 64 kB: with less than that pending, writing a request never blocks.
_REQUEST_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image, or the error.

    Attributes:
        pixels: H x W x channels uint8; ``None`` if the image cannot be read or was only checked.
        error: Why the image cannot be read, or ``None``.
        cpu_s: CPU seconds of decoding, resizing and cropping.
    """

    pixels: NDArray[np.uint8] | None
    error: DataError | None
    cpu_s: float


def workers_for(requested: int | None, images: int) -> int:
    """Number of worker processes to decode with.

    Args:
        requested: Number requested by the user, or ``None``; 0 decodes in this process.
        images: Number of images to read.

    Returns:
        By default one per core available to this process (divided among the local processes under
        torchrun); 0 if there are too few images to be worth starting a process.
    """
    if requested is not None:
        return min(requested, images)
    share = max(1, hardware_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(share, _MAX_WORKERS, images // _IMAGES_PER_WORKER)


@dataclass(frozen=True)
class Operation:
    """A random change of images that workers make instead of the preprocessing's resize and crop.

    Attributes:
        function: ``module:function`` of this package. Called with the preprocessing and ``settings``,
            it returns a function of a Pillow image and a number, which returns size x size x channels uint8.
        settings: JSON values.
    """

    function: str
    settings: dict[str, Any]


def decode_ahead(
    files: Iterable[ImagePlace | tuple[ImagePlace, int]],
    preprocessing: Preprocessing | None,
    *,
    workers: int,
    ahead: int,
    operation: Operation | None = None,
) -> Generator[Decoded, None, None]:
    """Decode files in worker processes; closing the iterator stops them.

    Args:
        files: Image files, or members of archives; for an operation, each with a number that
            decides its change.
        preprocessing: Preprocessing to apply; ``None`` only decodes and yields no pixels.
        workers: Number of processes, at least 1.
        ahead: Images to decode ahead of the reader, within 256 MiB.
        operation: Replaces the resize and crop of ``preprocessing``.

    Yields:
        One result per file, in order.

    Raises:
        EnvironmentFault: A worker died (the message names the image it was reading) or cannot be
            started, or there is no disk space for the pixels.
    """
    size = 1 if preprocessing is None else preprocessing.channels * preprocessing.image_size**2
    rounds = max(1, min(-(-ahead // workers), _SLOTS_BYTES // (size * workers)))
    with contextlib.ExitStack() as stack:
        slots = _shared_slots(rounds * workers, preprocessing, stack)
        pool = [
            _Worker(rank, workers, slots, (preprocessing, operation), stack)
            for rank in range(workers)
        ]
        queue = enumerate(files)
        done, upcoming = 0, next(queue, None)
        while True:
            while upcoming is not None and upcoming[0] < done + len(slots):
                if not pool[upcoming[0] % workers].submit(upcoming[1]):
                    break
                upcoming = next(queue, None)
            worker = pool[done % workers]
            if not worker.busy:
                return
            cpu_s, message, hint = worker.response()
            error = None if message is None else DataError(message, hint=hint)
            has_pixels = error is None and preprocessing is not None
            yield Decoded(np.array(slots[done % len(slots)]) if has_pixels else None, error, cpu_s)
            done += 1
            if done == workers:
                _unlink(slots)


def _shared_slots(
    count: int, preprocessing: Preprocessing | None, stack: contextlib.ExitStack
) -> NDArray[np.uint8]:
    """Memory for ``count`` images that other processes can map while ``stack`` is open."""
    if preprocessing is None:
        return np.empty((count, 0), dtype=np.uint8)
    folder = stack.enter_context(
        # It ignores errors: Windows cannot delete files that are still mapped.
        scratch_folder("pixels")
    )
    side, channels = preprocessing.image_size, preprocessing.channels
    path = folder / "pixels"
    try:
        # Writing (not just truncating) makes a full disk an error here instead of a SIGBUS later.
        with path.open("wb") as file:
            for _ in range(count):
                file.write(bytes(channels * side * side))
    except OSError as error:
        raise EnvironmentFault(
            f"no space for the pixels of {count} images in {tempfile.gettempdir()}: {error.strerror}",
            hint="set TMPDIR to a folder with free space, or use --workers 0",
        ) from error
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(count, side, side, channels))


def _unlink(slots: NDArray[np.uint8]) -> None:
    """Delete the file once all processes have mapped it, so that a killed process leaves none."""
    if isinstance(slots, np.memmap) and os.name == "posix":
        shutil.rmtree(Path(str(slots.filename)).parent, ignore_errors=True)


class _Worker:
    """One child process; stopped when ``stack`` closes."""

    def __init__(
        self,
        rank: int,
        workers: int,
        slots: NDArray[np.uint8],
        work: tuple[Preprocessing | None, Operation | None],
        stack: contextlib.ExitStack,
    ) -> None:
        from PIL import Image, ImageFile

        preprocessing, operation = work
        settings = {
            "memory": str(slots.filename) if isinstance(slots, np.memmap) else None,
            "shape": slots.shape,
            "first": rank,
            "step": workers,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
            "operation": None if operation is None else [operation.function, operation.settings],
            "max_pixels": Image.MAX_IMAGE_PIXELS,
            "load_truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        }
        try:
            self._child = Child("optimizer.data.decode_worker:serve", [settings], threads=1)
        except EnvironmentFault as error:
            reason = error.message.removeprefix("cannot start a process: ")
            raise EnvironmentFault(
                f"cannot start a process that decodes images: {reason}", hint="use --workers 0"
            ) from error
        stack.callback(self._child.end)
        self._waiting: deque[tuple[ImagePlace, int]] = deque()
        self._waiting_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether requests are pending; an idle worker accepts any request."""
        return bool(self._waiting)

    def submit(self, wanted: ImagePlace | tuple[ImagePlace, int]) -> bool:
        """Request one more image; returns ``False`` if too many requests are pending."""
        file, number = wanted if isinstance(wanted, tuple) else (wanted, 0)
        place = [str(file)] if isinstance(file, Path) else astuple(file)
        request = json.dumps([place, number]).encode() + b"\n"
        if self._waiting and self._waiting_bytes + len(request) > _REQUEST_BYTES:
            return False
        with contextlib.suppress(OSError):  # the worker died: `response` reports how
            self._child.requests.write(request)
        self._waiting.append((file, len(request)))
        self._waiting_bytes += len(request)
        return True

    def response(self) -> list[Any]:
        """The response to the oldest request."""
        file, size = self._waiting.popleft()
        self._waiting_bytes -= size
        line = self._child.answers.readline()
        if not line.endswith(b"\n"):
            raise self._death_error(file)
        response: list[Any] = json.loads(line)
        return response

    def _death_error(self, file: ImagePlace) -> EnvironmentFault:
        failure = self._child.failure()
        hint = (
            "use fewer --workers, or --workers 0"
            if failure.reason == "killed"
            else "use --workers 0; if that fails too, the image crashes its decoder: remove it"
        )
        return EnvironmentFault(
            f"an image decoding worker {failure.message} before it had read {file}", hint=hint
        )
