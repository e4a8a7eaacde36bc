"""Artifacts: files with a manifest, written atomically.

Every file that this package writes for later use has a JSON manifest beside it (``model.onnx`` and
``model.onnx.json``) with its kind, inputs, settings, library versions and device. The manifest's
``key`` is the sha256 of everything that determines the file's contents; a stage whose artifact
exists under its key is skipped.
"""

from optimizer.artifacts.atomic_files import (
    folder_locked,
    write_atomically,
    write_pair_atomically,
    write_text_atomically,
)
from optimizer.artifacts.cache import Cache, CacheContents, DisabledCache
from optimizer.artifacts.external_data import external_data_files
from optimizer.artifacts.keys import content_key, digest, library_versions
from optimizer.artifacts.leftovers import in_use, leftovers, names_in_use, remove, scratch_folder
from optimizer.artifacts.manifest import (
    Artifact,
    Input,
    Manifest,
    Plan,
    check_unchanged,
    find_manifest,
    load_artifact,
    manifest_path,
    read_manifest,
)
from optimizer.artifacts.marks import (
    DIGEST_FIELD,
    json_digest,
    mark_of,
    mark_zip,
    marked_png,
    write_marked_text,
)
from optimizer.artifacts.outputs import OutputFile, check_outputs, check_space
from optimizer.artifacts.producing import produce
from optimizer.artifacts.recovering import clean_up_after_crashes
from optimizer.artifacts.tensor_files import read_tensors, write_tensors
from optimizer.artifacts.unfinished import UnfinishedWork, forget_abandoned

__all__ = [
    "DIGEST_FIELD",
    "Artifact",
    "Cache",
    "CacheContents",
    "DisabledCache",
    "Input",
    "Manifest",
    "OutputFile",
    "Plan",
    "UnfinishedWork",
    "check_outputs",
    "check_space",
    "check_unchanged",
    "clean_up_after_crashes",
    "content_key",
    "digest",
    "external_data_files",
    "find_manifest",
    "folder_locked",
    "forget_abandoned",
    "in_use",
    "json_digest",
    "leftovers",
    "library_versions",
    "load_artifact",
    "manifest_path",
    "mark_of",
    "mark_zip",
    "marked_png",
    "names_in_use",
    "produce",
    "read_manifest",
    "read_tensors",
    "remove",
    "scratch_folder",
    "write_atomically",
    "write_marked_text",
    "write_pair_atomically",
    "write_tensors",
    "write_text_atomically",
]
