"""The verbs that make artifacts: train, export, calibrate, quantize, build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache, check_output
from optimizer.errors import UsageError
from optimizer.progress import Progress

if TYPE_CHECKING:
    from optimizer.engines.building import Limits
    from optimizer.precision.int8 import EncodingOptions

__all__ = ["build", "calibrate", "export", "quantize", "train"]


def train(
    output: Path | str,
    *,
    arch: str = "resnet50",
    data: str = "digits:train",
    held_out: str | None = None,
    image_size: int = 32,
    epochs: int = 8,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    init: str | None = None,
    skip_bad_images: bool = False,
    workers: int | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Train a ResNet into a checkpoint.

    Args:
        output: Where the checkpoint goes (``.safetensors``).
        arch: Architecture, a torchvision name.
        data: Training images.
        held_out: Images to measure on afterwards; ``digits:train`` has ``digits:test``.
        image_size: Side of the network's input, pixels.
        epochs: Passes over the data.
        batch_size: Images a step; ``None`` for the trainer's own.
        lr: Highest learning rate; ``None`` for the trainer's own.
        seed: Decides initialization, order and augmentation.
        init: A model to train further.
        skip_bad_images: Leave out images that cannot be decoded instead of stopping.
        workers: Processes that decode image files; by default one a core, 0 decodes in this one.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.
    """
    from optimizer.data import open_dataset
    from optimizer.models import load_model
    from optimizer.training import TrainSettings, train_checkpoint

    check_output(Path(output), [init, data])

    settings = TrainSettings(arch=arch, image_size=image_size, epochs=epochs, seed=seed)
    if batch_size is not None:
        settings = replace(settings, batch_size=batch_size)
    if lr is not None:
        settings = replace(settings, lr=lr)
    if held_out is None and data == "digits:train":
        held_out = "digits:test"
    opened = partial(open_dataset, skip_bad_images=skip_bad_images, workers=workers)
    return train_checkpoint(
        settings,
        opened(data),
        Path(output),
        held_out=opened(held_out) if held_out else None,
        init=load_model(init, image_size=image_size) if init else None,
        cache=cache,
        progress=progress,
    )


def export(
    model: str,
    output: Path | str,
    *,
    arch: str | None = None,
    batch: int | None = None,
    image_size: int | None = None,
    input_kind: str = "float32-nchw",
    opset: int = 20,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Export a model to a checked ONNX file; see `optimizer.exporting.export_onnx`."""
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    check_output(Path(output), [model])
    return export_onnx(
        load_model(model, arch=arch, image_size=image_size),
        Path(output),
        batch=batch,
        input_kind=input_kind,
        opset=opset,
        cache=cache,
        progress=progress,
    )


def calibrate(
    graph: Path | str,
    output: Path | str,
    *,
    calib: str,
    calib_images: int = 256,
    seed: int = 0,
    batch: int = 32,
    skip_bad_images: bool = False,
    workers: int | None = None,
    preprocessing_from: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Take calibration statistics of an FP32 graph; see `optimizer.precision.calibrate`."""
    from optimizer import precision
    from optimizer.data import open_dataset

    check_output(Path(output), [graph, calib, preprocessing_from])
    dataset = open_dataset(
        calib, limit=calib_images, seed=seed, skip_bad_images=skip_bad_images, workers=workers,
        labelled=False,
    )  # fmt: skip
    return precision.calibrate(
        Path(graph), dataset, Path(output), batch=batch,
        preprocessing_from=preprocessing_from, cache=cache, progress=progress,
    )  # fmt: skip


def quantize(
    graph: Path | str,
    output: Path | str,
    *,
    precision: str,
    target: str = "openvino",
    calib: str | None = None,
    calib_images: int = 256,
    stats: Path | str | None = None,
    encodings: Path | str | None = None,
    data: str | None = None,
    max_drop_pp: float = 1.0,
    options: EncodingOptions | None = None,
    high_precision: str | None = None,
    preprocessing_from: str | None = None,
    skip_bad_images: bool = False,
    workers: int | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Turn an FP32 graph into an explicit graph of another precision.

    INT8 takes its calibration from ``encodings``, else ``stats``, else it calibrates on ``calib``
    and leaves the statistics beside the output; FP8 does the same without encodings. FP16 and BF16
    can do without, and then do not know which tensors they cannot hold. A Q/DQ graph is read and
    lowered again for the target; it needs calibration only for what it leaves in float.
    ``mixed`` searches on ``calib`` for the fastest graph that loses at most ``max_drop_pp`` and judges
    it on ``data``; its `SearchResult` lies beside it.
    """
    from optimizer import precision as room

    graph, output = Path(graph), Path(output)
    precision = _known(precision)
    check_output(output, [graph, calib, data, stats, encodings, preprocessing_from])
    if precision not in {"int8", "mixed"} and encodings is not None:
        raise UsageError("encodings are for INT8", mend="--precision int8, or no --encodings")
    room.check_options(graph, precision, options, encodings=_path(encodings))
    if precision == "mixed":
        from optimizer import search

        if preprocessing_from is not None:
            graph = room.prepared(
                graph, output, preprocessing_from=preprocessing_from, cache=cache, progress=progress
            )
        found = search.search_path(output)
        made = search.mixed(
            graph,
            output,
            search.images_for(
                calib,
                data,
                encodings or stats,
                calib_images=calib_images,
                skip_bad_images=skip_bad_images,
                workers=workers,
            ),
            target=target,
            result=found,
            max_drop_pp=max_drop_pp,
            calib_images=calib_images,
            options=options,
            high_precision=high_precision,
            cache=cache,
            progress=progress,
        )
        search.judge(
            made.path, graph, found, str(data), skip_bad_images=skip_bad_images, workers=workers,
            progress=progress,
        )  # fmt: skip
        return made
    measured = precision in {"int8", "fp8", "fp16", "bf16"}
    if measured and encodings is None and stats is None and calib is not None:
        stats = calibrate(
            graph, output.with_name(f"{graph.stem}.stats.npz"), calib=calib,
            calib_images=calib_images, preprocessing_from=preprocessing_from,
            skip_bad_images=skip_bad_images, workers=workers, cache=cache, progress=progress,
        ).path  # fmt: skip
    return room.quantize(
        graph,
        output,
        precision=precision,
        target=target,
        statistics=_path(stats),
        encodings=_path(encodings),
        options=options,
        high_precision=high_precision,
        preprocessing_from=preprocessing_from,
        cache=cache,
        progress=progress,
    )


def build(
    graph: Path | str,
    output: Path | str,
    *,
    precision: str = "fp32",
    engine: str = "auto",
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    target: Sequence[str] = (),
    profile: tuple[int, int, int] | None = None,
    workspace_bytes: int | None = None,
    opt_level: int | None = None,
    timing_cache: Path | None = None,
    threads: int | None = None,
    storage_only: bool = False,
    backend_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    calib: str | None = None,
    calib_images: int = 256,
    stats: Path | str | None = None,
    encodings: Path | str | None = None,
    data: str | None = None,
    max_drop_pp: float = 1.0,
    options: EncodingOptions | None = None,
    high_precision: str | None = None,
    preprocessing_from: str | None = None,
    skip_bad_images: bool = False,
    workers: int | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile an engine: the explicit graph first, then the backend; `audit_engine` judges it.

    Args:
        graph: The FP32 graph, a graph that carries the precision already, or a checkpoint for the
            ``torch`` engine.
        output: The engine file; the explicit graph goes beside it (``<output>.graph.onnx``).
        precision: What to compute in.
        engine: A backend, or ``auto`` for the fastest here that computes the precision.
        provider: Of ONNX Runtime: ``cpu``, ``cuda``, ``tensorrt`` or ``nv-tensorrt-rtx``.
        provider_options: The provider's own options, by its own names.
        target: TensorRT-RTX compute capabilities (``sm86``).
        profile: (min, opt, max) batch.
        workspace_bytes: TensorRT's scratch memory.
        opt_level: TensorRT's optimization level, 0 to 5.
        timing_cache: TensorRT's timing cache file.
        threads: Threads of a CPU engine.
        storage_only: Allow a CPU engine to store half types and compute in FP32, labelled so.
        backend_options: Further options of the backend, by its own names (for TensorRT those of
            `optimizer.engines.tensorrt.options.Options`; for OpenVINO ``fixed_batch``, sizes of batch
            that it is compiled for one by one, beside any size).
        limits: Of the library's memory and time; ``None`` for half an hour and any memory.
        calib: Calibration images for INT8 and FP8, and for FP16 and BF16 if what they cannot hold is
            to stay in FP32; for ``mixed`` the search uses others of them.
        calib_images: How many of them.
        stats: Statistics to use instead of calibrating.
        encodings: Encodings to use as they are.
        data: For ``mixed``, images that judge the engine; the `SearchResult` beside it says how.
        max_drop_pp: For ``mixed``, the largest loss of top-1, percentage points.
        options: Which passes compute the encodings.
        high_precision: ``fp16`` or ``fp32`` around INT8 or FP8; ``None`` for the target's own.
        preprocessing_from: What knows the preprocessing of an FP32 graph that does not say it; the
            graph with it goes beside the output.
        skip_bad_images: Leave out images that cannot be decoded instead of stopping.
        workers: Processes that decode calibration images; by default one a core.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.
    """
    from optimizer import search
    from optimizer.engines import BuildSettings, get_backend
    from optimizer.engines.building import build_engine, check_buildable
    from optimizer.engines.choice import choose_engine
    from optimizer.engines.opening import GRAPH_SUFFIX
    from optimizer.engines.providers import lowering_target
    from optimizer.graphs.facts import graph_facts
    from optimizer.precision import check_options, prepared

    precision = _known(precision)
    graph, output = Path(graph), Path(output)
    check_output(output, [graph, calib, data, stats, encodings, preprocessing_from])
    check_options(graph, precision, options, encodings=_path(encodings))
    name = engine
    if engine == "auto":
        name = choose_engine(precision) if provider is None else "onnxruntime"
    lowered_for = lowering_target(name, provider)
    if provider_options and provider is None:
        raise UsageError("--provider-option without a provider", mend="--provider NAME")
    backend = get_backend(name)
    facts = None if graph.suffix == ".safetensors" else graph_facts(graph)
    if preprocessing_from is not None and (facts is None or facts.precision != "fp32"):
        raise UsageError(
            "--preprocessing-from is for FP32 graphs here",
            mend="resnet-opt quantize takes it for a graph that is INT8 already",
        )
    settings = BuildSettings(
        precision=precision,
        batch=facts.input_shape[0] if facts else None,
        profile=profile,
        targets=tuple(target),
        workspace_bytes=workspace_bytes,
        opt_level=opt_level,
        timing_cache=timing_cache,
        threads=threads,
        options={
            **({"storage_only": True} if storage_only else {}),
            **({"provider": provider} if provider else {}),
            **({"provider_options": dict(provider_options)} if provider_options else {}),
            **(backend_options or {}),
        },
    )
    check_buildable(backend, settings)
    if preprocessing_from is not None:
        graph = prepared(
            graph, output, preprocessing_from=preprocessing_from, cache=cache, progress=progress
        )
    source = graph
    reading: dict[str, Any] = {"skip_bad_images": skip_bad_images, "workers": workers}
    explicit: dict[str, Any] = {
        "target": lowered_for,
        "calib_images": calib_images,
        "options": options,
        "high_precision": high_precision,
        "cache": cache,
        "progress": progress,
    }
    convert = facts is not None and facts.precision == "fp32" and precision != "fp32"
    found = search.search_path(output) if convert and precision == "mixed" else None
    if convert:
        source = output.with_name(output.name + GRAPH_SUFFIX)
        if found is not None:
            search.mixed(
                graph,
                source,
                search.images_for(
                    calib, data, encodings or stats, calib_images=calib_images, **reading
                ),
                result=found,
                max_drop_pp=max_drop_pp,
                **explicit,
            )
        else:
            quantize(
                graph, source, precision=precision, calib=calib, stats=stats, encodings=encodings,
                **reading, **explicit,
            )  # fmt: skip
        # A search may keep nothing, and --keep makes a mix of INT8.
        settings = replace(settings, precision=graph_facts(source).precision)
    made = build_engine(
        source, output, name, settings, cache=cache, limits=limits, progress=progress
    )
    if found is not None:
        search.judge(made.path, graph, found, str(data), progress=progress, **reading)
    return made


def _known(precision: str) -> str:
    """A precision's name as everything after writes it.

    Raises:
        UsageError: No such precision.
    """
    from optimizer.precision import PRECISIONS

    names = (*PRECISIONS, "mixed")
    if precision.lower() not in names:
        raise UsageError(f"unknown precision {precision!r}", mend=f"one of {', '.join(names)}")
    return precision.lower()


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)
