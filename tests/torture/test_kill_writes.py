"""Kills and failures at every change of files: whole old files, or whole new ones, and no leftovers."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts import (
    Cache,
    OutputFile,
    Plan,
    check_outputs,
    load_artifact,
    manifest_path,
    produce,
    write_text_atomically,
)
from tests.torture.injecting import Act, in_a_copy, points

BIG = 100_000


def plan(text: str) -> Plan:
    return Plan(kind="graph", settings={"text": text})


def make(path: Path, text: str, cache: Cache | None = None) -> None:
    def write(temporary: Path) -> dict[str, Any]:
        temporary.write_text(text * BIG)
        return {"length": len(text) * BIG}

    check_outputs([OutputFile(path, "graph")])
    produce(plan(text), path, write, cache=cache)


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob(".*"))


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def restore(saved: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)


@pytest.mark.parametrize("act", ["kill", "fail"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_an_artifact(tmp_path: Path, act: Act, cached: bool, existing: bool) -> None:
    folder, saved = tmp_path / "work", tmp_path / "saved"
    path, cache = folder / "out" / "m.onnx", Cache(folder / "cache") if cached else None
    folder.mkdir()
    if existing:
        make(path, "a", cache)
    restore_to = shutil.copytree(folder, saved)
    completed = removed = 0

    def run() -> None:
        make(path, "b", cache)

    for at in points(run, folder):
        restore(restore_to, folder)
        outcome = in_a_copy(run, folder, at=at, act=act)
        assert outcome.status == (-9 if act == "kill" else outcome.status)
        if path.exists():
            text = path.read_text()
            assert text in ({"a" * BIG, "b" * BIG} if existing else {"b" * BIG}), at
        # The next run, of whatever output in the folder.
        check_outputs([OutputFile(folder / "out" / "other.onnx", "graph")])
        assert hidden(folder / "out") == [], at
        if path.exists():
            load_artifact(path)
            completed += path.read_text() == "b" * BIG
        else:
            assert not manifest_path(path).exists() or existing
        removed += not path.exists() or path.read_text() == "a" * BIG
        make(path, "b", cache)
        assert load_artifact(path).manifest.key == plan("b").key
        if cached:
            assert cache is not None
            assert cache.contents().foreign == []
            cache.clear()
            remaining = {p.name for p in (folder / "cache").glob("*")}
            assert remaining <= {"CACHEDIR.TAG"}, at
    assert removed
    assert completed, "killed after the file was renamed, it is completed by its manifest"


@pytest.mark.parametrize("act", ["kill", "fail"])
def test_a_text_file(tmp_path: Path, act: Act) -> None:
    path = tmp_path / "work" / "r.md"
    path.parent.mkdir()

    def run() -> None:
        write_text_atomically(path, "new" * BIG)

    for at in points(run, path.parent):
        path.write_text("old")
        in_a_copy(run, path.parent, at=at, act=act)
        assert path.read_text() in {"old", "new" * BIG}
        check_outputs([OutputFile(path.parent / "other.md", "report", has_manifest=False)])
        assert sorted(p.name for p in path.parent.iterdir()) == ["r.md"], at


def test_a_failed_write_leaves_nothing_at_once(tmp_path: Path) -> None:
    """What can be undone is undone by the run itself, not by the next one."""
    folder = tmp_path / "work"
    path = folder / "m.onnx"

    def run() -> None:
        make(path, "b")

    for at in points(run, tmp_path / "work"):
        shutil.rmtree(folder, ignore_errors=True)
        outcome = in_a_copy(run, folder, at=at, act="fail")
        if (
            outcome.status
            and folder.exists()
            and not path.exists()
            and "unlink" not in outcome.error
        ):
            assert hidden(folder) == [], (at, outcome.error)


def test_files_of_running_processes_and_other_hosts_stay(tmp_path: Path) -> None:
    module = importlib.import_module("optimizer.artifacts.leftovers")

    own = tmp_path / module.temporary_name(tmp_path / "m.onnx")
    reused = tmp_path / own.name.replace(f"-{module._start_of(os.getpid())}-", "-1-")
    foreign = tmp_path / own.name.replace(module._host(), "0" * 8)
    old = tmp_path / own.name.replace(module._host(), "1" * 8)
    link = tmp_path / reused.name.replace(".onnx", ".json")
    lookalikes = [tmp_path / name for name in (".m.resnet-opt-1-2-3.onnx", ".bashrc", "m.onnx")]
    for path in (own, reused, foreign, old, *lookalikes):
        path.write_text("x")
    link.symlink_to(tmp_path / "m.onnx")
    os.utime(old, (0, 0))
    check_outputs([OutputFile(tmp_path / "other.onnx", "graph")])
    remaining = {path for path in (own, reused, foreign, old, *lookalikes) if path.exists()}
    assert remaining == {own, foreign, *lookalikes}
    assert not link.is_symlink()


def test_two_runs_with_one_output(tmp_path: Path) -> None:
    """The second fails, unless both make the same."""
    from optimizer.artifacts.atomic_files import ChangedMeanwhile

    path = tmp_path / "m.onnx"

    def write_while(other: str) -> Callable[[Path], dict[str, Any]]:
        def write(temporary: Path) -> dict[str, Any]:
            assert in_a_copy(lambda: make(path, other), tmp_path).status == 0
            temporary.write_text("mine")
            return {}

        return write

    with pytest.raises(ChangedMeanwhile, match=r"another process wrote .*m\.onnx in the meantime"):
        produce(plan("mine"), path, write_while("theirs"))
    assert load_artifact(path).manifest.key == plan("theirs").key
    produce(plan("same"), path, write_while("same"))
    assert load_artifact(path).manifest.key == plan("same").key
    assert hidden(tmp_path) == []
