"""The files that a verb will write, side files included, for the check before its work."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import OutputFile, find_manifest, mark_of
from optimizer.options import BuildOptions, QuantizeOptions

__all__ = [
    "conversion_files",
    "converted_graph",
    "engine_files",
    "float_graph_file",
    "is_calibrated",
    "kernel_files",
    "predictions_path",
    "sample_files",
    "samples_folder",
]

_CALIBRATED = {"int8", "fp8", "fp16", "bf16"}


def float_graph_file(graph: Path, output: Path) -> OutputFile:
    """The float graph that importing writes beside what is made of it."""
    return OutputFile(output.with_name(f"{graph.stem}.float.onnx"), "graph")


def conversion_files(
    graph: Path,
    output: Path,
    options: QuantizeOptions | BuildOptions,
    *,
    imported: bool = False,
    result: Path | None = None,
) -> list[OutputFile]:
    """What a conversion writes.

    Args:
        graph: The graph to convert; only its name matters.
        output: The converted graph.
        options: The options of the conversion.
        imported: Whether a float graph of ``graph`` is written first.
        result: The `SearchResult` of ``mixed``; beside the output by default.
    """
    from optimizer.search import search_path

    files = [OutputFile(output, "graph")]
    if options.precision == "fp32":
        return files
    if imported:
        files.append(float_graph_file(graph, output))
    mixed = options.precision == "mixed"
    if mixed:
        result = result or search_path(output)
        stem = f"{graph.stem}.float" if imported else graph.stem
        files.append(OutputFile(result, "search", has_manifest=False))
        files.append(OutputFile(output.with_name(f"{stem}.stats.npz"), "statistics"))
    elif is_calibrated(options):
        files.append(OutputFile(output.with_name(f"{graph.stem}.stats.npz"), "statistics"))
    if mixed or (options.precision == "int8" and options.encodings is None):
        encodings = output.with_name(f"{output.stem}.encodings.json")
        files.append(OutputFile(encodings, "encodings"))
    return files


def is_calibrated(options: QuantizeOptions | BuildOptions) -> bool:
    """Whether a conversion calibrates, which writes the statistics beside its output."""
    given = options.encodings is not None or options.stats is not None
    return options.precision in _CALIBRATED and options.calib is not None and not given


def converted_graph(output: Path, folder: Path) -> Path:
    """The graph in the engine's precision, before it is copied beside the engine.

    It has the same name in both places, so that it is written once if both are the same folder.
    """
    from optimizer.engines.opening import GRAPH_SUFFIX

    return folder / f"{output.name}{GRAPH_SUFFIX}"


def engine_files(
    graph: Path,
    output: Path,
    options: QuantizeOptions | BuildOptions,
    *,
    precision: str | None,
    imported: bool = False,
    folder: Path | None = None,
) -> list[OutputFile]:
    """What a build writes.

    Args:
        graph: The graph or checkpoint to build; only its name matters.
        output: The engine.
        options: The options of the build.
        precision: Precision of ``graph``; ``None`` for a checkpoint.
        imported: Whether a float graph of ``graph`` is written first.
        folder: For the files on the way to the engine; ``None`` leaves them out.
    """
    from optimizer.search import search_path

    files = [OutputFile(output, "engine")]
    if precision is None:
        return files
    files.append(OutputFile(converted_graph(output, output.parent), "graph"))
    converts = precision == "fp32" and options.precision != "fp32"
    result = search_path(output)
    if converts and options.precision == "mixed":
        files.append(OutputFile(result, "search", has_manifest=False))
    if folder is None:
        return files
    if imported:
        files.append(float_graph_file(graph, folder / output.name))
        graph = files[-1].path
    if converts:
        source = converted_graph(output, folder)
        files += conversion_files(graph, source, options, result=result)
    return list(dict.fromkeys(files))


def kernel_files(output: Path, options: BuildOptions) -> list[OutputFile]:
    """Files of TensorRT that builds and engines add to: kernel timings, and compiled kernels."""
    from optimizer.engines.tensorrt.rtx import RUNTIME_CACHE

    files = []
    timings = options.timing_cache
    if timings is not None and timings.suffix and not timings.is_dir():
        files.append(
            OutputFile(
                timings, "timing cache", has_manifest=False, option="--timing-cache",
                updated=_is_not_known,
            )
        )  # fmt: skip
    if options.runtime_cache is not None:
        kernels = output.with_name(options.runtime_cache)
        files.append(OutputFile(kernels, RUNTIME_CACHE, option="--runtime-cache"))
    return files


def _is_not_known(path: Path) -> bool:
    """Whether a file is none of this package's; more only the library knows, which checks it too."""
    return find_manifest(path) is None and mark_of(path) is None


def predictions_path(output: Path) -> Path:
    """Where ``validate`` writes predictions beside its result."""
    return output.with_suffix(".predictions.npz")


def samples_folder(output: Path) -> Path:
    """Where ``bench`` writes raw samples beside its result."""
    return output.parent / f"{output.stem}.raw"


def sample_files(folder: Path) -> list[OutputFile]:
    """Existing files that new samples may replace; their names depend on engines and settings."""
    existing = sorted(folder.glob("*-batch*.npz"))
    return [OutputFile(path, "samples", has_manifest=False) for path in existing]
