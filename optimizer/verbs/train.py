"""The verb ``train``: train a network."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.errors import UsageError
from optimizer.options import TrainOptions, takes_options, to_flags
from optimizer.progress import Progress
from optimizer.verbs.outcomes import TrainResult

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["train"]

_SUFFIXES = (".safetensors", ".pth", ".pt")


@takes_options(TrainOptions)
def train(
    output: Path | str,
    options: TrainOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a ResNet, or a detector on one; with ``qat``, its INT8 network into an ONNX graph.

    Args:
        output: The checkpoint file: ``.safetensors``, or ``.pth`` for a plain state dict. With
            ``qat``, the graph: ``.onnx``.
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: An invalid option, or the loss became NaN or infinite.
        DataError: The images cannot be used, or there are too few.
        EnvironmentFault: There is no such device, or a library is too old.
        Stopped: SIGTERM asked to stop; the hint is the command that continues.
    """
    from optimizer.models import load_model
    from optimizer.training import (
        check_quantized_options,
        check_sparsity,
        check_versions,
        device_of,
        held_out_of,
        train_checkpoint,
        world_of_environment,
    )
    from optimizer.verbs.int8_training import train_quantized_graph

    output = Path(output)
    check_versions(options)
    device_of(options)
    check_quantized_options(options)
    if options.qat is not None:
        with _resumable(options, output):
            return train_quantized_graph(
                options, output, cache=cache, force=force, progress=progress
            )
    _check_output(output, options, force=force)
    val = options.val or held_out_of(options.data)
    start = None if options.init == "random" else options.init
    init = load_model(start, image_size=options.image_size) if start else None
    check_sparsity(options, init)
    with _resumable(options, output):
        artifact = train_checkpoint(
            _with_arch(options, output) if init is None else options,
            _open(options.data, options),
            output,
            held_out=_open(val, options) if val else None,
            init=init,
            cache=cache,
            progress=progress,
        )
    details = artifact.manifest.details
    return TrainResult.of(
        artifact,
        top1=details.get("top1"),
        ap=details.get("ap"),
        ap50=details.get("ap50"),
        notes=tuple(details.get("notes", ())),
        first_process=world_of_environment().first,
    )


@contextlib.contextmanager
def _resumable(options: TrainOptions, output: Path) -> Iterator[None]:
    """Name the command that continues a training that was asked to stop."""
    from optimizer.training import Stopped

    try:
        yield
    except Stopped as error:
        flags = [*to_flags(TrainOptions.of(options, {"resume": True})), "-o", str(output)]
        command = shlex.join(["resnet-opt", "train", *flags])
        raise Stopped(error.message, hint=command) from None


def _open(name: str, options: TrainOptions) -> ImageDataset:
    from optimizer.data import open_dataset

    return open_dataset(
        name,
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
        image_folder=options.image_folder if name.lower().endswith(".json") else None,
    )


def _check_output(output: Path, options: TrainOptions, *, force: bool) -> None:
    from optimizer.training import check_folder, training_folder

    if output.suffix not in _SUFFIXES:
        raise UsageError(
            f"weights are written as {', '.join(_SUFFIXES)}, not as {output.name}",
            hint=f"-o {output.stem or 'model'}.safetensors",
        )
    inputs = [options.init, options.data, options.val]
    check_outputs([OutputFile(output, "checkpoint")], inputs, force=force)
    if not force and not options.resume:
        check_folder(training_folder(output))


def _with_arch(options: TrainOptions, output: Path) -> TrainOptions:
    """The architecture of the output's name, if it is one and none is given."""
    from optimizer.models import ARCHITECTURES, DETECTORS

    if options.arch is None and output.stem in (*ARCHITECTURES, *DETECTORS):
        return TrainOptions.of(options, {"arch": output.stem})
    return options
