"""What a run has made so far, and the record of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.artifacts import Artifact, Cache
from optimizer.progress import Progress
from optimizer.recipe import Recipe
from optimizer.results import (
    Audit,
    StageRecord,
)

__all__ = ["Run"]


@dataclass
class Run:
    """What a run has made so far.

    Attributes:
        recipe: What to do.
        folder: Where everything goes.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.
        stages: One record a stage.
        audits: By engine file name.
        engines: Every engine that was built.
        runnable: Those of them that run on this machine.
    """

    recipe: Recipe
    folder: Path
    cache: Cache | None
    progress: Progress
    stages: list[StageRecord] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)
    engines: list[Artifact] = field(default_factory=list)
    runnable: list[Artifact] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, label: str) -> Iterator[Callable[[Artifact], Artifact]]:
        """Record one stage; the block hands its artifact to the yielded function."""
        started = time.perf_counter()
        made: list[Artifact] = []

        def keep(artifact: Artifact) -> Artifact:
            made.append(artifact)
            return artifact

        yield keep
        artifact = made[0] if made else None
        self.stages.append(
            StageRecord(
                name=name,
                label=label,
                file=str(artifact.path.relative_to(self.folder)) if artifact else None,
                cached=artifact.cached if artifact else False,
                seconds=time.perf_counter() - started,
                manifest=_brief(artifact) if artifact else None,
            )
        )


def _brief(artifact: Artifact) -> dict[str, Any]:
    """A manifest for the report: without the layers and class names, which have their own files."""
    manifest = artifact.manifest.model_dump(mode="json")
    manifest["details"] = {k: v for k, v in manifest["details"].items() if k != "layers"}
    manifest["classes"] = len(manifest["classes"] or ()) or None
    manifest["engine_bytes"] = artifact.path.stat().st_size
    return manifest
