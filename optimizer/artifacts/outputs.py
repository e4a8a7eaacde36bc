"""Checks of the files that a verb will write, made before the work starts.

No verb replaces a file that it reads, nor one that this package did not write as the same kind of
file. What a file is, its manifest or its mark (`optimizer.artifacts.marks`) tells; both contain a
digest, so an edited file counts as the work of whoever edited it.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifacts.external_data import external_data_files
from optimizer.artifacts.keys import digest
from optimizer.artifacts.manifest import Manifest, find_manifest, manifest_path
from optimizer.artifacts.marks import mark_of
from optimizer.artifacts.recovering import clean_up_after_crashes
from optimizer.errors import ArtifactError, EnvironmentFault, ResnetOptError, UsageError

__all__ = ["OutputFile", "check_outputs", "check_space"]

_NODES = {
    stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


@dataclass(frozen=True)
class OutputFile:
    """A file that a verb will write.

    Attributes:
        path: Where.
        kind: The kind in its manifest or mark; an existing file is replaced only by its own kind.
        has_manifest: Whether a manifest is written beside it.
        option: The option that names it, for hints.
        updated: For a file that is added to instead of replaced: whether an existing one is of its
            kind.
    """

    path: Path
    kind: str
    has_manifest: bool = True
    option: str = "-o"
    updated: Callable[[Path], bool] | None = None

    @property
    def paths(self) -> list[Path]:
        """The file, and its manifest if it has one."""
        return [self.path, manifest_path(self.path)] if self.has_manifest else [self.path]


def check_outputs(
    files: Sequence[OutputFile], inputs: Iterable[Path | str | None] = (), *, force: bool = False
) -> None:
    """Check that files can be written, and that nothing is lost by it.

    What killed processes left in the folders of ``files`` is completed or removed first.

    Args:
        files: Everything that will be written, side files included.
        inputs: Everything that is read; names that are not files (``digits:train``) are ignored.
        force: Also replace files that this package did not write, or that were edited since.

    Raises:
        UsageError: A file is a folder, a device or the like, is read, is written twice, or would
            replace one that is not this package's.
        EnvironmentFault: A file cannot be written.
    """
    if any(file.path == Path("-") for file in files):
        raise UsageError(
            "only validate, bench and profile write to standard output (-o -)", hint="-o FILE"
        )
    for file in files:
        _check_is_file(file)
    clean_up_after_crashes({file.path.parent for file in files})
    _check_not_read(files, inputs)
    _check_distinct(files)
    for file in files:
        if file.updated is not None:
            _check_updatable(file, file.updated)
        elif not force:
            _check_replaceable(file)
    folders: dict[Path, OutputFile] = {}
    for file in files:
        folders.setdefault(next(p for p in file.path.absolute().parents if p.exists()), file)
    for folder, file in folders.items():
        _check_writable(folder, file)


def check_space(folder: Path, size: int) -> None:
    """Check that a file of ``size`` bytes fits, after a library failed to write one.

    Some libraries do not say why they could not write.

    Raises:
        EnvironmentFault: It does not fit.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, size))
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise EnvironmentFault(
                f"no space for {size / 1e6:.1f} MB in {folder}: {error.strerror}",
                hint="choose another folder, or free disk space",
            ) from error


def _check_is_file(file: OutputFile) -> None:
    for path in file.paths:
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            wrong_name = error.errno in {errno.ENAMETOOLONG, errno.ELOOP}
            raise (UsageError if wrong_name else EnvironmentFault)(
                f"{path} cannot be written: {error.strerror or error}",
                hint=f"{file.option} with another name",
            ) from error
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path} is a folder", hint=f"{file.option} FILE")
        if not stat.S_ISREG(mode):
            name = _NODES.get(stat.S_IFMT(mode), "no regular file")
            stdout = "; results as JSON go to standard output with -o -"
            raise UsageError(
                f"{path} is {name}, which would be replaced",
                hint=f"{file.option} with a new name{stdout if file.option == '-o' else ''}",
            )


def _check_not_read(files: Sequence[OutputFile], inputs: Iterable[Path | str | None]) -> None:
    read = [file for name in inputs if name for file in _read_with(Path(name))]
    for file in files:
        for path in filter(Path.exists, file.paths):
            if overwritten := next((other for other in read if path.samefile(other)), None):
                raise UsageError(
                    f"the output would overwrite the input {overwritten.name}",
                    hint=f"{file.option} with another name",
                )


def _check_distinct(files: Sequence[OutputFile]) -> None:
    seen: set[str] = set()
    for file in files:
        for path in file.paths:
            absolute = os.path.abspath(path)  # noqa: PTH100
            if absolute in seen:
                raise UsageError(
                    f"{path} would be written twice", hint=f"{file.option} with another name"
                )
            seen.add(absolute)


def _read_with(path: Path) -> list[Path]:
    """An input and the files that belong to it: manifest and external data."""
    try:
        if not path.is_file():
            return []
        manifest = find_manifest(path)
        beside = [] if manifest is None else [manifest]
        return [path, *beside, *external_data_files(path)]
    except (OSError, ResnetOptError):  # whoever opens it reports the error
        return [path] if path.exists() else []


def _check_updatable(file: OutputFile, is_own: Callable[[Path], bool]) -> None:
    """Refuse to add to a file that is something else; no ``--force`` helps there."""
    _check_readable(file)
    if file.path.is_file() and file.path.stat().st_size and not is_own(file.path):
        raise UsageError(
            f"{file.path} exists and is no {file.kind} of resnet-opt",
            hint=f"{file.option} with a new name",
        )


def _check_readable(file: OutputFile) -> None:
    for path in file.paths:
        if path.is_file() and not os.access(path, os.R_OK):
            raise EnvironmentFault(
                f"{path} exists and cannot be read, so it is not replaced",
                hint=f"{file.option} with another name",
            )


def _check_replaceable(file: OutputFile) -> None:
    _check_readable(file)
    found = _written_kind(file)
    if found == file.kind:
        return
    hint = f"{file.option} with another name, or --force to replace it"
    if found is not None:
        raise UsageError(
            f"{file.path} exists and is a file of kind {found}, not {file.kind}", hint=hint
        )
    if file.kind == "encodings" and _manifest_at(manifest_path(file.path)) is not None:
        hint = f"--encodings {file.path} uses the edited file; --force replaces it"
    if not file.path.exists():
        problem = f"{manifest_path(file.path)} exists and is no manifest"
    elif _manifest_at(manifest_path(file.path)) is not None:
        problem = f"{file.path} was edited since it was written"
    else:
        problem = f"{file.path} exists and was not written by resnet-opt, or was edited since"
    raise UsageError(problem, hint=hint)


def _written_kind(file: OutputFile) -> str | None:
    """The kind of an unedited file of this package; the file's own kind if nothing exists."""
    sidecar = manifest_path(file.path)
    manifest = _manifest_at(sidecar)
    if file.has_manifest and sidecar.exists() and manifest is None:
        return None
    if not file.path.exists():
        return file.kind
    if manifest is not None and _fits(file.path, manifest):
        return manifest.kind
    return mark_of(file.path)


def _manifest_at(sidecar: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _fits(path: Path, manifest: Manifest) -> bool:
    try:
        return digest(path) == manifest.sha256
    except ArtifactError:
        return False


def _check_writable(folder: Path, file: OutputFile) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EnvironmentFault(
            f"{file.path} cannot be written: {error.strerror or error}",
            hint=f"{file.option} with a file in another folder",
        ) from error
