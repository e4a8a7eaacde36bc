"""ONNX graphs where an engine is expected: an ONNX Runtime engine is built from them first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from optimizer.artifacts import Cache, find_manifest, read_manifest, scratch_folder
from optimizer.errors import UsageError
from optimizer.options import BuildOptions, ForeignGraph, flag
from optimizer.progress import Progress

__all__ = ["engines_of"]

_ENGINE = "onnxruntime"


@contextlib.contextmanager
def engines_of(
    paths: Sequence[Path],
    foreign: ForeignGraph,
    *,
    needs_preprocessing: bool = False,
    progress: Progress | None = None,
) -> Iterator[list[Path]]:
    """The engines to open: each graph is replaced by an engine of ONNX Runtime for the CPU.

    A graph of another exporter is imported first, as `build` does it. The engines are temporary, and
    kept in the cache.

    Args:
        paths: Engines, checkpoints, and ONNX graphs in any precision that ONNX Runtime computes.
        foreign: What graphs of other exporters do not say themselves.
        needs_preprocessing: Whether a graph must state its preprocessing.
        progress: Receives progress updates.

    Raises:
        UsageError: ``foreign`` states something, and there is no graph.
        GraphError: As in `optimizer.build`; or the preprocessing is needed and nothing states it.
    """
    graphs = [path for path in paths if is_graph(path)]
    given = [flag(name) for name in foreign.as_given()]
    if given and not graphs:
        raise UsageError(
            f"{', '.join(given)}: there is no ONNX graph to import, only engines",
            hint=f"leave out {', '.join(given)}",
        )
    if not graphs:
        yield list(paths)
        return
    from optimizer.precision.foreign import check_described

    if needs_preprocessing:
        for graph in graphs:
            check_described(graph, foreign)
    with scratch_folder("graphs") as scratch:
        built = {
            path: _build(path, scratch / str(number), foreign, progress)
            for number, path in enumerate(graphs)
        }
        yield [built.get(path, path) for path in paths]


def is_graph(path: Path) -> bool:
    """Whether a path is an ONNX file that is not an engine."""
    from optimizer.engines.opening import is_foreign_graph

    if is_foreign_graph(path):
        return True
    has_manifest = path.suffix == ".onnx" and find_manifest(path) is not None
    return has_manifest and read_manifest(path).kind == "graph"


def _build(graph: Path, folder: Path, foreign: ForeignGraph, progress: Progress | None) -> Path:
    from optimizer.graphs.facts import graph_facts
    from optimizer.graphs.metadata import metadata_of
    from optimizer.verbs.build import build

    folder.mkdir()
    written = metadata_of(graph).precision
    quantized = graph_facts(graph, foreign).precision in {"int8", "fp8"}
    precision = graph_facts(graph, foreign).precision if quantized else written
    options = BuildOptions.parse({**foreign.as_given(), "engine": _ENGINE, "precision": precision})
    output = folder / f"{graph.stem}.ort.onnx"
    return build(graph, output, options, cache=Cache.default(), progress=progress).path
