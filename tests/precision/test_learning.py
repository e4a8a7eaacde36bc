"""What is learned is what is lowered, is better on images it was not learned on, or is not kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import ArtifactError, UsageError
from optimizer.precision.int8 import EncodingOptions, Encodings, compute_encodings, lower
from optimizer.precision.int8.encodings import packed
from optimizer.precision.int8.learning import LEAST_LEARNED_FROM, Learned, learn
from optimizer.precision.int8.rounding import PAIR_LIMIT, WeightGrid, pair_sums
from optimizer.precision.int8.simulation import Simulation, batches, stored_parameters
from optimizer.precision.topology import analyse
from optimizer.targets.rules import TARGETS, TargetRules
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import noise_db, run, statistics

SEEDS = st.integers(0, 10_000)
RULES = {
    name: replace(rules, high_precision="fp32", constants="fp32", weight_max=127)
    for name, rules in TARGETS.items()
} | {
    "openvino without VNNI": replace(TARGETS["openvino"], pairs="channels"),
    "onnxruntime without VNNI": replace(TARGETS["onnxruntime"], pairs="matrix"),
}


def _begin(seed: int, rules: TargetRules, **options: object) -> tuple[Simulation, Encodings]:
    chosen = EncodingOptions(**options)  # type: ignore[arg-type]
    seen = statistics(network(seed), [images(64, 1)])
    encodings = compute_encodings(network(seed), seen, rules, "0", chosen)
    return Simulation(analyse(network(seed)), rules, encodings.keep), encodings


def _learned(seed: int, rules: TargetRules, steps: int, **options: object) -> Learned:
    simulation, encodings = _begin(seed, rules, **options)
    return learn(simulation, encodings, images(64, 2), steps=steps)


def _graph(seed: int, encodings: Encodings, rules: TargetRules) -> ir.Model:
    model = network(seed)
    lower(model, encodings, rules)
    return model


@settings(max_examples=2)
@given(seed=SEEDS)
@pytest.mark.parametrize("target", sorted(RULES))
def test_what_was_learned_is_what_is_lowered(target: str, seed: int) -> None:
    """The simulation that judged it and the graph that is written agree, rounding included."""
    rules = RULES[target]
    found = _learned(seed, rules, 12, method="minmax", bias="none")
    simulation = Simulation(analyse(network(seed)), rules)
    batch = images(16, 9)
    (tensor,) = batches(batch, 16)
    stored = stored_parameters(simulation.topology, found.encodings)
    simulated = simulation.run(tensor, stored, found.encodings)["logits"].numpy()
    (written,) = run(_graph(seed, found.encodings, rules), batch)
    (reference,) = run(network(seed), batch)
    assert noise_db(written, simulated) > noise_db(reference, written) + 6


@pytest.mark.parametrize("target", ["tensorrt", "openvino without VNNI"])
def test_it_is_better_on_images_it_never_saw(target: str) -> None:
    rules = RULES[target]
    gains = []
    for seed in range(3):
        _, encodings = _begin(seed, rules)
        found = _learned(seed, rules, 60)
        batch = images(128, 77)
        (reference,) = run(network(seed), batch)
        before, after = (
            noise_db(reference, run(_graph(seed, e, rules), batch)[0])
            for e in (encodings, found.encodings)
        )
        gains.append(after - before)
        assert found.kept == (found.encodings != encodings)
    assert np.mean(gains) > 0.3


@pytest.mark.parametrize("target", ["openvino without VNNI", "onnxruntime without VNNI"])
def test_learned_neighbours_never_saturate(target: str) -> None:
    rules = RULES[target]
    found = _learned(3, rules, 12, method="minmax", bias="none")
    assert found.kept
    topology = analyse(network(3))
    learned = [layer for layer in found.encodings.layers.values() if layer.rounding is not None]
    assert learned
    for node in topology.layers():
        layer = found.encodings.layers[str(node.name)]
        integers = layer.integers(topology.weight(node))
        assert pair_sums(integers, WeightGrid(127, rules.pairs)).max(initial=0) <= PAIR_LIMIT
        assert np.abs(integers.astype(int)).max() <= 127


def test_nothing_learned_keeps_what_came_in() -> None:
    simulation, encodings = _begin(1, RULES["tensorrt"])
    found = learn(simulation, encodings, images(32, 2), steps=0)
    assert not found.kept
    assert found.encodings == encodings
    assert found.before == pytest.approx(found.after, abs=0.01)
    assert found.held_out == 8


def test_it_comes_out_the_same_twice() -> None:
    one, other = (_learned(5, RULES["openvino"], 5, method="minmax") for _ in range(2))
    assert one.encodings == other.encodings


def test_pooling_hands_a_learned_scale_on() -> None:
    found = _learned(4, RULES["onnxruntime"], 12, method="minmax", bias="none")
    assert found.kept
    scales = {name: tensor.scale for name, tensor in found.encodings.tensors.items()}
    assert scales["relu"] == scales["maxpool"]
    assert scales["avgpool"] == scales["flatten"]


def test_kept_layers_stay_exact() -> None:
    found = _learned(4, RULES["openvino"], 12, method="minmax", bias="none", keep=("conv1", "fc"))
    assert found.kept
    layers = found.encodings.layers
    assert layers["conv1"].rounding is None
    assert layers["fc"].rounding is None
    assert any(layer.rounding for layer in layers.values())


def test_the_file_holds_it_and_says_if_it_was_damaged(tmp_path: Path) -> None:
    found = _learned(3, RULES["tensorrt"], 12, method="minmax", bias="none")
    found.encodings.save(tmp_path / "e.json")
    loaded = Encodings.load(tmp_path / "e.json")
    assert loaded == found.encodings
    name, layer = next((n, e) for n, e in loaded.layers.items() if e.rounding)
    topology = analyse(network(3))
    weight = topology.weight(topology.nodes[name])
    plain = layer.model_copy(update={"rounding": None})
    assert (plain.integers(weight) != layer.integers(weight)).any()
    assert layer.rounding is not None
    for damaged in ("no base64", layer.rounding[4:], packed(np.zeros(3, np.int8))):
        broken = layer.model_copy(update={"rounding": damaged})
        with pytest.raises(ArtifactError, match="cannot be read"):
            broken.integers(weight)


def test_notes_say_what_came_of_it() -> None:
    seen = statistics(network(0), [images(64, 1)])
    options = EncodingOptions(learn=True, method="minmax")
    few = replace(seen, sample=seen.sample[: LEAST_LEARNED_FROM - 1])
    said = compute_encodings(network(0), few, RULES["openvino"], "0", options).notes
    assert said[-1].startswith("nothing was learned: 15 images")
    none = replace(seen, sample=seen.sample[:0])
    said = compute_encodings(network(0), none, RULES["openvino"], "0", options).notes
    assert said[-1] == "nothing was learned, for the same reason"


def test_a_search_does_not_learn() -> None:
    from optimizer.search.variants import Variants

    seen = statistics(network(0), [images(64, 1)])
    with pytest.raises(UsageError, match="undoes what was learned"):
        Variants(network(0), seen, RULES["openvino"], "0", EncodingOptions(learn=True))
