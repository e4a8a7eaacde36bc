"""Digests of image files that are remembered between runs."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from optimizer.artifacts import Cache
from optimizer.data import file_digests
from optimizer.data.file_digests import FileDigests

MANY = 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files that changed a minute ago, and an empty cache."""
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode())
    _as_if_a_minute_ago(monkeypatch)
    return folder


def _as_if_a_minute_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)


def _stored() -> list[Path]:
    return list((Cache.default().root / "digests").glob("*.json"))


def _remembered(folder: Path) -> None:
    digests = FileDigests(folder, MANY)
    for name in ("a", "b"):
        assert digests.of(name) == hashlib.sha256(name.encode()).digest()
    digests.remember()


def test_a_remembered_file_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _remembered(folder)
    monkeypatch.setattr(file_digests, "_contents", lambda _: pytest.fail("read again"))
    assert FileDigests(folder, MANY).of("a") == hashlib.sha256(b"a").digest()


def test_a_changed_file_is_read_again(folder: Path) -> None:
    _remembered(folder)
    (folder / "a").write_bytes(b"c")  # of the same size
    assert FileDigests(folder, MANY).of("a") == hashlib.sha256(b"c").digest()


def test_changed_files_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _remembered(folder)
    assert not caplog.text
    (folder / "b").write_bytes(b"c")
    digests = FileDigests(folder, MANY)
    for name in ("a", "b"):
        digests.of(name)
    digests.remember()
    assert f"1 images of {folder} changed since they were read last; the first is b" in caplog.text


def test_a_change_with_restored_times_is_seen(folder: Path) -> None:
    """Nothing but the kernel sets the time of the last status change."""
    _remembered(folder)
    before = (folder / "a").stat()
    (folder / "a").write_bytes(b"c")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert FileDigests(folder, MANY).of("a") == hashlib.sha256(b"c").digest()


def test_a_file_that_just_changed_is_not_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("RESNET_OPT_CACHE", str(folder.parent / "cache"))
    (folder / "a").write_bytes(b"a")
    digests = FileDigests(folder, MANY)
    digests.of("a")
    digests.remember()
    assert not _stored()


def test_few_files_are_not_remembered(folder: Path) -> None:
    digests = FileDigests(folder, MANY - 1)
    digests.of("a")
    digests.remember()
    assert not _stored()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"a": [1, 2, 3, 4, "00"]}', '{"a": [1, 2, 3, 4, 5]}']
)
def test_a_damaged_store_is_replaced(folder: Path, text: str) -> None:
    _remembered(folder)
    (store,) = _stored()
    store.write_text(text)
    _remembered(folder)
    assert set(json.loads(store.read_text())) == {"a", "b"}


def test_without_a_writable_cache_nothing_is_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "file").write_bytes(b"")
    monkeypatch.setenv("RESNET_OPT_CACHE", str(folder.parent / "file"))
    _remembered(folder)


def test_a_missing_file_has_a_digest_of_its_own(folder: Path) -> None:
    """Decoding reports it; the digest only has to differ from that of the readable file."""
    digests = FileDigests(folder, MANY)
    assert digests.of("gone") == digests.of("lost") != digests.of("a")


def test_the_cache_may_be_cleared(folder: Path) -> None:
    _remembered(folder)
    assert Cache.default().clear() > 0
    assert not _stored()
