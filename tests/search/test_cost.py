"""Layer costs: measured with a real engine, or modelled."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from optimizer.graphs.facts import layer_work
from optimizer.graphs.topology import analyse
from optimizer.precision.int8 import lower
from optimizer.results import Ceiling, Ceilings
from optimizer.search.cost import GPU, Machine, measured_costs, modelled_costs
from optimizer.search.variants import Variants
from optimizer.targets.rules import TARGETS, rules_for
from tests.precision.networks import SIZE, network
from tests.search.networks import graph_file, hostile

CPU = Machine("a CPU", int8=3e11, fp16=1e11, fp32=1e11, bandwidth=2e10)


def test_the_time_of_every_layer_is_measured(variants: Variants, tmp_path: Path) -> None:
    graph = graph_file(tmp_path / "m.onnx")
    model = hostile()
    lower(model, variants.base, variants.rules)
    ir.save(model, tmp_path / "int8.onnx")
    costs = measured_costs(tmp_path / "int8.onnx", graph, variants.layers, SIZE)
    assert costs.source == "measured"
    assert set(costs.high_ms) == set(costs.int8_ms) == set(variants.layers)
    before = costs.predict(())
    assert before > 0
    for layer in variants.layers:
        assert costs.predict({layer}) >= before
    all_kept = costs.predict(variants.layers) - before
    separately = sum(costs.predict({layer}) - before for layer in variants.layers)
    assert all_kept == pytest.approx(separately)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_model_predicts_that_int8_is_faster(target: str, tmp_path: Path) -> None:
    graph = graph_file(tmp_path / "m.onnx")
    topology = analyse(ir.load(graph))
    machine = GPU if target == "tensorrt" else CPU
    costs = modelled_costs(graph, topology, rules_for(target), machine)
    assert machine.name in costs.reason
    assert costs.source == "model"
    for node in topology.layers():
        name = str(node.name)
        assert 0 < costs.int8_ms[name] < costs.high_ms[name]
    work = layer_work(graph)["fc"]
    moved = work.weights + work.inputs + work.outputs
    assert costs.int8_ms["fc"] == pytest.approx(
        1e3 * max(work.flops / machine.int8, moved / machine.bandwidth)
    )


def test_a_neighbour_falls_back_in_onnx_runtime(tmp_path: Path) -> None:
    """A layer runs in INT8 only if its output is quantized."""
    graph = graph_file(tmp_path / "m.onnx")
    topology = analyse(ir.load(graph))
    costs = modelled_costs(graph, topology, rules_for("onnxruntime"), CPU)
    falling_back = set(costs.falls_back({"layer1.0.conv2"})) - set(costs.falls_back(()))
    assert falling_back == {"layer1.0.conv1"}
    own_cost = costs.high_ms["layer1.0.conv2"] - costs.int8_ms["layer1.0.conv2"]
    assert costs.predict({"layer1.0.conv2"}) - costs.predict(()) > own_cost
    assert not modelled_costs(graph, topology, rules_for("tensorrt"), GPU).falls_back({"fc"})


def test_the_rates_of_a_cpu_are_measured() -> None:
    def ceiling(rate: float) -> Ceiling:
        return Ceiling(rate=rate, median=rate, rounds=1, how="")

    measured = Ceilings(
        created="",
        device={"cpu": "EPYC"},
        threads=2,
        libraries={},
        compute={"fp32": ceiling(1e9), "int8": ceiling(3e9)},
        memory=ceiling(5e9),
        cache=ceiling(9e9),
    )
    machine = Machine.of(measured)
    assert (machine.int8, machine.fp16, machine.fp32) == (3e9, 1e9, 1e9)
    assert machine.bandwidth == 5e9
    assert "EPYC, 2 threads" in machine.name
    del measured.compute["int8"]
    assert Machine.of(measured).int8 == 2e9


def test_the_work_of_a_layer(tmp_path: Path) -> None:
    ir.save(network(0, width=4), tmp_path / "m.onnx")
    work = layer_work(tmp_path / "m.onnx")["conv1"]
    assert (work.weights, work.inputs, work.outputs) == (4 * 3 * 9, 3 * SIZE**2, 4 * SIZE**2)
    assert work.flops == 2 * work.weights * SIZE**2
