"""A quantized network that is trained: against the oracle, and rounding against rounding by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from optimizer.graphs.topology import Topology, analyse
from optimizer.precision.int8 import check_encodings, compute_encodings, lower
from optimizer.precision.int8.rounding import WeightGrid, nearest
from optimizer.precision.int8.simulation import Simulation, quantized_parameters
from optimizer.precision.int8.straight_through import (
    round_activations,
    round_constants,
    round_weights,
)
from optimizer.precision.int8.trainable import (
    Quantization,
    learned_encodings,
    trainable_network,
    write_learned,
)
from optimizer.targets.rules import TARGETS, TargetRules
from optimizer.targets.structured_sparsity import has_pattern
from tests.precision.networks import images, network
from tests.precision.oracle import execute
from tests.precision.test_int8_graphs import noise_db, run, statistics
from tests.precision.test_sparse_weights import pruned_network

EXACT = {
    "tensorrt": replace(TARGETS["tensorrt"], high_precision="fp32", constants="fp32"),
    "openvino": TARGETS["openvino"],
    "onnxruntime": TARGETS["onnxruntime"],
    "openvino without VNNI": replace(TARGETS["openvino"], pairs="channels"),
}


def _network() -> ir.Model:
    return network(3, width=8)


def _start(make: Callable[[], ir.Model], rules: TargetRules, keep: tuple[str, ...] = ()) -> Any:
    from optimizer.options import EncodingOptions

    observed = statistics(make(), [images(64, 1)])
    encodings = compute_encodings(make(), observed, rules, "0", EncodingOptions(keep=keep))
    return trainable_network(Quantization(Topology(make()), encodings, rules))


def _train(module: Any, steps: int = 4) -> list[float]:
    """A few steps towards random logits; the loss of each."""
    batch = torch.from_numpy(images(16, 5))
    wanted = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = (module(batch) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _lowered(module: Any, make: Callable[[], ir.Model], rules: TargetRules) -> ir.Model:
    model = make()
    write_learned(module, model)
    encodings = learned_encodings(module, "1")
    check_encodings(encodings, analyse(model), rules, "learned")
    lower(model, encodings, rules)
    return model


def _logits(module: Any, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize("target", EXACT)
def test_training_starts_at_the_encodings(target: str) -> None:
    rules = EXACT[target]
    module = _start(_network, rules)
    encodings = module.quantization.encodings
    topology = Topology(_network())
    simulation = Simulation(topology, rules)
    batch = torch.from_numpy(images(8, 2))
    expected = simulation.run(batch, quantized_parameters(topology, encodings), encodings)
    np.testing.assert_allclose(
        _logits(module, images(8, 2)), expected[topology.output].numpy(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("target", EXACT)
def test_what_was_trained_is_what_the_lowered_graph_computes(target: str) -> None:
    """Weights, biases and scales moved; oracle and ONNX Runtime compute the simulation's logits."""
    rules = EXACT[target]
    module = _start(_network, rules)
    before = {name: value.clone() for name, value in module.named_parameters()}
    losses = _train(module)
    assert losses[-1] < losses[0]
    after = dict(module.named_parameters())
    for kind in ("weight", "bias", "log_scale", "log_scales"):
        moved = [n for n in after if n.endswith(kind) and not torch.equal(before[n], after[n])]
        assert moved, kind
    graph = _lowered(module, _network, rules)
    batch = images(8, 2)
    simulated = _logits(module, batch)
    assert noise_db(execute(graph, {"images": batch})["logits"], simulated) > 60
    assert noise_db(run(graph, batch)[0], simulated) > 60


def test_half_constants_are_part_of_the_training() -> None:
    """TensorRT's scales are FP16; the learned ones are representable, and only biases are rounded."""
    rules = replace(TARGETS["tensorrt"], high_precision="fp32")
    assert rules.constant_type == "fp16"
    module = _start(_network, rules)
    _train(module)
    encodings = learned_encodings(module, "1")
    scales = [tensor.scale for tensor in encodings.tensors.values()]
    scales += [scale for layer in encodings.layers.values() for scale in layer.weight_scale]
    assert scales == [float(np.float16(scale)) for scale in scales]
    batch = images(8, 2)
    graph = _lowered(module, _network, rules)
    assert noise_db(execute(graph, {"images": batch})["logits"], _logits(module, batch)) > 35


def test_kept_layers_are_trained_but_not_rounded() -> None:
    rules = EXACT["tensorrt"]
    module = _start(_network, rules, keep=("layer1.0.conv2", "fc"))
    _train(module)
    graph = _lowered(module, _network, rules)
    names = {node.name for node in graph.graph}
    assert "fc.weight.dequantize" not in names
    assert "layer1.0.conv1.weight.dequantize" in names
    batch = images(8, 2)
    assert noise_db(run(graph, batch)[0], _logits(module, batch)) > 60


def test_pooled_tensors_keep_the_scale_of_their_source() -> None:
    module = _start(_network, EXACT["onnxruntime"])
    _train(module)
    tensors = learned_encodings(module, "1").tensors
    assert tensors["maxpool"] == tensors["relu"]
    assert tensors["flatten"] == tensors["avgpool"]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_zeros_of_sparse_layers_stay_zero(target: str) -> None:
    """Through equalization, training, rounding and lowering: every layer but the first stays 2:4."""
    rules = EXACT[target]
    module = _start(pruned_network, rules)
    _train(module)
    graph = _lowered(module, pruned_network, rules)
    stored = {
        name.removesuffix(".weight.q"): value.const_value.numpy()
        for name, value in graph.graph.initializers.items()
        if name.endswith(".weight.q") and value.const_value is not None
    }
    assert {name for name, weight in stored.items() if not has_pattern(weight)} == {"conv1"}


def test_averaged_weights_can_be_copied() -> None:
    from copy import deepcopy

    module = _start(_network, EXACT["tensorrt"])
    copied = deepcopy(module)
    _train(module)
    batch = images(4, 2)
    assert not np.array_equal(_logits(module, batch), _logits(copied, batch))
    copied.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(_logits(module, batch), _logits(copied, batch))


# --- rounding ---------------------------------------------------------------------------------------


def test_gradients_of_rounded_activations() -> None:
    """Esser et al. 2020, equation 3, and the straight-through estimator."""
    values = torch.tensor([-3.0, 0.26, 0.74, 2.1, 90.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    result = round_activations(values, scale, (0, 4))
    assert result.tolist() == [0.0, 0.5, 0.5, 2.0, 2.0]
    result.backward(torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]))
    assert values.grad is not None
    assert scale.grad is not None
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 0.0, 0.0]
    expected = 2 * (1 - 0.52) + 3 * (1 - 1.48) + 5 * 4 + 7 * 4
    assert scale.grad.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "grid", [WeightGrid(), WeightGrid(64), WeightGrid(127, "channels"), WeightGrid(127, "matrix")]
)
def test_weights_are_rounded_as_the_encodings_round_them(grid: WeightGrid) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, 8, 3, 3)).astype(np.float32)
    scale = (np.abs(weight).reshape(6, -1).max(1) / 120).astype(np.float32)
    column = scale.reshape(-1, 1, 1, 1)
    learned = torch.from_numpy(weight).requires_grad_()
    scales = torch.from_numpy(scale).requires_grad_()
    rounded = round_weights(learned, scales, grid)
    np.testing.assert_array_equal(rounded.detach(), nearest(weight / column, grid) * column)
    gradient = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float32))
    rounded.backward(gradient)
    inside = np.abs(weight / column) <= grid.largest
    assert learned.grad is not None
    assert scales.grad is not None
    np.testing.assert_array_equal(learned.grad, gradient.numpy() * inside)
    error = nearest(weight / column, grid) - weight / column * inside
    expected = (gradient.numpy() * error).reshape(6, -1).sum(1)
    np.testing.assert_allclose(scales.grad, expected, rtol=1e-4)


def test_constants_are_rounded_to_half_with_a_gradient() -> None:
    scale = torch.tensor([0.1], requires_grad=True)
    assert round_constants(scale, "fp32") is scale
    stored = round_constants(scale, "fp16")
    assert stored.item() == float(np.float16(0.1))
    stored.backward()
    assert scale.grad is not None
    assert scale.grad.item() == 1.0
