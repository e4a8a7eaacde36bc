"""Backends of other packages that cannot be loaded are named and left out."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from optimizer.engines import backends, get_backend
from optimizer.engines.registry import ENTRY_POINTS, broken_backends
from optimizer.environment import describe
from optimizer.errors import MissingLibrary


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed packages: one fails on import, one ends the process."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nraising = broken_raising:Backend\nexiting = broken_exiting:Backend\n"
        "absent = broken_absent:Backend\n"
    )
    (tmp_path / "broken_raising.py").write_text("raise RuntimeError('no licence\\nsecond line')\n")
    (tmp_path / "broken_exiting.py").write_text("raise SystemExit('bye')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.mark.usefixtures("broken")
def test_broken_plugins_are_left_out_and_named() -> None:
    assert "openvino" in backends()
    reasons = broken_backends()
    assert set(reasons) == {"raising", "exiting", "absent"}
    assert reasons["raising"].endswith("cannot be loaded: RuntimeError: no licence")
    assert "of broken" in reasons["raising"]
    with pytest.raises(MissingLibrary, match=r"engine exiting cannot be used: .*SystemExit: bye"):
        get_backend("exiting")


@pytest.mark.usefixtures("broken")
def test_doctor_shows_broken_plugins() -> None:
    status = describe().backends["absent"]
    assert (status.can_build, status.can_run) == (False, False)
    assert "ModuleNotFoundError" in status.reason
    assert status.hint
