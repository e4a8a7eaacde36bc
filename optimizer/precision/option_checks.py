"""Checks of the conversion options, before anything is computed."""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import UsageError
from optimizer.graphs.facts import is_quantized
from optimizer.graphs.metadata import preprocessed_metadata
from optimizer.options import Conversion, EncodingOptions, ForeignGraph, flag
from optimizer.precision.foreign import needs_import

__all__ = ["check_options"]


def check_options(graph: Path, precision: str, options: Conversion) -> None:
    """Reject options that would have no effect, and unknown layers to keep.

    Args:
        graph: The graph to convert, FP32 or Q/DQ.
        precision: The requested precision, including ``mixed``.
        options: The requested options; defaults are never rejected.

    Raises:
        UsageError: Encoding options were given for a precision other than INT8 and mixed, together
            with an encodings file, or for a Q/DQ graph, which has its own encodings (only the range
            method is accepted there); or the graph does not have a layer to keep.
    """
    given = {name: _flag(name, value) for name, value in _encoding_options(options).items()}
    if not given:
        return
    flags = ", ".join(given.values())
    if precision not in {"int8", "mixed"}:
        raise UsageError(
            f"{flags}: only for INT8 layers; {precision.upper()} has none",
            hint=f"leave out {flags}, or use --precision int8",
        )
    if options.encodings is not None:
        raise UsageError(
            f"{flags}: {options.encodings.name} is used unchanged",
            hint=f"leave out {flags}, or edit the file",
        )
    if list(given) != ["method"] and is_quantized(graph):
        flags = ", ".join(text for name, text in given.items() if name != "method")
        raise UsageError(
            f"{flags}: {graph.name} is already quantized, so its own encodings are used",
            hint=f"leave out {flags}, or quantize its float graph (resnet-opt quantize "
            f"{graph.name} --precision fp32)",
        )
    # A file of another exporter is checked after the import, which names the layers.
    if options.keep and not needs_import(graph, options.of_kind(ForeignGraph)):
        from optimizer.graphs.importing import load_graph
        from optimizer.graphs.topology import analyse

        preprocessed_metadata(graph)  # has the better error for a file that is not a graph
        analyse(load_graph(graph)).check_layers(options.keep)


def _encoding_options(options: Conversion) -> dict[str, object]:
    """The encoding options that were given, by name."""
    return options.of_kind(EncodingOptions).as_given()


def _flag(name: str, value: object) -> str:
    return "--no-" + name if value is False else flag(name)
