"""Options that several commands share, so that one flag means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from optimizer.errors import UsageError

if TYPE_CHECKING:
    from optimizer.precision.int8 import EncodingOptions

__all__ = [
    "Arch",
    "Bias",
    "CacheOff",
    "Calib",
    "CalibImages",
    "Data",
    "Device",
    "EncodingsFile",
    "Equalize",
    "HighPrecision",
    "ImageSize",
    "Json",
    "Judge",
    "Keep",
    "MaxDrop",
    "Method",
    "Output",
    "PreprocessingFrom",
    "Provider",
    "ProviderOptions",
    "Shift",
    "SkipBadImages",
    "Stats",
    "Threads",
    "Workers",
    "batch_size",
    "cache_of",
    "encoding_options",
    "given",
    "numbers",
    "pairs",
    "words",
]

Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON, to stdout.")]
Arch = Annotated[
    str | None, typer.Option("--arch", help="Architecture of a checkpoint that does not say.")
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=8, help="Side of the images in pixels.")
]
SkipBadImages = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be decoded.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that decode images; 0: none but this one; default: one a core.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads an engine; default: all cores.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="The GPU, cuda:1, for engines that run on one; else the first."),
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider", help="Of onnxruntime: cpu (default), cuda, tensorrt or nv-tensorrt-rtx."
    ),
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option", help="An option of the provider, key=value; may be repeated."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data", help="Labelled images: digits:test, an ImageFolder, val.txt, or file.npz."
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Calibration images: digits:train, a folder (labels need not be), or file.npz.",
    ),
]
CalibImages = Annotated[
    int, typer.Option("--calib-images", min=8, help="How many of them, stratified by class.")
]
Stats = Annotated[
    Path | None, typer.Option("--stats", help="Statistics from resnet-opt calibrate.")
]
EncodingsFile = Annotated[
    Path | None, typer.Option("--encodings", help="Encodings to use as they are, maybe edited.")
]
Method = Annotated[
    str, typer.Option("--method", help="Range method: auto, mse, minmax or entropy.")
]
Equalize = Annotated[
    bool, typer.Option(help="Equalize channels in blocks and along the residual stream.")
]
Bias = Annotated[str, typer.Option("--bias-correction", help="network, statistics or none.")]
Shift = Annotated[
    bool, typer.Option(help="For TensorRT: all 256 levels after a ReLU, by constants in biases.")
]
Keep = Annotated[
    str | None,
    typer.Option("--keep", help="Layers that stay out of INT8: layer1.0.conv1,fc."),
]
Judge = Annotated[
    str | None,
    typer.Option("--data", help="For mixed: labelled images that judge it, not in --calib."),
]
MaxDrop = Annotated[
    str, typer.Option("--max-drop", help="For mixed: largest loss of top-1, in points.")
]
HighPrecision = Annotated[
    str | None,
    typer.Option("--high-precision", help="fp16 or fp32 around INT8; default: the target's own."),
]
PreprocessingFrom = Annotated[
    str | None,
    typer.Option(
        "--preprocessing-from",
        help="What knows the preprocessing of a graph that does not say it: an exported .onnx file "
        "or a checkpoint.",
    ),
]
CacheOff = Annotated[
    bool, typer.Option("--no-cache", help="Make everything anew and keep no copies.")
]


def cache_of(off: bool) -> object:
    """The user's cache, or one that makes everything anew."""
    from optimizer.artifacts import Anew, Cache

    return Anew() if off else Cache.default()


def encoding_options(
    method: str, keep: str | None, *, equalize: bool, bias: str, shift: bool
) -> EncodingOptions:
    """Which passes compute the encodings.

    Raises:
        UsageError: An unknown method or bias correction.
    """
    from optimizer.precision.int8 import EncodingOptions

    return EncodingOptions(
        method=method,
        keep=tuple(words(keep)),
        equalize=equalize,
        bias=cast("Any", bias),
        shift=shift,
    )


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given, by name."""
    return {name: value for name, value in flags.items() if value not in (None, False, [])}


def batch_size(text: str) -> int | None:
    """``dynamic`` or a number.

    Raises:
        UsageError: Neither.
    """
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"a batch of {text!r}", mend="dynamic, or a number of images")
    return int(text)


def numbers(text: str, what: str) -> list[int]:
    """``1,8,32`` as numbers.

    Raises:
        UsageError: Something else, or nothing.
    """
    parts = words(text)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"cannot read {what} {text!r}", mend="numbers such as 1,8")
    return [int(part) for part in parts]


def pairs(texts: list[str] | None, flag: str) -> dict[str, str]:
    """``key=value`` texts as a mapping.

    Raises:
        UsageError: One has no ``=`` or no key, or a key is given twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals:
            raise UsageError(f"cannot read {flag} {text!r}", mend=f"{flag} key=value")
        if key in found:
            raise UsageError(f"{flag} {key} is given twice", mend="give it once")
        found[key] = value
    return found


def words(text: str | None) -> list[str]:
    """A comma-separated list."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
