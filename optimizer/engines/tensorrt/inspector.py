"""Engine layers from the JSON of the library's engine inspector.

The schema changed in TensorRT 11: a tensor's ``Format/Datatype`` was split into ``Datatype`` and
``Format``, and the list of names ``Bindings`` became the list of objects ``I/O Tensors``.
An engine built with less than DETAILED verbosity lists only names, as plain strings.

Without an execution context whose shapes are set, TensorRT up to 10 prints ``N/A due to dynamic
shapes`` instead of every tensor's type if the batch is dynamic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from optimizer.engines.tensorrt.layers import RawLayer, Tensor, precision_of, with_profiles
from optimizer.errors import ArtifactError

__all__ = ["inspect_engine", "inspector_text", "layers_in_json"]


def inspect_engine(trt: Any, engine: Any, context: Any = None) -> list[RawLayer]:
    """The layers of an open engine.

    Args:
        trt: The library.
        engine: The engine.
        context: An execution context of it with every input shape set; ``None`` if it could not be
            created. Tensor types may be unknown then.
    """
    return layers_in_json(inspector_text(trt, engine, context))


def inspector_text(trt: Any, engine: Any, context: Any = None) -> str:
    """The library's own JSON; see `inspect_engine`."""
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layers_in_json(text: str) -> list[RawLayer]:
    """The layers in what `EngineInspector.get_engine_information` returns.

    Raises:
        ArtifactError: The text is not such JSON.
    """
    try:
        document = json.loads(text)
        return with_profiles([_layer(entry) for entry in document["Layers"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the engine inspector's output cannot be read: {error}",
            hint="report it with the version of TensorRT",
        ) from error


def _layer(entry: Mapping[str, Any] | str) -> RawLayer:
    if isinstance(entry, str):
        return RawLayer(name=entry, type="unknown", outputs=[Tensor("", (), "unknown")])
    # A fusion of convolution and pooling prefixes the keys of its convolution.
    weights = entry.get("Weights") or entry.get("ConvWeights")
    return RawLayer(
        name=str(entry["Name"]),
        type=str(entry.get("LayerType", "unknown")),
        inputs=_tensors(entry.get("Inputs", ())),
        constants=_tensors(entry.get("Constants", ())),
        outputs=_tensors(entry.get("Outputs", ())),
        weights=precision_of(str(weights["Type"])) if isinstance(weights, Mapping) else None,
        tactic=str(entry.get("TacticName", "")),
        metadata=str(entry.get("Metadata", "")),
    )


def _tensors(entries: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return [
        Tensor(
            str(entry.get("Name", "")),
            _shape(entry.get("Dimensions", ())),
            precision_of(str(entry.get("Datatype") or entry.get("Format/Datatype") or "")),
        )
        for entry in entries
    ]


def _shape(dimensions: object) -> tuple[int, ...]:
    """The dimensions; empty if the library prints a text instead."""
    return tuple(int(d) for d in dimensions) if isinstance(dimensions, list | tuple) else ()
