"""The engine that ``auto`` chooses on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.engines import choice, get_backend
from optimizer.targets.hardware import CpuFeatures, cpu_features

OLD = replace(cpu_features(), avx2=True, avx512=False, vnni=False, bf16=False)
NEW = replace(cpu_features(), avx2=True, avx512=True, vnni=True, bf16=True)


@pytest.mark.skipif(
    any(get_backend(n).availability().can_run for n in ("tensorrt", "tensorrt-rtx")),
    reason="this machine has a GPU, which comes first",
)
@pytest.mark.parametrize(
    ("cpu", "precision", "engine"),
    [
        (OLD, "fp32", "onnxruntime"),
        (NEW, "fp32", "openvino"),
        (OLD, "int8", "openvino"),
        (NEW, "int8", "openvino"),
        (OLD, "mixed", "openvino"),
        (NEW, "bf16", "openvino"),
        (OLD, "bf16", "tensorrt-rtx"),
        (NEW, "fp16", "tensorrt-rtx"),
    ],
)
def test_auto_chooses_by_precision_and_cpu(
    cpu: CpuFeatures, precision: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "tensorrt-rtx" and not get_backend(engine).availability().can_build:
        pytest.skip("TensorRT-RTX is not installed")
    monkeypatch.setattr(choice, "cpu_features", lambda: cpu)
    assert choice.choose_engine(precision) == engine
