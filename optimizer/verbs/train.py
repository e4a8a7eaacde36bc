"""The verb ``train``: train a network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from optimizer.artifacts import Cache, OutputFile, check_outputs
from optimizer.options import TrainOptions, takes_options
from optimizer.progress import Progress
from optimizer.verbs.outcomes import TrainResult

__all__ = ["train"]


@takes_options(TrainOptions)
def train(
    output: Path | str,
    options: TrainOptions,
    *,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a ResNet into a checkpoint.

    Args:
        output: The checkpoint file (``.safetensors``).
        options: See below.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: An invalid option, or the loss became NaN or infinite.
        DataError: The images cannot be used, or there are too few.
    """
    from optimizer.data import open_dataset
    from optimizer.models import load_model
    from optimizer.training import train_checkpoint

    output = Path(output)
    inputs = [options.init, options.data, options.held_out]
    check_outputs([OutputFile(output, "checkpoint")], inputs, force=force)
    held_out = options.held_out
    if held_out is None and options.data == "digits:train":
        held_out = "digits:test"
    read = partial(open_dataset, skip_bad_images=options.skip_bad_images, workers=options.workers)
    init = load_model(options.init, image_size=options.image_size) if options.init else None
    artifact = train_checkpoint(
        options,
        read(options.data),
        output,
        held_out=read(held_out) if held_out else None,
        init=init,
        cache=cache,
        progress=progress,
    )
    return TrainResult.of(artifact, top1=artifact.manifest.details.get("top1"))
