"""What a graph says of itself: the ``resnet_opt.`` entries of an ONNX file's metadata.

The names are those of the properties of `Metadata` and nowhere else. Lists and mappings are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import GraphError
from optimizer.graphs.onnx_files import open_onnx

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Metadata",
    "encoded",
    "forget_precision",
    "metadata_of",
    "preprocessed_metadata",
    "write_metadata",
]

_PREFIX = "resnet_opt."
_OF_A_PRECISION = ("target", "keep", "notes", "absorbed", "shifted")


class Metadata(dict[str, str]):
    """The entries of one graph as texts, by their names without the prefix.

    Beside the properties there are ``input`` (``float32-nchw`` or ``uint8-nhwc``), ``batch``
    (``dynamic`` or a number) and ``checkpoint_sha256``.
    """

    @classmethod
    def of_model(cls, model: ir.Model) -> Metadata:
        """The entries of a model."""
        return cls._without_prefix(model.metadata_props)

    @classmethod
    def of_proto(cls, proto: Any) -> Metadata:
        """The entries of an `onnx.ModelProto`."""
        return cls._without_prefix({entry.key: entry.value for entry in proto.metadata_props})

    @classmethod
    def _without_prefix(cls, entries: Mapping[str, str]) -> Metadata:
        return cls(
            (name.removeprefix(_PREFIX), text)
            for name, text in entries.items()
            if name.startswith(_PREFIX)
        )

    @property
    def arch(self) -> str:
        """The architecture that it was exported from; empty if it does not say."""
        return self.get("arch", "")

    @property
    def precision(self) -> str:
        """What the exporter or a precision pass wrote; ``fp32`` if nothing."""
        return self.get("precision", "fp32")

    @property
    def target(self) -> str:
        """Whose rules an INT8 or FP8 graph follows; empty for other graphs."""
        return self.get("target", "")

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """The preprocessing that it expects, if it says so."""
        preprocessing: dict[str, Any] | None = self._json("preprocessing", None)
        return preprocessing

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the outputs, if there are any."""
        return self._json("classes", None) or None

    @property
    def keep(self) -> list[str]:
        """Nodes that stay out of the graph's precision on purpose.

        Weighted layers of an INT8 or FP8 graph; whatever a half type cannot compute.
        """
        keep: list[str] = self._json("keep", [])
        return keep

    @property
    def notes(self) -> list[str]:
        """What the pass that wrote the graph reports of it."""
        notes: list[str] = self._json("notes", [])
        return notes

    @property
    def absorbed(self) -> dict[str, str]:
        """The output of each ReLU that lowering left out, with its input."""
        absorbed: dict[str, str] = self._json("absorbed", {})
        return absorbed

    @property
    def shifted(self) -> list[str] | None:
        """Tensors that are stored around their middle; ``None`` if the graph does not say."""
        shifted: list[str] | None = self._json("shifted", None)
        return shifted

    def _json(self, name: str, default: Any) -> Any:
        return json.loads(self[name]) if name in self else default


def metadata_of(graph: Path) -> Metadata:
    """The entries of an ONNX file.

    Raises:
        GraphError: No such file, or no ONNX file.
    """
    return Metadata.of_proto(open_onnx(graph, weights=False).proto)


def preprocessed_metadata(graph: Path) -> Metadata:
    """The entries of an ONNX file, preprocessing among them.

    Raises:
        GraphError: It does not say which preprocessing it expects; or as in `metadata_of`.
    """
    metadata = metadata_of(graph)
    if "preprocessing" not in metadata:
        raise GraphError(
            f"{graph.name} does not say which preprocessing it expects",
            hint="export it with resnet-opt export, or --preprocessing-from what knows it",
        )
    return metadata


def encoded(entries: Mapping[str, str | Sequence[Any] | Mapping[str, Any]]) -> Metadata:
    """Values as the texts that a file holds: strings as they are, anything else as JSON."""
    return Metadata(
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in entries.items()
    )


def write_metadata(
    model: ir.Model, **entries: str | Sequence[Any] | Mapping[str, Any] | None
) -> None:
    """Set entries of a model, in place; those that are ``None`` are left as they are."""
    given = {name: value for name, value in entries.items() if value is not None}
    model.metadata_props.update({_PREFIX + name: text for name, text in encoded(given).items()})


def forget_precision(model: ir.Model) -> None:
    """Take out what a precision pass wrote of the graph as it was before, in place."""
    for name in _OF_A_PRECISION:
        model.metadata_props.pop(_PREFIX + name, None)
