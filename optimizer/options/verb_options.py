"""The options of every verb; each is a field here and nowhere else.

A class whose name does not end in ``Options`` is a group that several verbs share.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PlainSerializer, model_validator

from optimizer.options.declaration import REQUIRED, Options, ReadableError, option
from optimizer.options.values import (
    BatchProfile,
    Bytes,
    Duration,
    FilePath,
    Names,
    Numbers,
    Points,
    Precision,
    Share,
    Source,
    Space,
    split,
)

__all__ = [
    "AccuracyOptions",
    "BenchOptions",
    "BuildLimits",
    "BuildOptions",
    "CalibrateOptions",
    "CalibrationImages",
    "CompareOptions",
    "Conversion",
    "EncodingOptions",
    "EncodingPasses",
    "EngineOptions",
    "ExportOptions",
    "ForeignGraph",
    "GraphOptions",
    "HighPrecision",
    "HopOptions",
    "ImageReading",
    "InspectOptions",
    "KeptLayers",
    "LatencyTableOptions",
    "PredictOptions",
    "PreprocessOptions",
    "PreprocessingSource",
    "ProfileOptions",
    "PruneOptions",
    "QuantizeOptions",
    "RefitOptions",
    "ReportOptions",
    "SpeedOptions",
    "TableOptions",
    "Target",
    "TensorRtOptions",
    "ValidateOptions",
]

TENSORRT = ("tensorrt", "tensorrt-rtx")

# --- groups that several verbs share -------------------------------------------------------------


class BadImages(Options):
    """Handling of images that cannot be decoded."""

    panel: ClassVar[str] = "Reading images"

    skip_bad_images: bool = option(False, "Leave out images that cannot be decoded.")


class ImageReading(BadImages):
    """How images are read."""

    panel: ClassVar[str] = "Reading images"

    workers: int | None = option(
        None,
        "Processes that decode images; 0 uses the main process; default: one per core.",
        ge=0,
    )


class Labels(Options):
    """How labels are numbered."""

    labels_from: int = option(
        0, "Number of the first class in the labels of a list or an NPZ file.", ge=0, le=1
    )


class Architecture(Options):
    """What a checkpoint may not state or decide: its architecture, and which weights to use."""

    arch: str | None = option(None, "Architecture of a checkpoint that does not state it.")
    weights: str | None = option(
        None, "Which weights of a checkpoint that has several: ema, or the name of a copy."
    )


class FrameworkPython(Options):
    """Where Keras or TensorFlow is installed."""

    framework_python: FilePath | None = option(
        None,
        "Python interpreter of an environment that has Keras or TensorFlow; default: this one.",
        metavar="PATH",
    )


class ImageSize(Options):
    """The side of the images."""

    image_size: int | None = option(
        None, "Side of the images in pixels; default: the model's own.", ge=8
    )


class Device(Options):
    """The GPU."""

    device: str | None = option(
        None, "GPU for engines that run on one, such as cuda:1; default: the first."
    )


class Threads(Options):
    """Threads of a CPU engine."""

    threads: int | None = option(None, "Threads per engine; default: all cores.", ge=1)


class Audit(Options):
    """The precision audit."""

    min_share: Share = option("95%", "Share of the FLOPs that must be in the requested precision.")


class MaxDrop(Options):
    """The accuracy limit."""

    max_drop: Points = option(
        "1pp", "Largest loss of top-1, or of a detector's AP, in percentage points."
    )


class DetectionLimits(Options):
    """The limit of lost detections."""

    max_lost: Share | None = option(
        None, "Detectors: largest share of detections that may be lost, such as 3%."
    )
    score_threshold: float = option(
        0.3, "Detectors: score from which detections count as lost or new.", gt=0, lt=1
    )


class EncodingPasses(Options):
    """How INT8 encodings are computed from statistics."""

    panel: ClassVar[str] = "INT8"

    method: Literal["auto", "mse", "minmax", "entropy"] = option(
        "auto", "How ranges of activations are chosen; weights use mse unless this is minmax."
    )
    equalize: bool = option(True, "Equalize channels in blocks and along the residual stream.")
    bias_correction: Literal["network", "statistics", "none"] = option(
        "network",
        "Correct biases by running the quantized network, from statistics per layer, or not at all.",
    )
    shift: bool = option(
        True, "For TensorRT: shift ReLU outputs to use all 256 levels, corrected in the biases."
    )


class KeptLayers(Options):
    """Layers that stay out of INT8."""

    panel: ClassVar[str] = "INT8"

    keep: Names = option((), "Layers to keep out of INT8, such as layer1.0.conv1,fc.")


class HighPrecision(Options):
    """Precision of the layers around INT8 and FP8 ones."""

    panel: ClassVar[str] = "INT8"

    high_precision: Literal["fp16", "fp32"] | None = option(
        None, "Data type around INT8 and FP8 layers; default: the target's."
    )


class EncodingOptions(EncodingPasses, KeptLayers):
    """How the encodings of a graph are computed, and for which layers."""

    panel: ClassVar[str] = "INT8"


class Target(Options):
    """The engine that a graph is for."""

    panel: ClassVar[str] = "Precision"

    target: str = option(
        "openvino",
        "Engine that an INT8 graph is for: openvino, onnxruntime, tensorrt or tensorrt-rtx.",
    )


class ImagesPerCall(Options):
    """The batch size."""

    batch: int = option(32, "Images per call.", ge=1)


class StoredPredictions(Options):
    """What may be kept of predictions."""

    panel: ClassVar[str] = "Accuracy"

    cache_limit: Space = option(
        "8GiB",
        "Space for stored predictions; the least recently used are removed. 0B stores none.",
        metavar="BYTES",
    )


class ImagesLookedAt(StoredPredictions):
    """Which hops are computed on which images."""

    panel: ClassVar[str] = "Accuracy"

    hops: Literal["all", "sample", "ends"] = option(
        "sample",
        "Images on which the hops between reference and engine are computed: all, a sample, or none "
        "(ends). If an engine does not pass, they are computed on all.",
    )
    until_decided: bool = option(
        False,
        "Look at the images in random order, and stop as soon as every engine is decided.",
    )
    seed: int = option(0, "Seed of the subset, the sample and the random order.", ge=0)


class HopOptions(ImagesPerCall, Audit, ImagesLookedAt):
    """How the hops of a chain are compared."""

    layers: bool = option(False, "Also compare the outputs of each residual block.")


# --- the verbs -----------------------------------------------------------------------------------


class ImageFolder(Options):
    """The images of annotations."""

    panel: ClassVar[str] = "Reading images"

    image_folder: FilePath | None = option(
        None,
        "Folder of the images that a COCO file names; default: the file's own.",
        flags=("--images",),
        metavar="DIR",
    )


def _batch(value: Any) -> Any:
    """``dynamic`` or a positive number."""
    if value is None or value == "dynamic":
        return None
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise ReadableError(f"{text!r} is not a batch size", "dynamic, or a number of images")
    return int(text)


GraphBatch = Annotated[
    int | None,
    BeforeValidator(_batch),
    PlainSerializer(lambda batch: "dynamic" if batch is None else batch, when_used="json"),
]
"""Images per call as a number; ``None``, given as ``dynamic``, for any number."""


class GraphOptions(ImageSize):
    """The form of an exported graph."""

    panel: ClassVar[str] = "Export"

    batch: GraphBatch = option("dynamic", "dynamic, or a fixed number of images.")
    input: Literal["float32-nchw", "uint8-nhwc"] = option(
        "float32-nchw", "Input of the graph: normalized floats, or raw pixels (uint8-nhwc)."
    )
    # QuantizeLinear with FP16 scales needs 19; TensorRT 10.12 reads up to 20 in full.
    opset: int = option(20, "ONNX operator set.", ge=18, le=23)


class CalibrationImages(ImageReading):
    """The calibration images."""

    panel: ClassVar[str] = "Calibration"

    calib: Source | None = option(
        None, "Calibration images: digits:train, a folder (labels not needed) or file.npz."
    )
    calib_images: int = option(256, "Number of calibration images, stratified by class.", ge=8)


def _per_channel(value: Any) -> Any:
    """Parse one number per channel; a single number is for all three."""
    flat = split(value)
    if flat is None:
        return None
    try:
        numbers = [float(item) for item in flat]
    except (TypeError, ValueError):
        raise ReadableError(f"{value!r} is not a list of numbers", "0.485,0.456,0.406") from None
    if len(numbers) not in (1, 3):
        raise ReadableError(f"{len(numbers)} numbers for 3 channels", "0.485,0.456,0.406")
    return numbers * 3 if len(numbers) == 1 else numbers


PerChannel = Annotated[
    tuple[float, ...], BeforeValidator(_per_channel), PlainSerializer(list, when_used="json")
]
"""One number for each of the three channels."""


class PreprocessingSource(Options):
    """Source of the preprocessing of a graph that does not state it."""

    panel: ClassVar[str] = "ONNX files of other exporters"

    preprocessing_from: Source | None = option(
        None,
        "Exported .onnx file, checkpoint or card.json to take the preprocessing from, if the file "
        "has none; default: FILE.onnx.card.json beside it.",
        metavar="MODEL",
    )
    mean: PerChannel | None = option(
        None, "Mean of each channel as a fraction of 255, such as 0.485,0.456,0.406."
    )
    std: PerChannel | None = option(
        None, "Standard deviation of each channel, such as 0.229,0.224,0.225."
    )
    resize: int | None = option(
        None, "Length of the shorter side of an image after resizing, in pixels.", ge=1
    )
    crop: int | None = option(None, "Side of the centre crop, in pixels.", ge=1)


class ForeignGraph(PreprocessingSource):
    """What an ONNX file of another exporter does not say itself."""

    panel: ClassVar[str] = "ONNX files of other exporters"

    output_name: str | None = option(
        None, "Output with the scores of the classes, if the file has several."
    )
    inference_mode: bool = option(
        False, "Use BatchNorm and Dropout of a file in training mode as in inference."
    )


class ExportOptions(Architecture, GraphOptions, ForeignGraph, FrameworkPython):
    """Options of ``export``."""

    panel: ClassVar[str] = "Export"

    with_nms: bool = option(
        False,
        "Detectors: append decoding and non-maximum suppression, for use in ONNX Runtime or OpenVINO "
        "by other programs; also takes an exported graph.",
    )


class ModelReading(Architecture, ImageSize):
    """How a model is read; a graph takes none of it."""

    panel: ClassVar[str] = "Export"


class CalibrateOptions(CalibrationImages, ForeignGraph):
    """Options of ``calibrate``."""

    panel: ClassVar[str] = "Calibration"

    seed: int = option(0, "Seed for choosing calibration images.")
    halves: bool = option(False, "Report how far scales differ between two halves of the images.")


class Conversion(
    EncodingOptions,
    HighPrecision,
    CalibrationImages,
    ForeignGraph,
    MaxDrop,
    DetectionLimits,
    Labels,
    StoredPredictions,
):
    """How an FP32 graph becomes a graph of another precision."""

    panel: ClassVar[str] = "Calibration"

    stats: FilePath | None = option(None, "Statistics from resnet-opt calibrate.")
    encodings: FilePath | None = option(
        None, "INT8 encodings to use as they are (.encodings.json)."
    )
    data: Source | None = option(
        None, "For mixed: labelled images to validate the result, none of them in --calib."
    )


class QuantizeOptions(Conversion, Target):
    """Options of ``quantize``."""

    panel: ClassVar[str] = "Precision"

    precision: Precision = option(
        "int8", "Precision; mixed searches for the layers to keep out of INT8."
    )


def _fixed_batch(value: Any) -> Any:
    """Parse batch sizes; ``none`` gives an empty list."""
    if value in ("none", ["none"]):
        return []
    flat = split(value)
    if flat is None:
        return None
    for item in flat:
        text = str(item)
        if isinstance(item, bool) or not text.isdecimal() or int(text) < 1:
            raise ReadableError(f"{text!r} is not a batch size", "1,8 or none")
    return [int(str(item)) for item in flat]


FixedBatches = Annotated[
    tuple[int, ...],
    BeforeValidator(_fixed_batch),
    PlainSerializer(lambda sizes: list(sizes) or "none", when_used="json"),
]


def _key_values(value: Any) -> Any:
    """Parse ``key=value`` texts, or a mapping, to a mapping of texts."""
    if isinstance(value, dict):
        return {str(key): str(item) for key, item in value.items()}
    if value is None or not isinstance(value, (list, tuple)):
        return value
    pairs: dict[str, str] = {}
    for text in value:
        key, equals, rest = (part.strip() for part in str(text).partition("="))
        if not key or not equals:
            raise ReadableError(f"{text!r} is not key=value", "--provider-option key=value")
        if key in pairs:
            raise ReadableError(f"{key} is given twice", "leave one out")
        pairs[key] = rest
    return pairs


KeyValues = Annotated[dict[str, str], BeforeValidator(_key_values)]


class EngineOptions(Threads, Audit):
    """How an engine is compiled, in any precision."""

    panel: ClassVar[str] = "Engine"

    provider: str | None = option(
        None,
        "Execution provider: cpu (default), cuda, tensorrt or nv-tensorrt-rtx.",
        engines=("onnxruntime",),
    )
    provider_options: KeyValues = option(
        {},
        "Option of the provider, key=value; repeat for more.",
        engines=("onnxruntime",),
        flags=("--provider-option",),
        metavar="KEY=VALUE",
    )
    fixed_batch: FixedBatches | None = option(
        None,
        "Batch sizes to compile separately, which is faster: 1,8 or none; default: 1.",
        engines=("openvino",),
    )
    storage_only: bool = option(
        False, "On a CPU: store weights as FP16 or BF16 but compute in FP32."
    )


class BuildLimits(Options):
    """Limits of the build process."""

    panel: ClassVar[str] = "Limits of the build"

    memory_limit: Bytes | None = option(
        None, "Memory limit of the build, such as 8GiB.", metavar="SIZE"
    )
    build_timeout: Duration = option("30min", "Time limit of the build.", metavar="TIME")


def _profiles(value: Any) -> Any:
    """Parse one or several profiles; a single one may be given as three numbers."""
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int for n in value):
        return [value]
    return split(value)


class TensorRtOptions(Options):
    """Options of TensorRT and TensorRT-RTX."""

    panel: ClassVar[str] = "TensorRT and TensorRT-RTX"

    target: Names = option(
        (),
        "GPU architectures to compile for ahead of time, without a GPU, such as sm86,sm89,sm120.",
        engines=("tensorrt-rtx",),
    )
    profile: Annotated[tuple[BatchProfile, ...], BeforeValidator(_profiles)] = option(
        (),
        "Batch range min:opt:max, such as 1:8:32; repeat for more profiles.",
        engines=(*TENSORRT, "onnxruntime"),
    )
    workspace: Bytes | None = option(
        None,
        "Limit of scratch memory per layer, such as 4GiB.",
        engines=(*TENSORRT, "onnxruntime"),
        metavar="SIZE",
    )
    opt_level: int | None = option(
        None,
        "Builder optimization level (ignored by TensorRT-RTX).",
        engines=(*TENSORRT, "onnxruntime"),
        ge=0,
        le=5,
    )
    timing_cache: FilePath | None = option(
        None,
        "File or folder of kernel timings (ignored by TensorRT-RTX).",
        engines=(*TENSORRT, "onnxruntime"),
    )
    tf32: bool = option(
        False, "Allow TF32 in FP32 layers (ignored by TensorRT-RTX).", engines=TENSORRT
    )
    sparsity: bool = option(
        False,
        "Use 2:4 sparse kernels where the weights allow it (ignored by TensorRT-RTX).",
        engines=TENSORRT,
    )
    hardware_compatibility: Literal["ampere-plus", "same-compute-capability"] | None = option(
        None,
        "Build an engine that also runs on other GPUs (TensorRT-RTX: use --target).",
        engines=TENSORRT,
    )
    version_compatible: bool = option(
        False,
        "Build an engine that also runs with later versions of TensorRT (not TensorRT-RTX).",
        engines=TENSORRT,
    )
    strip_weights: bool = option(
        False, "Build without weights; refit adds them (needs a GPU).", engines=TENSORRT
    )
    refittable: bool = option(
        False, "Allow refit to replace the weights (needs a GPU).", engines=TENSORRT
    )
    cuda_graph: bool = option(False, "Run the engine as a CUDA graph.", engines=TENSORRT)
    specialization: Literal["eager", "lazy", "none"] | None = option(
        None,
        "When kernels for fixed shapes are compiled at run time (TensorRT-RTX).",
        engines=TENSORRT,
    )
    runtime_cache: str | None = option(
        None,
        "File beside the engine to cache kernels compiled at run time (TensorRT-RTX).",
        engines=TENSORRT,
    )


class BuildOptions(
    EngineOptions, Conversion, BuildLimits, TensorRtOptions, Architecture, ImageSize
):
    """Options of ``build``."""

    panel: ClassVar[str] = "Engine"

    precision: Precision = option(
        "fp32", "Precision; mixed searches for the layers to keep out of INT8."
    )
    engine: str = option(
        "auto", "Engine: auto, openvino, onnxruntime, tensorrt, tensorrt-rtx or torch."
    )


class RefitOptions(Architecture, Device):
    """Options of ``refit``."""


class AccuracyOptions(
    ImagesPerCall, MaxDrop, DetectionLimits, ImageReading, ImageFolder, Labels, ImagesLookedAt
):
    """Images and limits for validation."""

    panel: ClassVar[str] = "Accuracy"

    data: Source = option(
        REQUIRED,
        "Labelled images: digits:test, an ImageFolder, val.txt, val.tar or file.npz; for detectors "
        "digits-scenes:test, a COCO file or a YOLO folder.",
    )
    limit: int | None = option(None, "Use a stratified subset of this many images.", ge=1)
    max_flips: Share | None = option(
        None, "Largest share of images whose predicted class may change, such as 1%."
    )


class ValidateOptions(
    AccuracyOptions, HopOptions, Architecture, ImageSize, Device, ForeignGraph, FrameworkPython
):
    """Options of ``validate``."""

    panel: ClassVar[str] = "Accuracy"

    reference: Source = option(
        REQUIRED, "Model to compare with: a checkpoint, a model name, or an FP32 ONNX file."
    )
    exported: FilePath | None = option(
        None, "FP32 ONNX file exported from the reference; default: the one beside the engine."
    )


class SpeedOptions(Options):
    """How speed is measured."""

    panel: ClassVar[str] = "Measurement"

    batch: Numbers = option("1", "Batch sizes, such as 1,8.")
    duration: Duration = option("10s", "Time per engine and setting.", metavar="TIME")
    threads: Numbers | None = option(None, "Threads per engine, such as 1,2; default: all cores.")
    streams: Numbers = option(
        "1", "Concurrent calls per engine, such as 1,2; they share its threads."
    )
    starts: int = option(
        1,
        "Start each engine N times, 3 or more, so that intervals include start-to-start variation.",
        ge=1,
    )
    max_latency: Duration | None = option(
        None,
        "Find the setting with the highest throughput within this latency limit, such as 15ms.",
        metavar="TIME",
    )
    latency_percentile: Literal["p50", "p90", "p95", "p99"] = option(
        "p99", "Percentile that --max-latency limits."
    )
    scenario: Names = option(
        (), "LoadGen scenarios to run: single-stream,multi-stream,server,offline."
    )
    min_effect: Share = option("2%", "Smallest speed difference of interest.")
    seed: int = option(0, "Seed of the order of the rounds.")


class BenchOptions(SpeedOptions, ImageSize, Device, ForeignGraph):
    """Options of ``bench``."""

    panel: ClassVar[str] = "Measurement"

    against: FilePath | None = option(
        None,
        "Baseline, measured in the same rounds; a slower engine fails (exit 5). torch-fp16 and "
        "torch-compile run the given checkpoint that way.",
    )
    max_workers: int | None = option(
        None, "Maximum number of engines in memory at once; default: as many as fit.", ge=2
    )


class ProfileOptions(ImageSize, Threads, Device):
    """Options of ``profile``."""

    panel: ClassVar[str] = "Measurement"

    batch: int = option(1, "Images per call.", ge=1)
    duration: Duration = option("5s", "Time per engine.", metavar="TIME")
    ceilings: bool = option(True, "Compare CPU engines with this machine's measured ceilings.")
    remeasure: bool = option(False, "Measure the ceilings again instead of reading them.")
    seed: int = option(0, "Seed of the order within the rounds.")


class TableTiming(Threads):
    """How the layers of a latency table are timed."""

    panel: ClassVar[str] = "Latency"

    batch: Numbers = option("1", "Batch sizes, such as 1,8.")
    duration: Duration = option(
        "2s", "Time per network and batch size, half of it with the profiler.", metavar="TIME"
    )


class TableOptions(TableTiming):
    """The engine that a network is pruned for, and how its layers are timed."""

    panel: ClassVar[str] = "Latency"

    engine: str = option("auto", "Engine: auto, openvino, onnxruntime, tensorrt or tensorrt-rtx.")
    precision: Precision = option("int8", "Precision that the engine computes in.")


class LatencyTableOptions(TableOptions, Architecture, ImageSize):
    """Options of ``latency-table``."""

    panel: ClassVar[str] = "Latency"


class PruningSteps(TableTiming, ImageReading, Labels):
    """How much faster a network shall be, and how it is cut and tuned."""

    panel: ClassVar[str] = "Pruning"

    speedup: float | None = option(None, "How many times faster the network shall be.", gt=1)
    max_latency: Duration | None = option(
        None, "Longest time of a call at the first batch size, such as 5ms.", metavar="TIME"
    )
    keep_flops: Share | None = option(
        None, "Share of the operations that shall remain, instead of a time."
    )
    table: FilePath | None = option(
        None,
        "Latency table to use, also one of another machine; default: measured here, or in the cache.",
    )
    rounds: int = option(1, "Rounds of cutting and tuning.", ge=1, le=20)
    step: int = option(16, "Widths are multiples of this, or as they were.", ge=1)
    saliency_images: int = option(256, "Images that saliency is measured on.", ge=8)
    epochs: int | None = option(None, "Epochs of each tuning; default: 8.", ge=1)
    lr: float | None = option(None, "Peak learning rate of the tuning; default: 0.02.", gt=0)
    batch_size: int | None = option(None, "Images per step of the tuning; default: 32.", ge=2)
    device: str = option("auto", "Where the tuning runs: auto, cpu, cuda, or cuda:1.")
    seed: int = option(0, "Seed of the subsets and the order of images.", ge=0)

    @model_validator(mode="after")
    def _one_aim(self) -> PruningSteps:
        wanted = {
            "--speedup": self.speedup,
            "--max-latency": self.max_latency,
            "--keep-flops": self.keep_flops,
        }
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "no aim"
            raise ReadableError(
                f"pruning needs one aim, not {what}",
                "--speedup 1.5, --max-latency 5ms or --keep-flops 50%",
            )
        if self.keep_flops is not None and not 0 < self.keep_flops < 1:
            raise ReadableError("--keep-flops is a share between 0 and 1", "--keep-flops 50%")
        if self.max_latency is not None and len(self.batch) > 1:
            raise ReadableError(
                "--max-latency is for one batch size", "--batch 1, or --speedup for several"
            )
        return self


class PruneOptions(PruningSteps, TableOptions, Architecture, ImageSize, MaxDrop):
    """Options of ``prune``."""

    panel: ClassVar[str] = "Pruning"

    data: Source = option(REQUIRED, "Training images: digits:train, a folder, a list or file.npz.")
    val: Source | None = option(
        None,
        "Images that judge the result; default: digits:test for digits:train, else a fifth of --data.",
    )


class PredictOptions(Device, ForeignGraph, ImageReading, StoredPredictions):
    """Options of ``predict``."""

    top: int = option(5, "Number of classes to show.", ge=1)
    score_threshold: float = option(
        0.3, "Detectors: smallest score of a detection to show.", gt=0, lt=1
    )
    annotate: FilePath | None = option(
        None, "Detectors: folder for the images with their boxes.", metavar="DIR"
    )


class InspectOptions(Audit):
    """Options of ``inspect``."""

    diff: FilePath | None = option(None, "Second artifact to compare with.")


class CompareOptions(MaxDrop):
    """Options of ``compare``."""

    max_slowdown: Share = option("3%", "Largest slowdown that passes.")
    anyway: bool = option(False, "Compare speed even if the machines differ.")


class ReportOptions(Options):
    """Options of ``report``."""

    profile: FilePath | None = option(None, "Layer times; default: profile.json in each folder.")


class PreprocessOptions(Architecture, BadImages):
    """Options of ``preprocess``."""

    model: Source | None = option(
        None, "Model whose preprocessing is used, and whose changed predictions are counted."
    )
    limit: int | None = option(200, "Use a stratified subset of this many images.", ge=1)
    seed: int = option(0, "Seed of the subset.")
