"""Loads a model by name: a file, published weights or random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.errors import CheckpointError
from optimizer.models.architectures import (
    ARCHITECTURES,
    DETECTORS,
    check_arch,
    refuse_other_detectors,
)
from optimizer.models.model import Model
from optimizer.models.model_sources import (
    forms,
    is_checkpoint,
    source_of_file,
    source_of_name,
)
from optimizer.models.pretrained import load_torchvision
from optimizer.models.pretrained_detectors import load_torchvision_detector
from optimizer.models.untrained import random_detector, random_model

__all__ = ["is_model", "load_model"]


def is_model(name: str | Path) -> bool:
    """Whether `load_model` is meant by a name: a checkpoint's suffix, or published or random weights."""
    text = str(name)
    if source_of_name(text) is not None or text.partition(":")[0] in (*ARCHITECTURES, *DETECTORS):
        return not Path(text).exists() or is_checkpoint(Path(text))
    return is_checkpoint(Path(text))


def load_model(
    name: str | Path,
    *,
    arch: str | None = None,
    image_size: int | None = None,
    weights: str | None = None,
) -> Model:
    """Load a model.

    Args:
        name: A file of one of the sources (`optimizer.models.model_sources`); torchvision weights,
            ``resnet50:IMAGENET1K_V2``; weights with a source's prefix, ``timm:resnet50.a1_in1k``;
            or seeded random weights, ``resnet50:random``, optionally with the number of classes,
            ``resnet50:random:10``.
        arch: The architecture of a checkpoint that does not state it.
        image_size: Input size, pixels, if it differs from the preprocessing's; the resize is
            scaled by the same factor.
        weights: Which copy of a checkpoint to use, if it has several: ``ema``, or its name.

    Raises:
        CheckpointError: There is no such model, or its weights cannot be used.
        ArtifactError: The checkpoint was changed after its manifest was written.
        EnvironmentFault: The weights cannot be downloaded, or a library is missing.
    """
    if arch is not None:
        check_arch(arch)
    model = _load(str(name), arch, image_size, weights)
    if arch is not None and model.arch != arch:
        raise CheckpointError(f"{name} is a {model.arch}, not a {arch}", hint="omit --arch")
    if image_size is not None and image_size != model.image_size:
        model = replace(model, preprocessing=model.preprocessing.with_image_size(image_size))
    return model


def _load(text: str, arch: str | None, image_size: int | None, weights: str | None) -> Model:
    path = Path(text).expanduser()
    if path.is_file():
        return _load_file(path, arch, weights)
    if weights is not None:
        raise CheckpointError(f"--weights is for a checkpoint, not for {text}", hint="leave it out")
    source = source_of_name(text)
    if source is not None and source.load_name is not None:
        return source.load_name(text.removeprefix(source.prefix), image_size)
    head, colon, tail = text.partition(":")
    if head in (*ARCHITECTURES, *DETECTORS):
        return _load_named(head, tail) if colon else _reject_bare_arch(head)
    if text and path.is_dir():
        raise CheckpointError(f"{text} is a folder", hint=_accepted())
    if source_of_file(path) is None:
        refuse_other_detectors(head)
    if source_of_file(path) is not None or "/" in text:
        raise CheckpointError(f"no such file: {text}", hint=_accepted())
    raise CheckpointError(f"unknown model {text!r}", hint=_accepted())


def _accepted() -> str:
    return (
        f"accepted: {forms()}, resnet50:IMAGENET1K_V2, resnet50:random or resnet50:random:10; "
        "detectors likewise: retinanet_resnet50_fpn:COCO_V1"
    )


def _load_file(path: Path, arch: str | None, weights: str | None) -> Model:
    source = source_of_file(path)
    if source is None or source.load_file is None:
        raise CheckpointError(f"{path} is not a checkpoint", hint=_accepted())
    return source.load_file(path, arch, weights)


def _load_named(arch: str, weights: str) -> Model:
    kind, colon, count = weights.partition(":")
    if kind != "random":
        load = load_torchvision_detector if arch in DETECTORS else load_torchvision
        return load(arch, weights)
    build = random_detector if arch in DETECTORS else random_model
    if not colon:
        return build(arch)
    if not count.isdecimal() or not 2 <= int(count) <= 100_000:
        raise CheckpointError(
            f"{count!r} is not a valid number of classes",
            hint=f"use 2 to 100000, as in {arch}:random:10",
        )
    return build(arch, int(count))


def _reject_bare_arch(arch: str) -> Model:
    raise CheckpointError(
        f"{arch} does not say which weights",
        hint=f"use {arch}:DEFAULT, {arch}:random, or a checkpoint",
    )
