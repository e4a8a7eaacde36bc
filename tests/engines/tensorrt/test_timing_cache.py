"""Timing caches with the real API of TensorRT-RTX, although it times no kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.library import load
from optimizer.engines.tensorrt.log import BuildLog, make_logger
from optimizer.engines.tensorrt.timing_cache import cache_file, store_timing_cache, use_timing_cache

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")


@pytest.fixture
def config(rtx: TensorRtRtx) -> Any:
    trt = load(rtx.library)
    builder = trt.Builder(make_logger(trt, BuildLog()))
    return builder.create_builder_config()


def test_a_cache_is_written_and_used_again(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "timing.cache"
    assert use_timing_cache(config, path) == []
    store_timing_cache(config, path)
    first = path.read_bytes()
    assert len(first) > 100
    assert use_timing_cache(config, path) == []
    store_timing_cache(config, path)  # merged with the existing file
    assert len(path.read_bytes()) == len(first)
    assert sorted(p.name for p in path.parent.iterdir()) == ["timing.cache"]


class Rejecting:
    """A configuration that behaves like the library given a cache of another device."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def create_timing_cache(self, blob: bytes) -> bytes:
        return blob

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.given.append(cache)
        return cache == b""

    def get_timing_cache(self) -> Any:
        class Cache:
            def combine(self, other: bytes, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                return other == b""

            def serialize(self) -> bytes:
                return b"measured now"

        return Cache()


class Damaged(Rejecting):
    """A configuration that cannot read the file: the library's factory returns ``None`` then."""

    def create_timing_cache(self, blob: bytes) -> Any:
        return blob or None


@pytest.mark.parametrize("config", [Rejecting(), Damaged()], ids=["other-device", "damaged"])
def test_a_file_that_the_library_does_not_accept_stays(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"anything")
    (note,) = use_timing_cache(config, path)
    assert "stays as it is" in note
    assert config.given == [b"anything", config.create_timing_cache(b"")]
    store_timing_cache(config, path)
    assert path.read_bytes() == b"anything"
    path.write_bytes(b"")  # an empty file, as mktemp makes, is a new one
    store_timing_cache(config, path)
    assert path.read_bytes() == b"measured now"


def test_folder_has_one_file_per_device_and_version(tmp_path: Path) -> None:
    name = "tensorrt-11.4.0-NVIDIA_RTX_3060-sm86.cache"
    assert cache_file(tmp_path, "tensorrt", "11.4.0", "NVIDIA RTX 3060-sm86") == tmp_path / name
    assert cache_file(tmp_path / "new", "tensorrt", "11.4.0", "x").parent == tmp_path / "new"
    assert cache_file(tmp_path / "t.cache", "tensorrt", "11.4.0", "x") == tmp_path / "t.cache"
