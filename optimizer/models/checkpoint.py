"""Checkpoints: weights with a card that says architecture, classes and preprocessing.

The card is the manifest beside the file; a copy lies in the header of the ``.safetensors`` file,
so a file that lost its manifest still knows what it is. Weights of others have neither: there a
person may write a card, ``weights.pth.card.json``::

    {"classes": ["cat", "dog"], "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}

Its keys are ``arch``, ``classes``, ``preprocessing`` and, for weights whose last layer stands in a
Sequential, ``head`` (``fc.1``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from optimizer.data.preprocessing import COLORS
from optimizer.errors import ArtifactError, CheckpointError, DataError
from optimizer.models.model import Model, weights_digest
from optimizer.models.pretrained import identify
from optimizer.models.weights import fit_weights, read_weights

__all__ = ["CARD_SUFFIX", "load_checkpoint", "save_checkpoint", "write_weights"]

KIND = "checkpoint"
CARD_SUFFIX = ".card.json"
"""After the name of a weights file: what a person says of weights that say nothing themselves."""
_CARD = (
    'a card is {"classes": ["cat", "dog"], "preprocessing": {"mean": [0.5, 0.5, 0.5]}}; preprocessing has '
    "resize, crop, interpolation, antialias, color, mean and std"
)


def write_weights(model: Model, path: Path) -> None:
    """Write the weights and a copy of the card as one ``.safetensors`` file, without a manifest."""
    from safetensors.torch import save_file

    card: dict[str, Any] = {"arch": model.arch, "classes": model.classes}
    if not model.preprocessing_assumed:
        card["preprocessing"] = model.preprocessing.to_dict()
    tensors = {name: tensor.contiguous() for name, tensor in model.module.state_dict().items()}
    # One entry only: safetensors writes several in random order, and equal models would differ.
    save_file(tensors, path, metadata={"resnet-opt": json.dumps(card)})


def save_checkpoint(model: Model, path: Path, *, details: Mapping[str, Any]) -> Artifact:
    """Write a model as a checkpoint with its manifest.

    Args:
        model: The model.
        path: A ``.safetensors`` file.
        details: What the reader should know of its making (accuracy, epochs …), JSON-like.

    Raises:
        CheckpointError: Another suffix than ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"a checkpoint is written as .safetensors, not as {path.name}",
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
    """What a file says about its weights."""

    arch: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    preprocessing_assumed: bool = False
    source: str | None = None
    expected_top1: float | None = None
    head: str | None = None


def load_checkpoint(path: Path, *, arch: str | None = None) -> Model:
    """Read a checkpoint, our own or a third party's.

    The card is taken from the manifest, else from the file's header; weights of torchvision are
    recognized by their digest. Weights with none of these have their architecture told from
    their tensors and get ImageNet's classic preprocessing (``preprocessing_assumed``). A card file
    beside weights without a manifest goes over that, field by field.

    Args:
        path: ``.safetensors``, ``.pth`` or ``.pt``.
        arch: The architecture, if the file does not say.

    Raises:
        CheckpointError: See `read_weights` and `fit_weights`; or the card is damaged or says
            another architecture than ``arch``.
        ArtifactError: The file was changed since its manifest was written, or is no checkpoint.
    """
    card = _read_card(path)
    if arch is not None and card.arch is not None and arch != card.arch:
        raise CheckpointError(
            f"{path} is a {card.arch}, not a {arch}", hint=f"leave out --arch or pass {card.arch}"
        )
    state, part = read_weights(path)
    module, arch = fit_weights(state, arch or card.arch, str(path), head=card.head)
    num_classes = int(module.get_parameter("fc.bias").shape[0])
    if card.classes is not None and len(card.classes) != num_classes:
        raise CheckpointError(
            f"{path} names {len(card.classes)} classes, its weights have {num_classes}",
            hint="make the checkpoint or its card again",
        )
    source = card.source or path.name
    return Model(
        module=module,
        arch=arch,
        classes=card.classes,
        num_classes=num_classes,
        preprocessing=card.preprocessing or Preprocessing.imagenet(),
        source=f"{source} ({part})" if part else source,
        sha256=weights_digest(module.state_dict()),
        preprocessing_assumed=card.preprocessing is None or card.preprocessing_assumed,
        expected_top1=card.expected_top1,
    )


def _read_card(path: Path) -> _Card:
    written = path.with_name(path.name + CARD_SUFFIX)
    if not written.is_file():
        return _own_card(path)
    if find_manifest(path) is not None:
        raise CheckpointError(
            f"{path} has a manifest and a card file, {written.name}",
            hint="remove the one that is not meant",
        )
    return _with_card_of_person(_own_card(path), written)


def _own_card(path: Path) -> _Card:
    if find_manifest(path) is not None:
        artifact = load_artifact(path)
        if artifact.manifest.kind not in {KIND, "engine"}:  # PyTorch's engine is a checkpoint too
            raise ArtifactError(f"{path.name} is a {artifact.manifest.kind}, not a {KIND}")
        return _card_of_manifest(path, artifact.manifest)
    if path.suffix == ".safetensors" and (text := _header(path)) is not None:
        return _card_of_header(path, text)
    known = identify(path)
    if known is None:
        return _Card()
    return _Card(
        arch=known.arch,
        classes=known.classes,
        preprocessing=known.preprocessing,
        source=f"{path.name}, which is {known.name}",
        expected_top1=known.top1,
    )


def _card_of_manifest(path: Path, manifest: Manifest) -> _Card:
    if "arch" not in manifest.settings or manifest.preprocessing is None:
        raise ArtifactError(
            f"the manifest of {path.name} has no architecture or preprocessing",
            hint="make the checkpoint again",
        )
    return _Card(
        arch=str(manifest.settings["arch"]),
        classes=None if manifest.classes is None else tuple(manifest.classes),
        preprocessing=Preprocessing.from_dict(manifest.preprocessing),
        preprocessing_assumed=bool(manifest.settings.get("preprocessing_assumed", False)),
        expected_top1=manifest.details.get("expected_top1"),
    )


class _WrittenPreprocessing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    color: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class _Written(BaseModel):
    """A card that a person wrote; it goes over what the file itself says, field by field."""

    model_config = ConfigDict(extra="forbid")
    arch: str | None = None
    classes: tuple[str, ...] | None = None
    head: str | None = None
    preprocessing: _WrittenPreprocessing | None = None


def _with_card_of_person(card: _Card, written: Path) -> _Card:
    try:
        found = _Written.model_validate_json(written.read_bytes())
        if found.preprocessing is not None:
            card = replace(
                card,
                preprocessing=_changed(card.preprocessing, found.preprocessing),
                preprocessing_assumed=False,
            )
    except (OSError, ValidationError, DataError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise CheckpointError(f"cannot use {written}: {reason}", hint=_CARD) from error
    weights = card.source or written.name.removesuffix(CARD_SUFFIX)
    return replace(
        card,
        arch=found.arch or card.arch,
        classes=card.classes if found.classes is None else found.classes,
        head=found.head,
        source=f"{weights} with {written.name}",
    )


def _changed(known: Preprocessing | None, written: _WrittenPreprocessing) -> Preprocessing:
    given = written.model_dump(exclude_none=True)
    if "resize" in written.model_fields_set:  # null is a value: no resizing
        given["resize"] = written.resize
    colors = {color.lower(): color for color in COLORS}
    if "color" in given:
        given["color"] = colors.get(given["color"].lower(), given["color"])
    known = known or Preprocessing.imagenet()
    if "crop" in given and "resize" not in given:
        known = known.with_image_size(given["crop"])
    return replace(known, **given)


def _header(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}", hint="copy it again"
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
        )
    except (ValueError, TypeError, LookupError, AttributeError, DataError) as error:
        raise CheckpointError(f"the card in {path} is damaged: {error}") from error
