"""The verb ``audit``: whether an engine computes in the requested precision."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifacts import Artifact, load_artifact
from optimizer.results import Audit

__all__ = ["audit"]


def audit(engine: Artifact | Path | str, *, min_share: float = 0.95) -> Audit:
    """Compare the precision requested of an engine with the precisions of its layers.

    Args:
        engine: An engine, or the result of ``build``.
        min_share: Share of the FLOPs that must be in the requested precision.

    Raises:
        ArtifactError: The file is not an engine, or was changed after it was built.
    """
    from optimizer.evaluation import audit_manifest

    artifact = (
        engine if isinstance(engine, Artifact) else load_artifact(Path(engine), kind="engine")
    )
    return audit_manifest(artifact.manifest, min_share)
