"""Artifacts: keys, atomic writes, manifests, external data and the cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from optimizer.artifacts import (
    Cache,
    Input,
    Plan,
    content_key,
    digest,
    external_data_files,
    load_artifact,
    manifest_path,
    produce,
    read_manifest,
    write_atomically,
    write_text_atomically,
)
from optimizer.errors import ArtifactError, UsageError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _plan(**settings: Any) -> Plan:
    return Plan(kind="graph", settings=settings)


def _writer(text: str, calls: list[str] | None = None) -> Any:
    def write(path: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(text)
        path.write_text(text)
        return {"length": len(text)}

    return write


# --- keys ----------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_key_does_not_depend_on_the_order_of_a_mapping(value: dict[str, Any]) -> None:
    assert content_key(value) == content_key(dict(reversed(list(value.items()))))


@given(st.lists(st.text(), max_size=5))
def test_a_key_does_not_depend_on_the_order_of_a_set(values: list[str]) -> None:
    assert content_key({"x": set(values)}) == content_key({"x": frozenset(reversed(values))})
    assert content_key({"x": set(values)}) != content_key(
        {"x": {*values, "".join(values) + "more"}}
    )


def test_a_key_refuses_values_that_are_not_json() -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        content_key({"x": Path("a")})


@pytest.mark.parametrize("changed", ["settings", "inputs", "libraries", "device", "preprocessing"])
def test_every_part_of_a_plan_is_in_the_key(changed: str) -> None:
    value: Any = [Input(role="a", file="b", sha256="c")] if changed == "inputs" else {"a": "1"}
    assert Plan(kind="graph", **{changed: value}).key != Plan(kind="graph").key


def test_a_file_name_is_not_in_the_key() -> None:
    first = Plan(kind="g", inputs=[Input(role="a", file="x.onnx", sha256="c")])
    second = Plan(kind="g", inputs=[Input(role="a", file="y.onnx", sha256="c")])
    assert first.key == second.key


# --- writing ---------------------------------------------------------------------------------------


def test_an_artifact_has_a_manifest(tmp_path: Path) -> None:
    artifact = produce(_plan(a=1), tmp_path / "x.txt", _writer("hello"))
    raw = json.loads(manifest_path(artifact.path).read_text())
    assert raw["schema_version"] == 1
    assert raw["file"] == "x.txt"
    assert raw["sha256"] == digest(artifact.path)
    assert raw["key"] == _plan(a=1).key
    assert raw["details"] == {"length": 5}
    assert not artifact.cached


def test_an_existing_artifact_is_not_rebuilt(tmp_path: Path) -> None:
    calls: list[str] = []
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one", calls))
    again = produce(_plan(a=1), tmp_path / "x.txt", _writer("two", calls))
    assert calls == ["one"]
    assert again.cached
    other = produce(_plan(a=2), tmp_path / "x.txt", _writer("two", calls))
    assert calls == ["one", "two"]
    assert not other.cached
    assert other.path.read_text() == "two"


def test_the_cache_supplies_another_folder(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path / "cache"), list[str]()
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one", calls), cache=cache)
    copy = produce(_plan(a=1), tmp_path / "sub" / "y.txt", _writer("two", calls), cache=cache)
    assert calls == ["one"]
    assert copy.cached
    assert copy.path.read_text() == "one"
    assert copy.manifest.file == "y.txt"
    assert load_artifact(copy.path).manifest.sha256 == digest(copy.path)


def test_a_damaged_cached_artifact_is_rebuilt(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one"), cache=cache)
    (cache.root / _plan(a=1).key / "artifact").write_text("rot")
    artifact = produce(_plan(a=1), tmp_path / "y.txt", _writer("one"), cache=cache)
    assert not artifact.cached
    assert artifact.path.read_text() == "one"


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_cached_manifest_is_replaced(damage: bytes, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one"), cache=cache)
    (cache.root / _plan(a=1).key / "manifest.json").write_bytes(damage)
    assert cache.entries() == []
    assert not produce(_plan(a=1), tmp_path / "y.txt", _writer("one"), cache=cache).cached
    assert produce(_plan(a=1), tmp_path / "z.txt", _writer("one"), cache=cache).cached


def test_a_link_is_followed_on_reading_and_replaced_on_writing(tmp_path: Path) -> None:
    """`current.txt -> v1.txt`: writing to current.txt replaces the link and leaves v1.txt alone."""
    first = produce(_plan(a=1), tmp_path / "v1.txt", _writer("one"))
    link = tmp_path / "deployed" / "current.txt"
    link.parent.mkdir()
    link.symlink_to(first.path)
    assert load_artifact(link).manifest == first.manifest
    artifact = produce(_plan(a=2), link, _writer("two"))
    assert not link.is_symlink()
    assert (artifact.path.read_text(), load_artifact(link).manifest.key) == ("two", _plan(a=2).key)
    assert load_artifact(first.path).manifest == first.manifest


def test_an_unwritable_destination_does_not_remove_the_cache_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one"), cache=cache)
    (tmp_path / "file").write_text("no folder")
    assert cache.fetch(_plan(a=1).key, tmp_path / "file" / "y.txt") is None
    assert (cache.root / _plan(a=1).key / "artifact").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_build_leaves_no_files(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(path: Path) -> dict[str, Any]:
        path.write_text("half")
        raise error

    with pytest.raises(error):
        produce(_plan(), tmp_path / "x.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text_atomically(path, "old")
    with pytest.raises(RuntimeError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing was written"):
        produce(_plan(), tmp_path / "x.txt", lambda _path: {})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_artifact(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from optimizer.artifacts import Plan, produce\n"
        "def write(path):\n"
        "    path.write_text('half'); print('writing', flush=True); time.sleep(60); return {}\n"
        "produce(Plan(kind='graph'), Path(sys.argv[1]), write)\n"
    )
    path = tmp_path / "x.txt"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    assert not manifest_path(path).exists()


def test_files_are_readable_by_other_users(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_text_atomically(tmp_path / "x.txt", "hello")
    finally:
        os.umask(umask)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o644


# --- reading ---------------------------------------------------------------------------------------


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    artifact = produce(_plan(), tmp_path / "x.txt", _writer("hello"))
    artifact.path.write_text("hellO")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        load_artifact(artifact.path)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    artifact = produce(_plan(), tmp_path / "x.txt", _writer("hello"))
    with pytest.raises(ArtifactError, match="is a graph, not a engine"):
        load_artifact(artifact.path, kind="engine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    artifact = produce(_plan(), tmp_path / "x.txt", _writer("hello"))
    manifest_path(artifact.path).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(artifact.path)


def test_a_missing_file_or_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_manifest(tmp_path / "x")
    (tmp_path / "x").write_text("hello")
    with pytest.raises(ArtifactError, match="has no manifest"):
        read_manifest(tmp_path / "x")


def _external_model(folder: Path, value: float, location: str = "weights.bin") -> Path:
    weight = onnx.numpy_helper.from_array(np.full((4, 4), value, np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 4])],
        [weight],
    )
    path = folder / "m.onnx"
    onnx.save_model(
        onnx.helper.make_model(graph),
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    return path


def test_a_digest_includes_external_weights(tmp_path: Path) -> None:
    path = _external_model(tmp_path, 1.0)
    before, text = digest(path), path.read_bytes()
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert path.read_bytes() == text
    assert digest(path) != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"needs the weights file weights\.bin"):
        digest(path)


def test_external_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path = _external_model(tmp_path, 1.0)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="outside its own folder"):
        digest(path)


def _external_tensor(name: str = "w") -> onnx.TensorProto:
    """Four floats stored in ``weights.bin``."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def _constant_node(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["c"], value=tensor)


def _graph_of(*nodes: onnx.NodeProto, **parts: Any) -> onnx.GraphProto:
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    return onnx.helper.make_graph(list(nodes), "g", [], [output], **parts)


def _models_with_external_weights() -> dict[str, onnx.ModelProto]:
    copies = onnx.helper.make_node("Identity", ["w"], ["y"])
    branch = _graph_of(copies, initializer=[_external_tensor()])
    choice = onnx.helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=_graph_of())
    several = onnx.helper.make_node(
        "Odd", [], ["y"], domain="x", tensors=[_external_tensor(), _external_tensor()]
    )
    sparse = onnx.SparseTensorProto(values=_external_tensor(), dims=[4])
    opsets = [onnx.helper.make_opsetid("", 20)]
    function = onnx.helper.make_function(
        "x", "F", [], ["c"], [_constant_node(_external_tensor())], opset_imports=opsets
    )
    model = onnx.helper.make_model
    trained = model(_graph_of(copies))
    trained.training_info.add().initialization.CopyFrom(
        _graph_of(_constant_node(_external_tensor()))
    )
    return {
        "initializer": model(_graph_of(copies, initializer=[_external_tensor()])),
        "constant": model(_graph_of(_constant_node(_external_tensor()))),
        "tensors": model(_graph_of(several)),
        "subgraph": model(_graph_of(choice)),
        "sparse": model(_graph_of(copies, sparse_initializer=[sparse])),
        "function": model(_graph_of(copies), functions=[function]),
        "initialization": trained,
    }


@pytest.mark.parametrize("file", ["m.onnx", "m.pb", "model"])
@pytest.mark.parametrize("place", sorted(_models_with_external_weights()))
def test_a_digest_includes_external_weights_anywhere_in_the_model(
    tmp_path: Path, place: str, file: str
) -> None:
    path, data = tmp_path / file, tmp_path / "weights.bin"
    path.write_bytes(_models_with_external_weights()[place].SerializeToString())
    data.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert external_data_files(path) == [data]
    before = digest(path)
    data.write_bytes(np.arange(1, 5, dtype=np.float32).tobytes())
    assert digest(path) != before


def test_an_input_with_other_external_weights_has_another_key(tmp_path: Path) -> None:
    """Otherwise the cache would return an artifact built from the old weights."""
    path, data = tmp_path / "m.pb", tmp_path / "weights.bin"
    path.write_bytes(_models_with_external_weights()["constant"].SerializeToString())
    keys = []
    for value in (1.0, 2.0, 1.0):
        data.write_bytes(np.full(4, value, np.float32).tobytes())
        keys.append(Plan(kind="graph", settings={}, inputs=[Input.of("model", path)]).key)
    assert keys[0] == keys[2] != keys[1]


def test_data_that_was_loaded_is_not_external(tmp_path: Path) -> None:
    tensor = _external_tensor()
    tensor.data_location = onnx.TensorProto.DEFAULT  # `onnx.load` keeps the entries
    tensor.raw_data = bytes(16)
    model = onnx.helper.make_model(_graph_of(_constant_node(tensor)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert external_data_files(tmp_path / "m.onnx") == []


def test_external_weights_without_a_file_name_are_refused(tmp_path: Path) -> None:
    tensor = _external_tensor()
    del tensor.external_data[:]
    model = onnx.helper.make_model(_graph_of(_constant_node(tensor)))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="not in which"):
        external_data_files(tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")  # of onnx, about the junk
@settings(max_examples=300, deadline=None)
@given(
    place=st.sampled_from(sorted(_models_with_external_weights())),
    start=st.integers(0, 300),
    length=st.integers(0, 8),
    junk=st.binary(max_size=12),
)
def test_all_files_that_onnx_reads_are_listed_and_junk_is_ignored(
    tmp_path_factory: pytest.TempPathFactory, place: str, start: int, length: int, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    model = _models_with_external_weights()[place].SerializeToString()
    path = folder / "file"
    path.write_bytes(model[:start] + junk + model[start + length :])
    (folder / "weights.bin").write_bytes(bytes(16))
    try:
        loaded = onnx.load_model(path, format="protobuf", load_external_data=False)
    except DecodeError:
        loaded = onnx.ModelProto()
    expected = {
        ExternalDataInfo(tensor).location
        for tensor in _get_all_tensors(loaded)
        if uses_external_data(tensor)
    }
    try:
        listed = {file.name for file in external_data_files(path)}
    except ArtifactError:  # the name was changed
        assert expected != {"weights.bin"}
    else:
        assert expected <= listed


# --- cache -----------------------------------------------------------------------------------------


def test_clear_removes_only_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.clear() == 0
    produce(_plan(a=1), tmp_path / "x.txt", _writer("one"), cache=cache)
    assert [size for _, size in cache.entries()] == [3]
    assert cache.clear() > 3
    assert cache.entries() == []
    assert (tmp_path / "x.txt").read_text() == "one"


def test_clear_refuses_a_folder_that_is_not_a_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="thesis"):
        Cache(tmp_path).clear()
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_the_cache_folder_is_set_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "here"))
    assert Cache.default().root == tmp_path / "here"
