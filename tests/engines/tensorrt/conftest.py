"""Shared fixtures: real TensorRT-RTX builds of small networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.engines.protocol import BuildSettings, Built
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.library import TENSORRT_RTX, find
from optimizer.progress import Silent

from . import graphs

Build = Callable[..., Built]


@pytest.fixture(scope="session")
def rtx() -> TensorRtRtx:
    """The backend; skips if its library is not installed."""
    installed = find(TENSORRT_RTX)
    if installed.module is None:
        pytest.skip(str(installed.fault))
    return TensorRtRtx()


@pytest.fixture(scope="session")
def build(rtx: TensorRtRtx, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Really build a small network; each one only once."""
    results: dict[tuple[object, ...], Built] = {}

    def build_(precision: str, *targets: str, high: str | None = None) -> Built:
        key = (precision, targets, high)
        if key not in results:
            folder = tmp_path_factory.mktemp("engine")
            graph = graphs.save_resnet(folder / "model.onnx", precision, high=high)
            settings = BuildSettings(precision=precision, targets=targets, profile=(1, 2, 4))
            results[key] = rtx.build(graph, folder / "model.rtx", settings, Silent())
        return results[key]

    return build_


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small FP16 network as a file."""
    return graphs.save_resnet(tmp_path / "model.onnx", "fp16")
