"""Plans, manifests and artifacts: what a file is, from what, and proof that it is the one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from optimizer._version import __version__
from optimizer.artifacts.keys import content_key, digest
from optimizer.errors import ArtifactError
from optimizer.tables import facts_table

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "Input",
    "Manifest",
    "Plan",
    "find_manifest",
    "load_artifact",
    "manifest_path",
    "read_manifest",
]

SCHEMA_VERSION = 1


class Input(BaseModel):
    """One input of an artifact: its role, the file's name and the sha256 of its contents."""

    model_config = ConfigDict(frozen=True)

    role: str
    file: str
    sha256: str

    @classmethod
    def of(cls, role: str, path: Path) -> Input:
        """Describe the file at ``path``."""
        return cls(role=role, file=path.name, sha256=digest(path))


class Manifest(BaseModel):
    """The sidecar of an artifact (schema version 1)."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: str
    file: str
    sha256: str
    created: str
    tool: dict[str, str]
    inputs: list[Input] = []
    settings: dict[str, Any] = {}
    preprocessing: dict[str, Any] | None = None
    classes: list[str] | None = None
    libraries: dict[str, str] = {}
    device: dict[str, Any] | None = None
    key: str
    details: dict[str, Any] = {}
    """What came out rather than what went in: layers, build time, accuracy."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides an artifact, known before it is made.

    Attributes:
        kind: What the artifact is (``checkpoint``, ``graph``, ``statistics``, ``engine`` …).
        settings: The options of the stage, JSON-like; sets are allowed and sorted.
        inputs: What it is made from.
        libraries: Versions of the libraries that decide the outcome, by distribution name.
        device: The device it is made for, where that decides the outcome.
        preprocessing: The preprocessing that the artifact expects, as a mapping.
        classes: Class names in the order of the model's outputs.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    device: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None

    @property
    def key(self) -> str:
        """The content key: sha256 over everything in the plan that decides the bytes."""
        return content_key(
            {
                "kind": self.kind,
                "settings": self.settings,
                "inputs": [[i.role, i.sha256] for i in self.inputs],
                "libraries": self.libraries,
                "device": self.device,
                "preprocessing": self.preprocessing,
                "classes": self.classes,
                "tool": __version__,
            }
        )


@dataclass(frozen=True)
class Artifact:
    """A file with its manifest; ``cached`` says that nothing was run to make it."""

    path: Path
    manifest: Manifest
    cached: bool = False

    def _repr_html_(self) -> str:
        """How a notebook shows it: the file, what it is, and what was found out on the way."""
        own = {"path", "manifest"}
        more = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in own]
        simple = [(n, getattr(v, "verdict", v)) for n, v in more]
        shown = [(n, v) for n, v in simple if isinstance(v, (str, int, float, bool))]
        facts = [("file", self.path), ("settings", json.dumps(dict(self.manifest.settings)))]
        return facts_table([*facts, *shown], self.manifest.kind).to_html()

    def as_input(self, role: str) -> Input:
        """Describe this artifact as the input of another one, without hashing it again."""
        return Input(role=role, file=self.path.name, sha256=self.manifest.sha256)


def manifest_path(path: Path) -> Path:
    """Where the manifest of ``path`` is written."""
    return path.with_name(path.name + ".json")


def find_manifest(path: Path) -> Path | None:
    """The manifest that is there: beside ``path``, or where a link without one leads."""
    for place in (path, path.resolve()):
        if manifest_path(place).is_file():
            return manifest_path(place)
    return None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact at ``path`` without looking at the artifact itself.

    Raises:
        ArtifactError: No file, no manifest, or a manifest that is damaged or of another schema.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", hint="check the path")
    sidecar = find_manifest(path)
    if sidecar is None:
        raise ArtifactError(
            f"{path.name} has no manifest ({manifest_path(path).name}) beside it",
            hint="copy both files, or make the artifact again with resnet-opt",
        )
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{sidecar.name} has schema version {version}, this is version {SCHEMA_VERSION}",
                hint="make the artifact again with this version of resnet-opt",
            )
        return Manifest.model_validate(raw)
    except (ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{sidecar.name} is damaged: {str(error).splitlines()[0]}",
            hint="make the artifact again",
        ) from error


def load_artifact(path: Path, *, kind: str | None = None) -> Artifact:
    """Read a manifest and check that the file is the one it describes.

    Raises:
        ArtifactError: As `read_manifest`; or the file's sha256 or kind is another one.
    """
    manifest = read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path.name} is a {manifest.kind}, not a {kind}")
    if digest(path) != manifest.sha256:
        raise ArtifactError(
            f"{path.name} was changed since its manifest was written (sha256 differs)",
            hint="make the artifact again",
        )
    return Artifact(path, manifest)
