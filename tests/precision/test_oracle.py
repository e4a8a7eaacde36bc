"""ONNX Runtime, as written and compiled, and OpenVINO INT8 against the oracle, piece by piece.

A piece is what lies between quantized tensors: integers in, integers out. Each piece is given the
oracle's own integers, so a difference in one does not travel into the next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import GraphError
from optimizer.precision.int8 import EncodingOptions
from optimizer.precision.int8.oracle import execute
from optimizer.targets.rules import TARGETS, rules_for
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import lowered, noise_db, run

SEEDS = st.integers(0, 10_000)
OPTIONS = EncodingOptions(method="minmax", bias="statistics")


def _graph(target: str, seed: int, *, bottleneck: bool) -> ir.Model:
    rules = replace(rules_for(target), high_precision="fp32")
    model, _ = lowered(lambda: network(seed, bottleneck=bottleneck), rules, OPTIONS)
    return model


def _pieces(model: ir.Model, folder: Path) -> list[onnx.ModelProto]:
    """Each quantized tensor from the quantized tensors before it; the logits too."""
    path = folder / "whole.onnx"
    ir.save(model, path)
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    integers = {n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    producers = {o: n for n in proto.graph.node for o in n.output}
    constants = {t.name for t in proto.graph.initializer}
    extractor = onnx.utils.Extractor(proto)
    pieces = []
    for target in [*integers, proto.graph.output[0].name]:
        sources, stack = set(), list(producers[target].input)
        while stack:
            name = stack.pop()
            if name in constants:
                continue
            if name in integers or name not in producers:
                sources.add(name)
            else:
                stack.extend(i for i in producers[name].input if i)
        pieces.append(extractor.extract_model(sorted(sources), [target]))
    return pieces


def _openvino(piece: onnx.ModelProto, feed: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    import openvino as ov

    onnx.save(piece, folder / "piece.onnx")
    core = ov.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(folder / "piece.onnx"), "CPU", hint)
    return np.array(compiled(feed)[0])


def _onnxruntime(piece: onnx.ModelProto, feed: dict[str, np.ndarray], level: str) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    options.log_severity_level = 3
    session = ort.InferenceSession(
        piece.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, feed)[0])


@settings(max_examples=6)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_written_graphs_are_at_most_a_tie_away(
    target: str, seed: int, bottleneck: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Executed as written, every integer is the oracle's, but for sums that end on a half."""
    model = _graph(target, seed, bottleneck=bottleneck)
    folder = tmp_path_factory.mktemp("pieces")
    pieces = _pieces(model, folder)
    known = execute(model, {"images": images(6, 2)}, [p.graph.output[0].name for p in pieces])
    known["images"] = images(6, 2)
    for piece in pieces:
        name = piece.graph.output[0].name
        feed = {i.name: known[i.name] for i in piece.graph.input}
        found = _onnxruntime(piece, feed, "DISABLE")
        if name == "logits":
            np.testing.assert_allclose(found, known[name], rtol=1e-4, atol=1e-5)
            continue
        steps = np.abs(found.astype(int) - known[name].astype(int))
        assert steps.max() <= 1, name
        assert (steps > 0).mean() < 0.002, name


@settings(max_examples=4)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_compiled_pieces_are_at_most_one_step_away(
    engine: str, seed: int, bottleneck: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compiled, biases are rounded to the sums' unit and scales multiplied: one step, rarely."""
    model = _graph(engine, seed, bottleneck=bottleneck)
    folder = tmp_path_factory.mktemp("pieces")
    pieces = _pieces(model, folder)
    known = execute(model, {"images": images(6, 2)}, [p.graph.output[0].name for p in pieces])
    known["images"] = images(6, 2)
    off, total = 0, 0
    for piece in pieces:
        name = piece.graph.output[0].name
        feed = {i.name: known[i.name] for i in piece.graph.input}
        found = (
            _openvino(piece, feed, folder)
            if engine == "openvino"
            else _onnxruntime(piece, feed, "ENABLE")
        )
        if name == "logits":
            assert noise_db(known[name], found) > 45
            continue
        steps = np.abs(found.astype(int) - known[name].astype(int))
        assert steps.max() <= 1, name
        off, total = off + int((steps > 0).sum()), total + steps.size
    assert off / total < 0.02


def test_a_whole_network_follows_the_oracle() -> None:
    """The oracle's logits are those of the graph executed as written, up to travelled ties."""
    model = _graph("openvino", 5, bottleneck=True)
    batch = images(16, 4)
    assert noise_db(execute(model, {"images": batch})["logits"], run(model, batch)[0]) > 40


def test_it_agrees_with_exact_fp32_on_an_unquantized_graph() -> None:
    batch = images(4, 4)
    found = execute(network(7), {"images": batch})["logits"]
    assert noise_db(found, run(network(7), batch)[0]) > 110


def test_halves_round_to_even_and_ends_saturate() -> None:
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(2.0)))
    zero = ir.Value(name="z", const_value=ir.tensor(np.int8(0)))
    x = ir.Value(name="x")
    node = ir.node("QuantizeLinear", [x, scale, zero], name="q")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[scale, zero], opset_imports={"": 20}
    )
    values = np.array([1, 3, 5, -1, -3, 1000, -1000], np.float32)
    found = execute(ir.Model(graph, ir_version=10), {"x": values})["y"]
    np.testing.assert_array_equal(found, np.array([0, 2, 2, 0, -2, 127, -128], np.int8))


def test_an_unknown_operation_is_named() -> None:
    model = network(0)
    next(n for n in model.graph if n.op_type == "Relu").op_type = "Selu"
    with pytest.raises(GraphError, match="relu: Selu is no operation"):
        execute(model, {"images": images(1)})
