"""INT8 of a ResNet v1 for OpenVINO: every convolution computes on integers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from optimizer.precision.int8 import compute_encodings, lower
from optimizer.precision.int8.reading import read_quantized
from optimizer.targets.rules import TARGETS, TargetRules, rules_for
from tests.precision.networks import v1_network
from tests.precision.test_int8_graphs import run, statistics


def batch() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(32, 3, 32, 32)).astype(np.float32)


def lowered(rules: TargetRules) -> ir.Model:
    model = v1_network(0)
    lower(model, compute_encodings(model, statistics(v1_network(0), [batch()]), rules, "0"), rules)
    return model


def convolutions(model: ir.Model, path: Path) -> Counter[str]:
    """Types in which OpenVINO computes the convolutions."""
    import openvino

    ir.save(model, path)
    compiled = openvino.Core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    layers = (op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops())
    return Counter(
        str(info["runtimePrecision"].astype(str))
        for info in layers
        if info["layerType"].astype(str) == "Convolution"
    )


def test_all_convolutions_are_int8_with_the_rule(tmp_path: Path) -> None:
    rules = rules_for("openvino")
    assert rules.shared_strides
    with_rule = convolutions(lowered(rules), tmp_path / "with.onnx")
    assert set(with_rule) <= {"i8", "u8"}
    without = convolutions(lowered(replace(rules, shared_strides=False)), tmp_path / "without.onnx")
    assert with_rule.total() == without.total() == 22


def test_the_rule_does_not_change_the_graph_as_written() -> None:
    rules = TARGETS["openvino"]
    (expected,) = run(lowered(replace(rules, shared_strides=False)), batch()[:4])
    (actual,) = run(lowered(rules), batch()[:4])
    assert np.array_equal(expected, actual)


def test_reading_the_graph_back_gives_the_strides_back() -> None:
    rules = TARGETS["openvino"]
    read = read_quantized(lowered(rules)).float_model
    assert [n.op_type for n in read.graph] == [n.op_type for n in v1_network(0).graph]
    strides = [
        list(n.attributes.get_ints("strides", ())) for n in read.graph if n.op_type == "Conv"
    ]
    wanted = [
        list(n.attributes.get_ints("strides", ()))
        for n in v1_network(0).graph
        if n.op_type == "Conv"
    ]
    assert strides == wanted
