"""A backend whose builds start a process and never end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from optimizer.engines import Availability, BuildSettings, Built


class Hanging:
    name = "hanging"
    suffix = ".hanging"
    libraries = ("numpy",)

    def availability(self) -> Availability:
        return Availability(True, True, "always here")

    def device(self) -> dict[str, Any]:
        return {"kind": "cpu"}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        return {}

    def build(self, graph: Path, output: Path, settings: BuildSettings, progress: Any) -> Built:
        output.write_text("half an engine")
        subprocess.Popen(["sleep", "600"]).wait()
        raise AssertionError("the build should have been killed")

    def load(self, engine: Path, *, threads: int | None = None, device: str | None = None) -> Any:
        raise NotImplementedError
