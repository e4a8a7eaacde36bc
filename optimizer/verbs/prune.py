"""The verb ``prune``: a network that is faster by measured latency, and as accurate."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import DataError, UsageError
from optimizer.options import PruneOptions, TableOptions, TrainOptions, takes_options, to_flags
from optimizer.progress import Progress, Silent
from optimizer.results import Gates, LatencyTable, PruneResult, ValidateResult, write_result

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.models import Model

__all__ = ["given_table", "prune", "pruned_files", "result_path"]


@takes_options(PruneOptions)
def prune(
    model: Path | str,
    output: Path | str,
    options: PruneOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> PruneResult:
    """Cut channels and blocks so that a network reaches a latency, and tune what remains.

    Args:
        model: A checkpoint or a model name.
        output: The narrow network (``.safetensors``); ``<stem>.prune.json`` beside it says what was
            cut, and holds the validation against the network before.
        options: See below; one of ``speedup``, ``max_latency`` and ``keep_flops``.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Returns:
        The result, whose validation may be ``fail`` or ``inconclusive``; no exception is raised.

    Raises:
        CheckpointError: There is no such model, or it cannot be pruned.
        UsageError: An invalid option, or a latency that cannot be reached.
        DataError: The images cannot be used.
        Inconclusive: The machine is too noisy for a latency table.
        Stopped: SIGTERM asked to stop; the hint is the command that continues.
    """
    from optimizer.artifacts import DisabledCache
    from optimizer.models import load_model
    from optimizer.pruning import PruneJob, check_prunable
    from optimizer.training import Stopped, device_of

    output = Path(output)
    _check_files(Path(model), output, options, force=force)
    device_of(TrainOptions(device=options.device))
    loaded = load_model(model, arch=options.arch, weights=options.weights)
    check_prunable(loaded)
    given = None if options.table is None else given_table(loaded, options)
    data, val, notes = _images(options, loaded)
    table = given or _measured_table(loaded, output, options, cache, progress)
    job = PruneJob(
        model=loaded,
        data=data,
        table=table,
        options=options,
        cache=cache or DisabledCache(),
        progress=progress or Silent(),
        notes=tuple(notes),
    )
    try:
        artifact = job.run(output)
    except Stopped as error:
        command = ["resnet-opt", "prune", str(model), *to_flags(options), "-o", str(output)]
        raise Stopped(error.message, hint=shlex.join(command)) from None
    found = PruneResult.model_validate(artifact.manifest.details["prune"])
    verdict = _judge(output, loaded, val, options, progress)
    result = found.model_copy(update={"validation": verdict})
    write_result(result, result_path(output))
    return result


def result_path(output: Path) -> Path:
    """The file beside a pruned network that says what was cut."""
    return output.with_name(f"{output.stem}.prune.json")


def _check_files(model: Path, output: Path, options: PruneOptions, *, force: bool) -> None:
    if output.suffix != ".safetensors":
        raise UsageError(
            f"a pruned network is written as .safetensors, not as {output.name}",
            hint=f"-o {output.stem or 'pruned'}.safetensors",
        )
    if model.suffix == ".onnx":
        raise UsageError(
            f"{model.name} is a graph, and pruning trains the network that it was made from",
            hint="prune the checkpoint, then export it",
        )
    files = pruned_files(output, options.rounds)
    check_outputs(files, [model, options.data, options.val, options.table], force=force)


def pruned_files(output: Path, rounds: int) -> list[OutputFile]:
    """The files of a pruning and of its steps.

    Raises:
        UsageError: A folder of a step's training holds files of others.
    """
    from optimizer.pruning import step_files
    from optimizer.training import check_folder, training_folder

    files = [
        OutputFile(output, "checkpoint"),
        OutputFile(result_path(output), "prune", has_manifest=False),
    ]
    for path in step_files(output, rounds):
        check_folder(training_folder(path))
        files.append(OutputFile(path, "checkpoint"))
    return files


def _images(options: PruneOptions, model: Model) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Training images and others that judge, both matched to the network's outputs."""
    from optimizer.data import match_classes, open_dataset, shared_images
    from optimizer.training import held_out_of, open_training_data

    notes = []
    reading: dict[str, Any] = {
        "skip_bad_images": options.skip_bad_images,
        "workers": options.workers,
        "labels_from": options.labels_from,
    }
    if (chosen := options.val or held_out_of(options.data)) is not None:
        data, val = (
            open_dataset(name, **reading).without_bad_images() for name in (options.data, chosen)
        )
    else:
        data, val = open_training_data(options.data, seed=options.seed, **reading)
        notes.append(f"no --val: {len(val)} images of {options.data} judge, and are not trained on")
    if shared := shared_images(data, val):
        raise DataError(
            f"{shared} of the {len(val)} images of {val.name} are also in {data.name}",
            hint="use --val with images that are not trained on, or leave it out",
        )
    for part in (data, val):
        part.check_depth(model.preprocessing)
    matched = (match_classes(part, model.num_classes, model.classes) for part in (data, val))
    return (*matched, notes)  # type: ignore[return-value]


def _deployed(model: Model, options: PruneOptions) -> Model:
    """The network at the image size that the latency counts for."""
    size = options.image_size or model.image_size
    return replace(model, preprocessing=model.preprocessing.with_image_size(size))


def given_table(model: Model, options: PruneOptions) -> LatencyTable:
    """The table that ``--table`` names.

    Raises:
        ArtifactError: The file cannot be read.
        UsageError: It is of another network or purpose.
    """
    from optimizer.pruning import check_fits, read_table

    assert options.table is not None
    table = read_table(options.table)
    wanted = options.of_kind(TableOptions)
    check_fits(table, _deployed(model, options), wanted, options.table.name)
    return table


def _measured_table(
    model: Model,
    output: Path,
    options: PruneOptions,
    cache: Cache | None,
    progress: Progress | None,
) -> LatencyTable:
    from optimizer.artifacts import scratch_folder
    from optimizer.pruning import latency_table, read_table

    wanted = options.of_kind(TableOptions)
    with scratch_folder("table") as folder:
        path = folder / f"{output.stem}.table.json"
        network = _deployed(model, options)
        return read_table(latency_table(network, path, wanted, cache=cache, progress=progress).path)


def _judge(
    output: Path,
    model: Model,
    val: ImageDataset,
    options: PruneOptions,
    progress: Progress | None,
) -> ValidateResult:
    from optimizer.evaluation import Chain, validate

    gates = Gates(max_drop_pp=options.max_drop)
    return validate([Chain.of(output)], model, val, gates, progress=progress)
