"""The verb ``quantize``: convert a graph to another precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from optimizer.artifacts import Artifact, Cache, check_outputs
from optimizer.errors import UsageError
from optimizer.options import (
    BuildOptions,
    CalibrateOptions,
    Conversion,
    ForeignGraph,
    QuantizeOptions,
    takes_options,
)
from optimizer.progress import Progress
from optimizer.results import SearchResult
from optimizer.verbs.calibrate import calibrate
from optimizer.verbs.outcomes import QuantizeResult
from optimizer.verbs.planned_files import conversion_files, is_calibrated

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["check_search_options", "conversion_inputs", "convert", "imported", "quantize"]


@takes_options(QuantizeOptions)
def quantize(
    graph: Path | str,
    output: Path | str,
    options: QuantizeOptions,
    *,
    images: ImageDataset | None = None,
    cache: Cache | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Convert a graph to another precision.

    INT8 uses ``encodings``, or ``stats``, or calibrates on ``calib`` and writes the statistics
    beside the output; FP8 does the same without encodings. FP16 and BF16 do not require statistics,
    but without them tensors that exceed their range are not detected. A graph with Q/DQ is read and
    lowered again for the target; it needs calibration only for the tensors that it leaves in float.
    ``mixed`` searches on ``calib`` for the fastest graph that loses at most ``max_drop``, validates
    it on ``data``, and writes its `SearchResult` beside it.

    Args:
        graph: An ONNX file, in FP32 or with Q/DQ.
        output: The ``.onnx`` file to write.
        options: See below.
        images: For ``mixed``, a labelled dataset to use instead of ``calib``.
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: Options that would have no effect, or missing images.
        ArtifactError: Statistics or encodings of another graph.
        GraphError: The graph cannot be read or converted.
        DataError: Images that cannot be used.
    """
    from optimizer.models import is_model
    from optimizer.precision import check_options, is_quantized
    from optimizer.precision.foreign import needs_import

    graph, output = Path(graph), Path(output)
    if is_model(graph):
        raise UsageError(
            f"quantize takes an ONNX file, and {graph} is a model",
            hint=f"resnet-opt export {graph} -o model.onnx, then resnet-opt quantize model.onnx; "
            "resnet-opt build exports by itself",
        )
    to_float = needs_import(graph, options.of_kind(ForeignGraph))
    files = conversion_files(graph, output, options, imported=to_float)
    check_outputs(files, [graph, *conversion_inputs(options)], force=force)
    if options.precision not in {"int8", "mixed"} and options.encodings is not None:
        raise UsageError(
            "--encodings is for INT8", hint="--precision int8, or leave out --encodings"
        )
    check_search_options(options, options.precision)
    check_options(graph, options.precision, options)
    if options.precision != "fp32" and not is_quantized(graph):
        graph, options = imported(graph, output, options, cache=cache, progress=progress)
    artifact, search = convert(
        graph, output, options, images=images, cache=cache, progress=progress
    )
    if search is not None and options.data is not None:
        search = judge_search(
            artifact.path, graph, search_path(output), options, cache=cache, progress=progress
        )
    return QuantizeResult.of(artifact, search=search)


def check_search_options(options: Conversion, precision: str) -> None:
    """Refuse ``labels_from`` and ``cache_limit`` where no search is validated."""
    if precision == "mixed":
        return
    if options.labels_from:
        raise UsageError(
            f"--labels-from: {precision.upper()} uses no labels", hint="leave out --labels-from"
        )
    if "cache_limit" in options.as_given():
        raise UsageError(
            f"--cache-limit: {precision.upper()} stores no predictions",
            hint="leave out --cache-limit",
        )


OptionsT = TypeVar("OptionsT", QuantizeOptions, BuildOptions)


def imported(
    graph: Path,
    output: Path,
    options: OptionsT,
    *,
    cache: Cache | None,
    progress: Progress | None,
) -> tuple[Path, OptionsT]:
    """A graph as `resnet-opt export` writes it, and the options without those about the file.

    Args:
        graph: An FP32 graph, or an ONNX file of another exporter; not quantized.
        output: What will be written; an imported graph goes next to it.
        options: The options of the verb.
        cache: Artifact cache; ``None`` for no cache.
        progress: Receives progress updates.

    Raises:
        GraphError: The file cannot be read or imported.
        UsageError: The graph does not have a layer to keep.
    """
    from optimizer.precision import check_options, prepared
    from optimizer.precision.foreign import check_described

    source = options.of_kind(ForeignGraph)
    if options.precision != "fp32":
        check_described(graph, source)
    graph = prepared(graph, output, source, cache=cache, progress=progress)
    options = options.model_copy(
        update={name: field.default for name, field in ForeignGraph.model_fields.items()}
    )
    check_options(graph, options.precision, options)  # now the names of its layers are known
    return graph, options


def conversion_inputs(options: Conversion) -> list[Path | str | None]:
    """The files, other than the graph, that a conversion reads."""
    return [
        options.calib, options.data, options.stats, options.encodings, options.preprocessing_from
    ]  # fmt: skip


def convert(
    graph: Path,
    output: Path,
    options: QuantizeOptions,
    *,
    images: ImageDataset | None = None,
    result_path: Path | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> tuple[Artifact, SearchResult | None]:
    """Write the converted graph; for ``mixed`` search for it, without validating it.

    Args:
        graph: An ONNX file, in FP32 or with Q/DQ.
        output: The ``.onnx`` file to write.
        options: Checked options.
        images: See `quantize`.
        result_path: File for the `SearchResult` of ``mixed``; beside the output by default.
        cache: Artifact cache; ``None`` for no cache.
        progress: Receives progress updates.
    """
    from optimizer import precision

    if options.precision == "mixed":
        return _search(graph, output, options, images, result_path, cache, progress)
    if is_calibrated(options):
        statistics = calibrate(
            graph,
            output.with_name(f"{graph.stem}.stats.npz"),
            options.of_kind(CalibrateOptions),
            cache=cache,
            progress=progress,
        )
        options = options.model_copy(update={"stats": statistics.path})
    return precision.quantize(graph, output, options, cache=cache, progress=progress), None


def _search(
    graph: Path,
    output: Path,
    options: QuantizeOptions,
    images: ImageDataset | None,
    result_path: Path | None,
    cache: Cache | None,
    progress: Progress | None,
) -> tuple[Artifact, SearchResult]:
    from optimizer import search

    result_path = result_path or search_path(output)
    artifact = search.mixed(
        graph,
        output,
        search.open_search_images(options) if images is None else images,
        options,
        result=result_path,
        cache=cache,
        progress=progress,
    )
    return artifact, read_search(result_path)


def search_path(output: Path) -> Path:
    """The file of a search's result beside an engine or a graph."""
    from optimizer.search import search_path as path_beside

    return path_beside(output)


def read_search(path: Path) -> SearchResult:
    """Read the result of a search."""
    from optimizer.results import read_result

    result = read_result(path)
    assert isinstance(result, SearchResult)
    return result


def judge_search(
    file: Path,
    graph: Path,
    result_path: Path,
    options: Conversion,
    *,
    cache: Cache | None,
    progress: Progress | None,
) -> SearchResult:
    """Validate the graph of a search, or an engine built from it, and add that to its result."""
    from optimizer import search

    search.judge(file, graph, result_path, options, cache=cache, progress=progress)
    return read_search(result_path)
