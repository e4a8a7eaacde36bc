"""The pruned network of a run: its latency table, its checkpoint, and what is refused before the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, OutputFile
from optimizer.errors import DataError, UsageError
from optimizer.options import PruneOptions, TableOptions, TrainOptions
from optimizer.progress import Progress
from optimizer.recipe import Recipe
from optimizer.results import PruneResult, write_result
from optimizer.verbs.prune import given_table, pruned_files, result_path

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.models import Model

__all__ = ["PRUNED", "NetworkPruning"]

PRUNED = "pruned"
"""Name of the pruned network, and first word of what is made of it."""


@dataclass(frozen=True)
class NetworkPruning:
    """How a run prunes.

    Attributes:
        options: The options of the verb; its ``val`` and limits are those of the run's validation.
        folder: The run folder.
    """

    options: PruneOptions
    folder: Path

    @classmethod
    def of(cls, recipe: Recipe, folder: Path) -> NetworkPruning | None:
        """That of a recipe; ``None`` if it prunes nothing."""
        return None if recipe.prune is None else cls(recipe.prune.options(recipe), folder)

    @property
    def output(self) -> Path:
        """The pruned network."""
        return self.folder / f"{PRUNED}.safetensors"

    @property
    def table_file(self) -> Path:
        """The latency table that is measured, unless one is given."""
        return self.folder / f"{PRUNED}.table.json"

    def files(self) -> list[OutputFile]:
        """Everything that `table` and `prune` may write."""
        table = [] if self.options.table else [OutputFile(self.table_file, "latency-table")]
        return [*pruned_files(self.output, self.options.rounds), *table]

    def check(self, recipe: Recipe) -> None:
        """Refuse what cannot be pruned, before a network is trained or anything is measured.

        Raises:
            ArtifactError: The given table cannot be read.
            UsageError: There is no such table, or none can be measured in the engine or precision.
            CheckpointError: The network cannot be pruned.
            EnvironmentFault: There is no such device.
        """
        from optimizer.pruning import check_prunable, read_table, table_engine
        from optimizer.training import device_of

        device_of(TrainOptions(device=self.options.device))
        try:
            if self.options.table is not None:
                read_table(self.options.table)
            else:
                table_engine(self.options)
        except UsageError as error:
            raise UsageError(f"prune: {error.message}", hint=error.hint) from error
        check_prunable(_network_of(recipe))

    def images(self, held_out: ImageDataset) -> ImageDataset:
        """The training images.

        Raises:
            DataError: They cannot be used, or some of them would also judge the result.
        """
        from optimizer.data import open_dataset, shared_images

        options = self.options
        data = open_dataset(
            options.data,
            skip_bad_images=options.skip_bad_images,
            workers=options.workers,
            labels_from=options.labels_from,
        ).without_bad_images()
        if shared := shared_images(data, held_out):
            raise DataError(
                f"prune.data: {shared} of the {len(held_out)} images of {held_out.name} that judge "
                f"the networks are also in {data.name}",
                hint="name other training images in the prune section",
            )
        return data

    def table(self, model: Model, **common: Any) -> Artifact:
        """Measure the latency table, unless it is there; see `optimizer.pruning.latency_table`."""
        from optimizer.pruning import latency_table

        return latency_table(model, self.table_file, self.options.of_kind(TableOptions), **common)

    def prune(
        self, model: Model, data: ImageDataset, cache: Cache | None, progress: Progress
    ) -> Artifact:
        """Cut and tune the network; ``pruned.prune.json`` beside it says what was cut.

        Raises:
            UsageError: The aim cannot be reached; the message names the floor.
            DataError: The labels do not fit the network.
            Stopped: SIGTERM asked to stop.
        """
        from optimizer.artifacts import DisabledCache
        from optimizer.data import match_classes
        from optimizer.pruning import PruneJob, read_table
        from optimizer.training import Stopped

        table = given_table(model, self.options) if self.options.table else None
        job = PruneJob(
            model=model,
            data=match_classes(data, model.num_classes, model.classes),
            table=table or read_table(self.table_file),
            options=self.options,
            cache=cache or DisabledCache(),
            progress=progress,
        )
        try:
            artifact = job.run(self.output)
        except Stopped as error:
            raise Stopped(error.message, hint="the same command continues") from None
        result = PruneResult.model_validate(artifact.manifest.details["prune"])
        write_result(result, result_path(self.output))
        return artifact


def _network_of(recipe: Recipe) -> Model:
    """The network before it is trained: its kind and layers are known from the architecture."""
    from optimizer.models import load_model
    from optimizer.training import DEFAULT_ARCH

    if recipe.train is None:
        assert recipe.model is not None
        return load_model(
            recipe.model,
            arch=recipe.arch,
            image_size=recipe.export.image_size,
            weights=recipe.weights,
        )
    init = recipe.train.init
    if init is not None and init != "random":
        return load_model(init)
    return load_model(f"{recipe.train.arch or DEFAULT_ARCH}:random:10")
