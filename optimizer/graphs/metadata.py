"""The ``resnet_opt.`` entries of an ONNX file's metadata.

The keys are defined only here, as properties of `Metadata`. Lists and mappings are stored as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from optimizer.errors import DataError, GraphError
from optimizer.graphs.onnx_files import open_onnx

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Metadata",
    "encoded",
    "metadata_of",
    "preprocessed_metadata",
    "remove_precision_metadata",
    "write_metadata",
]

_PREFIX = "resnet_opt."
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")
_PRECISION_KEYS = ("target", "keep", "notes", "absorbed", "shifted")


class Metadata(dict[str, str]):
    """The entries of one graph as strings, by key without the prefix.

    Besides the properties there are ``input`` (``float32-nchw`` or ``uint8-nhwc``), ``batch``
    (``dynamic`` or a number), ``checkpoint_sha256``, and ``pruned_from``, the digest of the weights
    that a pruned network's were made from.
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
        """The architecture that the graph was exported from; empty if unknown."""
        return self.get("arch", "")

    @property
    def precision(self) -> str:
        """Precision written by the exporter or a precision pass; ``fp32`` if missing.

        Raises:
            GraphError: It is not one of those that are written.
        """
        precision = self.get("precision", "fp32")
        if precision not in _PRECISIONS:
            raise GraphError(
                f"metadata entry {_PREFIX}precision: {precision!r} is not a precision",
                hint=f"one of {', '.join(_PRECISIONS)}",
            )
        return precision

    @property
    def target(self) -> str:
        """The target whose rules an INT8 or FP8 graph follows; empty for other graphs."""
        return self.get("target", "")

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """The preprocessing that the graph expects; ``None`` if unknown.

        Raises:
            GraphError: The entry is not a preprocessing; so for the other properties.
        """
        from optimizer.data.preprocessing import Preprocessing

        values: dict[str, Any] | None = self._json("preprocessing", dict[str, Any], None)
        if values is not None:
            try:
                Preprocessing.from_dict(values)
            except DataError as error:
                raise GraphError(
                    f"metadata entry {_PREFIX}preprocessing: {error.message}", hint=error.hint
                ) from error
        return values

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the outputs; ``None`` if there are none."""
        classes: list[str] | None = self._json("classes", list[str], None)
        return classes or None

    @property
    def detector(self) -> dict[str, Any] | None:
        """How a detector's outputs become boxes; ``None`` for a classifier."""
        detector: dict[str, Any] | None = self._json("detector", dict[str, Any], None)
        return detector

    @property
    def has_nms(self) -> bool:
        """Whether the outputs are boxes, for use in other programs."""
        return "nms" in self

    @property
    def widths(self) -> dict[str, Any] | None:
        """Channels and blocks of a narrow network; ``None`` for a whole one."""
        widths: dict[str, Any] | None = self._json("widths", dict[str, Any], None)
        return widths

    @property
    def keep(self) -> list[str]:
        """Nodes deliberately kept in high precision.

        For INT8 and FP8 these are weighted layers, for half precision any unsupported node.
        """
        keep: list[str] = self._json("keep", list[str], [])
        return keep

    @property
    def notes(self) -> list[str]:
        """Notes of the pass that wrote the graph."""
        notes: list[str] = self._json("notes", list[str], [])
        return notes

    @property
    def absorbed(self) -> dict[str, str]:
        """Maps the output of each ReLU that lowering removed to its input."""
        absorbed: dict[str, str] = self._json("absorbed", dict[str, str], {})
        return absorbed

    @property
    def shifted(self) -> list[str] | None:
        """Tensors quantized around their midpoint; ``None`` if unknown."""
        shifted: list[str] | None = self._json("shifted", list[str], None)
        return shifted

    def _json(self, name: str, kind: Any, default: Any) -> Any:
        """The value of an entry, of a type that pydantic knows."""
        if name not in self:
            return default
        try:
            # Unlike the standard library, pydantic limits the depth of nesting.
            return TypeAdapter(kind | None).validate_json(self[name], strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = "".join(f"[{part!r}]" for part in first["loc"][:1])
            raise GraphError(
                f"metadata entry {_PREFIX}{name}{where}: {first['msg']}",
                hint="export the graph again with resnet-opt export, or remove the entry",
            ) from error


def metadata_of(graph: Path) -> Metadata:
    """The entries of an ONNX file.

    Raises:
        GraphError: As in `open_onnx`.
    """
    return Metadata.of_proto(open_onnx(graph, weights=False).proto)


def preprocessed_metadata(graph: Path) -> Metadata:
    """The entries of an ONNX file, which must include the preprocessing.

    Raises:
        GraphError: The preprocessing is missing; or as in `metadata_of`.
    """
    metadata = metadata_of(graph)
    if "preprocessing" not in metadata:
        raise GraphError(
            f"{graph.name} does not say which preprocessing it expects",
            hint="export it with resnet-opt export, or pass --preprocessing-from",
        )
    return metadata


def encoded(entries: Mapping[str, str | Sequence[Any] | Mapping[str, Any]]) -> Metadata:
    """Encode values for storage: strings unchanged, everything else as JSON."""
    return Metadata(
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in entries.items()
    )


def write_metadata(
    model: ir.Model, **entries: str | Sequence[Any] | Mapping[str, Any] | None
) -> None:
    """Set entries of a model in place; ``None`` values are ignored."""
    given = {name: value for name, value in entries.items() if value is not None}
    model.metadata_props.update({_PREFIX + name: text for name, text in encoded(given).items()})


def remove_precision_metadata(model: ir.Model) -> None:
    """Remove the entries written by an earlier precision pass, in place."""
    for name in _PRECISION_KEYS:
        model.metadata_props.pop(_PREFIX + name, None)
