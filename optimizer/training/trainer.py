"""Trains or fine-tunes a ResNet, or a detector on one, into a model or a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, Manifest, produce
from optimizer.data import ImageDataset
from optimizer.models import Model, weights_digest, write_weights
from optimizer.options import TrainOptions
from optimizer.progress import Progress, Silent
from optimizer.targets.hardware import cpu_features
from optimizer.training.batch_search import sized
from optimizer.training.devices import device_of
from optimizer.training.distribution import World, joined
from optimizer.training.loop import Fit, Work
from optimizer.training.pruning import Pruning
from optimizer.training.tracking import Tracker, open_trackers
from optimizer.training.training_images import TrainingImages
from optimizer.training.training_job import TrainingJob, prepare
from optimizer.training.training_state import StateFile, changed_settings, claim_folder

if TYPE_CHECKING:
    import torch

__all__ = [
    "TrainingResult",
    "compute_threads",
    "continue_fit",
    "train",
    "train_checkpoint",
    "train_job",
    "training_folder",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        model: The network, with the preprocessing it was trained with.
        metrics: Metrics on the held-out images by name, fractions; ``None`` without such images.
        held_out: Name of the held-out images, or ``None``.
        n_held_out: Number of held-out images.
        losses: Mean training loss of each epoch.
        history: One row per epoch; see `Fit.rows`.
        best: Best value of the first metric and its epoch, or ``None``.
        notes: What the user should know.
    """

    model: Model
    metrics: Mapping[str, float | None]
    held_out: str | None
    n_held_out: int
    losses: tuple[float, ...]
    history: tuple[Mapping[str, float], ...] = ()
    best: tuple[float, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def top1(self) -> float | None:
        """Accuracy of a classifier on the held-out images, a fraction."""
        return self.metrics.get("top1")

    def details(self) -> dict[str, Any]:
        """Details for the checkpoint's manifest."""
        return {
            **self.metrics,
            "held_out": self.held_out,
            "n_held_out": self.n_held_out,
            "losses": list(self.losses),
            "history": [dict(row) for row in self.history],
            "best": None
            if self.best is None
            else {next(iter(self.metrics)): self.best[0], "epoch": self.best[1]},
            "notes": list(self.notes),
        }


def train(
    images: ImageDataset,
    options: TrainOptions,
    *,
    held_out: ImageDataset | None = None,
    init: Model | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a network.

    Equal arguments give equal weights on the same machine with the same number of threads. The
    caller's random state is unchanged.

    Args:
        images: The training images.
        options: Architecture, hyperparameters, device.
        held_out: Images to measure the accuracy on.
        init: A model to fine-tune; its last layer is replaced if the classes differ.
        progress: Receives progress updates, one per step.

    Raises:
        UsageError: An option is out of range, or the loss became NaN or infinite.
        DataError: Images cannot be used, or there are too few.
        MissingDevice: There is no such device.
    """
    device = device_of(options)
    job = prepare(options, images, held_out, init)
    with joined(device) as world:
        job = sized(job, world, device, None)
        return _train(job, world, device, None, progress or Silent())


def train_checkpoint(
    options: TrainOptions,
    data: ImageDataset,
    path: Path,
    *,
    held_out: ImageDataset | None = None,
    init: Model | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Train a network into a checkpoint, unless the result already exists or is cached.

    An interrupted training leaves no partial result, but a checkpoint in `training_folder`, from
    which the same call continues with ``resume``. All processes of a distributed training call
    this; the first one writes. See `train` for the arguments and errors.
    """
    device_of(options)  # before the images are read
    job = prepare(options, data, held_out, init)
    return train_job(job, path, cache=cache, progress=progress)


def train_job(
    job: TrainingJob, path: Path, *, cache: Cache | None = None, progress: Progress | None = None
) -> Artifact:
    """Train a prepared job into a checkpoint; see `train_checkpoint`."""
    device = device_of(job.settings)
    with joined(device) as world:
        job = sized(job, world, device, training_folder(path))
        if not world.first:
            return _follow(job, path, world, device)
        asked = False

        def write(temporary: Path) -> Mapping[str, Any]:
            nonlocal asked
            asked = True
            world.from_first(True)
            folder = training_folder(path)
            trained = _train(job, world, device, folder, progress or Silent())
            _write_weights(trained.model, temporary)
            _tidy(StateFile(folder), trained)
            return trained.details()

        plan = job.plan
        if path.suffix != ".safetensors":  # the cache must not give one file for the other
            plan = replace(plan, settings={**plan.settings, "format": "state dict"})
        artifact = produce(plan, path, write, cache=cache)
        if not asked:
            world.from_first(False)
        world.from_first(artifact.manifest.model_dump(mode="json"))
        return artifact


def _tidy(file: StateFile, trained: TrainingResult) -> None:
    """Remove the checkpoints, and the best weights if they are the result."""
    file.remove()
    if trained.best is not None and trained.best[1] == len(trained.history):
        file.best.unlink(missing_ok=True)


def _follow(job: TrainingJob, path: Path, world: World, device: torch.device) -> Artifact:
    """What the processes after the first do: they train if it does, and get its manifest."""
    if world.from_first(None):
        _train(job, world, device, training_folder(path), Silent())
    return Artifact(path, Manifest.model_validate(world.from_first(None)))


def training_folder(path: Path) -> Path:
    """The folder of the history and, until the training is finished, its checkpoints."""
    return path.with_name(f"{path.stem}.training")


def _train(
    job: TrainingJob, world: World, device: torch.device, folder: Path | None, progress: Progress
) -> TrainingResult:
    import torch

    trackers: list[Tracker] = []
    if folder is not None and world.first:
        if job.settings.track:
            claim_folder(folder)
        trackers = open_trackers(
            job.settings.track, folder, job.plan.settings, resume=job.settings.resume
        )
    work = Work(
        settings=job.settings,
        world=world,
        device=device,
        progress=progress,
        label=f"training {job.settings.arch} on {job.data.name}",
        folder=folder,
        identity={**job.identity, "processes": world.size},
        name_of=job.data.image_id,
        listeners=[tracker.row for tracker in trackers],
    )
    # The sums depend on the number of threads, so it must not depend on what ran in this process.
    torch.set_num_threads(compute_threads())
    with contextlib.ExitStack() as stack:
        for tracker in trackers:
            stack.push(partial(_close, tracker))
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(job.settings.seed)
        fit, added = _new_fit(job, work)
        notes = [*job.notes, *added, *continue_fit(fit, work)]
        fit.run()
    result = _result(job, fit, notes)
    score = result.metrics[fit.task.better]
    progress.finish(None if score is None else f"{fit.task.label} {score:.2%}")
    return result


def _close(tracker: Tracker, kind: type[BaseException] | None, *_: object) -> None:
    tracker.close(finished=kind is None)


def compute_threads() -> int:
    """Compute threads: what the user set for all libraries, else all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cpu_features().physical_cores


def _new_fit(job: TrainingJob, work: Work) -> tuple[Fit, list[str]]:
    """A training at its beginning, with the network on its device; and what the user should know."""
    import torch

    module, notes = job.subject.module(job), []
    if job.settings.sparsity is not None:
        pruning = Pruning(module)
        pruning.apply(module)
        work = replace(work, after_step=pruning.apply)
        notes.append(pruning.note())
    if job.settings.sync_batchnorm and work.world.size > 1:
        module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    module = module.to(work.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    reading = job.subject.reading(job)
    batches = TrainingImages(job.data, job.preprocessing, job.settings, work.world, reading)
    return Fit(module, job.subject.task(job), batches, work), notes


def _result(job: TrainingJob, fit: Fit, notes: list[str]) -> TrainingResult:
    import torch

    data, arch = job.data, job.settings.arch
    assert arch is not None
    chosen = fit.rows[-1]
    if fit.file is not None:
        earlier = fit.best is not None and fit.best[1] < len(fit.rows)
        if earlier and job.keeps_best and fit.best is not None:
            best = torch.load(
                fit.file.best, map_location=next(fit.result.parameters()).device, weights_only=True
            )
            fit.result.load_state_dict(best)
            chosen = fit.rows[fit.best[1] - 1]
            notes = [*notes, f"epoch {fit.best[1]} of {len(fit.rows)} is the best, and kept"]
        elif earlier and fit.best is not None:
            score, epoch = fit.best
            better = f"{fit.task.label} {score:.2%}"
            notes = [*notes, f"epoch {epoch} was better, {better}: {fit.file.best}"]
        notes = [*notes, *fit.file.notes]
    module = job.subject.finished(fit.result).eval()
    module = module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return TrainingResult(
        model=Model(
            module=module,
            arch=arch,
            classes=data.classes if job.teacher is None else job.teacher.classes,
            num_classes=job.num_classes,
            preprocessing=job.preprocessing,
            source=f"trained on {data.name}",
            sha256=weights_digest(module.state_dict()),
            preprocessing_assumed=data.preprocessed,
        ),
        metrics={name: chosen.get(name) for name in fit.task.metrics},
        held_out=None if job.held_out is None else job.held_out.name,
        n_held_out=0 if job.held_out is None else len(job.held_out),
        losses=tuple(row["loss"] for row in fit.rows),
        history=tuple(fit.rows),
        best=fit.best,
        notes=tuple(notes),
    )


def continue_fit(fit: Fit, work: Work) -> list[str]:
    """Restore the last checkpoint if requested; returns what the user should know."""
    if fit.file is None:
        return []
    if work.world.first:
        fit.file.clean()
    if not work.settings.resume:
        if fit.file.exists:
            _log.warning("%s holds an unfinished training, which is replaced", fit.file.folder)
        return []
    state = fit.file.load()
    changes = changed_settings(state["identity"], work.identity, elastic=work.settings.elastic)
    fit.restore(state)
    return [f"continued at step {fit.step}", *(f"continued with {change}" for change in changes)]


def _write_weights(model: Model, path: Path) -> None:
    """Write ``.safetensors``, or a plain state dict that torchvision loads (``.pth``, ``.pt``)."""
    import torch

    if path.suffix == ".safetensors":
        write_weights(model, path)
        return
    # Through a stream, because torch.save stores the file's (temporary) name in the archive.
    with path.open("wb") as stream:
        torch.save(model.module.state_dict(), stream)
