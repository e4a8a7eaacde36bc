"""The harness with real libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.profiling.benchmark import bench
from optimizer.profiling.speed_comparison import compare_bench
from optimizer.profiling.worker_process import Worker
from tests.conftest import Engines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engines(small_engines: Engines) -> dict[str, Path]:
    return {name: small_engines(name, "fp32") for name in ("openvino", "onnxruntime")}


def test_a_worker_loads_only_its_own_runtime(engines: dict[str, Path]) -> None:
    for name, path in engines.items():
        worker = Worker(threads=1)
        try:
            loaded, _ = worker.ask("load", timeout_s=60, path=str(path), threads=1, device=None)
            assert loaded["runtimes"] == [name]
            assert loaded["load_s"] > 0
        finally:
            worker.close()


def test_real_engines_side_by_side(engines: dict[str, Path], tmp_path: Path) -> None:
    paths = list(engines.values())
    result = bench(paths, batch=[1, 2], duration="0.1s", raw_dir=tmp_path / "raw")
    assert [(e.backend, e.batch, e.status) for e in result.engines] == [
        ("openvino", 1, "ok"), ("onnxruntime", 1, "ok"),
        ("openvino", 2, "ok"), ("onnxruntime", 2, "ok"),
    ]  # fmt: skip
    for engine in result.engines:
        assert engine.latency_ms is not None
        assert engine.latency_ci95_ms is not None
        assert engine.latency_ci95_ms[0] <= engine.latency_ms.p50 <= engine.latency_ci95_ms[1]
        assert engine.images_per_s == pytest.approx(engine.batch * engine.batches_per_s)
        assert engine.image_size == 32
        assert engine.engine_bytes > 10 << 20
        assert engine.peak_rss_bytes > engine.engine_bytes
        with np.load(tmp_path / str(engine.raw_file)) as raw:
            assert raw["compute_ns"].min() > 0
    assert not any("its process loaded" in note for note in result.conditions.notes)
    assert [(c.b, c.batch) for c in result.comparisons] == [
        ("onnxruntime-fp32.ort.onnx", 1), ("onnxruntime-fp32.ort.onnx", 2),
    ]  # fmt: skip
    assert compare_bench(result, result).verdict in {"pass", "inconclusive"}
