"""What `build` leaves: the engine and its graph, named after the output, which is all `validate` needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optimizer
from optimizer.artifacts import Cache
from optimizer.errors import UsageError
from tests.graphs.dresses import CLASSES, SIZE, Dress, write

BESIDE = {"x.blob", "x.blob.json", "x.blob.graph.onnx", "x.blob.graph.onnx.json"}
"""What the help of `build` says to copy."""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with somebody else's ONNX file, its card and images."""
    folder = tmp_path_factory.mktemp("foreign")
    model = write(folder / "net.onnx", Dress(batchnorm="kept"))
    preprocessing = {"resize": SIZE, "crop": SIZE, "mean": [0.3] * 3, "std": [0.4] * 3}
    model.with_name("net.onnx.card.json").write_text(json.dumps({"preprocessing": preprocessing}))
    rng = np.random.default_rng(0)
    labels = np.arange(40) % CLASSES
    images = rng.integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8) // 2
    images += (20 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "data.npz", images=images, labels=labels)
    return folder


def build(folder: Path, output: Path, cache: Cache, **more: Any) -> Any:
    data = str(folder / "data.npz")
    options = {"precision": "int8", "engine": "openvino", "calib": data, "calib_images": 16}
    return optimizer.build(folder / "net.onnx", output, cache=cache, **options, **more)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.long
def test_an_engine_and_its_graph_are_left_and_are_enough_elsewhere(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    built = build(foreign, tmp_path / "out" / "x.blob", cache)
    assert names(tmp_path / "out") == BESIDE
    assert built.intermediates == ()
    kinds = {manifest.kind for manifest, _ in cache.entries()}
    assert kinds == {"graph", "statistics", "encodings", "engine"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in BESIDE:
        shutil.copyfile(tmp_path / "out" / name, elsewhere / name)
    for name in names(foreign):  # the reference and the images are the user's own
        shutil.copyfile(foreign / name, elsewhere / name)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(elsewhere)
    result = optimizer.validate("x.blob", reference="net.onnx", data="data.npz")
    assert [hop.name for hop in result.hops] == ["reference", "graph int8", "x.blob"]
    assert all(hop.sqnr_db is not None and hop.sqnr_db > 15 for hop in result.hops[1:])


@pytest.mark.long
def test_what_lies_on_the_way_is_taken_from_the_cache(foreign: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first = build(foreign, tmp_path / "out" / "x.blob", cache)
    entries = len(cache.entries())
    again = build(foreign, tmp_path / "out" / "x.blob", cache)
    assert (first.cached, again.cached) == (False, True)
    saved = build(foreign, tmp_path / "out" / "x.blob", cache, save_intermediates=tmp_path / "way")
    assert saved.cached
    files = [
        "net.float.onnx",
        "net.float.stats.npz",
        "x.blob.graph.onnx",
        "x.blob.graph.encodings.json",
    ]
    assert {path.name for path in saved.intermediates} == set(files)
    assert names(tmp_path / "way") == {f"{name}{end}" for name in files for end in ("", ".json")}
    assert names(tmp_path / "out") == BESIDE
    assert len(cache.entries()) == entries  # nothing was computed again


@pytest.mark.long
def test_intermediates_beside_the_engine(foreign: Path, tmp_path: Path) -> None:
    """The converted graph has one name, so it is not written twice."""
    cache = Cache(tmp_path / "cache")
    beside = tmp_path / "out" / "." / "sub" / ".."
    (tmp_path / "out" / "sub").mkdir(parents=True)
    saved = build(foreign, tmp_path / "out" / "x.blob", cache, save_intermediates=beside)
    assert {path.name for path in saved.intermediates} == {
        "net.float.onnx", "net.float.stats.npz", "x.blob.graph.encodings.json",
    }  # fmt: skip
    result = optimizer.validate(
        saved.path, reference=foreign / "net.onnx", data=str(foreign / "data.npz")
    )
    assert [hop.name for hop in result.hops][1:] == ["onnx fp32", "graph int8", "x.blob"]


def test_files_of_others_among_the_intermediates_stay(foreign: Path, tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.mkdir()
    (way / "net.float.stats.npz").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"net\.float\.stats\.npz exists and was not written"):
        build(foreign, tmp_path / "x.blob", Cache(tmp_path / "cache"), save_intermediates=way)
    assert (way / "net.float.stats.npz").read_bytes() == b"mine"
    assert names(way) == {"net.float.stats.npz"}
    assert not list(tmp_path.glob("*x.blob*"))


def test_a_failed_build_leaves_nothing(foreign: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(UsageError):
        build(foreign, tmp_path / "out" / "x.blob", cache, keep="no.such.layer")
    assert names(tmp_path / "out") == set()


@pytest.mark.long
def test_a_model_leaves_no_fp32_graph(small_checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calib": "digits:train", "calib_images": 16, "engine": "openvino"}
    cache = Cache(tmp_path / "cache")
    way = tmp_path / "way"
    saved = optimizer.build(
        small_checkpoint, tmp_path / "out" / "x.blob", precision="int8", save_intermediates=way,
        cache=cache, **options,
    )  # fmt: skip
    assert names(tmp_path / "out") == BESIDE
    assert saved.intermediates[0] == way / "x.blob.fp32.onnx"
