"""The simulated network is the lowered graph, and correcting it takes the mean error away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import (
    Encodings,
    compute_encodings,
    encode,
    lower,
)
from optimizer.precision.int8.correction import Corrected, correct_biases, sqnr
from optimizer.precision.int8.simulation import (
    Simulation,
    batches,
    exact_parameters,
    stored_parameters,
)
from optimizer.targets.rules import TARGETS, TargetRules
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run, statistics

SEEDS = st.integers(0, 10_000)
RULES = {
    name: replace(rules, high_precision="fp32", constants="fp32", weight_max=127)
    for name, rules in TARGETS.items()
}


def _encode(
    seed: int, rules: TargetRules, options: EncodingOptions, *, bottleneck: bool = True
) -> tuple[ir.Model, Encodings]:
    model = network(seed, bottleneck=bottleneck)
    seen = statistics(network(seed, bottleneck=bottleneck), [images(64, 1)])
    return model, compute_encodings(model, seen, rules, "0", options)


@settings(max_examples=8)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_simulation_agrees_with_the_graph(target: str, seed: int, bottleneck: bool) -> None:
    rules = RULES[target]
    options = EncodingOptions(method="minmax", bias_correction="statistics")
    model, encodings = _encode(seed, rules, options, bottleneck=bottleneck)
    simulation = Simulation(analyse(model), rules)
    batch = images(16, 9)
    (tensor,) = batches(batch, 16)
    stored = stored_parameters(simulation.topology, encodings)
    found = simulation.run(tensor, stored, encodings)["logits"].numpy()
    exact = exact_parameters(simulation.topology, encodings.layers)
    plain = simulation.run(tensor, exact)["logits"].numpy()
    (reference,) = run(network(seed, bottleneck=bottleneck), batch)
    assert noise_db(reference, plain) > 90
    lower(model, encodings, rules)
    (written,) = run(model, batch)
    # Ties that sums in another order break the other way are all that may differ.
    assert noise_db(written, found) > noise_db(reference, written) + 6


@settings(max_examples=8)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_no_mean_error_is_left_where_a_layer_was_corrected(
    target: str, seed: int, bottleneck: bool
) -> None:
    rules = RULES[target]
    options = EncodingOptions(method="minmax", bias_correction="none")
    model, encodings = _encode(seed, rules, options, bottleneck=bottleneck)
    simulation = Simulation(analyse(model), rules)
    sample = images(32, 4)
    (corrected,) = correct_biases(simulation, [encodings], sample)
    watched = [
        str(n.outputs[0].name) for n in simulation.topology.nodes.values() if n.op_type == "Add"
    ]
    (batch,) = batches(sample, 32)
    exact = simulation.run(
        batch, exact_parameters(simulation.topology, encodings.layers), watched=watched
    )
    after = simulation.run(
        batch,
        stored_parameters(simulation.topology, corrected.encodings),
        corrected.encodings,
        watched,
    )
    assert corrected.sqnr == pytest.approx(sqnr(exact["logits"], after["logits"]), abs=0.2)
    for name in [*watched, "logits"]:
        axes = [axis for axis in range(exact[name].ndim) if axis != 1]
        error = (after[name] - exact[name]).mean(axes).abs().max()
        scale = exact[name].abs().max()
        # An output that is quantized before its Add moves by a rounding, which is not corrected.
        assert error < (0.004 if name != "logits" else 1e-3) * scale
    assert encodings.layers["conv1"].bias != corrected.encodings.layers["conv1"].bias


def test_correction_on_the_network_beats_none() -> None:
    """Over many random networks and images that were not corrected on."""
    better = []
    for seed in range(12):
        quality = []
        for bias in ("none", "network"):
            options = EncodingOptions(method="minmax", bias_correction=bias)  # type: ignore[arg-type]
            model, encodings = _encode(seed, RULES["openvino"], options)
            lower(model, encodings, RULES["openvino"])
            batch = images(64, 77)
            quality.append(noise_db(run(network(seed), batch)[0], run(model, batch)[0]))
        better.append(quality[1] - quality[0])
    assert np.mean(better) > 0.5


@pytest.mark.parametrize(
    ("decibels", "taken"),
    [
        ((30.0, 31.0, 31.2, 31.9), "0.5"),
        ((30.0, 31.0, 31.2, 32.1), "1"),
        ((32.1, 31.0, 31.2, 31.9), "0"),
    ],
)
def test_auto_keeps_the_middle_unless_another_step_is_clearly_better(
    monkeypatch: pytest.MonkeyPatch, decibels: tuple[float, ...], taken: str
) -> None:
    scores = iter(decibels)

    def scored(*given: Any) -> list[Corrected]:
        return [replace(one, sqnr=next(scores, 0.0)) for one in correct_biases(*given)]

    monkeypatch.setattr(encode, "correct_biases", scored)
    _, encodings = _encode(0, RULES["openvino"], EncodingOptions())
    assert encodings.notes == [
        "auto ranges: "
        + ", ".join(
            f"{t} {q:.1f} dB" for t, q in zip(["0", "0.25", "0.5", "1"], decibels, strict=True)
        )
        + f"; {taken} is taken"
    ]
    ends = [
        _encode(0, RULES["openvino"], EncodingOptions(method=method))[1].tensors["images"].scale
        for method in ("minmax", "mse")
    ]
    share = float(taken)
    assert encodings.tensors["images"].scale == pytest.approx(
        ends[0] ** (1.0 - share) * ends[1] ** share, rel=1e-6
    )


def test_without_a_sample_histograms_decide_and_it_is_said() -> None:
    seen = statistics(network(0), [images(32)])
    seen.sample = seen.sample[:0]
    encodings = compute_encodings(network(0), seen, RULES["openvino"], "0")
    assert "carry no sample" in encodings.notes[0]
    plain = compute_encodings(
        network(0), seen, RULES["openvino"], "0", EncodingOptions(bias_correction="none")
    )
    assert encodings.layers["conv1"].bias != plain.layers["conv1"].bias


def test_a_graph_that_cannot_be_simulated_is_said() -> None:
    def make() -> ir.Model:
        model = network(0)
        pool = next(n for n in model.graph if n.op_type == "GlobalAveragePool")
        pool.op_type = "GlobalMaxPool"
        return model

    encodings = compute_encodings(make(), statistics(make(), [images(32)]), RULES["openvino"], "0")
    assert "cannot be simulated" in encodings.notes[0]
    model = make()
    lower(model, encodings, RULES["openvino"])
    assert noise_db(run(make(), images(8))[0], run(model, images(8))[0]) > 14
