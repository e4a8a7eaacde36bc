"""What every kind of engine can do: the contract between this room and the ones after it.

A backend compiles a *graph* (an ONNX file whose precision is explicit) into an *engine*, loads it,
runs it, and says which layers it has. It knows nothing of accuracy, timing or reports.
Third parties add one through the entry-point group ``resnet_opt.engines``.
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
    """Whether a backend can build and run here, and if not, why and what would fix it."""

    can_build: bool
    can_run: bool
    reason: str
    """One line: the versions found, or what is missing."""
    hint: str | None = None
    """The command that would enable it."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Options of one build; a backend ignores none that it does not know: it refuses them.

    Attributes:
        precision: The precision the graph carries (``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``).
        batch: ``None`` for a dynamic batch, else the fixed batch of the graph.
        profile: (min, opt, max) batch of a dynamic engine; only TensorRT compiles it in.
        targets: TensorRT-RTX compute capabilities, ``("sm86", "sm89")``; empty elsewhere.
        workspace_bytes: Upper bound of the builder's scratch memory (TensorRT).
        opt_level: Builder optimization level 0 to 5 (TensorRT).
        timing_cache: TensorRT's timing cache file.
        threads: Threads the engine is tuned for; ``None`` for all physical cores.
        options: Further options of one backend, by its own names.
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
    """What a build found out, beside the file it wrote.

    Attributes:
        layers: The layers that were compiled. They go into the manifest, because some engines
            cannot be opened where they were built.
        seconds: Wall time of the library's own compilation.
        notes: Remarks a user must know (an option the library ignored, say).
        machine: What the build ran on where that decides where the engine runs (GPU, driver, CUDA).
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
    """A batch bound to an engine, so that copies and compute can be timed apart.

    ``upload``, ``compute`` and ``download`` are the three spans; on a CPU the first and the last
    cost next to nothing. ``compute`` returns after the work is done; `enqueue` and `wait` are its
    two halves for engines that work asynchronously.
    """

    def upload(self) -> None:
        """Copy the batch to the device and wait."""

    def enqueue(self) -> None:
        """Start the computation."""

    def wait(self) -> None:
        """Wait until the computation started last is done."""

    def download(self) -> None:
        """Copy the outputs to the host and wait."""

    def output(self) -> Array:
        """The outputs of the last computation, N x classes float32; valid until the next one."""


class Session(Protocol):
    """A loaded engine. One thread at a time may use it."""

    input: TensorSpec
    output: TensorSpec

    def run(self, batch: Array) -> Array:
        """Compute one batch.

        Args:
            batch: N x 3 x H x W float32, or N x H x W x 3 uint8 where the graph takes images.

        Returns:
            N x classes float32, a new array.
        """

    def bind(self, batch: Array) -> Bound:
        """Prepare to compute the same batch many times."""

    def layers(self) -> list[LayerInfo]:
        """The engine's layers as it tells them; empty if it does not tell here."""

    def close(self) -> None:
        """Free what the engine holds; calling it again does nothing."""


@runtime_checkable
class TimesLayers(Protocol):
    """What a `Session` is too if its engine can be timed layer by layer; optional."""

    def time_layers(self, batch: Array, calls: int) -> list[LayerInfo]:
        """Time each layer with the library's own means; the session itself stays unprofiled.

        Args:
            batch: As for `Session.bind`.
            calls: Calls that count, after a few that do not.

        Returns:
            The layers that ran, in the order of the engine, with ``time_ms`` (median over the
            calls, or their mean where the library tells no single call) and, where the engine
            tells them, the ``bytes`` of the whole batch. ``flops`` are of one image and may be
            left to `optimizer.engines.layer_annotation.annotate`.

        Raises:
            UsageError: This engine cannot be timed by layer, or not with this batch.
        """


class Backend(Protocol):
    """One kind of engine."""

    name: str
    """The name on the command line."""
    suffix: str
    """Suffix of an engine file, with the dot."""
    libraries: tuple[str, ...]
    """Distributions whose versions decide what an engine is."""

    def availability(self) -> Availability:
        """Whether this machine can build and run; imports no more than it must."""

    def device(self) -> dict[str, Any]:
        """The device an engine is built for, as it goes into the manifest and the key."""

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        """What this backend adds to the manifest's settings; checked before a build is started.

        Raises:
            UnsupportedPrecision: The backend does not compute this precision here.
            UsageError: An option this backend does not have.
        """

    def build(
        self, graph: Path, output: Path, settings: BuildSettings, progress: Progress
    ) -> Built:
        """Compile ``graph`` into ``output``; runs in the calling process.

        Raises:
            GraphError: The graph cannot be compiled by this backend.
            UnsupportedPrecision: The backend does not compute this precision.
            BuildError: The library failed.
        """

    def load(
        self, engine: Path, *, threads: int | None = None, device: str | None = None
    ) -> Session:
        """Load an engine; its manifest was checked before.

        Args:
            engine: The engine file.
            threads: Threads to compute with; ``None`` for all physical cores.
            device: Which device, ``cuda:1``; ``None`` for the first.
        """


@runtime_checkable
class ChecksMachine(Protocol):
    """A backend that judges itself whether an engine fits this machine.

    For the others, library versions and the device must be those of the build.
    """

    def check_machine(self, path: Path, manifest: Manifest, device: str | None) -> None:
        """Compare a manifest with this machine; called only where the backend can run.

        Raises:
            ArtifactError: What differs, and the command that rebuilds.
            MissingDevice, UsageError: There is no such device.
        """


@runtime_checkable
class ConcurrentBackend(Protocol):
    """A backend whose engines compute several batches at the same time; not every one does."""

    def load_streams(
        self,
        engine: Path,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> Sequence[Session]:
        """Load an engine once, as several sessions that compute beside each other.

        The sessions share the engine and its weights. As any session, each is used by one thread.

        Args:
            engine: The engine file; its manifest was checked before.
            streams: How many sessions.
            threads: Threads that all of them compute with together; ``None`` for all physical
                cores. At least ``streams``, where the engine computes on the CPU.
            device: Which device, ``cuda:1``; ``None`` for the first.
        """


@dataclass(frozen=True)
class Opening:
    """How an engine is opened, where its backend leaves a choice.

    Attributes:
        variant: Which of a backend's ways to compute; PyTorch has some (`optimizer.engines.torch`).
        cache: A folder in which a library that compiles when an engine is opened keeps what it made,
            for the next process that opens it.
    """

    variant: str | None = None
    cache: Path | None = None


@runtime_checkable
class ChoosesOpening(Protocol):
    """A backend whose engines may be opened in several ways."""

    def load_with(
        self,
        engine: Path,
        opening: Opening,
        *,
        streams: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> Sequence[Session]:
        """As `ConcurrentBackend.load_streams`; what it has no use for in ``opening`` is ignored.

        Raises:
            UsageError: There is no such variant.
        """
