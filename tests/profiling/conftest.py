"""Engines of a third-party backend, registered by entry point as a real one would be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts import Cache, Plan, library_versions, produce
from optimizer.profiling.ceilings import Effort
from tests.conftest import LITTLE_EFFORT

THIRD_PARTY = Path(__file__).parent / "thirdparty"
MakeEngine = Callable[..., Path]
QUICK = Effort(*LITTLE_EFFORT)
"""Rough ceilings, measured quickly."""


@pytest.fixture(scope="session")
def ceilings_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Cache for ceilings of effort `QUICK`, which are measured once per session."""
    return Cache(tmp_path_factory.mktemp("ceilings"))


@pytest.fixture
def make_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Write a third-party engine with its manifest."""
    installed = tmp_path / "site"
    info = installed / "tiny_engines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-engines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[resnet_opt.engines]\ntiny = tiny_engines:TinyEngines\n"
        "tiny-streams = tiny_engines:ConcurrentTinyEngines\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(THIRD_PARTY)]))
    monkeypatch.syspath_prepend(str(THIRD_PARTY))
    monkeypatch.syspath_prepend(str(installed))

    def make(
        name: str = "a", *, profile: Any = None, backend: str = "tiny", **behaviour: Any
    ) -> Path:
        settings = {
            "backend": backend,
            "precision": "fp32",
            "batch": behaviour.get("batch"),
            "profile": profile,
        }
        plan = Plan(
            kind="engine",
            settings=settings,
            libraries=library_versions("numpy"),
            device={"kind": "cpu"},
        )

        def write(path: Path) -> dict[str, Any]:
            path.write_text(json.dumps(behaviour))
            return {"layers": [], "build_s": 0.25, "notes": []}

        return produce(plan, tmp_path / f"{name}.tiny", write).path

    return make
