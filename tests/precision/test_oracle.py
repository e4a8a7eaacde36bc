"""Compare ONNX Runtime, as written and compiled, and OpenVINO INT8 with the oracle, piece by piece.

A piece is a subgraph between quantized tensors, including the Q/DQ pairs at its inputs. Each piece
gets the dequantized integers of the oracle as inputs, which its pairs quantize to the same integers
again, so a difference in one piece does not propagate to the next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from optimizer.errors import GraphError
from optimizer.options import EncodingOptions
from optimizer.targets.rules import TARGETS, rules_for
from tests.precision.networks import images, network
from tests.precision.oracle import execute
from tests.precision.test_int8_graphs import lowered, noise_db, run

SEEDS = st.integers(0, 10_000)
NO_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]
OPTIONS = EncodingOptions(method="minmax", bias_correction="statistics")


def _graph(target: str, seed: int, *, bottleneck: bool) -> ir.Model:
    rules = replace(rules_for(target), high_precision="fp32")
    model, _ = lowered(lambda: network(seed, bottleneck=bottleneck), rules, OPTIONS)
    return model


class Piece:
    """A part of a graph, with the oracle's values at its inputs and its output."""

    def __init__(self, proto: onnx.ModelProto, values: dict[str, np.ndarray]) -> None:
        self.proto = proto
        self.name = proto.graph.output[0].name
        self.expected = values[self.name]
        after = {n.input[0]: n.output[0] for n in proto.graph.node}
        self.feed = {
            i.name: values[i.name]
            if i.name == "images"
            else values[f"{after[i.name].removesuffix('.quantized')}.dequantized"]
            for i in proto.graph.input
        }


def _pieces(model: ir.Model, folder: Path) -> list[Piece]:
    """One piece per quantized tensor, and one for the logits."""
    protos = _extracted(model, folder)
    watched = [proto.graph.output[0].name for proto in protos]
    watched += [name.replace(".quantized", ".dequantized") for name in watched if name != "logits"]
    values = execute(model, {"images": images(6, 2)}, watched)
    return [Piece(proto, values | {"images": images(6, 2)}) for proto in protos]


def _extracted(model: ir.Model, folder: Path) -> list[onnx.ModelProto]:
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
                sources.add(producers[name].input[0] if name in integers else name)
            else:
                stack.extend(i for i in producers[name].input if i)
        pieces.append(extractor.extract_model(sorted(sources), [target]))
    return pieces


def _openvino(piece: Piece, folder: Path) -> np.ndarray:
    import openvino as ov

    onnx.save(piece.proto, folder / "piece.onnx")
    core = ov.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(folder / "piece.onnx"), "CPU", hint)
    return np.array(compiled(piece.feed)[0])


def _onnxruntime(piece: Piece, level: str) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}_ALL")
    options.log_severity_level = 3
    session = ort.InferenceSession(
        piece.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, piece.feed)[0])


@settings(max_examples=6, phases=NO_SHRINKING)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_graphs_as_written_differ_only_by_ties(
    target: str, seed: int, bottleneck: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Executed as written, all integers equal the oracle's, except for rounding ties."""
    model = _graph(target, seed, bottleneck=bottleneck)
    off, total = 0, 0
    for piece in _pieces(model, tmp_path_factory.mktemp("pieces")):
        actual = _onnxruntime(piece, "DISABLE")
        if piece.name == "logits":
            np.testing.assert_allclose(actual, piece.expected, rtol=1e-4, atol=1e-5)
            continue
        steps = np.abs(actual.astype(int) - piece.expected.astype(int))
        assert steps.max() <= 1, piece.name
        # Counted over all tensors: some have a few hundred values, where two ties are too many.
        off, total = off + int((steps > 0).sum()), total + steps.size
    assert off / total < 0.002


@settings(max_examples=4, phases=NO_SHRINKING)
@given(seed=SEEDS, bottleneck=st.booleans())
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_compiled_pieces_differ_by_at_most_one_step(
    engine: str, seed: int, bottleneck: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compiled kernels round biases to accumulator units and fuse scales: rarely one step off."""
    model = _graph(engine, seed, bottleneck=bottleneck)
    folder = tmp_path_factory.mktemp("pieces")
    off, total = 0, 0
    for piece in _pieces(model, folder):
        actual = _openvino(piece, folder) if engine == "openvino" else _onnxruntime(piece, "ENABLE")
        if piece.name == "logits":
            assert noise_db(piece.expected, actual) > 45
            continue
        steps = np.abs(actual.astype(int) - piece.expected.astype(int))
        assert steps.max() <= 1, piece.name
        off, total = off + int((steps > 0).sum()), total + steps.size
    assert off / total < 0.02


def test_a_whole_network_agrees_with_the_oracle() -> None:
    """The logits equal those of the graph executed as written, up to propagated ties."""
    model = _graph("openvino", 5, bottleneck=True)
    batch = images(16, 4)
    assert noise_db(execute(model, {"images": batch})["logits"], run(model, batch)[0]) > 40


def test_the_oracle_agrees_with_fp32_on_an_unquantized_graph() -> None:
    batch = images(4, 4)
    actual = execute(network(7), {"images": batch})["logits"]
    assert noise_db(actual, run(network(7), batch)[0]) > 110


def test_ties_round_to_even_and_values_saturate() -> None:
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(2.0)))
    zero = ir.Value(name="z", const_value=ir.tensor(np.int8(0)))
    x = ir.Value(name="x")
    node = ir.node("QuantizeLinear", [x, scale, zero], name="q")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[scale, zero], opset_imports={"": 20}
    )
    values = np.array([1, 3, 5, -1, -3, 1000, -1000], np.float32)
    actual = execute(ir.Model(graph, ir_version=10), {"x": values})["y"]
    np.testing.assert_array_equal(actual, np.array([0, 2, 2, 0, -2, 127, -128], np.int8))


def test_the_error_names_an_unknown_operation() -> None:
    model = network(0)
    next(n for n in model.graph if n.op_type == "Relu").op_type = "Selu"
    with pytest.raises(GraphError, match="relu: Selu is no operation"):
        execute(model, {"images": images(1)})
