"""The overhead of a session: judged from blocks, and the two calls that are compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import numpy as np
import pytest
from overhead import interleave, overhead, raw_call

from optimizer.engines.tensorrt.session import TensorRtSession

from ..engines.tensorrt import graphs
from ..engines.tensorrt.hostgpu import HostCuda, HostEngine, open_session


def blocks(mean: float, *, count: int = 40, spread: float = 0.002, seed: int = 0) -> list[Any]:
    generator = np.random.default_rng(seed)
    return [mean * generator.normal(1.0, spread, 50) for _ in range(count)]


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, "pass"), (0.005, "pass"), (0.05, "fail"), (-0.02, "pass")]
)
def test_a_known_overhead_is_found(share: float, verdict: str) -> None:
    found = overhead(blocks(1.0 + share, seed=1), blocks(1.0, seed=2))
    assert found.share == pytest.approx(share, abs=1e-3)
    assert found.ci95[0] <= share + 1e-3
    assert found.ci95[1] >= share - 1e-3
    assert found.verdict == verdict
    assert found.ours_ms == pytest.approx((1 + share) * found.raw_ms, rel=2e-3)


def test_noise_is_inconclusive_and_not_a_pass() -> None:
    generator = np.random.default_rng(3)
    noisy = [b * generator.normal(1.0, 0.2) for b in blocks(1.008, seed=1)]
    calm = [b * generator.normal(1.0, 0.2) for b in blocks(1.0, seed=2)]
    assert overhead(noisy, calm).verdict == "inconclusive"


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="1 blocks are too few"):
        overhead(blocks(1.0, count=1), blocks(1.0, count=1))


def test_blocks_are_interleaved() -> None:
    calls: list[str] = []
    ours, raw = interleave(
        lambda: calls.append("o"), lambda: calls.append("r"), blocks=30, calls=3, warm_up=2
    )
    assert [len(block) for block in (*ours, *raw)] == [3] * 60
    assert "".join(calls[:4]) == "oorr"
    pairs = {"".join(calls[i : i + 6]) for i in range(4, len(calls), 6)}
    assert pairs == {"ooorrr", "rrrooo"}
    assert all((block > 0).all() for block in (*ours, *raw))


def test_a_slower_call_is_measured_as_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [0]
    monkeypatch.setattr("overhead.time", SimpleNamespace(perf_counter_ns=lambda: passed[0]))

    def lasting(nanoseconds: int) -> None:
        passed[0] += nanoseconds

    ours, raw = interleave(
        lambda: lasting(2_100_000), lambda: lasting(2_000_000), blocks=20, calls=5, warm_up=2
    )
    assert {float(ms) for block in ours for ms in block} == {2.1}
    assert {float(ms) for block in raw for ms in block} == {2.0}
    found = overhead(ours, raw)
    assert found.share == pytest.approx(0.05)
    assert found.verdict == "fail"


# --- the two calls, on a GPU made of host memory -----------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> tuple[HostCuda, HostEngine]:
    trt = pytest.importorskip("tensorrt_rtx")
    cuda = HostCuda()
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp32")
    return cuda, HostEngine(trt, cuda, graph, [(1, 4, 8)])


def session_of(host: tuple[HostCuda, HostEngine], cuda_graph: bool) -> TensorRtSession:
    _, engine = host
    return open_session(engine, cuda_graph=cuda_graph)


def runtime_of(cuda: HostCuda) -> Any:
    """The functions of ``cuda.bindings.runtime`` that a raw call uses, on host memory."""
    return SimpleNamespace(
        cudaGraphLaunch=cuda.graph_launch, cudaStreamSynchronize=cuda.stream_synchronize
    )


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_raw_call_computes_what_ours_does(
    host: tuple[HostCuda, HostEngine], cuda_graph: bool
) -> None:
    cuda, _ = host
    session = session_of(host, cuda_graph)
    batch = graphs.images(1)
    expected = session.run(batch)
    bound = session.bind(batch)
    bound.upload()
    bound.enqueue()
    bound.wait()
    launches = cuda.launches
    raw = raw_call(session, bound, runtime_of(cuda))
    bound.binding.fill(graphs.images(1) * 0)
    bound.upload()
    raw()
    bound.download()
    assert np.abs(bound.output() - expected).max() > 0
    assert cuda.launches - launches == int(cuda_graph)
    session.close()
    assert cuda.held == 0


def test_the_overhead_of_a_session_is_measured(host: tuple[HostCuda, HostEngine]) -> None:
    cuda, _ = host
    session = session_of(host, cuda_graph=True)
    bound = session.bind(graphs.images(1))
    found = gpu.session_overhead(session, bound, runtime_of(cuda), blocks=8, calls=3, warm_up=1)
    assert cuda.launches == 1 + 2 * (8 * 3 + 1)
    assert found.ours_ms > 0
    assert found.raw_ms > 0
    session.close()


def test_session_is_timed_like_the_tool(
    host: tuple[HostCuda, HostEngine],
) -> None:
    session = session_of(host, cuda_graph=True)
    size = session.input.shape[2]
    assert size is not None
    found = gpu.time_like_tool(session, 4, size, seconds=0.2, gpu_samples=5)
    assert found["images_per_s"] == pytest.approx(4 * found["batches_per_s"])
    assert found["batches_per_s"] > 0
    assert found["gpu_ms"] > 0
    session.close()
