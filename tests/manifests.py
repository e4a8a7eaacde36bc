"""Edits manifests consistently, as a later run with other libraries or another machine writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.artifacts import Manifest, manifest_path


def edit_manifest(artifact: Path, **fields: Any) -> None:
    """Replace fields of an artifact's manifest, and its key to match."""
    sidecar = manifest_path(artifact)
    manifest = Manifest.model_validate({**json.loads(sidecar.read_text()), **fields})
    manifest.key = manifest.computed_key()
    sidecar.write_text(manifest.as_text())
