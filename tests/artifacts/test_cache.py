"""The cache's folder: what `clear` removes, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer import clean
from optimizer.artifacts import Cache, Plan, produce
from optimizer.errors import UsageError

KEY = "0" * 64


def fill(cache: Cache, folder: Path) -> None:
    def write(path: Path) -> dict[str, Any]:
        path.write_text("contents")
        return {}

    produce(Plan(kind="graph"), folder / "m.onnx", write, cache=cache)
    (cache.folder("measured") / f"{KEY}.json").write_text("{}")
    (cache.folder("digests") / f"{KEY}.json").write_text("{}")
    (cache.folder("predictions") / f"{KEY}.{KEY}.safetensors").write_text("x")


def test_everything_of_the_cache_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    fill(cache, tmp_path)
    assert cache.contents().foreign == []
    assert [(m.file, size) for m, size in cache.entries()] == [("m.onnx", 8)]
    assert cache.clear() > 8
    assert [path.name for path in cache.root.iterdir()] == ["CACHEDIR.TAG"]
    assert cache.clear() == 0


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    fill(cache, tmp_path)
    thesis = cache.root / "thesis" / "manifest.json"
    inside = cache.root / "measured" / "notes.txt"
    named = cache.root / ("1" * 64) / "chapter.txt"
    lookalike = cache.root / ("2" * 64) / "manifest.json"
    link = cache.root / "link"
    for path in (thesis, inside, named, lookalike):
        path.parent.mkdir(exist_ok=True)
        path.write_text("years of work")
    (entry,) = list(cache.root.glob("*/artifact"))
    text = (entry.parent / "manifest.json").read_text()
    lookalike.write_text(text)  # the manifest of another artifact
    (lookalike.parent / "artifact").write_text("years of work")
    link.symlink_to(tmp_path)
    found: list[Any] = []
    cleaned = clean(cache, dry_run=True)
    assert cleaned.count == 1
    assert entry.exists()
    cleaned = clean(cache, before=found.append)
    assert found[0].artifacts == cleaned.artifacts == (("m.onnx", "graph", 8),)
    assert set(cleaned.foreign) == {thesis.parent, inside, named.parent, lookalike.parent, link}
    for path in (thesis, inside, named, lookalike, link, tmp_path / "m.onnx"):
        assert path.exists(), path
    assert not entry.exists()


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is not a cache of resnet-opt: it has no CACHEDIR\.TAG"):
        clean(Cache(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
