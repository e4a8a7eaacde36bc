"""Artifacts: files with a manifest, written atomically.

Every file that this package writes for later use has a JSON manifest beside it (``model.onnx`` and
``model.onnx.json``) with its kind, inputs, settings, library versions and device. The manifest's
``key`` is the sha256 of everything that determines the file's contents; a stage whose artifact
exists under its key is skipped.
"""

from optimizer.artifacts.atomic_files import write_atomically, write_text_atomically
from optimizer.artifacts.cache import Cache, DisabledCache
from optimizer.artifacts.external_data import external_data_files
from optimizer.artifacts.keys import content_key, digest, library_versions
from optimizer.artifacts.manifest import (
    Artifact,
    Input,
    Manifest,
    Plan,
    find_manifest,
    load_artifact,
    manifest_path,
    read_manifest,
)
from optimizer.artifacts.outputs import check_output
from optimizer.artifacts.producing import produce

__all__ = [
    "Artifact",
    "Cache",
    "DisabledCache",
    "Input",
    "Manifest",
    "Plan",
    "check_output",
    "content_key",
    "digest",
    "external_data_files",
    "find_manifest",
    "library_versions",
    "load_artifact",
    "manifest_path",
    "produce",
    "read_manifest",
    "write_atomically",
    "write_text_atomically",
]
