"""The training loop. It does not know what the network computes: a `Task` gives loss and metrics.

SGD with Nesterov momentum, zero-initialized residual branches and no weight decay on BatchNorm and
biases follow Goyal et al. 2017 and He et al. 2019 ("Bag of Tricks"). All that decides a step
(weights, optimizer, schedule, position) is in `Fit.state`, so a training that was interrupted after
any step continues as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.options import TrainOptions
from optimizer.progress import Progress
from optimizer.training.distribution import World
from optimizer.training.history import write_history
from optimizer.training.optimization import build_optimizer, build_schedule, peak_rate
from optimizer.training.stopping import Stopped, StopRequest, watch_signals
from optimizer.training.training_state import StateFile, claim_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Batches", "Fit", "Task", "Work"]

_RUNNING_SHARE = 0.05
"""Share of the newest step in the speed that is shown."""


class Task(Protocol):
    """What is trained, as the loop sees it."""

    better: str
    """The metric by which weights are better, larger is better."""
    label: str
    """That metric as users read it."""
    metrics: tuple[str, ...]
    """All metrics that `evaluate` returns."""

    def loss(self, module: nn.Module, batch: Any, device: torch.device) -> torch.Tensor:
        """Mean loss of a batch, a scalar that can be differentiated."""

    def evaluate(self, module: nn.Module, world: World) -> Mapping[str, float]:
        """Metrics on held-out images, equal in all processes; empty if there are none.

        The network is in evaluation mode. Each image counts once, whatever the number of processes.
        """

    def in_backbone(self, name: str) -> bool:
        """Whether a parameter belongs to the backbone, which may learn at another rate."""


class Batches(Protocol):
    """The batches of a training."""

    total: int
    steps_per_epoch: int

    def stream(self, first: int, end: int) -> Any:
        """A generator of the batches of steps ``first`` to ``end`` - 1: a list for each step.

        A batch has ``indices``, the positions of its images in the dataset.
        """


@dataclass(frozen=True, kw_only=True)
class Work:
    """What `Fit` works with, besides network, task and batches.

    Attributes:
        settings: Complete options (`optimizer.training.training_recipe.complete`).
        world: The processes.
        device: Where the network is.
        progress: Receives one update per step.
        label: Name of the training in the progress.
        folder: Folder of checkpoints and history; ``None`` keeps neither.
        identity: What must be equal for a checkpoint to be continued.
        name_of: Name of an image by its position, for errors.
        listeners: Called with each new row of the history, in the first process.
        after_step: Called with the network after each change of its weights.
    """

    settings: TrainOptions
    world: World
    device: torch.device
    progress: Progress
    label: str = "training"
    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    name_of: Callable[[int], str] = str
    listeners: Sequence[Callable[[Mapping[str, float]], None]] = ()
    after_step: Callable[[nn.Module], None] | None = None


class Fit:
    """One training: a network that learns a task from batches.

    Attributes:
        task: What is learned.
        step: Steps that are done.
        rows: One row per finished epoch: epoch, step, lr, loss, metrics, images/s, seconds.
        best: The best row's metric and the epoch it belongs to; ``None`` without held-out images.
    """

    def __init__(self, module: nn.Module, task: Task, batches: Batches, work: Work) -> None:
        import torch
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        settings, self._work = work.settings, work
        self._module, self.task, self._batches = module, task, batches
        rate = peak_rate(settings, batches.total)
        self._optimizer = build_optimizer(module, settings, rate, task.in_backbone)
        self._schedule = build_schedule(self._optimizer, settings, rate, batches.steps_per_epoch)
        self._scaler = torch.amp.GradScaler(work.device.type, enabled=settings.amp == "fp16")
        average = get_ema_multi_avg_fn(settings.ema or 0.0)  # type: ignore[no-untyped-call]
        self._ema = (
            AveragedModel(module, multi_avg_fn=average, use_buffers=True) if settings.ema else None
        )
        wrapped = work.world.wrap(module, work.device)
        self._forward: nn.Module = torch.compile(wrapped) if settings.compile else wrapped  # type: ignore[assignment]
        self.file = None if work.folder is None else StateFile(work.folder)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.best: tuple[float, int] | None = None
        self._losses: list[float] = []
        self._unchecked: tuple[int, torch.Tensor, list[NDArray[np.int64]]] | None = None

    @property
    def result(self) -> nn.Module:
        """The network that is the result: the averaged one if there is one."""
        return self._module if self._ema is None else self._ema.module

    # --- state ----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; plain values and tensors."""
        return {
            "identity": dict(self._work.identity),
            "step": self.step,
            "steps_per_epoch": self._batches.steps_per_epoch,
            "module": self._module.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "rows": self.rows,
            "losses": self._losses,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._module.load_state_dict(state["module"])
        if self._ema is not None and state["ema"] is not None:
            self._ema.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        before, now = state["steps_per_epoch"], self._batches.steps_per_epoch
        if before == now:
            self.step = state["step"]
            self._schedule.load_state_dict(dict(state["schedule"]))
        else:  # another batch or number of processes: the same share of the same epoch
            epoch, within = divmod(state["step"], before)
            self.step = epoch * now + within * now // before
            self._advance_schedule()
        self._scaler.load_state_dict(state["scaler"])
        self.rows, self._losses = list(state["rows"]), list(state["losses"])
        best = state["best"]
        self.best = None if best is None else (best[0], best[1])

    def _advance_schedule(self) -> None:
        """Build the schedule for the present steps per epoch, and bring it to the present step."""
        settings = self._work.settings
        rate = peak_rate(settings, self._batches.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["share"]
            for name in ("initial_lr", "max_lr", "min_lr"):
                group.pop(name, None)
        steps = self._batches.steps_per_epoch
        self._schedule = build_schedule(self._optimizer, settings, rate, steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of", UserWarning)
            for _ in range(self.step):
                self._schedule.step()

    def _save(self) -> None:
        self._check_loss()
        if self.file is not None and self._work.world.first:
            self.file.save(self.state())
        self._saved_at = time.monotonic()

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end, in place.

        Raises:
            UsageError: The loss became NaN or infinite.
            Stopped: SIGTERM asked to stop; a checkpoint was written.
            KeyboardInterrupt: Ctrl-C; a checkpoint was written.
            DataError: An image cannot be read.
        """
        settings, steps = self._work.settings, self._batches.steps_per_epoch
        assert settings.epochs is not None
        end = settings.epochs * steps
        self._work.progress.start(self._work.label, end)
        if self.step:
            self._work.progress.advance(self.step, note="continued")
        self._saved_at = self._epoch_at = time.monotonic()
        self._train_mode()
        stream = self._batches.stream(self.step, end)
        with contextlib.closing(stream), watch_signals() as request:
            for batches in stream:
                self.run_step(batches)
                if self.step % steps == 0:
                    self._end_epoch(self.step // steps)
                elif time.monotonic() - self._saved_at >= settings.checkpoint_every:
                    self._save()
                self._stop_if_asked(request, end)
        self._check_loss()

    def run_step(self, batches: Sequence[Any]) -> None:
        """Change the weights once, by the mean gradient of some batches.

        Raises:
            UsageError: The loss is not finite; of a GPU, the loss of the step before.
        """
        import torch

        work, started = self._work, time.perf_counter()
        # Mixup and dropout draw from torch's generator; so does nothing that lasts beyond the step.
        torch.manual_seed(_step_seed(work.settings.seed, self.step, work.world.rank))
        total = torch.zeros((), device=work.device)
        for number, batch in enumerate(batches, start=1):
            with work.world.others():
                with self._unsynchronized(number < len(batches)), self._precision():
                    loss = self.task.loss(self._forward, batch, work.device) / len(batches)
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._check_loss()  # of the step before
        self._unchecked = (self.step + 1, total, [batch.indices for batch in batches])
        if work.device.type == "cpu":  # a GPU would be idle while this one is waited for
            self._check_loss()
        self._clip()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if work.after_step is not None:
            work.after_step(self._module)
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        if self._ema is not None:
            self._ema.update_parameters(self._module)
        self.step += 1
        self._report(time.perf_counter() - started)

    def _clip(self) -> None:
        """Scale the gradient down to the largest norm, if there is one."""
        import torch

        if largest := self._work.settings.clip_grad:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), largest)

    @contextlib.contextmanager
    def _unsynchronized(self, more: bool) -> Iterator[None]:
        """Leave gradients in this process while more of them will be added."""
        if more and hasattr(self._forward, "no_sync"):
            with self._forward.no_sync():  # type: ignore[operator]
                yield
        else:
            yield

    def _precision(self) -> Any:
        import torch

        amp = self._work.settings.amp
        dtype = torch.float16 if amp == "fp16" else torch.bfloat16
        return torch.autocast(self._work.device.type, dtype=dtype, enabled=amp != "off")

    def _check_loss(self) -> None:
        """Read the loss of the last step, in all processes; stop if it is not finite."""
        if self._unchecked is None:
            return
        step, tensor, indices = self._unchecked
        self._unchecked = None
        world, settings = self._work.world, self._work.settings
        loss = world.sum([float(tensor)])[0] / world.size
        if math.isfinite(loss):
            self._losses.append(loss)
            return
        epoch = (step - 1) // self._batches.steps_per_epoch + 1
        rate = self._optimizer.param_groups[0]["lr"]
        names = ", ".join(self._work.name_of(int(i)) for i in np.concatenate(indices)[:3])
        kept = self.file is not None and self.file.exists
        checkpoint = f"; last good checkpoint: {self.file.path}" if kept and self.file else ""
        raise UsageError(
            f"training diverged: the loss became {loss} in epoch {epoch}, step {step}, at "
            f"learning rate {rate:.3g}, on {names}, …{checkpoint}",
            hint=f"lower the learning rate: --lr {(settings.lr or rate) / 10:g}",
        )

    def _report(self, seconds: float) -> None:
        images = self._batches.total / seconds
        before = getattr(self, "_speed", images)
        self._speed = before + _RUNNING_SHARE * (images - before)
        epoch = (self.step - 1) // self._batches.steps_per_epoch + 1
        loss = f"loss {self._losses[-1]:.3f}, " if self._losses else ""
        scores = [row[self.task.better] for row in self.rows if self.task.better in row]
        accuracy = f"{self.task.label} {scores[-1]:.2%}, " if scores else ""
        self._work.progress.advance(
            note=f"epoch {epoch}/{self._work.settings.epochs}, {loss}{accuracy}"
            f"{self._speed:.0f} images/s"
        )

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, add a row to the history, and write the checkpoint."""
        self._check_loss()
        rate = float(self._optimizer.param_groups[0]["lr"])
        seconds = time.monotonic() - self._epoch_at
        metrics = self._evaluate(epoch)
        images = self._batches.total * len(self._losses)
        self.rows.append(
            {
                "epoch": epoch,
                "step": self.step,
                "lr": rate,
                "loss": float(np.mean(self._losses)),
                **metrics,
                "images_per_s": images / max(seconds, 1e-9),
                "seconds": seconds,
            }
        )
        self._losses = []
        self._keep_best(epoch, metrics.get(self.task.better))
        if self._work.folder is not None and self._work.world.first:
            self._tell()
        if epoch < (self._work.settings.epochs or 0):
            self._save()
        self._epoch_at = time.monotonic()

    def _tell(self) -> None:
        """Write the history and tell the trackers; a full disk does not end the training."""
        assert self._work.folder is not None
        assert self.file is not None
        try:
            claim_folder(self._work.folder)
            write_history(self._work.folder / "history.csv", self.rows)
        except OSError as error:
            self.file.note_failure("the history", error)
        for listener in self._work.listeners:
            try:
                listener(self.rows[-1])
            except OSError as error:
                self.file.note_failure("what --track reports", error)

    def _evaluate(self, epoch: int) -> Mapping[str, float]:
        settings = self._work.settings
        if epoch % (settings.val_every or 1) and epoch != settings.epochs:
            return {}
        self.result.eval()
        metrics = self.task.evaluate(self.result, self._work.world)
        self._train_mode()
        return metrics

    def _keep_best(self, epoch: int, score: float | None) -> None:
        if score is None or (self.best is not None and score <= self.best[0]):
            return
        self.best = (score, epoch)
        if self.file is not None and self._work.world.first:
            self.file.save_best(self.result.state_dict())

    def _train_mode(self) -> None:
        """Training mode; layers that are frozen keep their BatchNorm statistics too."""
        self._module.train()
        for part in self._module.modules():
            own = list(part.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                part.eval()

    def _stop_if_asked(self, request: StopRequest, end: int) -> None:
        asked = self._work.world.sum([float(request.signal is not None)])[0]
        if not asked or self.step >= end:
            return
        self._save()
        where = "" if self.file is None else f"; {self.file.path} continues it"
        if request.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(f"the training was asked to stop at step {self.step} of {end}{where}")


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
