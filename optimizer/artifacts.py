"""Artifacts: files that exist together with a manifest, or not at all.

Every file this package writes for later use has a JSON manifest beside it (``model.onnx`` and
``model.onnx.json``) that says what it is, from which inputs it was made, with which settings and
library versions, and for which device. The manifest's ``key`` is the sha256 of all that decides
the outcome; a stage whose key is known is not run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from optimizer._version import __version__
from optimizer.errors import ArtifactError, UsageError

__all__ = [
    "Artifact",
    "Cache",
    "Input",
    "Manifest",
    "Plan",
    "content_key",
    "digest",
    "library_versions",
    "load_artifact",
    "manifest_path",
    "produce",
    "read_manifest",
    "write_atomically",
    "write_text_atomically",
]

SCHEMA_VERSION = 1
_CHUNK = 1 << 20


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

    def as_input(self, role: str) -> Input:
        """Describe this artifact as the input of another one, without hashing it again."""
        return Input(role=role, file=self.path.name, sha256=self.manifest.sha256)


# --- keys and digests --------------------------------------------------------------------------


def _canonical(value: Any) -> Any:
    """JSON-like value with sets sorted and mappings keyed by text; anything else is refused."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_canonical(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a content key: {value!r}")


def content_key(value: Any) -> str:
    """Sha256 of a JSON-like value, independent of the order of mappings and sets."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_into(hasher: Any, path: Path) -> None:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)


def digest(path: Path) -> str:
    """Sha256 of a file's contents; for ONNX, of its external data files too.

    A key that looks at the ``.onnx`` file alone does not see the weights of a model that keeps
    them outside, and hands out the wrong engine.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", mend="check the path")
    hasher = hashlib.sha256()
    _sha256_into(hasher, path)
    if path.suffix == ".onnx":
        for data in _external_data_files(path):
            hasher.update(data.name.encode())
            _sha256_into(hasher, data)
    return hasher.hexdigest()


def _external_data_files(path: Path) -> list[Path]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError):
        return []  # not an ONNX file: whoever loads it says so better
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        data = (folder / name).resolve()
        if not data.is_relative_to(folder):
            raise ArtifactError(
                f"{path.name} refers to weights outside its own folder: {name}",
                mend="save the model as one file, or keep its data file beside it",
            )
        if not data.is_file():
            raise ArtifactError(
                f"{path.name} needs the weights file {name}, which is not beside it",
                mend="copy the data file into the same folder",
            )
        files.append(data)
    return files


def library_versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions; one that is missing is left out."""
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


# --- writing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it into place on success.

    The temporary name keeps the suffix (libraries look at it). On any exception, an interrupt
    included, the temporary file is removed and ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if not temporary.is_file():
            raise ArtifactError(f"nothing was written for {path}")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide results from colleagues
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def manifest_path(path: Path) -> Path:
    """Where the manifest of ``path`` lies."""
    return path.with_name(path.name + ".json")


def _manifest_of(plan: Plan, path: Path, sha256: str, details: Mapping[str, Any]) -> Manifest:
    return Manifest(
        kind=plan.kind,
        file=path.name,
        sha256=sha256,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool={"name": "resnet-opt", "version": __version__},
        inputs=list(plan.inputs),
        settings=_canonical(plan.settings),
        preprocessing=None if plan.preprocessing is None else _canonical(plan.preprocessing),
        classes=None if plan.classes is None else list(plan.classes),
        libraries=dict(plan.libraries),
        device=None if plan.device is None else _canonical(plan.device),
        key=plan.key,
        details=_canonical(details),
    )


def produce(
    plan: Plan,
    destination: Path,
    write: Callable[[Path], Mapping[str, Any]],
    *,
    cache: Cache | None = None,
) -> Artifact:
    """Make the artifact ``plan`` at ``destination``, or take it from where it is already.

    Args:
        plan: All that decides the outcome.
        destination: Where the artifact goes; its manifest goes beside it.
        write: Writes the file at the path it is given and returns ``details`` for the manifest.
            It is not called when the artifact is at ``destination`` or in ``cache``.
        cache: Where artifacts are kept by key; ``None`` keeps none.

    Raises:
        ArtifactError: ``write`` wrote nothing.
    """
    existing = _existing(plan, destination)
    if existing is not None:
        return existing
    with cache.lock(plan.key) if cache is not None else contextlib.nullcontext():
        if cache is not None and (manifest := cache.fetch(plan.key, destination)):
            return Artifact(destination, manifest, cached=True)
        with write_atomically(destination) as temporary:
            details = write(temporary)
            if not temporary.is_file() or temporary.stat().st_size == 0:
                raise ArtifactError(f"nothing was written for {destination}")
            manifest = _manifest_of(plan, destination, digest(temporary), details)
            manifest_path(destination).unlink(missing_ok=True)
        write_text_atomically(manifest_path(destination), manifest.model_dump_json(indent=2) + "\n")
        if cache is not None:
            cache.store(destination, manifest)
    return Artifact(destination, manifest)


def _existing(plan: Plan, destination: Path) -> Artifact | None:
    if not (destination.is_file() and manifest_path(destination).is_file()):
        return None
    try:
        artifact = load_artifact(destination)
    except ArtifactError:
        return None  # changed or damaged: made again
    if artifact.manifest.key != plan.key:
        return None
    return Artifact(destination, artifact.manifest, cached=True)


# --- reading -----------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the artifact at ``path`` without looking at the artifact itself.

    Raises:
        ArtifactError: No file, no manifest, or a manifest that is damaged or of another schema.
    """
    if not path.is_file():
        raise ArtifactError(f"no such file: {path}", mend="check the path")
    sidecar = manifest_path(path)
    if not sidecar.is_file():
        raise ArtifactError(
            f"{path.name} has no manifest ({sidecar.name}) beside it",
            mend="copy both files, or make the artifact again with resnet-opt",
        )
    try:
        raw = json.loads(sidecar.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{sidecar.name} has schema version {version}, this is version {SCHEMA_VERSION}",
                mend="make the artifact again with this version of resnet-opt",
            )
        return Manifest.model_validate(raw)
    except (ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{sidecar.name} is damaged: {str(error).splitlines()[0]}",
            mend="make the artifact again",
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
            mend="make the artifact again",
        )
    return Artifact(path, manifest)


# --- cache -------------------------------------------------------------------------------------


class Cache:
    """Artifacts by content key: ``<root>/<key>/`` holds the file and its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> Cache:
        """The user's cache: ``$RESNET_OPT_CACHE``, else the platform's folder for caches."""
        import platformdirs

        named = os.environ.get("RESNET_OPT_CACHE")
        return cls(Path(named) if named else Path(platformdirs.user_cache_dir("resnet-opt")))

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the key against other processes: the second waits and then finds the artifact."""
        from filelock import FileLock

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            yield

    def fetch(self, key: str, destination: Path) -> Manifest | None:
        """Copy the artifact ``key`` to ``destination``; ``None`` if it is not here or damaged."""
        entry = self.root / key
        stored = entry / "artifact"
        try:
            raw = (entry / "manifest.json").read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(raw)
        except (OSError, ValidationError):
            return None
        manifest = manifest.model_copy(update={"file": destination.name})
        try:
            with write_atomically(destination) as temporary:
                shutil.copyfile(stored, temporary)
                if digest(temporary) != manifest.sha256:
                    raise ArtifactError("damaged")
                manifest_path(destination).unlink(missing_ok=True)
        except (OSError, ArtifactError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        write_text_atomically(manifest_path(destination), manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def store(self, path: Path, manifest: Manifest) -> None:
        """Keep a copy of the artifact; a full disk here loses the copy, not the artifact."""
        entry = self.root / manifest.key
        if entry.exists():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft.", dir=self.root))
        try:
            shutil.copyfile(path, draft / "artifact")
            text = manifest.model_dump_json(indent=2) + "\n"
            (draft / "manifest.json").write_text(text, encoding="utf-8")
            draft.replace(entry)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)

    def entries(self) -> list[tuple[Manifest, int]]:
        """Every artifact here with its size in bytes."""
        found = []
        for sidecar in sorted(self.root.glob("*/manifest.json")):
            with contextlib.suppress(OSError, ValidationError):
                manifest = Manifest.model_validate_json(sidecar.read_text(encoding="utf-8"))
                found.append((manifest, (sidecar.parent / "artifact").stat().st_size))
        return found

    def clear(self) -> int:
        """Remove everything; returns the bytes freed.

        Raises:
            UsageError: The folder holds something that is no cache of ours.
        """
        if not self.root.exists():
            return 0
        ours = {"locks", "measured"}
        for child in self.root.iterdir():
            known = child.name in ours or child.name.startswith(".draft.")
            if not known and not (child / "manifest.json").is_file():
                raise UsageError(
                    f"{self.root} holds {child.name}, which is not part of the cache",
                    mend="remove it by hand, or set RESNET_OPT_CACHE to another folder",
                )
        size = sum(f.stat().st_size for f in self.root.rglob("*") if f.is_file())
        for child in self.root.iterdir():
            shutil.rmtree(child)
        return size
