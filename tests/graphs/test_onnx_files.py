"""ONNX files: what opens, what is rejected, and what is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.errors import ArtifactError, GraphError
from optimizer.graphs.importing import load_graph
from optimizer.graphs.onnx_files import (
    copy_as_one_file,
    open_checked,
    open_onnx,
    write_checked,
    write_graph,
)
from tests.precision.networks import images, network
from tests.precision.test_int8_graphs import run


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A network that keeps its weights in ``w.bin``."""
    path = tmp_path / "outside" / "n.onnx"
    path.parent.mkdir()
    onnx.save_model(
        ir.to_proto(network(0)), path, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    return path


def test_external_weights_are_read_now_or_on_first_use(external: Path) -> None:
    (expected,) = run(network(0), images(4))
    now, later = open_onnx(external), open_onnx(external, weights=False)
    assert all(t.HasField("raw_data") for t in now.proto.graph.initializer)
    assert not any(t.HasField("raw_data") for t in later.proto.graph.initializer)
    for file in (now, later):
        assert file.files == [external, external.with_name("w.bin")]
        weights = file.to_ir().graph.initializers
        for name, value in network(0).graph.initializers.items():
            assert value.const_value is not None
            read = weights[name].const_value
            assert read is not None
            np.testing.assert_array_equal(read.numpy(), value.const_value.numpy())
    np.testing.assert_array_equal(run(now.to_ir(), images(4))[0], expected)


def test_opened_models_match_onnx_ir(external: Path, tmp_path: Path) -> None:
    ir.save(network(1), tmp_path / "inside.onnx")
    for path in (external, tmp_path / "inside.onnx"):
        ours, theirs = open_onnx(path, weights=False).to_ir(), ir.load(path)
        assert ir.to_proto(ours) == ir.to_proto(theirs)


def test_a_graph_with_external_weights_is_written_as_one_file(
    external: Path, tmp_path: Path
) -> None:
    """Otherwise it would refer to a missing data file, or to another one with the same name."""
    (expected,) = run(network(0), images(4))
    written = tmp_path / "elsewhere.onnx"
    write_checked(load_graph(external), written)
    shutil.rmtree(external.parent)
    assert open_onnx(written).files == [written]
    np.testing.assert_array_equal(run(ir.load(written), images(4))[0], expected)


def test_a_copy_is_one_file(external: Path, tmp_path: Path) -> None:
    copy_as_one_file(external, tmp_path / "a.onnx")
    assert open_onnx(tmp_path / "a.onnx").files == [tmp_path / "a.onnx"]
    copy_as_one_file(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    external.with_name("w.bin").unlink()
    with pytest.raises(ArtifactError, match=r"needs the weights file w\.bin"):
        copy_as_one_file(external, tmp_path / "c.onnx")


def test_the_suffix_is_ignored(tmp_path: Path) -> None:
    """`onnx` itself would read and write ``.json`` as text, which no engine accepts."""
    write_graph(network(0), tmp_path / "n.json")
    assert len(open_checked(tmp_path / "n.json").proto.graph.node) == len(network(0).graph)
    onnx.save_model(ir.to_proto(network(0)), tmp_path / "text.json")
    with pytest.raises(GraphError, match=r"text\.json is not an ONNX file"):
        open_onnx(tmp_path / "text.json")


def test_files_that_cannot_be_opened_are_named(external: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file"):
        open_onnx(tmp_path / "nowhere.onnx")
    with pytest.raises(GraphError, match="no such file"):
        open_onnx(tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"x\.onnx is not an ONNX file or is truncated"):
        open_onnx(tmp_path / "x.onnx")
    external.with_name("w.bin").unlink()
    with pytest.raises(GraphError, match=r"weights of n\.onnx cannot be read"):
        open_onnx(external)
    assert open_onnx(external, weights=False).proto.graph.node


def test_writing_an_invalid_graph_is_an_error(tmp_path: Path) -> None:
    model = network(0)
    next(iter(model.graph)).op_type = "Unheard"
    with pytest.raises(GraphError, match="converted graph is not valid: No Op registered"):
        write_checked(model, tmp_path / "n.onnx")
