"""The main job of pruning: rounds of saliency, choice, cut and tuning.

Each step's result is an artifact in ``<output stem>.pruning/`` and in the cache, so the same command
continues where it was interrupted. Three sets of images are disjoint: those that are learned, a tenth
of ``--data`` that chooses the epoch, and those that judge.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    content_key,
    library_versions,
    manifest_path,
    produce,
)
from optimizer.data import ImageDataset, stratified_subset
from optimizer.models import Model, Widths, load_checkpoint, write_weights
from optimizer.options import PruneOptions, TableOptions
from optimizer.progress import Progress
from optimizer.pruning.cutting import cut, estimate_statistics
from optimizer.pruning.latency_model import network_ms
from optimizer.pruning.prunable import check_prunable
from optimizer.pruning.saliency import measure_saliency
from optimizer.pruning.table_roofline import operations_table
from optimizer.pruning.tuning import tune, tuning_images
from optimizer.pruning.width_choice import Choice, Limits, choose_widths
from optimizer.results import LatencyTable, PrunedLatency, PruneResult, PruneRound
from optimizer.training import top1, training_folder
from optimizer.training.training_state import remove_training

__all__ = ["PruneJob", "pruning_folder", "step_files"]

REVISION = 1
"""Raised when the same inputs give another network."""
_STATISTICS_IMAGES = 512


def pruning_folder(output: Path) -> Path:
    """The folder of the steps until the pruning is finished."""
    return output.with_name(f"{output.stem}.pruning")


def step_files(output: Path, rounds: int) -> list[Path]:
    """The checkpoints of the steps: after the cut and after the tuning of each round."""
    folder, numbers = pruning_folder(output), range(1, rounds + 1)
    names = [f"{step}{number}.safetensors" for number in numbers for step in ("cut", "tuned")]
    return [folder / name for name in names]


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """Everything that a pruning depends on.

    Attributes:
        model: The network.
        data: Training images, matched to its outputs.
        table: The latency table.
        options: What is wanted.
        cache: Artifact cache.
        progress: Receives progress updates.
        notes: What the user should know.
    """

    model: Model
    data: ImageDataset
    table: LatencyTable
    options: PruneOptions
    cache: Cache | None
    progress: Progress
    notes: tuple[str, ...] = ()

    def run(self, output: Path) -> Artifact:
        """Prune into a checkpoint, whose details hold the `PruneResult`.

        Raises:
            UsageError: The wanted latency cannot be reached; the floor is named.
            DataError: Images cannot be used.
            Stopped: SIGTERM asked to stop; the same call continues.
        """

        def write(path: Path) -> Mapping[str, Any]:
            narrow, rounds = self._rounds(step_files(output, self.options.rounds))
            write_weights(narrow, path)
            digest = {"weights_sha256": narrow.sha256}
            return {**digest, "prune": self._result(narrow, rounds).model_dump(mode="json")}

        artifact = produce(self._plan(), output, write, cache=self.cache)
        for path in step_files(output, self.options.rounds):
            path.unlink(missing_ok=True)
            manifest_path(path).unlink(missing_ok=True)
            remove_training(training_folder(path))
        with contextlib.suppress(OSError):  # something else is in it, or it is not there
            pruning_folder(output).rmdir()
        return artifact

    def _plan(self) -> Plan:
        model = self.model
        table = self.table.model_dump(mode="json", exclude={"created"})
        wanted = self.options.model_dump(mode="json", exclude=_NO_RESULT)
        return Plan(
            kind="checkpoint",
            settings={
                "arch": model.arch,
                "num_classes": model.num_classes,
                "preprocessing_assumed": model.preprocessing_assumed,
                "prune": wanted,
                "pruned_from": model.sha256,
                "revision": REVISION,
                "table": content_key(table),
            },
            inputs=[
                Input(role="model", file=Path(model.source).name, sha256=model.sha256),
                Input(role="data", file=self.data.name, sha256=self.data.sha256),
            ],
            libraries=library_versions("torch", "torchvision", "numpy", "scipy"),
            preprocessing=model.preprocessing.to_dict(),
            classes=model.classes,
        )

    # --- rounds -----------------------------------------------------------------------------------

    def _rounds(self, files: list[Path]) -> tuple[Model, list[PruneRound]]:
        model, rounds = self.model, []
        files[0].parent.mkdir(exist_ok=True)
        for number, (after_cut, after_tuning) in enumerate(
            zip(files[::2], files[1::2], strict=True), start=1
        ):
            step = self._cut(model, number, after_cut)
            narrow = _loaded(step.path, self.model)
            tuned = tune(
                narrow,
                self.model,
                self.data,
                after_tuning,
                self.options,
                cache=self.cache,
                progress=self.progress,
            )
            model = _loaded(tuned.path, self.model)
            rounds.append(
                PruneRound(
                    widths=model.widths.to_dict(),
                    kept_saliency=step.manifest.details["kept_saliency"],
                    top1_cut=step.manifest.details["top1"],
                    top1_tuned=tuned.manifest.details.get("top1"),
                )
            )
        source = f"{self.model.source}, pruned"
        return replace(model, source=source, pruned_from=self.model.sha256), rounds

    def _cut(self, model: Model, number: int, path: Path) -> Artifact:
        """The network after the cut of one round, with its accuracy on the images that choose."""
        base = self._plan()
        plan = replace(
            base,
            settings={**base.settings, "round": number, "weights_sha256": model.sha256},
        )

        def write(temporary: Path) -> Mapping[str, Any]:
            choice, narrow = self._narrowed(model, number)
            learned, choosing = tuning_images(self.data, self.options.seed)
            narrow = estimate_statistics(narrow, learned, _STATISTICS_IMAGES)
            write_weights(narrow, temporary)
            accuracy = top1(narrow.module, choosing, narrow.preprocessing)
            return {"kept_saliency": choice.kept_saliency, "top1": accuracy}

        return produce(plan, path, write, cache=self.cache)

    def _narrowed(self, model: Model, number: int) -> tuple[Choice, Model]:
        prunable = check_prunable(model)
        count = min(self.options.saliency_images, len(self.data))
        chosen = stratified_subset(self.data.labels, count, self.options.seed)
        saliency = measure_saliency(model, self.data.select(chosen), self.progress)
        limits = self._limits(number)
        self.progress.start("choose widths", total=1)
        choice = choose_widths(model.widths, saliency, prunable, limits, self.options.step)
        self.progress.advance()
        self.progress.finish(f"{choice.kept_saliency:.1%} of the saliency stays")
        return choice, cut(model, choice.widths, saliency, prunable)

    def _limits(self, number: int) -> Limits:
        """What is limited in a round: equal factors in each round."""
        options, whole = self.options, self.model.widths
        done = number / options.rounds
        if (share := options.keep_flops) is not None:
            table = operations_table(self.model, check_prunable(self.model), TableOptions(), "any")
            (at,) = table.batches
            now = network_ms(at, whole)
            flag = "--keep-flops {:.0f}% or more"
            return Limits(
                [at],
                [now * share**done],
                "GFLOP",
                lambda _, least: flag.format(_up(100 * least / now)),
            )
        times = [at for at in self.table.batches if at.batch in options.batch]
        before = [network_ms(at, whole) for at in times]
        if (longest := options.max_latency) is not None:
            (now,) = before
            limit = now * min(1.0, 1e3 * longest / now) ** done
            return Limits(
                times,
                [limit],
                "ms",
                lambda _, least: f"--max-latency {_up(100 * least) / 100:g}ms or more",
            )
        assert options.speedup is not None
        return Limits(
            times,
            [now / options.speedup**done for now in before],
            "ms",
            lambda index, least: (
                f"--speedup {math.floor(100 * before[index] / least) / 100:g} or less"
            ),
        )

    # --- result -----------------------------------------------------------------------------------

    def _result(self, narrow: Model, rounds: list[PruneRound]) -> PruneResult:
        before, after = self.model.widths, narrow.widths
        return PruneResult(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reference=self.model.source,
            arch=self.model.arch,
            engine=self.table.engine,
            precision=self.table.precision,
            table_source=self.table.source,
            table_reason=self.table.reason,
            image_size=self.table.image_size,
            before=before.to_dict(),
            after=after.to_dict(),
            dropped=[name for name in before.by_block if name not in after.by_block],
            latency=[
                PrunedLatency(
                    batch=at.batch,
                    before_ms=network_ms(at, before),
                    after_ms=network_ms(at, after),
                )
                for at in self.table.batches
                if at.batch in self.options.batch
            ],
            gflops=(self._gflops(before), self._gflops(after)),
            parameters=(_parameters(self.model), _parameters(narrow)),
            rounds=rounds,
            notes=list(self.notes),
        )

    def _gflops(self, widths: Widths) -> float:
        table = operations_table(self.model, check_prunable(self.model), TableOptions(), "any")
        return network_ms(table.batches[0], widths)


_NO_RESULT = {"engine", "duration", "threads", "table", "workers", "skip_bad_images", "device",
              "data", "val", "max_drop", "weights", "arch"}  # fmt: skip
"""Options that act through the table, the data or the model, or only judge the result."""


def _up(value: float) -> int:
    """Rounded up, past what floating point adds to a whole number."""
    return math.ceil(value + 1e-6)


def _loaded(path: Path, whole: Model) -> Model:
    """A step's network, with what its file does not state."""
    return replace(load_checkpoint(path), source=whole.source, classes=whole.classes)


def _parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())
