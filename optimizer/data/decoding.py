"""Decoding in worker processes, ahead of the reader and in its order.

Plain child processes and pipes, because of what the usual ways cost here: `multiprocessing` (and
torch's DataLoader) either forks, which is not safe once torch, ONNX Runtime or OpenVINO have started
threads, or spawns, which runs the user's script a second time unless it is guarded. A child of
`optimizer.processes` needs neither, and its death shows as the end of a pipe.

Pixels cross as uint8 (a quarter of float32) through a file that all processes map into memory, and
names and answers through the pipes; nothing is pickled. Not ``/dev/shm``, which is 64 MB in most
containers. Image n goes to worker n modulo workers: the order is kept and each place has one owner.

Pillow's draft mode, which decodes JPEGs at a fraction of their size, is not used: it changes pixels.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data.preprocessing import Preprocessing
from optimizer.errors import DataError, EnvironmentFault
from optimizer.processes import Child

__all__ = ["Decoded", "decode_ahead", "workers_for"]

_MAX_WORKERS = 16
_IMAGES_A_WORKER = 64
_PLACES_BYTES = 256 * 2**20
# A pipe holds 64 kB: with less than that on the way, asking never waits for the worker.
_REQUEST_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Decoded:
    """One image, or why there is none.

    Attributes:
        pixels: H x W x 3 uint8; ``None`` if the image cannot be read or was only checked.
        error: What is wrong with it.
        cpu_s: CPU seconds that decoding, resizing and cropping took.
    """

    pixels: NDArray[np.uint8] | None
    error: DataError | None
    cpu_s: float


def workers_for(asked: int | None, images: int) -> int:
    """Processes to decode with.

    Args:
        asked: By the user; 0 decodes in this process.
        images: How many there are to read.

    Returns:
        By default one for each core that this process may use (shared with the other processes
        of this machine under torchrun), none where too few images wait to be worth the start.
    """
    if asked is not None:
        return min(asked, images)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(share, _MAX_WORKERS, images // _IMAGES_A_WORKER)


def decode_ahead(
    files: Iterable[Path], preprocessing: Preprocessing | None, *, workers: int, ahead: int
) -> Generator[Decoded, None, None]:
    """Decode files in worker processes; closing the iterator ends them.

    Args:
        files: Image files.
        preprocessing: What they go through; ``None`` decodes and gives no pixels.
        workers: Processes, at least 1.
        ahead: Images to have ready or in work while the reader is busy; no more than 256 MiB.

    Yields:
        One result a file, in order.

    Raises:
        EnvironmentFault: A worker died (the message names the image that it was about to read), or
            there is no room for the pixels or no process to be had.
    """
    size = 1 if preprocessing is None else 3 * preprocessing.image_size**2
    rounds = max(1, min(-(-ahead // workers), _PLACES_BYTES // (size * workers)))
    with contextlib.ExitStack() as stack:
        places = _shared(rounds * workers, preprocessing, stack)
        team = [_Worker(rank, workers, places, preprocessing, stack) for rank in range(workers)]
        queue = enumerate(files)
        done, following = 0, next(queue, None)
        while True:
            while following is not None and following[0] < done + len(places):
                if not team[following[0] % workers].ask(following[1]):
                    break
                following = next(queue, None)
            worker = team[done % workers]
            if not worker.busy:
                return
            cpu_s, message, hint = worker.answer()
            error = None if message is None else DataError(message, hint=hint)
            wanted = error is None and preprocessing is not None
            yield Decoded(np.array(places[done % len(places)]) if wanted else None, error, cpu_s)
            done += 1
            if done == workers:
                _nameless(places)


def _shared(
    count: int, preprocessing: Preprocessing | None, stack: contextlib.ExitStack
) -> NDArray[np.uint8]:
    """Memory for ``count`` images that other processes can map; as long as ``stack`` is open."""
    if preprocessing is None:
        return np.empty((count, 0), dtype=np.uint8)
    folder = stack.enter_context(
        # Windows keeps files that are still mapped; they are of no use to anybody.
        tempfile.TemporaryDirectory(prefix="resnet-opt-", ignore_cleanup_errors=True)
    )
    side = preprocessing.image_size
    path = Path(folder) / "pixels"
    try:
        # Written and not only sized: a full disk is an error here and no SIGBUS later.
        with path.open("wb") as file:
            for _ in range(count):
                file.write(bytes(3 * side * side))
    except OSError as error:
        raise EnvironmentFault(
            f"no room for the pixels of {count} images in {tempfile.gettempdir()}: {error.strerror}",
            hint="set TMPDIR to a folder with room, or --workers 0",
        ) from error
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(count, side, side, 3))


def _nameless(places: NDArray[np.uint8]) -> None:
    """Take its name from the memory that everybody has mapped: a killed process leaves no file."""
    if isinstance(places, np.memmap) and os.name == "posix":
        shutil.rmtree(Path(str(places.filename)).parent, ignore_errors=True)


class _Worker:
    """One child process; ended when ``stack`` closes."""

    def __init__(
        self,
        rank: int,
        workers: int,
        places: NDArray[np.uint8],
        preprocessing: Preprocessing | None,
        stack: contextlib.ExitStack,
    ) -> None:
        from PIL import Image, ImageFile

        settings = {
            "memory": str(places.filename) if isinstance(places, np.memmap) else None,
            "shape": places.shape,
            "first": rank,
            "step": workers,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
            "max_pixels": Image.MAX_IMAGE_PIXELS,
            "load_truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        }
        try:
            self._child = Child("optimizer.data.decode_worker:serve", [settings], threads=1)
        except EnvironmentFault as error:
            why = error.message.removeprefix("cannot start a process: ")
            raise EnvironmentFault(
                f"cannot start a process that decodes images: {why}", hint="--workers 0"
            ) from error
        stack.callback(self._child.end)  # it keeps nothing that could be lost
        self._waiting: deque[tuple[Path, int]] = deque()
        self._waiting_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether it has requests to answer; with none it refuses no request."""
        return bool(self._waiting)

    def ask(self, file: Path) -> bool:
        """Ask for one more image; refuses while too many requests wait for the worker."""
        request = json.dumps(str(file)).encode() + b"\n"
        if self._waiting and self._waiting_bytes + len(request) > _REQUEST_BYTES:
            return False
        with contextlib.suppress(OSError):  # it died: `answer` says how
            self._child.requests.write(request)
        self._waiting.append((file, len(request)))
        self._waiting_bytes += len(request)
        return True

    def answer(self) -> list[Any]:
        """The answer to the oldest request."""
        file, size = self._waiting.popleft()
        self._waiting_bytes -= size
        line = self._child.answers.readline()
        if not line.endswith(b"\n"):
            raise self._obituary(file)
        found: list[Any] = json.loads(line)
        return found

    def _obituary(self, file: Path) -> EnvironmentFault:
        failure = self._child.failure()
        hint = (
            "use fewer --workers, or --workers 0"
            if failure.reason == "killed"
            else "--workers 0 reads the images in this process; or that image ends its decoder"
        )
        return EnvironmentFault(
            f"a worker that decodes images {failure.message} before it had read {file}", hint=hint
        )
