"""Engine layers from the text of a VERBOSE build with DETAILED profiling verbosity.

On a machine without a GPU, a TensorRT-RTX engine cannot be opened to list its layers. The builder,
however, prints every layer once, one per line::

    Name: conv1_myl0_2, LayerType: correlation, Inputs: [ { Name: .., Dimensions: [-1,4,16,16],
    Strides: [..], Datatype: Int8, Format: .. }], Constants: [ .. ], Outputs: [ .. ],
    TacticName: .., StreamId: 0, Metadata: [ONNX Layer: conv1]
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from optimizer.engines.tensorrt.layers import RawLayer, Tensor, precision_of, with_profiles

__all__ = ["layers_in_log"]

_LAYER = re.compile(r"^\s*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), (?P<rest>.*)$")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?),(?: Location: \w+,)? Dimensions: \[(?P<shape>[-\d,]*)\]"
    r".*?(?:Format/Datatype|Datatype): (?P<type>[^,}]*)"
)
_WEIGHTS = re.compile(r"Weights: \{ ?\"?Type\"?: \"?(?P<type>\w+)")
_TACTIC = re.compile(r"TacticName: (?P<tactic>.*?),")
_SECTIONS = re.compile(r"(?:^|, )(Inputs|Constants|Outputs): \[")


def layers_in_log(messages: Iterable[str]) -> list[RawLayer]:
    """The layers in the messages of one build, in execution order.

    Args:
        messages: The library's messages of all severities. If it printed several lists of layers
            (one per subgraph), all are returned.
    """
    layers = [
        layer
        for message in messages
        if "LayerType: " in message
        for line in message.split("\n")  # splitlines() would also split at U+001E
        if (layer := _layer(line)) is not None
    ]
    return with_profiles(layers)


def _layer(line: str) -> RawLayer | None:
    match = _LAYER.match(line)
    if match is None:
        return None
    rest, _, metadata = match["rest"].partition("Metadata: ")
    sections = _split(rest)
    weights = _WEIGHTS.search(rest)
    tactic = _TACTIC.search(rest)
    return RawLayer(
        name=match["name"],
        type=match["type"],
        inputs=sections.get("Inputs", []),
        constants=sections.get("Constants", []),
        outputs=sections.get("Outputs", []),
        weights=precision_of(weights["type"]) if weights else None,
        tactic=tactic["tactic"] if tactic else "",
        metadata=metadata,
    )


def _split(rest: str) -> dict[str, list[Tensor]]:
    marks = list(_SECTIONS.finditer(rest))
    ends = [mark.start() for mark in marks[1:]] + [len(rest)]
    return {
        mark[1]: [_tensor(match) for match in _TENSOR.finditer(rest, mark.end(), end)]
        for mark, end in zip(marks, ends, strict=True)
    }


def _tensor(match: re.Match[str]) -> Tensor:
    shape = tuple(int(number) for number in match["shape"].split(",") if number)
    return Tensor(match["name"], shape, precision_of(match["type"]))
