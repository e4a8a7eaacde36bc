"""Graphs that are malformed, too large, or that never end are refused before anyone works on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import GraphError, UsageError
from optimizer.graphs.graph_limits import GraphLimits
from optimizer.graphs.onnx_files import open_onnx, write_graph
from optimizer.graphs.taps import tapped, unoptimized_session
from tests.precision.networks import images, network

Change = Callable[[Any], object]


def _loop(model: Any) -> None:
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in (
        ("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("x", TensorProto.FLOAT),
    )]  # fmt: skip
    outputs = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
    ]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["x"], ["y"]),
        ],
        "body", values, outputs,
    )  # fmt: skip
    model.graph.initializer.extend(
        [helper.make_tensor("trips", TensorProto.INT64, [], [2**40]),
         helper.make_tensor("always", TensorProto.BOOL, [], [True])]
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "always", "relu"], ["looped"], name="loop", body=body)
    model.graph.node.append(node)


def _functions(model: Any) -> None:
    """Each calls the next one twice: 2^40 nodes."""
    for number in range(40):
        called = [f"f{number + 1}"] * 2 if number < 39 else ["Relu"] * 2
        domain = "own" if number < 39 else ""
        model.functions.append(
            helper.make_function(
                "own", f"f{number}", ["x"], ["z"],
                [helper.make_node(called[0], ["x"], ["y"], domain=domain),
                 helper.make_node(called[1], ["y"], ["z"], domain=domain)],
                [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)],
            )
        )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("f0", ["relu"], ["expanded"], domain="own"))


def _recursive(model: Any) -> None:
    node = helper.make_node("f", ["x"], ["y"], domain="own")
    own = [helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node], own))
    model.opset_import.extend(own)
    model.graph.node.append(helper.make_node("f", ["relu"], ["called"], domain="own"))


def _padding(model: Any) -> None:
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    pads.ints[0] = 10**9


def _external(key: str) -> Change:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=key)

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "logits"), "topologically sorted"),
    "two-outputs-of-a-name": (lambda m: m.graph.node.append(m.graph.node[0]), "single static"),
    "no-such-input": (lambda m: m.graph.node[-1].input.__setitem__(1, "x"), "topologically"),
    "no-such-operator": (lambda m: setattr(m.graph.node[1], "op_type", "Rleu"), "No Op registered"),
    "dims": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 17), "its shape .17, 3, 3, 3. needs"),
    "negative-dims": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "invalid type or"),
    "type": (lambda m: setattr(m.graph.initializer[0], "data_type", 6), "contradict each other"),
    "no-type": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "invalid type or shape"),
    "same-constant": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two constants"),
    "loop": (_loop, "control flow: node loop is a Loop"),
    "functions": (_functions, "expand to more than"),
    "recursion": (_recursive, "calls itself"),
    "padding": (_padding, "more than 1GiB an image"),
    "image-size": (
        lambda m: [setattr(d, "dim_value", 10**6) for d in m.graph.input[0].type.tensor_type.shape.dim],
        "more than 1GiB an image",
    ),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 99), "opset 99"),
    "no-nodes": (lambda m: m.graph.ClearField("node"), "holds no graph"),
    "outside": (_external("../x"), "outside its own folder"),
    "not-there": (_external("x.data"), "not beside it"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_malformed_graph_is_refused(tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    model = ir.to_proto(network(0))
    change(model)
    path = tmp_path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=message) as caught:
        open_onnx(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = ir.to_proto(network(0)).SerializeToString()
    (tmp_path / "n.onnx").write_bytes(data.replace(b"layer1.0.conv1", b"layer1.0.con\xff\xfe"))
    with pytest.raises(GraphError, match="not UTF-8"):
        open_onnx(tmp_path / "n.onnx")


def _long_chain(path: Path, count: int) -> None:
    model = ir.to_proto(network(0))
    names = ["images", *(f"i{number}" for number in range(count))]
    chain = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    model.graph.node[0].input[0] = names[-1]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*chain, *rest])
    path.write_bytes(model.SerializeToString())


def test_the_number_of_nodes_is_limited_and_the_limit_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n.onnx"
    _long_chain(path, 300)
    monkeypatch.setenv("RESNET_OPT_MAX_NODES", "200")
    with pytest.raises(GraphError, match="more than 200 nodes") as caught:
        open_onnx(path)
    assert "RESNET_OPT_MAX_NODES" in str(caught.value.hint)
    monkeypatch.setenv("RESNET_OPT_MAX_NODES", "400")
    assert len(open_onnx(path).proto.graph.node) > 300


def test_descriptions_and_entries_are_limited_before_the_file_is_loaded(tmp_path: Path) -> None:
    model = ir.to_proto(network(0))
    data: bytes = model.SerializeToString()
    (tmp_path / "doc.onnx").write_bytes(data + b"\x32" + b"\x80\x80\x80\x14" + bytes(40 << 20))
    with pytest.raises(GraphError, match="MiB of names and descriptions"):
        open_onnx(tmp_path / "doc.onnx")
    (tmp_path / "opsets.onnx").write_bytes(data + b"\x42\x00" * 1_100_000)  # empty opset imports
    with pytest.raises(GraphError, match="more than 1,000,000 entries"):
        open_onnx(tmp_path / "opsets.onnx")


def test_the_size_of_weights_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(network(0), tmp_path / "n.onnx")
    monkeypatch.setenv("RESNET_OPT_MAX_WEIGHTS", "1KiB")
    with pytest.raises(GraphError, match="more than the limit of 1KiB"):
        open_onnx(tmp_path / "n.onnx")


@pytest.mark.parametrize("name", ["NODES", "WEIGHTS", "TENSOR", "SECONDS"])
@pytest.mark.parametrize("value", ["many", "-1", "0", "1" * 5000])
def test_a_wrong_limit_is_an_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RESNET_OPT_MAX_{name}", value)
    with pytest.raises(UsageError, match=f"RESNET_OPT_MAX_{name}"):
        GraphLimits.of_environment()


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    write_graph(network(0), path)
    open_onnx(path)
    model = ir.to_proto(network(0))
    model.graph.node[1].op_type = "Rleu"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="No Op registered"):
        open_onnx(path)


def test_outputs_without_a_shape_are_accepted(tmp_path: Path) -> None:
    model = ir.to_proto(network(0))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    assert open_onnx(tmp_path / "n.onnx").to_ir().graph


def test_what_onnxruntime_refuses_is_an_error_of_the_graph(tmp_path: Path) -> None:
    model = ir.to_proto(network(0))
    model.graph.node[1].domain = "unknown.domain"
    model.opset_import.append(helper.make_opsetid("unknown.domain", 1))
    path = tmp_path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=r"cannot load the graph: .*unknown\.domain"):
        tapped(path, ["logits"])
    write_graph(network(0), path)
    with pytest.raises(GraphError, match=r"cannot compute n\.onnx"):
        unoptimized_session(path).run(["logits"], {"images": images(1)[:, :, :1]})


def test_computing_ends_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of nodes on a large tensor take longer than a millisecond on every machine."""
    shape = [1, 3, 500, 500]
    names = ["x", *(f"t{number}" for number in range(2000))]
    nodes = [helper.make_node("Sqrt", [a], [b]) for a, b in itertools.pairwise(names)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    monkeypatch.setenv("RESNET_OPT_MAX_SECONDS", "1ms")
    session = unoptimized_session(model.SerializeToString(), threads=1)
    with pytest.raises(GraphError, match=r"within 0\.001 s") as caught:
        session.run([names[-1]], {"x": np.ones(shape, np.float32)})
    assert "RESNET_OPT_MAX_SECONDS" in str(caught.value.hint)


def test_small_integer_types_are_stored_as_onnx_packs_them(tmp_path: Path) -> None:
    model = ir.to_proto(network(0))
    for number, kind in enumerate((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT16)):
        tensor = helper.make_tensor(f"c{number}", kind, [3], [1, 2, 3])
        model.graph.initializer.append(tensor)
    model.graph.initializer.append(numpy_helper.from_array(np.array(["a", "b"]), "texts"))
    onnx.save_model(model, tmp_path / "n.onnx")
    assert open_onnx(tmp_path / "n.onnx").proto.graph.node
