"""A power loss at every rename: files are old, new or absent, and the next run ends as always."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from optimizer.artifacts import (
    Cache,
    OutputFile,
    check_outputs,
    load_artifact,
    manifest_path,
    write_text_atomically,
)
from tests.torture.power_loss import losses
from tests.torture.test_kill_writes import make, plan

LONG = 100_000


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize("existing", [False, True])
def test_an_artifact(tmp_path: Path, existing: bool) -> None:
    folder, saved, cache = tmp_path / "work", tmp_path / "saved", Cache(tmp_path / "work" / "cache")
    path = folder / "out" / "m.onnx"
    folder.mkdir()
    if existing:
        make(path, "a", cache)
    shutil.copytree(folder, saved)

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)

    states = set()
    for state in losses(lambda: make(path, "b", cache), restore, folder, tmp_path / "store"):
        text = path.read_text() if path.exists() else None
        assert text in {None if not existing else "a" * LONG, "b" * LONG}, state
        states.add(text and text[0])
        check_outputs([OutputFile(folder / "out" / "other.onnx", "graph")])  # the next run
        if text is not None and manifest_path(path).exists() and text[0] == "b":
            assert load_artifact(path).manifest.key in {plan("a").key, plan("b").key}, state
        assert not list((folder / "out").glob(".*")), state
        make(path, "b", cache)
        assert path.read_text() == "b" * LONG, state
        assert load_artifact(path).manifest.key == plan("b").key, state
        path.unlink()
        make(path, "b", cache)  # a damaged entry of the cache is not used
        assert path.read_text() == "b" * LONG, state
    assert states == {"a" if existing else None, "b"}


def test_a_text_file(tmp_path: Path) -> None:
    path, store = tmp_path / "work" / "r.md", tmp_path / "store"
    path.parent.mkdir()
    found = set()
    for state in losses(
        lambda: write_text_atomically(path, "new" * LONG),
        lambda: (path.unlink(missing_ok=True), path.write_text("old"))[0],
        path.parent,
        store,
    ):
        assert path.read_text() in {"old", "new" * LONG}, state
        found.add(path.read_text()[:3])
    assert found == {"old", "new"}


def test_new_folders_are_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = set(), os.fsync

    def recorded(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    write_text_atomically(tmp_path / "a" / "b" / "r.md", "new")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= synced


def test_the_model_loses_what_is_not_synced(tmp_path: Path) -> None:
    """The experiment finds the fault that it looks for."""
    path, store = tmp_path / "work" / "r.md", tmp_path / "store"
    path.parent.mkdir()

    def careless() -> None:
        draft = path.with_suffix(".draft")
        draft.write_text("new")
        draft.replace(path)

    seen = set()
    for _ in losses(careless, lambda: path.unlink(missing_ok=True), path.parent, store):
        seen.add(path.read_text() if path.exists() else None)
    assert seen == {None, "", "new"}
