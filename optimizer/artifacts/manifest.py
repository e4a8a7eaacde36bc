"""Plans, manifests and artifacts: how a file is made, its description, and the file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from optimizer._version import __version__
from optimizer.artifacts.atomic_files import folder_locked
from optimizer.artifacts.keys import content_key, digest, remembered_digest
from optimizer.artifacts.manifest_fields import check_details, check_settings
from optimizer.artifacts.recovering import clean_up_after_crashes
from optimizer.errors import ArtifactError
from optimizer.tables import facts_table

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "Input",
    "Manifest",
    "Plan",
    "check_unchanged",
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
    settings: Annotated[dict[str, Any], AfterValidator(check_settings)] = {}
    preprocessing: dict[str, Any] | None = None
    classes: list[str] | None = None
    libraries: dict[str, str] = {}
    device: dict[str, Any] | None = None
    key: str
    details: Annotated[dict[str, Any], AfterValidator(check_details)] = {}
    """Results rather than inputs: layers, build time, accuracy."""

    def computed_key(self) -> str:
        """The key that follows from the other fields; another `key` means that one was edited."""
        return Plan(
            kind=self.kind,
            settings=self.settings,
            inputs=self.inputs,
            libraries=self.libraries,
            device=self.device,
            preprocessing=self.preprocessing,
            classes=self.classes,
            tool=str(self.tool.get("version")),
        ).key

    def as_text(self) -> str:
        """The contents of the manifest's file."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines an artifact, known before it is built.

    Attributes:
        kind: Kind of artifact (``checkpoint``, ``graph``, ``statistics``, ``engine`` …).
        settings: The options of the stage, JSON-like; sets are allowed and sorted.
        inputs: The files it is built from.
        libraries: Versions of the libraries that affect the result, by distribution name.
        device: The device it is built for, if that affects the result.
        preprocessing: The preprocessing that the artifact expects, as a mapping.
        classes: Class names in the order of the model's outputs.
        tool: Version of this package.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Input] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    device: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None
    tool: str = __version__

    @property
    def key(self) -> str:
        """The content key: sha256 of the plan, without the names of the input files."""
        return content_key(
            {
                "kind": self.kind,
                "settings": self.settings,
                "inputs": [[i.role, i.sha256] for i in self.inputs],
                "libraries": self.libraries,
                "device": self.device,
                "preprocessing": self.preprocessing,
                "classes": self.classes,
                "tool": self.tool,
            }
        )


@dataclass(frozen=True)
class Artifact:
    """A file with its manifest; ``cached`` if it existed already and was not built."""

    path: Path
    manifest: Manifest
    cached: bool = False

    def _repr_html_(self) -> str:
        """Notebook display: the file, its settings, and the other plain fields and verdicts."""
        names = [f.name for f in fields(self) if f.name not in {"path", "manifest"}]
        values = [(name, getattr(self, name)) for name in names]
        values = [(name, getattr(value, "verdict", value)) for name, value in values]
        plain = [(n, v) for n, v in values if isinstance(v, (str, int, float, bool))]
        facts = [("file", self.path), ("settings", json.dumps(dict(self.manifest.settings)))]
        return facts_table([*facts, *plain], self.manifest.kind).to_html()

    def as_input(self, role: str) -> Input:
        """This artifact as an input of another one, without hashing it again."""
        return Input(role=role, file=self.path.name, sha256=self.manifest.sha256)


def manifest_path(path: Path) -> Path:
    """The path of the manifest that is written for ``path``."""
    return path.with_name(path.name + ".json")


def find_manifest(path: Path) -> Path | None:
    """The existing manifest: beside ``path``, or beside the target if ``path`` is a link."""
    for place in (path, path.resolve()):
        if manifest_path(place).is_file():
            return manifest_path(place)
    return None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact at ``path`` without checking the artifact itself.

    Raises:
        ArtifactError: The file or manifest is missing, or the manifest is damaged or has another
            schema version.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", hint="check the path")
    sidecar = find_manifest(path)
    if sidecar is None:
        raise ArtifactError(
            f"{path.name} has no manifest ({manifest_path(path).name}) beside it",
            hint="copy both files, or create the artifact again with resnet-opt",
        )
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{sidecar.name} has schema version {version}, expected {SCHEMA_VERSION}",
                hint="create the artifact again with this version of resnet-opt",
            )
        manifest = Manifest.model_validate(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{sidecar.name} is damaged: {_reason(error)}",
            hint="create the artifact again",
        ) from error
    if manifest.key != manifest.computed_key():
        raise ArtifactError(
            f"{sidecar.name} was edited: its key does not follow from its other fields",
            hint="create the artifact again",
        )
    return manifest


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return ", ".join([*map(str, first["loc"]), first["msg"]])
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_artifact(path: Path, *, kind: str | None = None) -> Artifact:
    """Read a manifest and check that it describes the file.

    Raises:
        ArtifactError: As for `read_manifest`, or the file's kind or sha256 differs.
    """
    try:
        return _loaded(path, kind)
    except ArtifactError:
        if not path.is_file():
            raise
        # Another process may be between the two renames, or have been killed there.
        with folder_locked(path.parent):
            clean_up_after_crashes([path.parent])
        return _loaded(path, kind)


def check_unchanged(path: Path) -> None:
    """Check a file against the manifest beside it, for readers of files that need no manifest.

    A JSON file of that name that is no manifest of this package is ignored.

    Raises:
        ArtifactError: The file was changed after its manifest was written, or the manifest is
            damaged.
    """
    sidecar = find_manifest(path)
    if sidecar is None:
        return
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raw = {"kind": None, "sha256": None}  # `load_artifact` says what is wrong
    if isinstance(raw, dict) and {"kind", "sha256"} <= raw.keys():
        load_artifact(path)


def _loaded(path: Path, kind: str | None) -> Artifact:
    manifest = read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path.name} is a {manifest.kind}, not a {kind}")
    if remembered_digest(path) != manifest.sha256:
        raise ArtifactError(
            f"{path.name} was changed since its manifest was written (sha256 differs)",
            hint="create the artifact again",
        )
    return Artifact(path, manifest)
