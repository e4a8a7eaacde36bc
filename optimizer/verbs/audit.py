"""The verb ``audit``: what was requested of an engine against what it computes."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import Artifact, load_artifact
from optimizer.results import Audit

__all__ = ["audit"]


def audit(engine: Artifact | Path | str, *, min_share: float = 0.95) -> Audit:
    """Compare the precision that was requested of an engine with what its layers compute.

    Args:
        engine: An engine, or the result of ``build``.
        min_share: Share of the FLOPs that must be in the requested precision.

    Raises:
        ArtifactError: No engine, or a file that was changed since.
    """
    from optimizer.evaluation import audit_manifest

    made = engine if isinstance(engine, Artifact) else load_artifact(Path(engine), kind="engine")
    return audit_manifest(made.manifest, min_share)
