"""Indexes of tar archives: where each member is, so that images are read in any order without unpacking.

An index is made by the standard library's `tarfile` in one pass over the headers, which skips the
contents. It is kept in the cache together with the digests of the members, once they are known, under
the archive's path. It is made again if the archive's size, inode or times have changed; what that can
miss is the same as for image files (`optimizer.data.file_digests`).

The `webdataset` library reads shards as streams, in their order and without an index; its companion for
random access copies or unpacks them. Neither is needed for a table of offsets.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.artifacts import Cache, write_text_atomically
from optimizer.data.tar_members import TarMember
from optimizer.errors import ArtifactError, DataError

__all__ = ["LABEL_SUFFIX", "TarIndex", "open_index"]

_REVISION = 1
_FEW_MEMBERS = 1000
_SETTLED_NS = 2_000_000_000
_BLOCK = 512
LABEL_SUFFIX = ".cls"
"""What webdataset calls the label of an image of the same name."""
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
}
_SHA256 = hashlib.sha256().digest_size
_LONGEST_LABEL = 1024
"""Bytes of a label; longer ones are not labels."""


@dataclass
class TarIndex:
    """The regular files of one archive.

    Attributes:
        path: The archive.
        members: Its files in their order.
        labels: The text of each member that is a label (``.cls``), by its position.
        digests: SHA-256 of the contents of members, by position, as far as they are known.
    """

    path: Path
    members: list[TarMember]
    labels: dict[int, str]
    digests: dict[int, bytes]
    _identity: tuple[int, ...] = ()
    _stored: int = -1

    def digest(self, position: int) -> bytes:
        """The digest of a member; one that cannot be read gets a digest of its error."""
        if position not in self.digests:
            try:
                self.digests[position] = hashlib.sha256(self.members[position].read()).digest()
            except OSError as error:
                return hashlib.sha256(f"unreadable: {error.errno}".encode()).digest()
        return self.digests[position]

    def remember(self) -> None:
        """Keep the index for the next run, with the digests that are known; never an error."""
        settled = time.time_ns() - max(self._identity[2:]) > _SETTLED_NS
        if len(self.members) < _FEW_MEMBERS or self._stored == len(self.digests) or not settled:
            return
        store = _store_of(self.path)
        with contextlib.suppress(OSError, ArtifactError):
            if store is not None and _identity(self.path) == self._identity:
                write_text_atomically(store, json.dumps(self._packed()))
                self._stored = len(self.digests)

    def _packed(self) -> dict[str, Any]:
        return {
            "revision": _REVISION,
            "identity": self._identity,
            "members": [
                [m.name, m.offset, m.size, self.digests.get(i, b"").hex()]
                for i, m in enumerate(self.members)
            ],
            "labels": self.labels,
        }


def open_index(path: Path) -> TarIndex:
    """The index of an archive, from the cache or from its headers.

    Raises:
        DataError: It cannot be read, is compressed or cut off, or has a member that is not a plain
            file at a place of its own: a link, a device, a sparse file, a name that is absolute, leaves
            the archive or occurs twice.
    """
    try:
        identity = _identity(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    remembered = _remembered(path, identity)
    if remembered is not None:
        return remembered
    members = _read_headers(path)
    index = TarIndex(path, members, _read_labels(members), {}, identity)
    index.remember()
    return index


def _read_headers(path: Path) -> list[TarMember]:
    members: list[TarMember] = []
    names: set[str] = set()
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            size = os.fstat(stream.fileno()).st_size
            while (info := archive.next()) is not None:
                # It keeps all it has seen, which would take more memory than the index.
                archive.members.clear()  # type: ignore[attr-defined]
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                _check_member(path, name, info, size)
                if name in names:
                    raise _refused(path, name, "occurs twice")
                names.add(name)
                members.append(TarMember(str(path), name, info.offset_data, info.size))
            # tarfile stops without an error at a header that is damaged or cut off.
            stream.seek(archive.offset)
            ended = stream.read(_BLOCK) == bytes(_BLOCK)
    except tarfile.TarError as error:
        raise _no_archive(path, error) from error
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="copy the archive again") from error
    if not ended:
        raise DataError(
            f"{path} is cut off or damaged after {len(members)} files: nothing marks its end",
            hint="copy or download the archive again",
        )
    return members


def _check_member(path: Path, name: str, info: tarfile.TarInfo, size: int) -> None:
    """Check that a member is a plain file at a place of its own.

    Raises:
        DataError: It is not.
    """
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise _refused(path, name, "has a name that leaves the archive")
    if info.issym() or info.islnk():
        raise _refused(path, name, f"is a link to {info.linkname}")
    if not info.isreg():
        raise _refused(path, name, "is no regular file")
    if info.issparse():
        raise _refused(path, name, "is a sparse file")
    if info.size < 0 or info.offset_data + info.size > size:
        raise _refused(path, name, f"claims {info.size} bytes, more than the archive has")


def _refused(path: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{path}: the member {name!r} {reason}",
        hint="pack the images again as plain files, e.g. tar --dereference -cf images.tar -C FOLDER .",
    )


def _no_archive(path: Path, error: tarfile.TarError) -> DataError:
    with path.open("rb") as stream:
        start = stream.read(6)
    for mark, tool in _COMPRESSED.items():
        if start.startswith(mark):
            return DataError(
                f"{path} is compressed, so its images cannot be read in any order",
                hint=f"{tool} it; images hardly get smaller by it",
            )
    return DataError(f"{path} is no tar archive, or it is cut off: {error}", hint="copy it again")


def _read_labels(members: list[TarMember]) -> dict[int, str]:
    """The text of the members that are labels.

    Raises:
        DataError: One cannot be read, is no text or too long for a label.
    """
    labels = {}
    for position, member in enumerate(members):
        if not member.name.endswith(LABEL_SUFFIX):
            continue
        try:
            text = member.read().decode() if member.size <= _LONGEST_LABEL else ""
        except (OSError, ValueError):
            text = ""
        if not text.strip():
            raise DataError(
                f"{member} is no label: it has {member.size} bytes",
                hint=f"a {LABEL_SUFFIX} file holds the number or the name of a class",
            )
        labels[position] = text.strip()
    return labels


# --- the cache ---------------------------------------------------------------------------------


def _remembered(path: Path, identity: tuple[int, ...]) -> TarIndex | None:
    """The stored index of an archive that has not changed."""
    store = _store_of(path)
    if store is None:
        return None
    try:
        packed = json.loads(store.read_text(encoding="utf-8"))
        if packed["revision"] != _REVISION or tuple(packed["identity"]) != identity:
            return None
        rows = [(str(n), int(o), int(s), bytes.fromhex(d)) for n, o, s, d in packed["members"]]
        labels = {int(position): str(text) for position, text in packed["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    members = [TarMember(str(path), name, offset, size) for name, offset, size, _ in rows]
    digests = {position: row[3] for position, row in enumerate(rows) if len(row[3]) == _SHA256}
    return TarIndex(path, members, labels, digests, identity, len(digests))


def _store_of(path: Path) -> Path | None:
    cache = Cache.default()
    if not cache.keeps:
        return None
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    try:
        return cache.folder("archives") / f"{name}.json"
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, ...]:
    """Size, inode, and times of modification and status change in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
