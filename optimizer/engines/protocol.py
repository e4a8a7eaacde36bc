"""The interface of backends and sessions.

A backend compiles a *graph* (an ONNX file with explicit precision) into an *engine*, loads it, runs
it, and lists its layers. It knows nothing about accuracy, timing or reports.
Third parties add backends through the entry-point group ``resnet_opt.engines``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from optimizer.artifacts import Manifest
from optimizer.progress import Progress
from optimizer.results import LayerInfo

__all__ = [
    "Availability",
    "Backend",
    "Bound",
    "BuildSettings",
    "Built",
    "ChecksMachine",
    "ConcurrentBackend",
    "Session",
    "TensorSpec",
    "TimesLayers",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build and run on this machine; if not, why, and how to fix it."""

    can_build: bool
    can_run: bool
    reason: str
    """One line: the installed versions, or what is missing."""
    hint: str | None = None
    """The command that enables it."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Options of one build. A backend refuses options that it does not support.

    Attributes:
        precision: Precision of the graph (``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``).
        batch: Fixed batch size of the graph; ``None`` if it is dynamic.
        profile: (min, opt, max) batch size of a dynamic engine (TensorRT only).
        targets: Compute capabilities for TensorRT-RTX, ``("sm86", "sm89")``; empty otherwise.
        workspace_bytes: Maximum scratch memory of the builder (TensorRT).
        opt_level: Builder optimization level, 0 to 5 (TensorRT).
        timing_cache: Timing cache file (TensorRT).
        threads: Threads the engine is tuned for; ``None`` for all physical cores.
        options: Backend-specific options by name.
    """

    precision: str
    batch: int | None = None
    profile: tuple[int, int, int] | None = None
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    opt_level: int | None = None
    timing_cache: Path | None = None
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Built:
    """The results of a build, besides the file it wrote.

    Attributes:
        layers: The compiled layers. They go into the manifest, because some engines cannot be
            opened where they were built.
        seconds: Wall time of the library's compilation.
        notes: Remarks for the user, such as an option that the library ignored.
        machine: Where it was built, if that limits where the engine runs (GPU, driver, CUDA).
    """

    layers: list[LayerInfo]
    seconds: float
    notes: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (``None`` for a dynamic dimension) and dtype of one input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@runtime_checkable
class Bound(Protocol):
    """A batch bound to an engine, so that copies and compute can be timed separately.

    On a CPU, `upload` and `download` cost almost nothing. `enqueue` followed by `wait` is the
    computation; an engine that works synchronously computes in `enqueue`.
    """

    def upload(self) -> None:
        """Copy the batch to the device and wait for the copy."""

    def enqueue(self) -> None:
        """Start the computation."""

    def wait(self) -> None:
        """Wait for the last computation to finish."""

    def download(self) -> None:
        """Copy the outputs to the host and wait for the copy."""

    def output(self) -> Array:
        """Outputs of the last computation, N x classes float32; valid until the next one."""


class Session(Protocol):
    """A loaded engine. Not thread-safe: use it from one thread at a time."""

    input: TensorSpec
    output: TensorSpec

    def run(self, batch: Array) -> Array:
        """Compute one batch.

        Args:
            batch: N x 3 x H x W float32, or N x H x W x 3 uint8 if the graph takes images.

        Returns:
            N x classes float32, a new array.
        """

    def bind(self, batch: Array) -> Bound:
        """Prepare to compute the same batch repeatedly."""

    def layers(self) -> list[LayerInfo]:
        """The layers as the engine reports them; empty if it does not report them."""

    def close(self) -> None:
        """Release the engine's resources; calling it again does nothing."""


@runtime_checkable
class TimesLayers(Protocol):
    """Optional interface of a `Session` whose engine can be timed layer by layer."""

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """Time each layer with the library's profiler; the session itself stays unprofiled.

        Args:
            batch: As for `Session.bind`.
            calls: Measured calls, after a few warm-up calls.

        Returns:
            The layers that ran, in the engine's order, with ``time_ms`` (median over the calls,
            or their mean if the library does not report single calls) and, if the engine reports
            them, the ``bytes`` of the whole batch. ``flops`` are per image and may be left to
            `optimizer.engines.layer_annotation.annotate`.

        Raises:
            UsageError: The engine cannot be timed by layer, or not with this batch.
        """


class Backend(Protocol):
    """One kind of engine."""

    name: str
    """The name on the command line."""
    suffix: str
    """Suffix of an engine file, including the dot."""
    libraries: tuple[str, ...]
    """Distributions whose versions an engine depends on."""

    def availability(self) -> Availability:
        """Whether this machine can build and run; imports as little as possible."""

    def device(self) -> dict[str, Any]:
        """The device an engine is built for, as recorded in the manifest and the cache key."""

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """What this backend adds to the manifest's settings; checks them before a build.

        Raises:
            UnsupportedPrecision: The backend does not compute this precision here.
            UsageError: The backend does not have one of the options.
        """

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """Compile ``graph`` into ``output`` in the calling process.

        Raises:
            GraphError: The graph cannot be compiled by this backend.
            UnsupportedPrecision: The backend does not compute this precision.
            BuildError: The library failed.
        """

    def load(
        self, engine: Path, *, threads: int | None = None, device: str | None = None
    ) -> Session:
        """Load an engine whose manifest has been checked.

        Args:
            engine: The engine file.
            threads: Compute threads; ``None`` for all physical cores.
            device: Device such as ``cuda:1``; ``None`` for the first.
        """


@runtime_checkable
class ChecksMachine(Protocol):
    """A backend that decides for itself whether an engine fits this machine.

    For other backends, library versions and device must equal those of the build.
    """

    def check_machine(self, path: Path, manifest: Manifest, device: str | None) -> None:
        """Compare a manifest with this machine; called only if the backend can run.

        Raises:
            ArtifactError: The engine does not fit; names the difference and the rebuild command.
            MissingDevice, UsageError: The device does not exist.
        """


@runtime_checkable
class ConcurrentBackend(Protocol):
    """A backend whose engines can compute several batches concurrently."""

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> Sequence[Session]:
        """Load an engine once, as several sessions that compute concurrently.

        The sessions share the engine and its weights. Each is used by one thread.

        Args:
            engine: The engine file; its manifest has been checked.
            streams: Number of sessions.
            threads: Compute threads of all sessions together; ``None`` for all physical cores.
                At least ``streams`` if the engine computes on the CPU.
            device: Device such as ``cuda:1``; ``None`` for the first.
        """


@dataclass(frozen=True)
class Opening:
    """How to open an engine, if its backend offers a choice.

    Attributes:
        variant: Execution variant of the backend; PyTorch has several (`optimizer.engines.torch`).
        cache: Folder where a library that compiles on opening stores the result for the next
            process that opens the engine.
    """

    variant: str | None = None
    cache: Path | None = None


@runtime_checkable
class ChoosesOpening(Protocol):
    """A backend whose engines can be opened in several ways."""

    def load_with(
        self,
        engine: Path,
        opening: Opening,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> Sequence[Session]:
        """Like `ConcurrentBackend.load_streams`; ignores what does not apply in ``opening``.

        Raises:
            UsageError: The variant does not exist.
        """
