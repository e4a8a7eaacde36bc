"""Whoever waits for another process is told for what, and not forever."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from optimizer.artifacts import Cache
from optimizer.artifacts.locking import locked
from optimizer.errors import EnvironmentFault


def test_waiting_ends_and_says_for_what(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key.lock"
    with locked(path), caplog.at_level(logging.WARNING, "optimizer"):
        with pytest.raises(EnvironmentFault, match=r"has held .*key\.lock for 10ms") as caught:
            with locked(path, 0.01):
                pass
        assert "--lock-timeout" in str(caught.value.hint)
    assert f"waiting up to 10ms for another process that makes the same artifact ({path})" in (
        caplog.text
    )
    with locked(path, 0.01):  # free again
        pass


def test_a_lock_that_becomes_free_is_taken(tmp_path: Path) -> None:
    path, held, release = tmp_path / "key.lock", threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path):
            held.set()
            release.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    threading.Timer(0.05, release.set).start()
    with locked(path, 60):
        assert release.is_set()
    other.join()


def test_the_cache_uses_the_given_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lock_seconds=0.01)
    with cache.lock("k"), pytest.raises(EnvironmentFault):
        with cache.lock("k"):
            pass
