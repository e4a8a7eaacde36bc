"""The cache: artifacts by content key, shared by all runs of a user."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optimizer.artifacts.atomic_files import write_atomically, write_text_atomically
from optimizer.artifacts.keys import digest
from optimizer.artifacts.manifest import Manifest, manifest_path
from optimizer.errors import ArtifactError, UsageError

__all__ = ["Cache", "DisabledCache"]


def _check_digest(path: Path, sha256: str) -> None:
    if digest(path) != sha256:
        raise ArtifactError(f"{path.name} is not the file its manifest describes (sha256 differs)")


class Cache:
    """Artifacts by content key: ``<root>/<key>/`` holds the file and its manifest."""

    rebuild_all = False
    """Whether existing artifacts are ignored, including one at the destination."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> Cache:
        """The user's cache: ``$RESNET_OPT_CACHE``, or the platform's cache folder."""
        import platformdirs

        folder = os.environ.get("RESNET_OPT_CACHE") or platformdirs.user_cache_dir("resnet-opt")
        return cls(Path(folder))

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock a key across processes, so that a second one waits and then finds the artifact."""
        from filelock import FileLock

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            yield

    def fetch(self, key: str, destination: Path) -> Manifest | None:
        """Copy the artifact ``key`` to ``destination``; ``None`` if it is missing or damaged."""
        entry = self.root / key
        stored = entry / "artifact"
        try:
            raw = (entry / "manifest.json").read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # damaged; removed so that the rebuilt artifact is stored
            shutil.rmtree(entry, ignore_errors=True)
            return None
        manifest = manifest.model_copy(update={"file": destination.name})
        try:
            _check_digest(stored, manifest.sha256)
        except (OSError, ArtifactError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        try:
            with write_atomically(destination) as temporary:
                shutil.copyfile(stored, temporary)
                manifest_path(destination).unlink(missing_ok=True)
        except OSError:  # the destination is not writable; building there reports the error
            return None
        write_text_atomically(manifest_path(destination), manifest.model_dump_json(indent=2) + "\n")
        return manifest

    def store(self, path: Path, manifest: Manifest) -> None:
        """Store a copy of the artifact; if that fails, e.g. on a full disk, nothing is stored."""
        entry = self.root / manifest.key
        if entry.exists():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".draft.", dir=self.root))
        try:
            shutil.copyfile(path, draft / "artifact")
            text = manifest.model_dump_json(indent=2) + "\n"
            write_text_atomically(draft / "manifest.json", text)
            draft.replace(entry)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)

    def entries(self) -> list[tuple[Manifest, int]]:
        """The manifest of every artifact in the cache, with the artifact's size in bytes."""
        entries = []
        for sidecar in sorted(self.root.glob("*/manifest.json")):
            with contextlib.suppress(OSError, ValueError):
                manifest = Manifest.model_validate_json(sidecar.read_text(encoding="utf-8"))
                entries.append((manifest, (sidecar.parent / "artifact").stat().st_size))
        return entries

    def clear(self) -> int:
        """Delete the contents of the cache; returns the bytes freed.

        Raises:
            UsageError: The folder contains something that is not part of the cache.
        """
        if not self.root.exists():
            return 0
        for child in self.root.iterdir():
            internal = child.name in {
                "locks",
                "measured",
                "digests",
                "predictions",
            } or child.name.startswith(".draft.")
            if not internal and not (child / "manifest.json").is_file():
                raise UsageError(
                    f"{self.root} contains {child.name}, which is not part of the cache",
                    hint="remove it by hand, or set RESNET_OPT_CACHE to another folder",
                )
        size = sum(f.stat().st_size for f in self.root.rglob("*") if f.is_file())
        for child in self.root.iterdir():
            shutil.rmtree(child)
        return size


class DisabledCache(Cache):
    """A disabled cache: everything is rebuilt, including files that exist at their destination."""

    rebuild_all = True

    def __init__(self) -> None:
        super().__init__(Cache.default().root)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:  # noqa: ARG002 - as `Cache.lock`
        """Do nothing."""
        yield

    def fetch(self, key: str, destination: Path) -> None:
        """Return nothing."""

    def store(self, path: Path, manifest: Manifest) -> None:
        """Store nothing."""
