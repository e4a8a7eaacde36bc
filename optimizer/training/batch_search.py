"""The largest batch that fits the memory, and the accumulation that keeps the number of images per step.

On a GPU steps are tried until one runs out of memory. On a CPU nothing is tried to the limit, because
the system would end the process or swap: two small steps in a process of their own give the memory per
image, and the rest is arithmetic. The activations of a step, which are nearly all of it, are
proportional to the batch.

Not handled: memory that other programs take later, and fragmentation of a GPU's memory over many
steps; a tenth is left free for that.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.errors import EnvironmentFault, UsageError
from optimizer.options import TrainOptions
from optimizer.processes import available_memory, call, memory_bytes
from optimizer.progress import Silent
from optimizer.training.distribution import World
from optimizer.training.loop import Fit, Work
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_state import StateFile

if TYPE_CHECKING:
    import torch

    from optimizer.training.training_job import TrainingJob

__all__ = ["largest_that_fits", "sized", "step_memory"]

_SHARE = 0.9
"""Of the memory that is free; the rest is for fragmentation, evaluation and decoded images."""
_PROBES = (4, 12)
"""Batches whose memory is measured on a CPU."""
_SMALLEST = 2


def sized(job: TrainingJob, world: World, device: torch.device, folder: Path | None) -> TrainingJob:
    """The job with the batch and accumulation that its options ask for; equal in all processes.

    Args:
        job: A job whose ``find_batch_size`` and ``effective_batch`` are looked at.
        world: The processes.
        device: The device to train on.
        folder: The folder of the checkpoints: a continued training keeps the batch it began with.

    Raises:
        UsageError: The images per step cannot be divided so.
        EnvironmentFault: Not even a batch of two fits.
    """
    settings = job.settings
    if not settings.find_batch_size and settings.effective_batch is None:
        return job
    keeps = settings.resume and not settings.elastic and folder is not None
    if keeps and folder is not None and (before := _batch_before(folder)) is not None:
        return _with_batch(job, *before, None)
    assert settings.batch_size is not None
    batch, note = settings.batch_size, None
    if settings.find_batch_size:
        batch, note = _find(job, world, device)
    if settings.effective_batch is None:
        return _with_batch(job, batch, settings.accumulate or 1, note)
    parts, rest = divmod(settings.effective_batch, world.size)
    batch = max((n for n in range(1, min(batch, parts) + 1) if parts % n == 0), default=0)
    if rest or batch < _SMALLEST:
        raise UsageError(
            f"{settings.effective_batch} images per step cannot be divided among {world.size} "
            f"process{'es' if world.size > 1 else ''} in equal batches that fit",
            hint=f"--effective-batch {_rounded(settings.effective_batch, world.size)}",
        )
    return _with_batch(job, batch, parts // batch, note)


def _rounded(images: int, processes: int) -> int:
    """A number of images near this one that divides into many batches."""
    step = 8 * processes
    return max(1, round(images / step)) * step


def _batch_before(folder: Path) -> tuple[int, int] | None:
    file = StateFile(folder)
    if not file.exists:
        return None
    identity = file.load()["identity"]
    return identity["batch_size"], identity["accumulate"]


def _with_batch(job: TrainingJob, batch: int, accumulate: int, note: str | None) -> TrainingJob:
    settings = TrainOptions.of(job.settings, {"batch_size": batch, "accumulate": accumulate})
    text = f"batches of {batch} images" + (f", {accumulate} per step" if accumulate > 1 else "")
    notes = (*job.notes, text if note is None else f"{text}: {note}")
    return replace(job, settings=settings, notes=notes)


def _find(job: TrainingJob, world: World, device: torch.device) -> tuple[int, str]:
    """The largest batch that fits in every process, and what limits it."""
    parts = world.size * (1 if job.settings.effective_batch else job.settings.accumulate or 1)
    most = len(job.data) // parts
    found = _on_gpu(job, device, most) if device.type == "cuda" else _on_cpu(job, most)
    batch = min(world.gather(found))
    if batch < _SMALLEST:
        raise EnvironmentFault(
            f"not even {_SMALLEST} images of {job.settings.image_size} pixels fit the memory",
            hint="use a smaller --image-size or --arch",
        )
    reason = "all images" if batch == most else f"the largest that fits {_memory(device)}"
    return batch, reason


def _memory(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.mem_get_info(device)[1] / 2**30:.1f} GiB of GPU memory"
    return f"{available_memory() / 2**30:.1f} GiB of free memory"


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, to about a sixteenth; 0 if not even 2 does.

    Args:
        fits: Whether a batch fits; what is larger than one that does not fit does not either.
        most: The largest number to try.
    """
    good, bad, tried = 0, most + 1, _SMALLEST
    while tried < bad and fits(tried):
        good, tried = tried, min(2 * tried, most) if tried < most else most + 1
    if good == 0:
        return 0
    bad = min(bad, tried)
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _on_gpu(job: TrainingJob, device: torch.device, most: int) -> int:
    import torch

    free = torch.cuda.mem_get_info(device)[0]

    def fits(batch: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _one_step(job, batch, device)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(device) <= _SHARE * free

    return largest_that_fits(fits, most)


def _on_cpu(job: TrainingJob, most: int) -> int:
    small, large = _PROBES
    plain = replace(job, held_out=None)
    peaks = call("optimizer.training.batch_search:step_memory", [plain, _PROBES])
    per_image = max(1.0, (peaks[1] - peaks[0]) / (large - small))
    fixed = max(0.0, peaks[0] - small * per_image)
    free = available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return largest_that_fits(lambda n: fixed + n * per_image <= _SHARE * free, most)


def step_memory(job: TrainingJob, batches: tuple[int, ...]) -> list[int]:
    """Peak memory of this process after a step of each size, bytes; called in a child.

    Args:
        job: What is trained.
        batches: Ascending, because the peak of a process never falls.
    """
    import torch

    peaks = []
    for batch in batches:
        _one_step(job, batch, torch.device("cpu"))
        peaks.append(memory_bytes()[0])
    return peaks


def _one_step(job: TrainingJob, batch: int, device: torch.device) -> None:
    """One step of a network that is thrown away, with real images (repeated if there are fewer)."""
    import torch

    data = job.data.select(np.resize(np.arange(len(job.data)), batch))
    changes = {"batch_size": batch, "accumulate": 1, "compile": False, "epochs": 2}
    settings = TrainOptions.of(job.settings, changes)
    job = replace(job, data=data, settings=settings)
    work = Work(settings=settings, world=World(), device=device, progress=Silent())
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        module = job.subject.module(job)
        module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        reading = job.subject.reading(job)
        images = TrainingImages(data, job.preprocessing, settings, World(), reading)
        fit = Fit(module, job.subject.task(job), images, work)
        with contextlib.closing(images.stream(0, 1)) as stream:
            fit.run_step(next(stream))
