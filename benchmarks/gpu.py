"""The GPU suite: build, audit, validate and measure with the present GPU and libraries.

``make test-gpu`` runs it through ``tests/gpu/test_suite.py`` and writes ``reports/gpu/<device>/``.
Nothing here requires a GPU by itself: a case is a backend, a precision and an optional provider. The
same steps run with CPU engines, which is how they are tested without a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import overhead
import trtexec
from materials import Material

import optimizer
from optimizer.artifacts import library_versions
from optimizer.engines import BuildSettings, Session, get_backend
from optimizer.engines.building import check_buildable
from optimizer.engines.cuda import cuda_status
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.opening import graph_of
from optimizer.environment import gpus
from optimizer.errors import EnvironmentFault, UsageError
from optimizer.targets.hardware import cpu_features

__all__ = ["BATCHES", "TOLERANCE", "Case", "Suite", "cases", "reason_to_skip", "relative_error"]

MODELS = ("random", "digits")
"""``random`` needs no training."""
PRECISIONS = ("fp16", "int8", "fp32", "fp8")
"""The fastest to build and most used come first, so that an aborted run has the most useful results."""
BATCHES = (1, 32)
PROFILE = (1, 8, 32)
# Largest difference of a logit from the graph as written, relative to its largest logit. It only detects
# engines with other weights or another precision: with quantization, a sum that rounds to the other side
# costs a whole step, and a ResNet-50 in INT8 differs by 0.08 between two engines on the same CPU. The
# validation decides whether the difference matters.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2, "fp8": 0.25}
_LIBRARIES = (
    "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx", "onnxruntime-gpu", "onnxruntime",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "cuda-python", "pycuda", "torch",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One engine of the suite."""

    model: str
    engine: str
    precision: str
    provider: str | None = None

    @property
    def label(self) -> str:
        """The engine with its provider, for reports."""
        return self.engine + (f" ({self.provider})" if self.provider else "")

    @property
    def file(self) -> str:
        """Name of the engine file."""
        parts = [self.engine, self.provider, self.precision]
        return "-".join(part for part in parts if part) + get_backend(self.engine).suffix


def cases() -> list[Case]:
    """Every engine and precision of both models, the most useful ones first.

    The CUDA provider has no INT8 and no FP8.
    """
    kinds: list[tuple[str, str | None]] = [("tensorrt", None), ("tensorrt-rtx", None)]
    kinds += [("onnxruntime", name) for name in ("cuda", "tensorrt", "nv-tensorrt-rtx")]
    return [
        Case(model, engine, precision, provider)
        for model in MODELS
        for precision in PRECISIONS
        for engine, provider in kinds
        if provider != "cuda" or precision in {"fp32", "fp16"}
    ]


def reason_to_skip(case: Case) -> str | None:
    """Why a case cannot run on this machine: the message of the check that failed."""
    backend = get_backend(case.engine)
    available = backend.availability()
    if not available.can_run:
        return available.reason
    options = {"provider": case.provider} if case.provider else {}
    settings = BuildSettings(precision=case.precision, targets=_targets(case), options=options)
    try:
        check_buildable(backend, settings)
    except (EnvironmentFault, UsageError) as error:
        return error.message
    return None


def tolerance(case: Case) -> float:
    """`TOLERANCE`, adjusted for providers that always compute FP32 in TF32."""
    compiles = case.provider in {"tensorrt", "nv-tensorrt-rtx"}
    return 5e-3 if compiles and case.precision == "fp32" else TOLERANCE[case.precision]


def _targets(case: Case) -> tuple[str, ...]:
    """The present GPU for TensorRT-RTX, so that it compares with engines built for that GPU only."""
    devices = cuda_status().devices
    return (devices[0].sm,) if case.engine == "tensorrt-rtx" and devices else ()


def relative_error(engine: Path, material: Material, *, images: int = 8) -> float:
    """Largest difference of an engine from its graph as written, relative to the largest logit."""
    graph = graph_of(engine)
    assert graph is not None, "a build stores its graph beside the engine"
    shape = (images, 3, material.image_size, material.image_size)
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = as_written(graph).run(batch)
    session = optimizer.load(engine)
    try:
        actual = session.run(batch)
    finally:
        session.close()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@dataclass
class Suite:
    """Runs cases and collects their results.

    Attributes:
        folder: The folder for engines.
        material: Returns the model with this name, created on first use.
        seconds_left: Returns the time that a build may take.
    """

    folder: Path
    material: Callable[[str], Material]
    seconds_left: Callable[[], float] = lambda: 1800.0
    outcomes: dict[Case, dict[str, Any]] = field(default_factory=dict)
    engines: dict[Case, Path] = field(default_factory=dict)
    benches: list[dict[str, Any]] = field(default_factory=list)
    tool_runs: list[dict[str, Any]] = field(default_factory=list)
    overheads: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, case: Case, reason: str) -> None:
        """Record why a case was not run."""
        self.outcomes[case] = {"status": "skipped", "reason": reason}

    def run(self, case: Case) -> dict[str, Any]:
        """Build, audit and validate one engine; a failure is recorded and raised."""
        outcome: dict[str, Any] = {"status": "failed"}
        self.outcomes[case] = outcome
        try:
            self._run(case, self.material(case.model), outcome)
        except Exception as error:
            outcome["reason"] = str(error)
            raise
        outcome["status"] = "passed"
        return outcome

    def _run(self, case: Case, material: Material, outcome: dict[str, Any]) -> None:
        folder = self.folder / case.model
        folder.mkdir(exist_ok=True)
        artifact = optimizer.build(
            material.graph,
            folder / case.file,
            precision=case.precision,
            engine=case.engine,
            provider=case.provider,
            target=_targets(case),
            profile=PROFILE if _has_profile(case) else None,
            stats=material.statistics,
            build_timeout=f"{max(1.0, self.seconds_left()):.0f}s",
        )
        outcome["build_s"] = artifact.manifest.details["build_s"]
        outcome["notes"] = artifact.manifest.details.get("notes", [])
        outcome["engine_bytes"] = artifact.path.stat().st_size
        outcome["audit"] = optimizer.audit(artifact).model_dump(mode="json")
        if outcome["audit"]["verdict"] == "fail":
            raise AssertionError(outcome["audit"]["reason"])
        outcome["relative_error"] = relative_error(artifact.path, material)
        if not outcome["relative_error"] <= tolerance(case):
            raise AssertionError(
                f"the logits differ by {outcome['relative_error']:.3g} from the graph as written"
            )
        if material.data is not None:
            result = optimizer.validate(
                [artifact.path],
                reference=str(material.checkpoint),
                data=material.data,
                exported=material.graph,
            )
            outcome["validate"] = {"verdict": result.verdict, "finding": result.finding}
            if result.verdict == "fail":
                raise AssertionError(result.finding)
        self.engines[case] = artifact.path

    def built(self, model: str) -> dict[Case, Path]:
        """The successfully built engines of a model."""
        return {case: path for case, path in self.engines.items() if case.model == model}

    def bench(self, model: str, *, seconds: float = 10.0, threads: int | None = None) -> None:
        """Measure all engines of a model and PyTorch, interleaved."""
        material, paths = self.material(model), list(self.built(model).values())
        result = optimizer.bench(
            [material.checkpoint, *paths], batch=BATCHES, duration=f"{seconds}s", threads=threads
        )
        raw = result.model_dump(mode="json")
        names = {path.name: case.label for case, path in self.built(model).items()}
        for engine in raw["engines"]:
            engine["raw_file"] = None
            engine["name"] = f"{names.get(engine['file'], 'PyTorch')} {engine['precision']}"
        self.benches.append({"model": material.name, **raw})

    def run_against_tool(self, case: Case, batch: int, *, seconds: float = 5.0) -> dict[str, Any]:
        """Run our session and then trtexec (or tensorrt_rtx) on the same engine file."""
        material, path = self.material(case.model), self.engines[case]
        session = _with_cuda_graph(case, path)
        try:
            name = session.input.name
            ours = time_like_tool(session, batch, material.image_size, seconds=seconds)
        finally:
            session.close()
        run: dict[str, Any] = {
            "model": material.name, "engine": f"{case.label} {case.precision}", "batch": batch,
            "ours": ours, "tool": None, "error": None,
        }  # fmt: skip
        self.tool_runs.append(run)
        tool = trtexec.find_tool(case.engine)
        if tool is None:
            run["error"] = f"{trtexec.TOOLS[case.engine]} is not on the PATH"
            return run
        shape = (batch, 3, material.image_size, material.image_size)
        try:
            timing = trtexec.time_engine(tool, path, input_name=name, shape=shape, seconds=seconds)
        except trtexec.ToolFailed as error:
            run["error"] = str(error)
            return run
        run["tool"] = timing.as_json()
        return run

    def measure_overhead(self, case: Case, runtime: Any, **options: int) -> overhead.Overhead:
        """The overhead of our session over raw calls, at batch 1 with a CUDA graph."""
        material = self.material(case.model)
        session = _with_cuda_graph(case, self.engines[case])
        try:
            bound = session.bind(_images(1, material.image_size))
            measured = session_overhead(session, bound, runtime, **options)
        finally:
            session.close()
        self.overheads.append(
            {
                "model": material.name, "engine": f"{case.label} {case.precision}", **asdict(measured)
            }
        )  # fmt: skip
        return measured

    def results(self) -> dict[str, Any]:
        """All results, for the report."""
        status = cuda_status()
        device: dict[str, Any] = {"name": cpu_features().model}
        if status.devices:
            gpu = status.devices[0]
            device = {
                "name": gpu.name, "capability": gpu.sm,
                "memory_gib": None if gpu.memory_bytes is None else gpu.memory_bytes >> 30,
                "driver": next((listed.driver for listed in gpus()), None), "cuda": status.driver,
            }  # fmt: skip
        return {
            "kind": "gpu-suite",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device,
            "libraries": library_versions(*_LIBRARIES),
            "cases": [
                {"model": case.model, "engine": case.label, "precision": case.precision, **outcome}
                for case, outcome in self.outcomes.items()
            ],
            "bench": self.benches,
            "trtexec": self.tool_runs,
            "overhead": self.overheads,
        }


def _has_profile(case: Case) -> bool:
    return case.engine.startswith("tensorrt") or case.provider in {"tensorrt", "nv-tensorrt-rtx"}


def _with_cuda_graph(case: Case, path: Path) -> Any:
    backend: Any = get_backend(case.engine)
    return backend.load(path, options={"cuda_graph": True})


def _images(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)


def session_overhead(
    session: Session, bound: Any, runtime: Any, **options: int
) -> overhead.Overhead:
    """Time our calls and the equivalent raw calls, interleaved.

    Args:
        session: A `TensorRtSession`.
        bound: A batch bound to it.
        runtime: The module ``cuda.bindings.runtime``.
        options: ``blocks``, ``calls``, ``warm_up`` and ``seed`` of `overhead.interleave`.
    """
    bound.upload()

    def ours() -> None:
        bound.enqueue()
        bound.wait()

    ours()  # captures the graph that the raw call launches
    samples = overhead.interleave(ours, overhead.raw_call(session, bound, runtime), **options)
    return overhead.overhead(*samples)


def time_like_tool(
    session: Session, batch: int, image_size: int, *, seconds: float, gpu_samples: int = 100
) -> dict[str, float]:
    """Time a session like trtexec times an engine: warm-up, then calls without transfers.

    Returns:
        ``gpu_ms`` (median GPU time per batch, from events), ``batches_per_s`` and ``images_per_s``, with
        synchronization after every batch.
    """
    bound: Any = session.bind(_images(batch, image_size))
    bound.upload()
    _calls(bound, trtexec.WARM_UP_MS / 1e3)
    started = time.perf_counter()
    calls = _calls(bound, seconds)
    rate = calls / (time.perf_counter() - started)
    samples: Sequence[float] = [bound.gpu_ms() for _ in range(gpu_samples)]
    return {
        "gpu_ms": statistics.median(samples),
        "batches_per_s": rate,
        "images_per_s": rate * batch,
    }


def _calls(bound: Any, seconds: float) -> int:
    end = time.perf_counter() + seconds
    calls = 0
    while time.perf_counter() < end:
        bound.enqueue()
        bound.wait()
        calls += 1
    return calls
