"""Why a build failed: the library's texts, and what they mean to somebody with a ResNet.

TensorRT returns nothing but "no engine". What it wrote meanwhile holds the reason, and often the
reason is a warning while the error only says where it gave up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from optimizer.engines.tensorrt.log import BuildLog, one_line
from optimizer.engines.tensorrt.names import module_path
from optimizer.errors import (
    BuildError,
    GraphError,
    MissingDevice,
    MissingLibrary,
    ResnetOptError,
    UnsupportedPrecision,
    UsageError,
)

__all__ = ["Build", "explain"]

_MEBIBYTE = 1 << 20
_LARGEST_MEBIBYTES = 1 << 16
"""Older versions write the size of a request in MiB, newer ones in bytes; no kernel asks for so few
bytes, and no GPU has so many MiB."""
_FREE = "free memory on the GPU (nvidia-smi names who uses it), or a smaller --profile"


@dataclass(frozen=True, kw_only=True)
class Build:
    """What was being built.

    Attributes:
        title: The library's name.
        graph: File name of the graph.
        workspace: The limit that was given, in bytes; ``None`` without one.
    """

    title: str
    graph: str
    workspace: int | None = None


@dataclass(frozen=True)
class _Known:
    """One text of the library, and our error for it."""

    text: re.Pattern[str]
    error: Callable[[Build, re.Match[str]], ResnetOptError]
    needs_workspace: bool = False


def explain(build: Build, log: BuildLog) -> ResnetOptError:
    """The error of a build that gave no engine, by what the library wrote meanwhile."""
    everything = "\n".join([*log.errors, *log.warnings])
    for known in _KNOWN:
        if known.needs_workspace and build.workspace is None:
            continue
        match = known.text.search(everything)
        if match is not None:
            return known.error(build, match)
    return BuildError(
        f"{build.title} could not compile {build.graph}: {log.reason('it does not say why')}",
        hint="build another precision to find the culprit, and report this message",
    )


# --- one function an error -------------------------------------------------------------------------


def _gpu_is_full(build: Build, match: re.Match[str]) -> ResnetOptError:
    sizes = match.groupdict()
    detail = one_line(match[0])
    if sizes.get("request"):
        detail = f"a kernel asks for {sizes['request']} MiB, {sizes['free']} MiB are free"
    return BuildError(
        f"the GPU has too little free memory to build {build.graph}: {detail}", hint=_FREE
    )


def _workspace(build: Build, match: re.Match[str]) -> ResnetOptError:
    sizes = match.groupdict()
    number = next((int(size) for size in sizes.values() if size), None)
    if number is None:
        needed, words = "4GiB", "no kernel fits into it"
    else:
        mebibytes = number if number < _LARGEST_MEBIBYTES else -(-number // _MEBIBYTE)
        if sizes.get("bytes"):
            mebibytes = -(-number // _MEBIBYTE)
        needed, words = f"{mebibytes}MiB", f"a kernel asks for {mebibytes:,} MiB"
    return UsageError(
        f"a workspace of {build.workspace:,} bytes is too small: {words}",
        hint=f"--workspace {needed}, or leave it out",
    )


def _no_kernel(build: Build, match: re.Match[str]) -> ResnetOptError:
    node = match["node"].strip().rstrip(".)")
    layers = [path for part in node.split(" + ") if (path := module_path(part.strip()))]
    what = f"layer {layers[0]}" if layers else node
    if build.workspace is not None:
        return UsageError(
            f"{build.title} has no kernel for {what} that fits into a workspace of "
            f"{build.workspace:,} bytes",
            hint="--workspace 4GiB, or leave it out",
        )
    return BuildError(
        f"{build.title} has no kernel for {what} of {build.graph}",
        hint="build another precision, or another version of the library",
    )


def _no_profile(build: Build, match: re.Match[str]) -> ResnetOptError:  # noqa: ARG001
    return UsageError(
        f"{build.graph} has a dynamic batch, and no optimization profile covers it",
        hint="--profile min:opt:max, as in 1:8:32",
    )


def _operator(build: Build, match: re.Match[str]) -> ResnetOptError:
    names = [name for name in match.groups() if name]
    what = f"the operator {names[0]}" if names else "an operator"
    return GraphError(
        f"{build.title} does not support {what} of {build.graph}",
        hint="replace it by operators that the library has",
    )


def _types(build: Build, match: re.Match[str]) -> ResnetOptError:
    return UnsupportedPrecision(
        f"a target does not compute the type {match['type']} of {build.graph}: "
        f"{one_line(match[0])}",
        hint="another --precision, or other targets",
    )


def _wrong_device(build: Build, match: re.Match[str]) -> ResnetOptError:
    return MissingDevice(
        f"this GPU is not one that {build.title} compiles for: {one_line(match[0])}",
        hint="a version of the library that supports it, or --engine onnxruntime --provider cuda",
    )


def _driver(build: Build, match: re.Match[str]) -> ResnetOptError:
    return MissingDevice(
        f"{build.title} could not use the GPU: {one_line(match[0])}",
        hint="resnet-opt doctor says whether the driver fits the library",
    )


def _library(build: Build, match: re.Match[str]) -> ResnetOptError:
    name = match["library"]
    hint = "install the library again, with the same version of all of its wheels"
    if "lean" in name:
        hint = "pip install tensorrt-lean of the same version"
    return MissingLibrary(f"{build.title} cannot load {name}, which it needs to build", hint=hint)


def _text(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# In this order: what explains more comes first.
_KNOWN = (
    _Known(_text(r"Unable to load library: (?P<library>[\w.]+)"), _library),
    _Known(
        _text(
            r"CUDA driver version is insufficient[^\n]*|CUDA initialization failure with error: \d+"
            r"|no CUDA-capable device[^\n]*"
        ),
        _driver,
    ),
    _Known(
        _text(
            r"Target GPU SM \d+ is not supported by this TensorRT release"
            r"|[^\n]*does not support this compute capability"
            r"|[^\n]*no kernel image is available for execution on the device"
        ),
        _wrong_device,
    ),
    _Known(_text(r"no optimization profile has been defined|missing dimensions in profile"), _no_profile),
    _Known(
        _text(
            r"No importer registered for op: (\w+)|Plugin not found|UNSUPPORTED_NODE"
            r"|Unsupported (?:ONNX )?operator:? (\w+)"
        ),
        _operator,
    ),
    _Known(_text(r"[^\n]*HW-specific datatypes: (?P<type>\w+)"), _types),
    _Known(
        _text(
            r"Device request: (?P<request>\d+)\s*MB Available: (?P<free>\d+)\s*MB"
            r"|cudaErrorMemoryAllocation|Cuda Runtime \([^\n]*out of memory\)"
        ),
        _gpu_is_full,
    ),
    _Known(
        _text(
            r"insuff?icient memory on requested size of (?P<size>\d+)"
            r"|Requested size was (?P<bytes>\d+) bytes"
            r"|increasing the workspace size|workspace limit"
            r"|do not have sufficient workspace memory"
        ),
        _workspace,
        needs_workspace=True,
    ),
    _Known(
        _text(
            r"insuff?icient memory on requested size of \d+[^\n]*|OutOfMemory[^\n]*"
            r"|Requested size was \d+ bytes"
        ),
        _gpu_is_full,
    ),
    _Known(
        _text(r"Could not find any implementation for node (?P<node>[^\n]+?)(?:\)| In |\n|$)"),
        _no_kernel,
    ),
)  # fmt: skip
