"""Target rules: how they depend on the CPU, and their names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.errors import UsageError
from optimizer.targets.hardware import CpuFeatures, cpu_features
from optimizer.targets.rules import TARGETS, rules_for

CPU = CpuFeatures(
    model="a CPU",
    physical_cores=2,
    avx2=True,
    avx512=False,
    vnni=False,
    amx_int8=False,
    amx_bf16=False,
    bf16=False,
)


def test_rtx_follows_tensorrt() -> None:
    assert rules_for("tensorrt-rtx") == rules_for("tensorrt") == TARGETS["tensorrt"]


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_only_a_cpu_without_vnni_pairs_products(target: str) -> None:
    assert rules_for(target, replace(CPU, vnni=True)) == TARGETS[target]
    assert rules_for(target, CPU).pairs != "free"
    assert rules_for(target, CPU).weight_max == 127


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-cpu"])
def test_the_integers_of_tensorrt_do_not_depend_on_the_cpu(target: str) -> None:
    assert rules_for(target, CPU) == TARGETS[target]


def test_constants_have_the_narrowest_type() -> None:
    assert TARGETS["tensorrt"].constant_type == "fp16"
    assert TARGETS["tensorrt-cpu"].constant_type == "fp16"
    assert TARGETS["openvino"].constant_type == "fp32"
    assert replace(TARGETS["openvino"], high_precision="fp16").constant_type == "fp16"


def test_an_unknown_target_is_rejected_with_the_supported_ones() -> None:
    with pytest.raises(UsageError, match="unknown target 'tflite'") as caught:
        rules_for("tflite")
    assert "tensorrt-rtx" in str(caught.value.hint)


def test_this_machine_is_described() -> None:
    cpu = cpu_features()
    assert cpu.model
    assert cpu.physical_cores >= 1
    assert cpu.avx2 or not cpu.avx512
    assert cpu.vnni or not cpu.amx_int8
    assert ("VNNI" in cpu.flags) == cpu.vnni
