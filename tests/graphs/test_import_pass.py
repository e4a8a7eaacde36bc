"""The importing pass: every dress becomes the graph that `resnet-opt export` would have written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from optimizer.errors import GraphError
from optimizer.graphs.import_pass import ImportedGraph, import_graph
from optimizer.graphs.rewriting import Change, Rule, rewriting, summary
from optimizer.graphs.source_ends import open_source
from optimizer.graphs.taps import unoptimized_session
from optimizer.graphs.topology import analyse
from optimizer.options import ForeignGraph
from tests.graphs.dresses import SIZE, Dress, model_of, write

PLAIN = {
    "Conv": 6, "Relu": 5, "Add": 2, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
}  # fmt: skip
IMAGES = np.random.default_rng(3).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)


def imported(path: Path, **options: Any) -> ImportedGraph:
    return import_graph(open_source(path, ForeignGraph(**options)))


def kinds(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def run(model: Any, images: NDArray[Any]) -> NDArray[Any]:
    """All outputs of one batch, in ONNX Runtime without optimizations."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto, full_check=True)
    session = unoptimized_session(proto.SerializeToString())
    outputs: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return outputs


@pytest.fixture(scope="module")
def expected() -> NDArray[Any]:
    """Scores of the network, which all dresses share."""
    return run(model_of(Dress()), IMAGES)


DRESSES = {
    "own": Dress(),
    "mxnet": Dress(opset=8, ir_version=3, batchnorm="kept", constants="inputs"),
    "caffe2": Dress(opset=9, ir_version=3, batchnorm="kept", constants="inputs", names=False, flat="Reshape"),
    "opset 7": Dress(opset=7, ir_version=3, batchnorm="kept", flat="Reshape"),
    "opset 11, Constant nodes": Dress(opset=11, ir_version=6, constants="nodes"),
    "BatchNorm kept": Dress(opset=17, batchnorm="kept"),
    "no names": Dress(opset=13, names=False),
    "ReduceMean": Dress(pool="ReduceMean", flat="Reshape"),
    "ReduceMean without dimensions": Dress(opset=15, pool="ReduceMean", flat="none", head="MatMul"),
    "AveragePool and Squeeze": Dress(opset=12, pool="AveragePool", flat="Squeeze"),
    "Squeeze": Dress(opset=15, flat="Squeeze", head="MatMul"),
    "Reshape 0, -1": Dress(opset=10, ir_version=5, flat="Reshape0"),
    "Dropout": Dress(opset=15, dropout="inference"),
    "Dropout, opset 9": Dress(opset=9, ir_version=4, dropout="inference"),
    "double": Dress(dtype=np.float64),
}  # fmt: skip


@pytest.mark.parametrize("name", DRESSES)
def test_a_dress_becomes_the_plain_graph(name: str, tmp_path: Path, expected: NDArray[Any]) -> None:
    result = imported(write(tmp_path / "net.onnx", DRESSES[name]))
    assert kinds(result.model) == PLAIN
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-4, atol=1e-5)
    topology = analyse(result.model)
    assert {str(node.name) for node in topology.layers()} >= {"conv1", "layer2.0.downsample.0"}
    assert bool(result.changes) == (name != "own")
    assert 13 <= result.model.graph.opset_imports[""] <= 20


def test_half_precision_has_the_weights_of_the_file(tmp_path: Path, expected: NDArray[Any]) -> None:
    path = write(tmp_path / "half.onnx", Dress(dtype=np.float16))
    result = imported(path)
    assert "fp16 widened to fp32: 14 constants" in summary(result.changes)
    weight = result.model.graph.initializers["conv1.weight"].const_value
    assert weight is not None
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    assert (weight.numpy().astype(np.float16) == stored["conv1.weight"]).all()
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=0.02, atol=0.02)


def test_channels_last_images_are_taken_as_nchw(tmp_path: Path, expected: NDArray[Any]) -> None:
    result = imported(write(tmp_path / "net.onnx", Dress(opset=15, nhwc=True)))
    assert kinds(result.model) == PLAIN
    assert list(result.model.graph.inputs[0].shape or ())[1:] == [3, SIZE, SIZE]
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert any("NHWC" in line for line in summary(result.changes))


def test_softmax_stays_and_argmax_gives_its_scores(tmp_path: Path, expected: NDArray[Any]) -> None:
    for outputs in ("scores", "argmax", "argmax+scores"):
        dress = Dress(opset=11, ir_version=6, tail="Softmax", outputs=outputs)
        result = imported(write(tmp_path / "net.onnx", dress))
        assert kinds(result.model) == {**PLAIN, "Softmax": 1}
        exponentials = np.exp(expected - expected.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(run(result.model, IMAGES), probabilities, rtol=1e-3, atol=1e-6)


def test_of_two_outputs_one_is_named(tmp_path: Path, expected: NDArray[Any]) -> None:
    path = write(tmp_path / "net.onnx", Dress(outputs="scores+features"))
    with pytest.raises(GraphError, match=r"2 outputs: scores \(N x 5\), flat \(N x 12\)") as raised:
        imported(path)
    assert raised.value.hint is not None
    assert raised.value.hint.endswith("--output-name scores")
    result = imported(path, output_name="scores")  # the advice works
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-5)
    with pytest.raises(GraphError, match="no output 'logits'"):
        imported(path, output_name="logits")


@pytest.mark.parametrize("opset", [9, 15])
def test_training_mode_is_named_and_can_be_left(
    opset: int, tmp_path: Path, expected: NDArray[Any]
) -> None:
    dress = Dress(opset=opset, ir_version=4 if opset == 9 else 8, batchnorm="training")
    path = write(tmp_path / "net.onnx", dress)
    with pytest.raises(GraphError, match=r"training mode: 6 BatchNormalization .first: conv1\.bn"):
        imported(path)
    result = imported(path, inference_mode=True)
    assert kinds(result.model) == PLAIN
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_mode(tmp_path: Path, expected: NDArray[Any]) -> None:
    path = write(tmp_path / "net.onnx", Dress(opset=15, dropout="training"))
    with pytest.raises(GraphError, match=r"1 Dropout \(first: dropout\)"):
        imported(path)
    result = imported(path, inference_mode=True)
    assert kinds(result.model) == PLAIN
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-5)


def _duplicate_names(model: Any) -> None:
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.name = "relu"


def _no_output_shape(model: Any) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def _share_a_weight(model: Any) -> None:
    nodes = {node.name: node for node in model.graph.node}
    nodes["layer2.0.conv2"].input[1] = "shared"
    nodes["layer2.0.conv3"] = model.graph.node.add()
    nodes["layer2.0.conv3"].CopyFrom(nodes["layer2.0.conv2"])
    nodes["layer2.0.conv3"].name = "layer2.0.conv3"
    nodes["layer2.0.conv3"].output[0] = "again"
    nodes["layer2.0.add"].input[0] = "again"
    nodes["layer2.0.conv3"].input[0] = "layer2.0.conv2"
    for tensor in model.graph.initializer:
        if tensor.name == "layer2.0.conv2.weight":
            tensor.name = "shared"
    order = [n for n in model.graph.node if n.name != "layer2.0.conv3"]
    order.insert(order.index(nodes["layer2.0.add"]), nodes["layer2.0.conv3"])
    texts = [node.SerializeToString() for node in order]
    del model.graph.node[:]
    for text in texts:
        model.graph.node.add().ParseFromString(text)


def _compute_a_weight(model: Any) -> None:
    """conv1.weight = raw * scale, as weight normalization and some converters write it."""
    tensor = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    array = onnx.numpy_helper.to_array(tensor)
    model.graph.initializer.remove(tensor)
    scale = np.float32(2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array / scale, "raw"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(scale), "scale"))
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["raw", "scale"], ["conv1.weight"]))


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (_duplicate_names, "4 x node with the name of another renamed"),
        (_no_output_shape, "shape of an output inferred: scores"),
        (_compute_a_weight, "constants computed: Mul"),
        (_share_a_weight, "shared weight copied: layer2.0.conv3"),
    ],
)
def test_oddities(edit: Callable[[Any], None], change: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", Dress(edit=edit))
    source = open_source(path)
    expected = run(source.proto, IMAGES)
    result = import_graph(source)
    np.testing.assert_allclose(run(result.model, IMAGES), expected, rtol=1e-4, atol=1e-5)
    analyse(result.model)
    assert any(line.startswith(change) for line in summary(result.changes))


def _preactivation(model: Any) -> None:
    """A BatchNorm between the pooling and the next convolution, with a second reader."""
    width = 6
    rng = np.random.default_rng(1)
    names = [f"pre.{key}" for key in ("gamma", "beta", "mean", "variance")]
    for name in names:
        array = rng.uniform(0.5, 1.5, width).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    index = next(i for i, n in enumerate(model.graph.node) if n.name == "layer1.0.conv1")
    model.graph.node[index].input[0] = "pre"
    node = onnx.helper.make_node("BatchNormalization", ["maxpool", *names], ["pre"], "pre")
    model.graph.node.insert(index, node)


def test_a_batchnorm_before_a_convolution_stays(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "net.onnx", Dress(edit=_preactivation)))
    result = import_graph(source)
    assert kinds(result.model) == {**PLAIN, "BatchNormalization": 1}
    np.testing.assert_allclose(
        run(result.model, IMAGES), run(source.proto, IMAGES), rtol=1e-4, atol=1e-5
    )
    assert len(list(analyse(result.model).layers())) == 7


def test_the_pass_agrees_with_the_reference_evaluator(tmp_path: Path) -> None:
    """ONNX Runtime runs both sides of the other tests."""
    path = write(tmp_path / "net.onnx", DRESSES["BatchNorm kept"])
    (expected,) = ReferenceEvaluator(onnx.load(path)).run(["scores"], {"images": IMAGES[:1]})
    np.testing.assert_allclose(run(imported(path).model, IMAGES[:1]), expected, rtol=1e-4)


def test_a_rule_that_does_not_end_is_reported(tmp_path: Path) -> None:
    endless = Rule("renamed", lambda node: node.op_type == "Relu" or None, lambda *_: None)
    model = imported(write(tmp_path / "net.onnx", Dress())).model
    with pytest.raises(GraphError, match="'renamed' does not come to an end"):
        rewriting("rewrite", [endless]).run(model)


def test_summary_counts_and_names() -> None:
    changes = [Change("folded", f"bn{i}") for i in range(5)] + [Change("opset upgraded", "")]
    assert summary(changes) == ["5 x folded: bn0, bn1, bn2, …", "opset upgraded"]


def test_inspect_says_what_a_file_is_and_what_importing_changes(tmp_path: Path) -> None:
    import optimizer

    dress = Dress(opset=13, names=False, batchnorm="kept", dtype=np.float16)
    text = optimizer.inspect(write(tmp_path / "net.onnx", dress)).facts
    assert text["precision"] == "fp16"
    assert any("BatchNorm folded" in line for line in text["importing"])
    plain = optimizer.inspect(write(tmp_path / "plain.onnx", Dress())).facts
    named = optimizer.inspect(write(tmp_path / "n.onnx", Dress(names=False))).facts
    assert plain["GFLOP an image"] == named["GFLOP an image"]
    assert plain["importing"] is None
