"""The verb ``quantize``: the explicit graph of another precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifacts import Artifact, Cache, check_output
from optimizer.errors import UsageError
from optimizer.options import CalibrateOptions, Conversion, QuantizeOptions, takes_options
from optimizer.progress import Progress
from optimizer.results import SearchResult
from optimizer.verbs.calibrate import calibrate
from optimizer.verbs.outcomes import QuantizeResult

if TYPE_CHECKING:
    from optimizer.data import ImageDataset

__all__ = ["conversion_inputs", "convert", "quantize"]

_CALIBRATED = {"int8", "fp8", "fp16", "bf16"}


@takes_options(QuantizeOptions)
def quantize(
    graph: Path | str,
    output: Path | str,
    options: QuantizeOptions,
    *,
    images: ImageDataset | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Turn an FP32 graph into an explicit graph of another precision.

    INT8 takes its calibration from ``encodings``, else ``stats``, else it calibrates on ``calib`` and
    leaves the statistics beside the output; FP8 does the same without encodings. FP16 and BF16 can
    do without, and then do not know which tensors they cannot hold. A Q/DQ graph is read and lowered
    again for the target; it needs calibration only for what it leaves in float. ``mixed`` searches
    on ``calib`` for the fastest graph that loses at most ``max_drop`` and judges it on ``data``; its
    `SearchResult` lies beside it.

    Args:
        graph: An FP32 graph, or a Q/DQ one.
        output: Where the graph goes (``.onnx``).
        options: See below.
        images: For ``mixed``, labelled images that are open already, instead of ``calib``; the
            result is then not judged.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

    Raises:
        UsageError: Options that would do nothing, or images that are missing.
        ArtifactError: Statistics or encodings of another graph.
        GraphError: The graph cannot be read or converted.
        DataError: Images that cannot be used.
    """
    from optimizer.precision import check_options

    graph, output = Path(graph), Path(output)
    check_output(output, [graph, *conversion_inputs(options)])
    if options.precision not in {"int8", "mixed"} and options.encodings is not None:
        raise UsageError("encodings are for INT8", hint="--precision int8, or no --encodings")
    check_options(graph, options.precision, options)
    made, search = convert(graph, output, options, images=images, cache=cache, progress=progress)
    if search is not None and options.data is not None:
        search = judge_search(made.path, graph, search_path(output), options, progress)
    return QuantizeResult.of(made, search=search)


def conversion_inputs(options: Conversion) -> list[Path | str | None]:
    """The files that a conversion reads beside the graph."""
    return [
        options.calib, options.data, options.stats, options.encodings, options.preprocessing_from
    ]  # fmt: skip


def convert(
    graph: Path,
    output: Path,
    options: QuantizeOptions,
    *,
    images: ImageDataset | None = None,
    found: Path | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> tuple[Artifact, SearchResult | None]:
    """Write the explicit graph; for ``mixed`` search for it, without judging it.

    Args:
        graph: An FP32 graph, or a Q/DQ one.
        output: Where the graph goes.
        options: Checked options.
        images: See `quantize`.
        found: Where the `SearchResult` of ``mixed`` goes; beside the output by default.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.
    """
    from optimizer import precision

    if options.precision == "mixed":
        return _search(graph, output, options, images, found, cache, progress)
    uncalibrated = options.encodings is None and options.stats is None
    if options.precision in _CALIBRATED and uncalibrated and options.calib is not None:
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
    found: Path | None,
    cache: Cache | None,
    progress: Progress | None,
) -> tuple[Artifact, SearchResult]:
    from optimizer import precision, search

    if options.preprocessing_from is not None:
        graph = precision.prepared(
            graph,
            output,
            preprocessing_from=options.preprocessing_from,
            cache=cache,
            progress=progress,
        )
    found = found or search_path(output)
    made = search.mixed(
        graph,
        output,
        search.open_search_images(options) if images is None else images,
        options,
        result=found,
        cache=cache,
        progress=progress,
    )
    return made, read_search(found)


def search_path(output: Path) -> Path:
    """Where the result of a search lies beside an engine or a graph."""
    from optimizer.search import search_path as beside

    return beside(output)


def read_search(path: Path) -> SearchResult:
    """The result of a search."""
    from optimizer.results import read_result

    result = read_result(path)
    assert isinstance(result, SearchResult)
    return result


def judge_search(
    file: Path, graph: Path, found: Path, options: Conversion, progress: Progress | None
) -> SearchResult:
    """Validate what a search found, a graph or an engine of it, and add that to its result."""
    from optimizer import search

    search.judge(file, graph, found, options, progress=progress)
    return read_search(found)
