"""Translates the library's log messages into the error of a failed build.

A failed build returns no engine and no reason. The reason is in the log, and often it is a warning,
while the error only names the place where the build gave up.
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
"""Older versions log the requested size in MiB, newer ones in bytes. Smaller numbers are MiB: no kernel
needs so few bytes, and no GPU has so many MiB."""
_FREE = "free memory on the GPU (nvidia-smi lists its processes), or use a smaller --profile"


@dataclass(frozen=True, kw_only=True)
class Build:
    """The build that failed.

    Attributes:
        title: The library's name.
        graph: File name of the graph.
        workspace: The workspace limit in bytes; ``None`` if none was set.
    """

    title: str
    graph: str
    workspace: int | None = None


@dataclass(frozen=True)
class _Rule:
    """A message of the library, and the error for it."""

    text: re.Pattern[str]
    error: Callable[[Build, re.Match[str]], ResnetOptError]
    needs_workspace: bool = False


def explain(build: Build, log: BuildLog) -> ResnetOptError:
    """The error of a failed build, from what the library logged during it."""
    messages = "\n".join([*log.errors, *log.warnings])
    for rule in _RULES:
        if rule.needs_workspace and build.workspace is None:
            continue
        match = rule.text.search(messages)
        if match is not None:
            return rule.error(build, match)
    return BuildError(
        f"{build.title} could not compile {build.graph}: {log.reason('no reason given')}",
        hint="try another --precision to narrow it down, and report this message",
    )


# --- one function per error -------------------------------------------------------------------------


def _gpu_is_full(build: Build, match: re.Match[str]) -> ResnetOptError:
    sizes = match.groupdict()
    detail = one_line(match[0])
    if sizes.get("request"):
        detail = f"a kernel needs {sizes['request']} MiB, {sizes['free']} MiB are free"
    return BuildError(
        f"the GPU has too little free memory to build {build.graph}: {detail}", hint=_FREE
    )


def _workspace(build: Build, match: re.Match[str]) -> ResnetOptError:
    sizes = match.groupdict()
    number = next((int(size) for size in sizes.values() if size), None)
    if number is None:
        needed, detail = "4GiB", "no kernel fits into it"
    else:
        mebibytes = number if number < _LARGEST_MEBIBYTES else -(-number // _MEBIBYTE)
        if sizes.get("bytes"):
            mebibytes = -(-number // _MEBIBYTE)
        needed, detail = f"{mebibytes}MiB", f"a kernel needs {mebibytes:,} MiB"
    return UsageError(
        f"a workspace of {build.workspace:,} bytes is too small: {detail}",
        hint=f"--workspace {needed}, or leave it out",
    )


def _no_kernel(build: Build, match: re.Match[str]) -> ResnetOptError:
    node = match["node"].strip().rstrip(".)")
    layers = [path for part in node.split(" + ") if (path := module_path(part.strip()))]
    layer = f"layer {layers[0]}" if layers else node
    if build.workspace is not None:
        return UsageError(
            f"{build.title} has no kernel for {layer} that fits into a workspace of "
            f"{build.workspace:,} bytes",
            hint="--workspace 4GiB, or leave it out",
        )
    return BuildError(
        f"{build.title} has no kernel for {layer} of {build.graph}",
        hint="use another --precision, or another version of the library",
    )


def _no_profile(build: Build, match: re.Match[str]) -> ResnetOptError:  # noqa: ARG001
    return UsageError(
        f"{build.graph} has a dynamic batch, and no optimization profile covers it",
        hint="--profile min:opt:max, as in 1:8:32",
    )


def _operator(build: Build, match: re.Match[str]) -> ResnetOptError:
    names = [name for name in match.groups() if name]
    operator = f"the operator {names[0]}" if names else "an operator"
    return GraphError(
        f"{build.title} does not support {operator} of {build.graph}",
        hint="replace it with supported operators",
    )


def _types(build: Build, match: re.Match[str]) -> ResnetOptError:
    return UnsupportedPrecision(
        f"a target does not support the type {match['type']} of {build.graph}: "
        f"{one_line(match[0])}",
        hint="another --precision, or other targets",
    )


def _wrong_device(build: Build, match: re.Match[str]) -> ResnetOptError:
    return MissingDevice(
        f"{build.title} does not support this GPU: {one_line(match[0])}",
        hint="a version of the library that supports it, or --engine onnxruntime --provider cuda",
    )


def _driver(build: Build, match: re.Match[str]) -> ResnetOptError:
    return MissingDevice(
        f"{build.title} could not use the GPU: {one_line(match[0])}",
        hint="run resnet-opt doctor to check the driver against the library",
    )


def _library(build: Build, match: re.Match[str]) -> ResnetOptError:
    name = match["library"]
    hint = "reinstall the library, with the same version of all its wheels"
    if "lean" in name:
        hint = "install tensorrt-lean in the same version"
    return MissingLibrary(f"{build.title} cannot load {name}, which it needs to build", hint=hint)


def _text(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# The first match wins, so the more specific messages come first.
_RULES = (
    _Rule(_text(r"Unable to load library: (?P<library>[\w.]+)"), _library),
    _Rule(
        _text(
            r"CUDA driver version is insufficient[^\n]*|CUDA initialization failure with error: \d+"
            r"|no CUDA-capable device[^\n]*"
        ),
        _driver,
    ),
    _Rule(
        _text(
            r"Target GPU SM \d+ is not supported by this TensorRT release"
            r"|[^\n]*does not support this compute capability"
            r"|[^\n]*no kernel image is available for execution on the device"
        ),
        _wrong_device,
    ),
    _Rule(_text(r"no optimization profile has been defined|missing dimensions in profile"), _no_profile),
    _Rule(
        _text(
            r"No importer registered for op: (\w+)|Plugin not found|UNSUPPORTED_NODE"
            r"|Unsupported (?:ONNX )?operator:? (\w+)"
        ),
        _operator,
    ),
    _Rule(_text(r"[^\n]*HW-specific datatypes: (?P<type>\w+)"), _types),
    _Rule(
        _text(
            r"Device request: (?P<request>\d+)\s*MB Available: (?P<free>\d+)\s*MB"
            r"|cudaErrorMemoryAllocation|Cuda Runtime \([^\n]*out of memory\)"
        ),
        _gpu_is_full,
    ),
    _Rule(
        _text(
            r"insuff?icient memory on requested size of (?P<size>\d+)"
            r"|Requested size was (?P<bytes>\d+) bytes"
            r"|increasing the workspace size|workspace limit"
            r"|do not have sufficient workspace memory"
        ),
        _workspace,
        needs_workspace=True,
    ),
    _Rule(
        _text(
            r"insuff?icient memory on requested size of \d+[^\n]*|OutOfMemory[^\n]*"
            r"|Requested size was \d+ bytes"
        ),
        _gpu_is_full,
    ),
    _Rule(
        _text(r"Could not find any implementation for node (?P<node>[^\n]+?)(?:\)| In |\n|$)"),
        _no_kernel,
    ),
)  # fmt: skip
