"""Checkpoints: weights with a card that states architecture, classes and preprocessing.

The card is the manifest next to the file. A copy is in the header of the ``.safetensors`` file, in
case the manifest is lost. Third-party weights have neither; for them users can write a card file,
``weights.pth.card.json``::

    {"classes": ["cat", "dog"], "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}

Its keys are ``arch``, ``classes``, ``preprocessing``; ``head``, the last layer if it is in a
Sequential or has another name (``fc.1``, ``classifier``); and ``weights``, which copy to use if the
file has several (``ema``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from optimizer.artifacts import (
    Artifact,
    Manifest,
    Plan,
    find_manifest,
    library_versions,
    load_artifact,
    produce,
)
from optimizer.data import Preprocessing
from optimizer.data.preprocessing import COLORS, IMAGENET_MEAN
from optimizer.errors import ArtifactError, CheckpointError, DataError
from optimizer.models.architectures import stem_name
from optimizer.models.copies import ONNX_ROUTE
from optimizer.models.detector_weights import detector_state, fit_detector
from optimizer.models.heads import (
    from_sequential,
    outputs_of,
    set_activations,
    stated_activations,
)
from optimizer.models.model import Model, weights_digest
from optimizer.models.model_sources import Source
from optimizer.models.pretrained import identify
from optimizer.models.pretrained_detectors import detection_preprocessing
from optimizer.models.weights import (
    CHECKPOINTS,
    Weights,
    choose_weights,
    fit_weights,
    read_content,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "CARD_SUFFIX",
    "PYTORCH",
    "CardFile",
    "load_checkpoint",
    "read_card_file",
    "save_checkpoint",
    "with_card_file",
    "write_weights",
]

KIND = "checkpoint"
CARD_SUFFIX = ".card.json"
"""Appended to the name of a weights file: a card written by the user."""
_CARD_FORMAT = (
    'example: {"classes": ["cat", "dog"], "preprocessing": {"mean": [0.5, 0.5, 0.5]}}; preprocessing '
    "takes resize, crop, interpolation, antialias, color, mean and std"
)
# timm's variants that have a plain ResNet's tensors but compute something else with them.
_SAME_TENSORS = re.compile(r"blur|resne\w*aa|silu|swish|mish|gelu|leaky|prelu", re.IGNORECASE)


def write_weights(model: Model, path: Path) -> None:
    """Write the weights and a copy of the card as one ``.safetensors`` file, without a manifest."""
    from safetensors.torch import save_file

    card: dict[str, Any] = {"arch": model.arch, "classes": model.classes}
    if not model.preprocessing_assumed:
        card["preprocessing"] = model.preprocessing.to_dict()
    if (activations := stated_activations(model.module)) is not None:
        card["head_activations"] = activations
    if (narrow := model.narrow) is not None:
        card["widths"] = narrow.to_dict()
    if model.pruned_from is not None:
        card["pruned_from"] = model.pruned_from
    tensors = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    # One entry only: safetensors writes several in random order, so equal models would differ.
    save_file(tensors, path, metadata={"resnet-opt": json.dumps(card)})


def save_checkpoint(model: Model, path: Path, *, details: Mapping[str, Any]) -> Artifact:
    """Write a model as a checkpoint with its manifest.

    Args:
        model: The model.
        path: A ``.safetensors`` file.
        details: Facts about the training (accuracy, epochs …), JSON-serializable.

    Raises:
        CheckpointError: The suffix is not ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"checkpoints are written as .safetensors, not as {path.name}",
            hint=f"name it {path.stem}.safetensors",
        )
    plan = Plan(
        kind=KIND,
        settings={
            "arch": model.arch,
            "num_classes": model.num_classes,
            "source": model.source,
            "weights_sha256": model.sha256,
            "preprocessing_assumed": model.preprocessing_assumed,
            **({} if model.narrow is None else {"widths": model.narrow.to_dict()}),
            **({} if model.pruned_from is None else {"pruned_from": model.pruned_from}),
        },
        libraries=library_versions("torch", "torchvision", "safetensors"),
        preprocessing=model.preprocessing.to_dict(),
        classes=model.classes,
    )

    def write(temporary: Path) -> Mapping[str, Any]:
        write_weights(model, temporary)
        return details

    return produce(plan, path, write)


@dataclass(frozen=True, kw_only=True)
class _Card:
    """What is known about the weights in a file."""

    arch: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    preprocessing_assumed: bool = False
    source: str | None = None
    expected_top1: float | None = None
    head: str | None = None
    weights: str | None = None
    pruned_from: str | None = None


def load_checkpoint(path: Path, *, arch: str | None = None, weights: str | None = None) -> Model:
    """Read a checkpoint written by this package or by others.

    The card comes from the manifest, else from the file's header; torchvision's weights are
    recognized by their digest. Otherwise the architecture is inferred from the tensors and
    ImageNet's standard preprocessing is assumed (``preprocessing_assumed``). A card file next to
    weights without a manifest overrides these, field by field.

    Args:
        path: ``.safetensors``, ``.pth``, ``.pth.tar``, ``.pt``, ``.ckpt`` or ``.bin``.
        arch: The architecture, if the file does not state it.
        weights: Which copy to use if the file has several: ``ema``, or its name.

    Raises:
        CheckpointError: See `read_weights` and `fit_weights`; or the card is damaged, states
            another architecture than ``arch``, or does not fit the number of input channels.
        ArtifactError: The file was changed after its manifest was written, or is not a checkpoint.
    """
    card = _read_card(path)
    if arch is not None and card.arch is not None and arch != card.arch:
        raise CheckpointError(
            f"{path} is a {card.arch}, not a {arch}", hint=f"omit --arch or pass {card.arch}"
        )
    content = read_content(path)
    if (detector := detector_state(content)) is not None:
        return _detector_of(path, card, detector, arch)
    read, activations = _choose_weights(path, content, card, weights)
    module, fitted = fit_weights(read.state, arch or card.arch, str(path), head=card.head)
    if activations is not None:
        set_activations(module, activations, str(path))
    if arch is None and card.arch is None:
        _check_stated_arch(path, read.stated_arch, fitted)
    outputs = outputs_of(module)
    num_classes = max(2, outputs)
    _check_classes(path, card.classes, outputs)
    preprocessing = _for_channels(path, card.preprocessing, module)
    source = card.source or path.name
    return Model(
        module=module,
        arch=fitted,
        classes=card.classes,
        num_classes=num_classes,
        preprocessing=preprocessing,
        source=f"{source} ({read.part})" if read.part else source,
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=card.preprocessing is None or card.preprocessing_assumed,
        expected_top1=card.expected_top1,
        pruned_from=card.pruned_from,
        remarks=read.remarks,
    )


def _check_stated_arch(path: Path, stated: str | None, arch: str) -> None:
    if stated is not None and _SAME_TENSORS.search(stated):
        raise CheckpointError(
            f"{path} is a {stated}, which has the tensors of {arch} but computes something else",
            hint=f"if it is a plain {arch}, pass --arch {arch}; otherwise {ONNX_ROUTE}",
        )


def _check_classes(path: Path, classes: tuple[str, ...] | None, outputs: int) -> None:
    """One output stands for two classes."""
    expected = max(2, outputs)
    if classes is not None and len(classes) != expected:
        raise CheckpointError(
            f"{path} names {len(classes)} classes, but its weights have {expected}"
            + (" (one output: below and above a probability of 0.5)" if outputs == 1 else ""),
            hint="write the checkpoint or its card again",
        )


def _for_channels(path: Path, stated: Preprocessing | None, module: nn.Module) -> Preprocessing:
    """The preprocessing for the network's number of input channels."""
    state = module.state_dict()
    channels = int(state[stem_name(state)].shape[1])
    preprocessing = stated or Preprocessing.imagenet()
    if preprocessing.channels == channels:
        return preprocessing
    if channels == 1:
        return _for_one_channel(path, preprocessing)
    if channels in (3, 4):
        color, numbers = (
            ("RGB", "0.5, 0.5, 0.5") if channels == 3 else ("RGBA", "0.5, 0.5, 0.5, 0.5")
        )
        raise CheckpointError(
            f"{path} takes images of {channels} channels, "
            + (
                f"its card has {preprocessing.channels}"
                if stated
                else "and has no card that says which"
            ),
            hint=f'write {path.name}.card.json: {{"preprocessing": {{"color": "{color}", '
            f'"mean": [{numbers}], "std": [{numbers}]}}}} with your values',
        )
    raise CheckpointError(
        f"{path} takes images of {channels} channels; 1, 3 and 4 are supported",
        hint="images are read as grayscale, RGB or RGBA: train the network on those",
    )


def _for_one_channel(path: Path, preprocessing: Preprocessing) -> Preprocessing:
    """Grayscale with one mean and one std; three values become their average if that says the same."""
    equal = len({*preprocessing.mean}) == len({*preprocessing.std}) == 1
    if preprocessing.channels != 3 or not (equal or preprocessing.mean == IMAGENET_MEAN):
        raise CheckpointError(
            f"{path} takes images of one channel, but its card states {preprocessing.channels} means",
            hint='write one: "color": "grayscale", "mean": [0.5], "std": [0.5]',
        )
    return preprocessing.with_channels(1)


def _read_card(path: Path) -> _Card:
    card_file = path.with_name(path.name + CARD_SUFFIX)
    if not card_file.is_file():
        return _embedded_card(path)
    if find_manifest(path) is not None:
        raise CheckpointError(
            f"{path} has both a manifest and a card file, {card_file.name}",
            hint="remove one of them",
        )
    return _override(_embedded_card(path), card_file)


@dataclass(frozen=True)
class CardFile:
    """What a card written by a user states; ``None`` for what it leaves out."""

    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    arch: str | None


def read_card_file(card_file: Path, *, image_size: int = 224) -> CardFile:
    """Read a card that stands by itself, for example beside an ONNX file.

    Args:
        card_file: The JSON file; its fields are those of a checkpoint's card file.
        image_size: Side of the images in pixels, unless the card states it.

    Raises:
        CheckpointError: The card cannot be read.
    """
    base = _Card(preprocessing=Preprocessing.imagenet(image_size), preprocessing_assumed=True)
    card = _override(base, card_file)
    stated = None if card.preprocessing_assumed else card.preprocessing
    return CardFile(stated, card.classes, card.arch)


def _embedded_card(path: Path) -> _Card:
    if find_manifest(path) is not None:
        artifact = load_artifact(path)
        if artifact.manifest.kind not in {KIND, "engine"}:  # PyTorch's engine is a checkpoint too
            raise ArtifactError(f"{path.name} is a {artifact.manifest.kind}, not a {KIND}")
        return _card_of_manifest(path, artifact.manifest)
    if path.suffix == ".safetensors" and (text := _header(path)) is not None:
        return _card_of_header(path, text)
    published = identify(path)
    if published is None:
        return _Card()
    return _Card(
        arch=published.arch,
        classes=published.classes,
        preprocessing=published.preprocessing,
        source=f"{path.name}, which is {published.name}",
        expected_top1=published.top1,
    )


def _card_of_manifest(path: Path, manifest: Manifest) -> _Card:
    if "arch" not in manifest.settings or manifest.preprocessing is None:
        raise ArtifactError(
            f"the manifest of {path.name} has no architecture or preprocessing",
            hint="write the checkpoint again",
        )
    return _Card(
        arch=str(manifest.settings["arch"]),
        classes=None if manifest.classes is None else tuple(manifest.classes),
        preprocessing=Preprocessing.from_dict(manifest.preprocessing),
        preprocessing_assumed=bool(manifest.settings.get("preprocessing_assumed", False)),
        expected_top1=manifest.details.get("expected_top1"),
        pruned_from=manifest.settings.get("pruned_from"),
    )


class _CardFilePreprocessing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    color: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class _CardFile(BaseModel):
    """A card written by the user; it overrides the embedded card, field by field."""

    model_config = ConfigDict(extra="forbid")
    arch: str | None = None
    classes: tuple[str, ...] | None = None
    head: str | None = None
    weights: str | None = None
    preprocessing: _CardFilePreprocessing | None = None


def _override(card: _Card, card_file: Path) -> _Card:
    try:
        overrides = _CardFile.model_validate_json(card_file.read_bytes())
        if overrides.preprocessing is not None:
            card = replace(
                card,
                preprocessing=_override_preprocessing(card.preprocessing, overrides.preprocessing),
                preprocessing_assumed=False,
            )
    except (OSError, ValidationError, DataError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise CheckpointError(f"cannot use {card_file}: {reason}", hint=_CARD_FORMAT) from error
    weights = card.source or card_file.name.removesuffix(CARD_SUFFIX)
    return replace(
        card,
        arch=overrides.arch or card.arch,
        classes=card.classes if overrides.classes is None else overrides.classes,
        head=overrides.head,
        weights=overrides.weights,
        source=f"{weights} with {card_file.name}",
    )


def _override_preprocessing(
    base: Preprocessing | None, overrides: _CardFilePreprocessing
) -> Preprocessing:
    given = overrides.model_dump(exclude_none=True)
    if "resize" in overrides.model_fields_set:  # null is a value: no resizing
        given["resize"] = overrides.resize
    colors = {color.lower(): color for color in COLORS}
    if "color" in given:
        given["color"] = colors.get(given["color"].lower(), given["color"])
    depth = len(given.get("mean") or given.get("std") or ())
    if "color" not in given and depth in _COLOR_OF_DEPTH:
        given["color"] = _COLOR_OF_DEPTH[depth]
    base = base or Preprocessing.imagenet()
    if "crop" in given and "resize" not in given:
        base = base.with_image_size(given["crop"])
    return replace(base, **given)


def _choose_weights(
    path: Path, content: Any, card: _Card, weights: str | None
) -> tuple[Weights, list[str] | None]:
    """The weights, and what follows the hidden layers of the head if a file of this package states it."""
    if (parts := _stated_list(path, "head_layers")) is not None:  # as older versions wrote it
        state, activations = from_sequential(content, parts, str(path))
        return Weights(state=state), activations
    wanted = weights or card.weights
    read = choose_weights(content, path, copy=wanted, head=card.head)
    return read, _stated_list(path, "head_activations")


def _detector_of(
    path: Path, card: _Card, state: Mapping[str, torch.Tensor], arch: str | None
) -> Model:
    module, fitted, num_classes = fit_detector(state, arch or card.arch, str(path))
    if card.classes is not None and len(card.classes) != num_classes:
        raise CheckpointError(
            f"{path} names {len(card.classes)} classes, but its weights have {num_classes}",
            hint="write the checkpoint or its card again",
        )
    return Model(
        module=module,
        arch=fitted,
        classes=card.classes,
        num_classes=num_classes,
        preprocessing=detection_preprocessing(card.preprocessing),
        source=card.source or path.name,
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=card.preprocessing is None or card.preprocessing_assumed,
        expected_top1=card.expected_top1,
    )


def _stated_list(path: Path, key: str) -> list[str] | None:
    """An entry of the header of our own files, about a head with several layers."""
    if path.suffix != ".safetensors" or (text := _header(path)) is None:
        return None
    try:
        entries = json.loads(text).get(key)
        return None if entries is None else [str(entry) for entry in entries]
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the card in {path} is damaged: {error}") from error


_COLOR_OF_DEPTH = {1: "grayscale", 4: "RGBA"}


def _header(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file: {error}", hint="copy it again"
        ) from error
    text: str | None = metadata.get("resnet-opt")
    return text


def _card_of_header(path: Path, text: str) -> _Card:
    try:
        raw = json.loads(text)
        classes, preprocessing = raw["classes"], raw.get("preprocessing")
        return _Card(
            arch=str(raw["arch"]),
            classes=None if classes is None else tuple(str(name) for name in classes),
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            pruned_from=None if raw.get("pruned_from") is None else str(raw["pruned_from"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError, DataError) as error:
        raise CheckpointError(f"the card in {path} is damaged: {error}") from error


def with_card_file(model: Model, path: Path) -> Model:
    """A model with what the card file beside its weights states, if there is one.

    Args:
        model: As read from the weights.
        path: The file with the weights.

    Raises:
        CheckpointError: The card is damaged, names another architecture, or another number of classes.
    """
    card_file = path.with_name(path.name + CARD_SUFFIX)
    if not card_file.is_file():
        return model
    stated = _Card(
        classes=model.classes,
        preprocessing=model.preprocessing,
        preprocessing_assumed=model.preprocessing_assumed,
        source=model.source,
    )
    card = _override(stated, card_file)
    if card.arch not in {None, model.arch}:
        raise CheckpointError(
            f"{path} is a {model.arch}, but {card_file.name} states {card.arch}",
            hint="remove arch from the card",
        )
    if card.classes is not None and len(card.classes) != model.num_classes:
        raise CheckpointError(
            f"{card_file.name} names {len(card.classes)} classes, but {path.name} has "
            f"{model.num_classes} outputs",
            hint="name each output once, in their order",
        )
    return replace(
        model,
        classes=card.classes,
        preprocessing=card.preprocessing or model.preprocessing,
        preprocessing_assumed=card.preprocessing_assumed,
        source=card.source or model.source,
    )


PYTORCH = Source(
    forms=("a checkpoint (.safetensors, .pth, .pth.tar, .ckpt)",),
    suffixes=CHECKPOINTS,
    load_file=lambda path, arch, weights: load_checkpoint(path, arch=arch, weights=weights),
)
