"""What was asked of a quantization, checked before anything is computed for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import UsageError
from optimizer.graphs.facts import is_quantized
from optimizer.graphs.metadata import preprocessed_metadata

if TYPE_CHECKING:
    from optimizer.precision.int8 import EncodingOptions

__all__ = ["check_options"]

_FLAGS = {
    "method": "--method",
    "equalize": "--no-equalize",
    "alpha": "alpha",
    "bias": "--bias-correction",
    "shift": "--no-shift",
    "keep": "--keep",
}
"""What the command line calls the options that differ from the default."""


def check_options(
    graph: Path,
    precision: str,
    options: EncodingOptions | None,
    *,
    encodings: Path | None = None,
) -> None:
    """Refuse options that would do nothing, or that the graph has no layers for.

    Args:
        graph: The graph that is to be quantized, FP32 or Q/DQ.
        precision: The precision asked for, ``mixed`` among them.
        options: The options asked for; ``None`` for the default ones, which are never refused.
        encodings: Encodings that are to be used as they are.

    Raises:
        UsageError: Options for another precision than INT8 and mixed, beside encodings
            that are complete, or for a Q/DQ graph, which brings its own (of these the range method
            alone counts); layers to keep that the graph does not have.
    """
    asked = _asked(options)
    if options is None or not asked:
        return
    said = ", ".join(_FLAGS[name] for name in asked)
    if precision not in {"int8", "mixed"}:
        raise UsageError(
            f"{said}: this is for INT8 layers, and {precision.upper()} has none",
            mend=f"leave out {said}, or --precision int8",
        )
    if encodings is not None:
        raise UsageError(
            f"{said}: {encodings.name} is used as it is", mend=f"leave out {said}, or edit the file"
        )
    if asked != ["method"] and is_quantized(graph):
        said = ", ".join(_FLAGS[name] for name in asked if name != "method")
        raise UsageError(
            f"{said}: {graph.name} is quantized and brings integers of its own",
            mend=f"leave out {said}, or quantize its float graph (resnet-opt quantize "
            f"{graph.name} --precision fp32)",
        )
    if options.keep:
        from optimizer.graphs.importing import load_graph
        from optimizer.graphs.topology import analyse

        preprocessed_metadata(graph)  # says what is wrong with a file that is no graph
        analyse(load_graph(graph)).check_layers(options.keep)


def _asked(options: EncodingOptions | None) -> list[str]:
    """Names of the options that are not the default."""
    if options is None:
        return []
    default = type(options)()
    return [name for name in _FLAGS if getattr(options, name) != getattr(default, name)]
