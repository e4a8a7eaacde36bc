"""What a foreign ONNX file does not say itself: preprocessing and class names.

In this order: the file's own metadata; ``--preprocessing-from`` (an exported file, a checkpoint or a
card); the card beside the file, ``model.onnx.card.json``. Flags (``--mean``, ``--std``, ``--resize``,
``--crop``) change single values of that, or of ImageNet's preprocessing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import GraphError
from optimizer.graphs.metadata import Metadata, encoded, metadata_of
from optimizer.options import PreprocessingSource, flag

if TYPE_CHECKING:
    from optimizer.data import Preprocessing

__all__ = ["HOW_TO_STATE", "SourceDescription", "describe_source"]

HOW_TO_STATE = (
    "write {name}.card.json beside it, such as "
    '{{"preprocessing": {{"resize": 256, "crop": 224}}}}, or pass --preprocessing-from with an exported '
    "graph, checkpoint or card, or --mean, --std, --resize and --crop"
)
"""The ways to state the preprocessing of the file ``name``."""
_BORROWED = ("preprocessing", "classes", "arch", "detector")
_FLAGS = ("mean", "std", "resize", "crop")


@dataclass(frozen=True)
class SourceDescription:
    """The description of a foreign file.

    Attributes:
        metadata: ``preprocessing``, ``classes`` and ``arch``, as far as they are known.
        origin: Where the preprocessing comes from; ``None`` for the file's own metadata.
    """

    metadata: Metadata
    origin: str | None

    @property
    def taken(self) -> str | None:
        """A sentence that says what was taken from where."""
        if self.origin is None or self.metadata.preprocessing is None:
            return None
        from optimizer.data import Preprocessing

        found = Preprocessing.from_dict(self.metadata.preprocessing)
        return f"preprocessing from {self.origin}: {found.in_words}"


def describe_source(
    graph: Path, options: PreprocessingSource, image_size: int | None
) -> SourceDescription:
    """Find the preprocessing and the classes of a graph.

    Args:
        graph: The ONNX file.
        options: What the user states about it.
        image_size: Side of the images that the graph takes; ``None`` if it takes any.

    Raises:
        GraphError: The graph states other preprocessing than the user.
        CheckpointError: A card cannot be read.
        DataError: The values are not a preprocessing.
    """
    own = metadata_of(graph)
    donor, origin = _donor(graph, options, image_size)
    flags = {name: getattr(options, name) for name in _FLAGS if getattr(options, name) is not None}
    if flags:
        donor, origin = _with_flags(donor, own, flags, origin, image_size)
    if own.preprocessing is not None and donor.preprocessing not in (None, own.preprocessing):
        raise GraphError(
            f"{graph.name} has preprocessing metadata that differs from {origin}",
            hint=_how_to_leave_out(options, flags, str(origin)),
        )
    borrowed = {name: donor[name] for name in _BORROWED if donor.get(name, "[]") != "[]"}
    metadata = Metadata(borrowed | {name: own[name] for name in _BORROWED if name in own})
    return SourceDescription(metadata, None if own.preprocessing is not None else origin)


def _how_to_leave_out(options: PreprocessingSource, flags: dict[str, Any], origin: str) -> str:
    if flags:
        return f"leave out {', '.join(map(flag, flags))}"
    if options.preprocessing_from is not None:
        return "leave out --preprocessing-from"
    return f"correct {origin}, or delete it"


def _donor(
    graph: Path, options: PreprocessingSource, image_size: int | None
) -> tuple[Metadata, str | None]:
    from optimizer.models.checkpoint import CARD_SUFFIX

    source = options.preprocessing_from
    beside = graph.with_name(graph.name + CARD_SUFFIX)
    if source is None and beside.is_file():
        return _card(beside, image_size), beside.name
    if source is None:
        return Metadata(), None
    name = Path(source).name
    if source.endswith(".json"):
        return _card(Path(source), image_size), name
    if source.endswith(".onnx"):
        metadata = metadata_of(Path(source))
        if "preprocessing" not in metadata:
            raise GraphError(
                f"{name} does not state its preprocessing either",
                hint="use a graph from resnet-opt export, a checkpoint or a card",
            )
        return metadata, name
    from optimizer.models import load_model

    model = load_model(source)
    entries: dict[str, Any] = {
        "preprocessing": model.preprocessing.to_dict(),
        "classes": list(model.classes or ()),
        "arch": model.arch,
        **({} if model.detector is None else {"detector": model.detector.to_dict()}),
    }
    return encoded(entries), name


def _card(path: Path, image_size: int | None) -> Metadata:
    from optimizer.models.checkpoint import read_card_file

    card = read_card_file(path, image_size=image_size or 224)
    entries: dict[str, Any] = {}
    if card.preprocessing is not None:
        entries["preprocessing"] = card.preprocessing.to_dict()
    if card.classes is not None:
        entries["classes"] = list(card.classes)
    return encoded(entries | ({"arch": card.arch} if card.arch else {}))


def _with_flags(
    donor: Metadata,
    own: Metadata,
    flags: dict[str, Any],
    origin: str | None,
    image_size: int | None,
) -> tuple[Metadata, str]:
    from optimizer.data import Preprocessing

    stated = donor.preprocessing or own.preprocessing
    size = flags.get("crop") or image_size or 224
    base: Preprocessing = (
        Preprocessing.imagenet(size) if stated is None else Preprocessing.from_dict(stated)
    )
    if stated is not None and "resize" not in flags:
        base = base.with_image_size(size)
    changed = replace(base, **flags)
    given = ", ".join(flag(name) for name in flags)
    both = f"{origin} with {given}" if origin else given
    return Metadata(donor | encoded({"preprocessing": changed.to_dict()})), both
