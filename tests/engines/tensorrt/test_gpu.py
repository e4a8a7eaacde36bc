"""Build, load, run, compare and inspect on a real GPU, with whichever library is there.

Run by ``pytest -m gpu tests/engines/tensorrt``; skipped elsewhere with the reason.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.engines.cuda import cuda_status
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRt, TensorRtRtx
from optimizer.engines.tensorrt.weight_refit import refit_engine
from optimizer.errors import UsageError
from optimizer.progress import Silent
from tests.gpu.time_limit import SMALL_ENGINES, skip_after

from . import graphs

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _in_time() -> None:
    skip_after(SMALL_ENGINES)


# Largest difference of a logit from the graph as written, relative to its largest logit. With
# quantization, a sum that rounds to the other side costs a whole quantization step.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 4e-2, "int8": 3e-2, "fp8": 5e-2}


@pytest.fixture(params=[TensorRt, TensorRtRtx], ids=lambda kind: kind.name)
def backend(request: pytest.FixtureRequest) -> TensorRt:
    tested: TensorRt = request.param()
    available = tested.availability()
    if not available.can_run:
        pytest.skip(f"{tested.name}: {available.reason}")
    return tested


OPEN = """
import sys
from pathlib import Path
from optimizer.engines import get_backend
from optimizer.errors import ArtifactError
try:
    get_backend(sys.argv[1]).load(Path(sys.argv[2]))
except ArtifactError as error:
    print(error)
"""


def build(backend: TensorRt, folder: Path, precision: str, **options: Any) -> tuple[Path, Path]:
    gpu = cuda_status().devices[0]
    capability = gpu.capability[0] * 10 + gpu.capability[1]
    needed = {"fp8": 89, "bf16": 80, "int8": 76, "fp32": 76 if backend.library.portable else 0}
    if capability < needed.get(precision, 0):
        pytest.skip(f"{gpu.sm} does not compute {precision} with {backend.library.title}")
    graph = graphs.save_resnet(folder / "model.onnx", precision)
    targets = (gpu.sm,) if backend.library.portable else ()
    settings = BuildSettings(
        precision=precision, targets=targets, profile=(2, 4, 8), options=options
    )
    engine = folder / f"model{backend.suffix}"
    backend.build(graph, engine, settings, Silent())
    return graph, engine


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_an_engine_computes_its_graph(backend: TensorRt, tmp_path: Path, precision: str) -> None:
    graph, engine = build(backend, tmp_path, precision)
    session = backend.load(engine)
    try:
        for images in (1, 2, 5, 8, 19):
            batch = graphs.images(images)
            expected = graphs.as_written(graph, batch)
            actual = session.run(batch)
            assert actual.dtype == np.float32
            error = np.abs(actual - expected).max() / np.abs(expected).max()
            assert error < TOLERANCE[precision], f"batch {images}"
    finally:
        session.close()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_of_layers(backend: TensorRt, tmp_path: Path, precision: str) -> None:
    _, engine = build(backend, tmp_path, precision)
    session = backend.load(engine)
    try:
        layers = session.layers()
        products = {
            name: layer.precision
            for layer in layers
            for name in layer.torch_names
            if name in graphs.MODULES
        }
        assert set(products) == set(graphs.MODULES)
        assert set(products.values()) == {precision}
        timed = session.time_layers(graphs.images(4), 10)
        spent = {name for layer in timed if layer.time_ms for name in layer.torch_names}
        assert spent >= set(graphs.MODULES)
    finally:
        session.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_bound_batch(backend: TensorRt, tmp_path: Path, cuda_graph: bool) -> None:
    graph, engine = build(backend, tmp_path, "fp16")
    session = backend.load(engine, options={"cuda_graph": cuda_graph})
    try:
        batch = graphs.images(4)
        bound = session.bind(batch)
        for _ in range(10):
            bound.upload()
            bound.enqueue()
            bound.wait()
            bound.download()
        expected = graphs.as_written(graph, batch)
        error = np.abs(bound.output() - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE["fp16"]
        assert 0 < bound.gpu_ms() < 1000
        with pytest.raises(UsageError, match="larger than the engine's maximum of 8"):
            session.bind(graphs.images(9))
    finally:
        session.close()


def test_two_threads_need_two_sessions(backend: TensorRt, tmp_path: Path) -> None:
    graph, engine = build(backend, tmp_path, "fp16")
    batch = graphs.images(4)
    expected = graphs.as_written(graph, batch)
    outputs: list[np.ndarray] = []
    refused: list[str] = []
    session = backend.load(engine)
    session.run(batch)

    def work() -> None:
        try:
            session.run(batch)
        except UsageError as error:
            refused.append(error.message)
        own = backend.load(engine)
        outputs.append(own.run(batch))
        own.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    session.close()
    assert "another thread" in refused[0]
    assert np.abs(outputs[0] - expected).max() / np.abs(expected).max() < TOLERANCE["fp16"]


def test_damaged_engine_is_rejected(backend: TensorRt, tmp_path: Path) -> None:
    _, engine = build(backend, tmp_path, "fp16")
    damaged = bytearray(engine.read_bytes())
    for place in range(64, 1024, 7):
        damaged[place] ^= 0xFF
    engine.write_bytes(bytes(damaged))
    # The library may crash the process, so this must not be pytest's.
    outcome = subprocess.run(
        [sys.executable, "-c", OPEN, backend.name, str(engine)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert "rejects" in outcome.stdout
    assert "build it again" in outcome.stdout


def test_refitted_weights_are_the_new_ones(backend: TensorRt, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    graph, engine = build(backend, tmp_path, "fp16", refittable=True)
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            values = -2 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    refitted = tmp_path / f"refitted{backend.suffix}"
    refit_engine(backend.library, engine, other, refitted)
    batch = graphs.images(4)
    session = backend.load(refitted)
    try:
        expected = graphs.as_written(other, batch)
        error = np.abs(session.run(batch) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE["fp16"]
    finally:
        session.close()


def test_a_timing_cache_is_filled(tmp_path: Path) -> None:
    backend = TensorRt()
    available = backend.availability()
    if not available.can_run:
        pytest.skip(f"tensorrt: {available.reason}")
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16")
    folder = tmp_path / "timing"
    folder.mkdir()
    settings = BuildSettings(precision="fp16", profile=(1, 4, 8), timing_cache=folder)
    backend.build(graph, tmp_path / "a.plan", settings, Silent())
    (cache,) = folder.glob("*.cache")
    size = cache.stat().st_size
    backend.build(graph, tmp_path / "b.plan", settings, Silent())
    assert cache.stat().st_size == size


def test_streams_of_one_engine_compute_concurrently(backend: TensorRt, tmp_path: Path) -> None:
    graph, engine = build(backend, tmp_path, "fp32")
    sessions = backend.load_streams(engine, streams=2)
    batches = [graphs.images(4), graphs.images(8)[4:]]
    outputs: dict[int, np.ndarray] = {}

    def compute(number: int) -> None:
        for _ in range(10):
            outputs[number] = sessions[number].run(batches[number])

    threads = [threading.Thread(target=compute, args=[i]) for i in range(2)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for session in sessions:
            session.close()
    for number, batch in enumerate(batches):
        expected = graphs.as_written(graph, batch)
        error = np.abs(outputs[number] - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE["fp32"]
