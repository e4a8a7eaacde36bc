"""The cache: artifacts by content key, shared by all runs of a user.

``<root>/<key>/`` holds an artifact and its manifest, and the folders in `_FOLDERS` hold locks and what
else is worth keeping. ``CACHEDIR.TAG`` marks the root as a cache of this package; backup programs know
that file too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifacts.atomic_files import write_pair_atomically, write_text_atomically
from optimizer.artifacts.keys import digest
from optimizer.artifacts.leftovers import leftovers, remove, temporary_name
from optimizer.artifacts.locking import LOCK_SECONDS, locked
from optimizer.artifacts.manifest import Manifest, manifest_path
from optimizer.errors import ArtifactError, UsageError

__all__ = ["Cache", "CacheContents", "DisabledCache", "UnavailableCache"]

_log = logging.getLogger(__name__)
_TAG = "CACHEDIR.TAG"
_TAG_TEXT = """\
Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of resnet-opt; `resnet-opt clean` empties it. See https://bford.info/cachedir/
"""
_KEY = re.compile(r"[0-9a-f]{64}")
_FOLDERS = {
    "locks": re.compile(r"[0-9a-f]{64}\.lock"),
    "measured": re.compile(r"[0-9a-f]{64}\.json"),
    "digests": re.compile(r"[0-9a-f]{64}\.json"),
    "archives": re.compile(r"[0-9a-f]{64}\.json"),
    "calibrations": re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}\.safetensors"),
    "predictions": re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}\.safetensors"),
    "searches": re.compile(r"[0-9a-f]{64}\.[0-9a-f]{64}\.safetensors"),
}
_ENTRY = {"artifact", "manifest.json"}


@dataclass(frozen=True)
class CacheContents:
    """What is in a cache's folder.

    Attributes:
        artifacts: The manifest of each artifact with its size in bytes.
        files: All files that the cache made.
        foreign: Everything else, which `Cache.clear` leaves.
    """

    artifacts: list[tuple[Manifest, int]]
    files: list[Path]
    foreign: list[Path]


def _check_digest(path: Path, sha256: str) -> None:
    if digest(path) != sha256:
        raise ArtifactError(f"{path.name} is not the file its manifest describes (sha256 differs)")


class Cache:
    """Artifacts by content key: ``<root>/<key>/`` holds the file and its manifest."""

    rebuild_all = False
    """Whether existing artifacts are ignored, including one at the destination."""
    keeps = True
    """Whether files in `root` outlive this process."""

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.root = root
        self.lock_seconds = lock_seconds

    @classmethod
    def default(cls, *, lock_seconds: float = LOCK_SECONDS) -> Cache:
        """The user's cache: ``$RESNET_OPT_CACHE``, or the platform's cache folder.

        Where that folder cannot be written, as in many containers, the work goes on without a cache
        and one line of the log says so.

        Args:
            lock_seconds: How long to wait for another process that makes the same artifact.
        """
        root = _user_folder()
        problem = _problem_with(root)
        if problem is None:
            return cls(root, lock_seconds=lock_seconds)
        _warn_once(root, problem)
        return UnavailableCache(root)

    def folder(self, name: str) -> Path:
        """A folder of the cache, made and marked as this package's if it is new."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (self.root / _TAG).exists():
            write_text_atomically(self.root / _TAG, _TAG_TEXT)
        return folder

    def lasting_folder(self, name: str) -> Path | None:
        """As `folder`; ``None`` if nothing is kept between runs, or it cannot be written."""
        if not self.keeps:
            return None
        try:
            return self.folder(name)
        except OSError:
            return None

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Lock a key across processes, so that a second one waits and then finds the artifact.

        Without a lock (a full disk, another user's lock file, a file system without locks) both
        build it, which costs time and nothing else.

        Raises:
            EnvironmentFault: Another process holds the lock for longer than ``lock_seconds``.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.folder("locks") / f"{key}.lock", self.lock_seconds))
            except (OSError, NotImplementedError) as error:
                _log.debug("no lock for %.12s: %s", key, error)
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
            with write_pair_atomically(destination, manifest_path(destination)) as files:
                shutil.copyfile(stored, files[0])
                files[1].write_text(manifest.as_text(), encoding="utf-8")
        except OSError:  # the destination is not writable; building there reports the error
            return None
        return manifest

    def store(self, path: Path, manifest: Manifest) -> None:
        """Store a copy of the artifact; if that fails, e.g. on a full disk, nothing is stored."""
        entry = self.root / manifest.key
        if entry.exists():
            return
        try:
            draft = self.folder(temporary_name(Path("draft")))
        except OSError as error:
            _log.debug("%s is not cached: %s", path.name, error)
            return
        try:
            shutil.copyfile(path, draft / "artifact")
            (draft / "manifest.json").write_text(manifest.as_text(), encoding="utf-8")
            draft.replace(entry)
        except OSError:
            pass
        finally:
            remove(draft)

    def entries(self) -> list[tuple[Manifest, int]]:
        """The manifest of every artifact in the cache, with the artifact's size in bytes."""
        return self.contents().artifacts

    def contents(self) -> CacheContents:
        """What is in the cache's folder, and what there is not the cache's."""
        contents = CacheContents([], [], [])
        if self.root.is_dir():
            abandoned = set(leftovers([self.root, *(self.root / name for name in _FOLDERS)]))
            for child in sorted(self.root.iterdir()):
                if child in abandoned:
                    contents.files.append(child)
                elif child.is_dir() and not child.is_symlink():
                    _sort_in(child, abandoned, contents)
                elif child.name != _TAG:
                    contents.foreign.append(child)
        return contents

    def check_marked(self) -> None:
        """Check that the folder is a cache of this package, empty, or absent.

        Raises:
            UsageError: It is not.
        """
        contents = self.contents()
        tag = self.root / _TAG
        if tag.is_file() and "resnet-opt" in tag.read_text(encoding="utf-8", errors="replace"):
            return
        others = [*contents.foreign, *contents.files]
        # A run that was killed before it wrote the tag may have left a temporary file.
        abandoned = set(leftovers([self.root]))
        if named := next((path.name for path in others if path not in abandoned), None):
            raise UsageError(
                f"{self.root} is not a cache of resnet-opt: it has no {_TAG}, but {named}",
                hint="set RESNET_OPT_CACHE to the cache, or remove the folder by hand",
            )

    def clear(self) -> int:
        """Delete what the cache made; returns the bytes freed.

        Raises:
            UsageError: The folder is not marked as a cache of this package.
        """
        self.check_marked()
        contents = self.contents()
        freed = 0
        for path in contents.files:
            with contextlib.suppress(OSError):
                freed += path.lstat().st_size
            remove(path)
        folders = {path.parent for path in contents.files} - {self.root}
        folders |= {self.root / name for name in _FOLDERS}
        for folder in folders:
            with contextlib.suppress(OSError):  # something was added meanwhile
                folder.rmdir()
        return freed


def _sort_in(folder: Path, abandoned: set[Path], contents: CacheContents) -> None:
    """Add the files of one folder in the cache's root to ``contents``."""
    children = sorted(folder.iterdir())
    plain = all(child.is_file() and not child.is_symlink() for child in children)
    if (pattern := _FOLDERS.get(folder.name)) is not None and plain:
        for child in children:
            made_here = pattern.fullmatch(child.name) or child in abandoned
            (contents.files if made_here else contents.foreign).append(child)
        return
    if not (_KEY.fullmatch(folder.name) and plain and {c.name for c in children} <= _ENTRY):
        contents.foreign.append(folder)
        return
    try:
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        manifest = Manifest.model_validate_json(text)
        size = (folder / "artifact").stat().st_size
    except (OSError, ValueError):
        contents.files.extend(children)  # damaged; the name is a key
        return
    if manifest.key != folder.name:
        contents.foreign.append(folder)
        return
    contents.artifacts.append((manifest, size))
    contents.files.extend(children)


class DisabledCache(Cache):
    """A disabled cache: everything is rebuilt, including files that exist at their destination."""

    rebuild_all = True
    keeps = False

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root or _user_folder())

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:  # noqa: ARG002 - as `Cache.lock`
        """Do nothing."""
        yield

    def fetch(self, key: str, destination: Path) -> None:
        """Return nothing."""

    def store(self, path: Path, manifest: Manifest) -> None:
        """Store nothing."""


class UnavailableCache(DisabledCache):
    """A cache whose folder cannot be written: nothing is stored, existing outputs are still reused."""

    rebuild_all = False


def _user_folder() -> Path:
    import platformdirs

    if named := os.environ.get("RESNET_OPT_CACHE"):
        return Path(named)
    try:
        return Path(platformdirs.user_cache_dir("resnet-opt"))
    except RuntimeError:  # since platformdirs 4.5; earlier releases return the unexpanded path
        return Path("~", ".cache", "resnet-opt")


def _problem_with(folder: Path) -> str | None:
    """Why files cannot be kept in a folder; ``None`` if they can."""
    if folder.parts[:1] == ("~",):  # neither HOME nor an entry for this user
        return "this user has no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


@functools.cache
def _warn_once(folder: Path, problem: str) -> None:
    _log.warning(
        "working without a cache, because %s cannot be written (%s); set RESNET_OPT_CACHE to a "
        "folder that can, or use --no-cache",
        folder,
        problem,
    )
