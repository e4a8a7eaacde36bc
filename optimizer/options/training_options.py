"""The options of ``train``. A key of a training recipe is an option that is ``None`` by default."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from optimizer.options.declaration import Options, ReadableError, option
from optimizer.options.values import Choices, Duration, Source
from optimizer.options.verb_options import (
    CalibrationImages,
    EncodingOptions,
    HighPrecision,
    ImageFolder,
    ImageReading,
    Target,
)

__all__ = ["Int8Start", "QuantizedTraining", "TrainOptions"]


def _device(value: object) -> object:
    """``gpu`` is another word for ``cuda``."""
    text = str(value).lower() if isinstance(value, str) else value
    return "cuda" if text == "gpu" else text


def _channels(value: object) -> object:
    if value is not None and str(value) not in ("1", "3", "4"):
        raise ReadableError(
            f"networks with {value} input channels are not supported",
            "1 for grayscale, 3 for RGB, 4 for RGBA",
        )
    return None if value is None else int(str(value))


def _version(value: object) -> object:
    parts = str(value).split(".")
    if value is not None and not all(part.isdecimal() for part in parts):
        raise ReadableError(f"{value!r} is not a version", "numbers with dots, such as 9.0")
    return None if value is None else str(value)


Version = Annotated[str, BeforeValidator(_version)]


class _Recipe(Options):
    """Hyperparameters; those that are not given are the recipe's."""

    panel: ClassVar[str] = "Hyperparameters (default: the recipe's)"

    image_size: int | None = option(None, "Side of the network's input in pixels.", ge=8)
    epochs: int | None = option(None, "Passes over the data.", ge=1)
    batch_size: int | None = option(None, "Images per step and process.", ge=2)
    accumulate: int | None = option(
        None, "Batches whose gradients are summed up before the weights change.", ge=1
    )
    optimizer: Literal["sgd", "adamw", "lamb"] | None = option(
        None, "SGD with Nesterov momentum, AdamW, or LAMB (needs timm)."
    )
    lr: float | None = option(None, "Peak learning rate.", gt=0)
    lr_batch: int | None = option(
        None,
        "Images per change of the weights that --lr is meant for; it is scaled to the real number.",
        ge=1,
    )
    backbone_rate: float | None = option(
        None, "Factor of the learning rate for the layers before the head.", gt=0, le=1
    )
    clip_grad: float | None = option(
        None, "Largest norm of the gradient; longer ones are scaled down; 0 for no limit.", ge=0
    )
    momentum: float | None = option(None, "Momentum of SGD.", ge=0, lt=1)
    weight_decay: float | None = option(
        None, "Weight decay of the convolutions and linear layers.", ge=0
    )
    scheduler: Literal["one-cycle", "cosine", "step"] | None = option(
        None, "How the learning rate changes; --lr-decay-rate alone means step."
    )
    warmup: float | None = option(
        None, "Epochs in which the rate grows linearly (cosine, step).", ge=0
    )
    lr_decay_rate: float | None = option(
        None, "Factor of the rate at every step (step).", gt=0, lt=1
    )
    lr_step: int | None = option(
        None, "Epochs between two steps (step); default: a third of all.", ge=1
    )
    loss: Literal["ce", "bce"] | None = option(
        None, "Cross-entropy, or binary cross-entropy of every class."
    )
    label_smoothing: float | None = option(
        None, "Share of the target spread evenly over all classes.", ge=0, lt=1
    )
    mixup: float | None = option(None, "Alpha of mixup; 0 for none.", ge=0)
    cutmix: float | None = option(None, "Alpha of CutMix; 0 for none.", ge=0)
    augment: Literal["shift", "crop", "trivial", "rand", "none"] | None = option(
        None,
        "Shifts of the whole image; random crops and flips; these with TrivialAugment or RandAugment.",
    )
    random_erasing: float | None = option(
        None, "Probability of erasing a part of an image.", ge=0, le=1
    )
    ema: float | None = option(
        None, "Decay of averaged weights, which become the result; 0 for none.", ge=0, lt=1
    )
    val_every: int | None = option(
        None, "Epochs between two measurements on --val; the last epoch always is measured.", ge=1
    )


class _Machine(Options):
    """Where and how the training runs."""

    panel: ClassVar[str] = "Machine"

    device: Annotated[str, BeforeValidator(_device)] = option(
        "auto", "auto, cpu, cuda (or gpu), or one GPU, such as cuda:1."
    )
    amp: Literal["off", "bf16", "fp16"] = option(
        "off", "Compute in this precision where it is safe."
    )
    find_batch_size: bool = option(
        False, "Use the largest batch that fits the memory of the device."
    )
    effective_batch: int | None = option(
        None,
        "Images per change of the weights in all processes; --accumulate becomes what is needed.",
        ge=2,
    )
    compile: bool = option(False, "Compile the network with torch.compile.")
    sync_batchnorm: bool = option(False, "Share BatchNorm's statistics between processes.")
    min_cuda: Version | None = option(None, "Fail unless CUDA has at least this version.")
    min_cudnn: Version | None = option(None, "Fail unless cuDNN has at least this version.")
    min_python: Version | None = option(None, "Fail unless Python has at least this version.")


class _Continuing(Options):
    """Stopping and continuing."""

    panel: ClassVar[str] = "Stopping and continuing"

    resume: bool = option(False, "Continue from the last checkpoint of the same output.")
    elastic: bool = option(
        False, "With --resume: accept another number of processes or batch size."
    )
    checkpoint_every: Duration = option(
        "5min", "Longest time between two checkpoints; the end of an epoch writes one too."
    )


class Int8Start(EncodingOptions, HighPrecision, CalibrationImages, Target):
    """The encodings that training a quantized network starts at."""

    panel: ClassVar[str] = "Quantization-aware training"


class QuantizedTraining(Int8Start):
    """Training a quantized network (QAT)."""

    panel: ClassVar[str] = "Quantization-aware training"

    qat: Literal["int8"] | None = option(
        None,
        "Train the INT8 network of --init for --target; writes an .onnx graph. If it is not better than "
        "INT8 without training on --val, that one is written.",
    )
    label_share: float | None = option(
        None,
        "Share of the loss that comes from labels; the rest is the distance from the FP32 network.",
        ge=0,
        le=1,
    )


class _Sparsity(Options):
    """Training with zeros in a pattern."""

    panel: ClassVar[str] = "Sparsity"

    sparsity: Literal["2:4"] | None = option(
        None,
        "Prune --init to two zeros in every four weights, and fine-tune the others: for TensorRT's "
        "sparse kernels (build --sparsity).",
    )


class TrainOptions(
    _Recipe, _Machine, _Continuing, QuantizedTraining, _Sparsity, ImageReading, ImageFolder
):
    """Options of ``train``."""

    panel: ClassVar[str] = "Training"

    arch: str | None = option(
        None,
        "Architecture, such as resnet50, or a detector, retinanet_resnet50_fpn or fcos_resnet18_fpn; "
        "default: that of --init, of the output's name, or resnet50.",
    )
    data: Source = option(
        "digits:train",
        "Training images: digits:train, a folder or file.npz; for detectors digits-scenes:train, a "
        "COCO file or a YOLO folder.",
    )
    val: Source | None = option(
        None,
        "Images to measure accuracy on; default: digits:test for digits:train, likewise digits-scenes.",
    )
    init: Source | None = option(None, "Model to start from; random for random weights.")
    recipe: Source | None = option(
        None,
        "finetune (default with --init), scratch (default for folders), digits, detection (default for "
        "detectors), qat (default with --qat), tv-v1, tv-v2, a1, a2, a3, prune, or a YAML file.",
    )
    freeze_backbone: bool = option(False, "Train only the last layers.")
    hidden_layers: int = option(0, "Hidden layers before the last one.", ge=0, le=32)
    hidden_size: int = option(128, "Width of the hidden layers.", ge=1)
    channels: Annotated[int | None, BeforeValidator(_channels)] = option(
        None,
        "Channels of the images: 1 (grayscale), 3 (RGB) or 4 (RGBA); default: those of --init, or 3.",
    )
    track: Annotated[tuple[Literal["tensorboard", "mlflow"], ...], Choices] = option(
        (),
        "Also report to tensorboard or mlflow, in files beside the checkpoints; mlflow to the server of "
        "MLFLOW_TRACKING_URI if that is set.",
    )
    seed: int = option(0, "Seed of the weights, the order of images and the augmentation.", ge=0)
