"""Training an INT8 network, for the verb ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    OutputFile,
    Plan,
    check_outputs,
    load_artifact,
    produce,
)
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.options import EncodingOptions, QuantizeOptions, TrainOptions
from optimizer.progress import Progress
from optimizer.results import QuantizedTrainingResult, write_result
from optimizer.verbs.outcomes import TrainResult

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.training import QuantizedJob

__all__ = ["train_quantized_graph"]


@dataclass(frozen=True)
class _Files:
    """The files of one training, all named after its output."""

    output: Path

    @property
    def folder(self) -> Path:
        """Checkpoints, history, and both INT8 graphs."""
        from optimizer.training import training_folder

        return training_folder(self.output)

    @property
    def exported(self) -> Path:
        """The FP32 graph of ``--init``."""
        return self.output.with_name(f"{self.output.stem}.fp32.onnx")

    @property
    def float_graph(self) -> Path:
        """The FP32 graph with the learned weights."""
        return self.output.with_name(f"{self.output.stem}.float.onnx")

    @property
    def encodings(self) -> Path:
        return self.output.with_name(f"{self.output.stem}.encodings.json")

    @property
    def result(self) -> Path:
        return self.output.with_name(f"{self.output.stem}.qat.json")

    def all(self) -> list[OutputFile]:
        """Every file beside the output, and the output."""
        return [
            OutputFile(self.output, "graph"),
            OutputFile(self.exported, "graph"),
            OutputFile(self.float_graph, "graph"),
            OutputFile(self.encodings, "encodings"),
            OutputFile(self.result, "qat", has_manifest=False),
        ]


def train_quantized_graph(
    options: TrainOptions,
    output: Path,
    *,
    cache: Cache | None,
    force: bool,
    progress: Progress | None,
) -> TrainResult:
    """Train the INT8 network of a model, and write it or, if it is not better, the one without training.

    Args:
        options: Those of ``train``, with ``qat``.
        output: The INT8 graph (``.onnx``).
        cache: Artifact cache; ``None`` for no cache.
        force: Also replace files that resnet-opt did not write, or that were edited since.
        progress: Receives progress updates.

    Raises:
        UsageError: Options that do not go together, or no held-out images.
        CheckpointError: ``init`` is no classifier.
        DataError: There are too few held-out images.
        Stopped: SIGTERM asked to stop; a checkpoint was written.
    """
    from optimizer import precision, training
    from optimizer.evaluation.quantized_choice import choose_quantized

    files = _Files(output)
    shared: dict[str, Any] = {"cache": cache, "progress": progress}
    _check_output(files, options, force=force)
    held_out = _held_out(options)
    graph = _fp32_graph(options, files, **shared)
    job, statistics = _prepared(options, graph, held_out, files, **shared)
    learned = training.train_quantized(job, files.folder / "learned.safetensors", **shared)
    own = training.write_float_graph(
        job, learned.path, files.folder / "qat.float.onnx", cache=cache
    )
    encodings = training.write_encodings(
        job, learned.path, own.path, files.folder / "qat.encodings.json", cache=cache
    )
    lower = partial(precision.quantize, **shared)
    ptq = lower(graph, files.folder / "ptq.onnx", _lowering(options, job.encodings))
    qat = lower(own.path, files.folder / "qat.onnx", _lowering(options, encodings.path))
    result = choose_quantized(
        graph,
        ptq.path,
        qat.path,
        job.held_out,
        target=job.rules.name,
        calibration_images=int(statistics.manifest.settings["images"]),
        progress=progress,
    )
    source, chosen = graph, job.encodings
    if result.kept == "qat":
        source = training.write_float_graph(job, learned.path, files.float_graph, cache=cache).path
        chosen = encodings.path
    noted = _with_note(chosen, files.encodings, result, cache)
    artifact = lower(source, output, _lowering(options, noted.path))
    write_result(result, files.result)
    notes = tuple(learned.manifest.details.get("notes", ()))
    kept = result.qat if result.kept == "qat" else result.ptq
    return TrainResult.of(artifact, top1=kept.top1, notes=notes, quantized=result)


def _check_output(files: _Files, options: TrainOptions, *, force: bool) -> None:
    from optimizer.training import check_folder

    if files.output.suffix != ".onnx":
        raise UsageError(
            f"an INT8 network is written as .onnx, not as {files.output.name}",
            hint=f"-o {files.output.stem or 'model.int8'}.onnx",
        )
    inputs = [options.init, options.data, options.val, options.calib]
    check_outputs(files.all(), inputs, force=force)
    if not force and not options.resume:
        check_folder(files.folder)


def _open(options: TrainOptions, name: str, *, labelled: bool, limit: int | None = None) -> Any:
    from optimizer.data import open_dataset

    return open_dataset(
        name,
        limit=limit,
        seed=options.seed,
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
        labelled=labelled,
    ).without_bad_images()


def _held_out(options: TrainOptions) -> ImageDataset:
    from optimizer.evaluation.quantized_choice import LEAST_HELD_OUT
    from optimizer.training import held_out_of

    val = options.val or held_out_of(options.data)
    if val is None:
        raise UsageError(
            "--qat needs held-out images to compare INT8 with and without training",
            hint="--val DATA, with labelled images that are not in --data",
        )
    data: ImageDataset = _open(options, val, labelled=True)
    if len(data) < LEAST_HELD_OUT:
        raise DataError(
            f"{data.name} has {len(data)} images, too few for any difference to count",
            hint=f"--val with at least {LEAST_HELD_OUT} images, better several hundred",
        )
    return data


def _fp32_graph(
    options: TrainOptions, files: _Files, *, cache: Cache | None, progress: Progress | None
) -> Path:
    """The FP32 graph of ``--init``, exported unless it is one."""
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model
    from optimizer.precision import check_options, prepared
    from optimizer.precision.foreign import check_described

    init = Path(str(options.init)).expanduser()
    if init.suffix != ".onnx" or not init.is_file():
        model = load_model(str(options.init), arch=options.arch, image_size=options.image_size)
        if model.detector is not None:
            raise CheckpointError(
                f"{options.init} is a detector, and --qat trains classifiers",
                hint="resnet-opt quantize converts detectors without training",
            )
        return export_onnx(model, files.exported, cache=cache, progress=progress).path
    from optimizer.graphs.facts import graph_facts, is_quantized

    _refuse_engine(init)
    if is_quantized(init):
        raise UsageError(
            f"{init.name} is already quantized",
            hint="--init with the FP32 graph or the checkpoint that it was made from",
        )
    check_options(init, "int8", QuantizeOptions.of(None, {"keep": options.keep or None}))
    check_described(init, QuantizeOptions())
    graph = prepared(init, files.exported, cache=cache, progress=progress)
    if graph_facts(graph).detector is not None:
        raise CheckpointError(
            f"{init.name} is a detector, and --qat trains classifiers",
            hint="resnet-opt quantize converts detectors without training",
        )
    return graph


def _refuse_engine(path: Path) -> None:
    from optimizer.artifacts import find_manifest, read_manifest

    if find_manifest(path) is not None and read_manifest(path).kind == "engine":
        raise UsageError(
            f"{path.name} is an engine, which cannot be trained",
            hint="--init with the checkpoint or the FP32 graph that it was built from",
        )


def _prepared(
    options: TrainOptions,
    graph: Path,
    held_out: ImageDataset,
    files: _Files,
    *,
    cache: Cache | None,
    progress: Progress | None,
) -> tuple[QuantizedJob, Artifact]:
    """The job, which starts where quantization without training ends; and the statistics."""
    from optimizer import precision, training
    from optimizer.data import Preprocessing, match_classes
    from optimizer.graphs.facts import graph_facts

    facts = graph_facts(graph)
    preprocessing = Preprocessing.from_dict(dict(facts.preprocessing or {}))
    outputs = int(facts.output_shape[-1] or 0)
    num_classes = max(outputs, 2)  # one output is a sigmoid between two classes
    held_out = match_classes(held_out, num_classes, facts.classes)
    labelled = bool(options.label_share)
    data: ImageDataset = _open(options, options.data, labelled=labelled)
    if labelled:
        data = match_classes(data, num_classes, facts.classes)
    _check_apart(data, held_out)
    files_given = data.source.file(0) is not None
    settings = training.quantized_settings(
        options, files=files_given, image_size=preprocessing.image_size
    )
    rules = precision.rules_with(options.target, options.high_precision)
    calibration = _open(
        options, options.calib or options.data, labelled=False, limit=options.calib_images
    )
    files.folder.mkdir(parents=True, exist_ok=True)
    statistics = precision.calibrate(
        graph, calibration, files.folder / "fp32.stats.npz", cache=cache, progress=progress
    )
    encodings = precision.encode(
        graph,
        statistics.path,
        files.folder / "ptq.encodings.json",
        rules,
        options=options.of_kind(EncodingOptions),
        cache=cache,
        progress=progress,
    )
    job = training.QuantizedJob(
        settings=settings,
        rules=rules,
        graph=graph,
        encodings=encodings.path,
        data=data,
        held_out=held_out,
        preprocessing=preprocessing,
        folder=files.folder,
    )
    return job, statistics


def _check_apart(data: ImageDataset, held_out: ImageDataset) -> None:
    """Refuse to judge on training images: the trained network knows them, the other does not."""
    from optimizer.data import shared_images

    if shared := shared_images(data, held_out):
        raise DataError(
            f"{shared} of {len(held_out)} images of {held_out.name} are also in {data.name}",
            hint="--val with images that are not in --data",
        )


def _lowering(options: TrainOptions, encodings: Path) -> QuantizeOptions:
    return QuantizeOptions(
        precision="int8",
        target=options.target,
        high_precision=options.high_precision,
        encodings=encodings,
    )


def _with_note(
    encodings: Path, output: Path, result: QuantizedTrainingResult, cache: Cache | None
) -> Artifact:
    """The chosen encodings, which say why they were chosen; the graph and engines repeat that."""
    before = load_artifact(encodings, kind="encodings")

    def write(path: Path) -> Mapping[str, Any]:
        from optimizer.precision.int8 import Encodings

        chosen = Encodings.load(encodings)
        chosen.model_copy(update={"notes": [*chosen.notes, result.reason]}).save(path)
        return {"tensors": len(chosen.tensors), "layers": len(chosen.layers)}

    manifest = before.manifest
    plan = Plan(
        kind="encodings",
        settings={**manifest.settings, "note": result.reason},
        inputs=[*manifest.inputs, Input.of("encodings", encodings)],
        libraries=manifest.libraries,
    )
    return produce(plan, output, write, cache=cache)
