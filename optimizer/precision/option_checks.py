"""The options of a conversion, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import UsageError
from optimizer.graphs.facts import is_quantized
from optimizer.graphs.metadata import preprocessed_metadata
from optimizer.options import Conversion, EncodingOptions, flag

__all__ = ["check_options"]


def check_options(graph: Path, precision: str, options: Conversion) -> None:
    """Refuse options that would do nothing, or that the graph has no layers for.

    Args:
        graph: The graph that is to be converted, FP32 or Q/DQ.
        precision: The precision requested, ``mixed`` among them.
        options: The options requested; defaults are never refused.

    Raises:
        UsageError: Options of encodings for another precision than INT8 and mixed, beside encodings
            that are complete, or for a Q/DQ graph, which brings its own (of these the range method
            alone counts); layers to keep that the graph does not have.
    """
    given = {name: _flag(name, value) for name, value in _encoding_options(options).items()}
    if not given:
        return
    flags = ", ".join(given.values())
    if precision not in {"int8", "mixed"}:
        raise UsageError(
            f"{flags}: this is for INT8 layers, and {precision.upper()} has none",
            hint=f"leave out {flags}, or --precision int8",
        )
    if options.encodings is not None:
        raise UsageError(
            f"{flags}: {options.encodings.name} is used as it is",
            hint=f"leave out {flags}, or edit the file",
        )
    if list(given) != ["method"] and is_quantized(graph):
        flags = ", ".join(text for name, text in given.items() if name != "method")
        raise UsageError(
            f"{flags}: {graph.name} is quantized and brings integers of its own",
            hint=f"leave out {flags}, or quantize its float graph (resnet-opt quantize "
            f"{graph.name} --precision fp32)",
        )
    if options.keep:
        from optimizer.graphs.importing import load_graph
        from optimizer.graphs.topology import analyse

        preprocessed_metadata(graph)  # reports what is wrong with a file that is no graph
        analyse(load_graph(graph)).check_layers(options.keep)


def _encoding_options(options: Conversion) -> dict[str, object]:
    """The options of encodings that were given, by name."""
    return options.of_kind(EncodingOptions).as_given()


def _flag(name: str, value: object) -> str:
    return "--no-" + name if value is False else flag(name)
