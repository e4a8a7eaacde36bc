"""One logit is a sigmoid between two classes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimizer.errors import GraphError
from optimizer.graphs.facts import graph_facts
from optimizer.tasks.one_output import as_classes
from optimizer.tasks.tally import Tally


def test_the_softmax_of_both_classes_is_the_sigmoid() -> None:
    logits = np.linspace(-4, 4, 9, dtype=np.float32).reshape(-1, 1)
    two = as_classes(logits)
    softmax = np.exp(two) / np.exp(two).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-6)
    assert (two.argmax(axis=1) == (logits[:, 0] > 0)).all()
    assert as_classes(two) is two


def test_flips_accuracy_and_noise_of_one_output() -> None:
    reference = np.array([[2.0], [-1.0], [0.5], [-3.0]], np.float32)
    outputs = reference + np.array([[0.1], [0.1], [-1.0], [0.1]], np.float32)
    tally = Tally()
    labels = np.array([1, 0, 1, 1])
    tally.add(as_classes(outputs), labels, np.arange(4), as_classes(reference), None)
    assert (tally.n, tally.correct, tally.flips, tally.losses, tally.gains) == (4, 2, 1, 1, 0)
    assert (tally.worst, tally.max_abs_diff) == (2, pytest.approx(1.0))
    expected = 10 * np.log10((reference**2).sum() / ((outputs - reference) ** 2).sum())
    assert tally.noise.db == pytest.approx(expected, abs=1e-3)


def test_a_graph_that_ends_in_a_sigmoid_is_refused(tmp_path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["probability"], name="head/Sigmoid"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 8, 8])
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1])
    graph = helper.make_graph(nodes, "g", [images], [output])
    path = tmp_path / "sigmoid.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(GraphError, match=r"one probability \(head/Sigmoid\).*without its final"):
        graph_facts(path)
