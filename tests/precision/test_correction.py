"""The simulated network equals the lowered graph, and bias correction removes the mean error."""

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
    quantized_parameters,
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
    observed = statistics(network(seed, bottleneck=bottleneck), [images(64, 1)])
    return model, compute_encodings(model, observed, rules, "0", options)


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
    stored = quantized_parameters(simulation.topology, encodings)
    actual = simulation.run(tensor, stored, encodings)["logits"].numpy()
    exact = exact_parameters(simulation.topology, encodings.layers)
    plain = simulation.run(tensor, exact)["logits"].numpy()
    (reference,) = run(network(seed, bottleneck=bottleneck), batch)
    assert noise_db(reference, plain) > 90
    lower(model, encodings, rules)
    (written,) = run(model, batch)
    # Only ties may differ, where sums in another order round the other way.
    assert noise_db(written, actual) > noise_db(reference, written) + 6


@settings(max_examples=8)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_no_mean_error_remains_after_correction(target: str, seed: int, bottleneck: bool) -> None:
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
        quantized_parameters(simulation.topology, corrected.encodings),
        corrected.encodings,
        watched,
    )
    assert corrected.sqnr == pytest.approx(sqnr(exact["logits"], after["logits"]), abs=0.2)
    for name in [*watched, "logits"]:
        axes = [axis for axis in range(exact[name].ndim) if axis != 1]
        error = (after[name] - exact[name]).mean(axes).abs().max()
        scale = exact[name].abs().max()
        # An output that is quantized before its Add has a rounding error that is not corrected.
        assert error < (0.004 if name != "logits" else 1e-3) * scale
    assert encodings.layers["conv1"].bias != corrected.encodings.layers["conv1"].bias


def test_correction_on_the_network_improves_the_output() -> None:
    """Averaged over random networks, on images that were not used for correction."""
    gains = []
    for seed in range(12):
        sqnrs = []
        for bias in ("none", "network"):
            options = EncodingOptions(method="minmax", bias_correction=bias)  # type: ignore[arg-type]
            model, encodings = _encode(seed, RULES["openvino"], options)
            lower(model, encodings, RULES["openvino"])
            batch = images(64, 77)
            sqnrs.append(noise_db(run(network(seed), batch)[0], run(model, batch)[0]))
        gains.append(sqnrs[1] - sqnrs[0])
    assert np.mean(gains) > 0.5


@pytest.mark.parametrize(
    ("decibels", "chosen"),
    [
        ((30.0, 31.0, 31.2, 31.9), "0.5"),
        ((30.0, 31.0, 31.2, 32.1), "1"),
        ((32.1, 31.0, 31.2, 31.9), "0"),
    ],
)
def test_auto_uses_the_midpoint_unless_another_step_is_clearly_better(
    monkeypatch: pytest.MonkeyPatch, decibels: tuple[float, ...], chosen: str
) -> None:
    scores = iter(decibels)

    def scored(*args: Any) -> list[Corrected]:
        return [replace(result, sqnr=next(scores, 0.0)) for result in correct_biases(*args)]

    monkeypatch.setattr(encode, "correct_biases", scored)
    _, encodings = _encode(0, RULES["openvino"], EncodingOptions())
    assert encodings.notes == [
        "auto ranges: "
        + ", ".join(
            f"{t} {q:.1f} dB" for t, q in zip(["0", "0.25", "0.5", "1"], decibels, strict=True)
        )
        + f"; chose {chosen}"
    ]
    ends = [
        _encode(0, RULES["openvino"], EncodingOptions(method=method))[1].tensors["images"].scale
        for method in ("minmax", "mse")
    ]
    share = float(chosen)
    assert encodings.tensors["images"].scale == pytest.approx(
        ends[0] ** (1.0 - share) * ends[1] ** share, rel=1e-6
    )


def test_without_sample_images_histograms_are_used_with_a_note() -> None:
    observed = statistics(network(0), [images(32)])
    observed.sample = observed.sample[:0]
    encodings = compute_encodings(network(0), observed, RULES["openvino"], "0")
    assert "contain no sample images" in encodings.notes[0]
    plain = compute_encodings(
        network(0), observed, RULES["openvino"], "0", EncodingOptions(bias_correction="none")
    )
    assert encodings.layers["conv1"].bias != plain.layers["conv1"].bias


def test_a_graph_that_cannot_be_simulated_is_noted() -> None:
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
