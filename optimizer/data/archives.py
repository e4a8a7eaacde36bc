"""Images in tar archives: class folders, a list, or the pairs of image and label of webdataset's shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.data.dataset import ImageDataset
from optimizer.data.encoded_source import EncodedSource
from optimizer.data.folder import is_image, note_left_out
from optimizer.data.listing import LIST_SUFFIXES, LISTS, labels_of, parse_list
from optimizer.data.tar_index import LABEL_SUFFIX, TarIndex, open_index
from optimizer.data.tar_members import TarMember
from optimizer.errors import DataError

__all__ = ["TarSource", "archives_of", "open_archives"]

ARCHIVE_SUFFIX = ".tar"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 100_000
_LAYOUTS = (
    "a .tar holds class folders (CLASS/IMAGE.jpg), or images with a list of labels in it or beside it "
    "(val.txt), or webdataset's pairs (KEY.jpg, KEY.cls)"
)


class _Place(NamedTuple):
    """An image: which archive, and which of its members."""

    archive: int
    member: int


class TarSource(EncodedSource):
    """Images in archives."""

    def __init__(self, archives: Sequence[TarIndex], places: Sequence[_Place]) -> None:
        self._archives = archives
        self._places = places

    def file(self, position: int) -> TarMember:
        """See `Source.file`."""
        place = self._places[position]
        return self._archives[place.archive].members[place.member]

    def image_id(self, position: int) -> str:
        """See `Source.image_id`: the member's name, of several archives with the archive's."""
        name = self.file(position).name
        if len(self._archives) == 1:
            return name
        return f"{self._archives[self._places[position].archive].path.name}/{name}"

    def fingerprint(self, position: int) -> Iterable[bytes]:
        """See `Source.fingerprint`: the name and a digest of the member, computed once."""
        return (self.image_id(position).encode("utf-8", "surrogateescape"), b"\0",
                *self.content(position))  # fmt: skip

    def content(self, position: int) -> Iterable[bytes]:
        """See `Source.content`: a digest of the member, computed once."""
        place = self._places[position]
        return (self._archives[place.archive].digest(place.member),)

    def remember(self) -> None:
        """See `Source.remember`: remembers the digests for the next run."""
        for archive in self._archives:
            archive.remember()

    def size(self, position: int) -> int:
        """See `Source.size`."""
        return self.file(position).size


def archives_of(text: str) -> list[Path]:
    """The archives that a name stands for; empty if it names something else.

    A name is one archive, several with a range in braces (``train-{000..049}.tar``), or a folder that
    holds nothing but archives.

    Raises:
        DataError: An archive of the range is missing, or the range is unreasonable.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        only = bool(entries) and all(p.suffix.lower() == ARCHIVE_SUFFIX for p in entries)
        return entries if only else []
    if path.suffix.lower() != ARCHIVE_SUFFIX:
        return []
    match = _BRACES.search(str(path))
    if match is None or path.exists():
        return [path]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_SHARDS:
        raise DataError(f"no range of archives: {match[0]}", hint="write it as {000..049}")
    before, after = str(path)[: match.start()], str(path)[match.end() :]
    paths = [Path(f"{before}{n:0{len(match[1])}}{after}") for n in range(first, last + 1)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(paths)} archives of {text} are missing; the first is {missing[0]}",
            hint="check the range in braces",
        )
    return paths


def open_archives(
    paths: Sequence[Path],
    *,
    skip_bad_images: bool = False,
    labelled: bool = True,
    labels_from: int = 0,
) -> ImageDataset:
    """Open the images of archives, which stay as they are.

    Labels are looked for in this order: webdataset's pairs; a list (``val.txt``) in the archive or beside
    it; class folders, within a folder that holds everything if there is one.

    Args:
        paths: The archives, in the order of their images.
        skip_bad_images: Leave out images that cannot be read instead of failing.
        labelled: Whether labels are required; if not, they are 0 where there are none.
        labels_from: Number of the first class in a list or in webdataset's labels.

    Raises:
        DataError: See `open_index`; or there are no images, or labels are missing or malformed.
    """
    archives = [open_index(path) for path in paths]
    places: list[_Place] = []
    others: list[str] = []
    for number, archive in enumerate(archives):
        for position, member in enumerate(archive.members):
            if is_image(member.name):
                places.append(_Place(number, position))
            elif not (position in archive.labels or _accompanies(member.name)):
                others.append(member.name)
    if not places:
        raise DataError(f"{_named(paths)} holds no images", hint=_LAYOUTS)
    places, labels, classes = _labelled(archives, places, labelled, labels_from)
    return ImageDataset(
        name=_named(paths),
        classes=classes,
        labels=labels,
        source=TarSource(archives, places),
        positions=np.arange(len(places), dtype=np.int64),
        skip_bad_images=skip_bad_images,
        notes=note_left_out(_named(paths), others),
    )


_Labelled = tuple[list[_Place], NDArray[np.int64], tuple[str, ...] | None]


def _labelled(
    archives: Sequence[TarIndex], places: list[_Place], labelled: bool, labels_from: int
) -> _Labelled:
    """Images with their labels, and the names of the classes."""
    if any(archive.labels for archive in archives):
        words = _words_of_pairs(archives, places)
        labels, classes = labels_of(archives[0].path, words, labels_from)
        return places, labels, classes
    names = [archives[place.archive].members[place.member].name for place in places]
    listed = _list_of(archives)
    if listed is not None:
        return _from_list(listed, places, names, labels_from)
    inner = _without_common_folder(names)
    folders = [name.partition("/")[0] if "/" in name else "" for name in inner]
    classes = tuple(sorted(set(folders)))
    if "" not in classes and len(classes) > 1:
        index = {name: label for label, name in enumerate(classes)}
        order = sorted(range(len(places)), key=lambda i: inner[i])  # as the folders unpacked
        chosen = np.array([index[folders[i]] for i in order], np.int64)
        return [places[i] for i in order], chosen, classes
    if not labelled:
        return places, np.zeros(len(places), np.int64), None
    raise DataError(f"the images of {archives[0].path} have no labels", hint=_LAYOUTS)


def _words_of_pairs(archives: Sequence[TarIndex], places: Sequence[_Place]) -> list[str]:
    keys = [
        {archive.members[position].name.removesuffix(LABEL_SUFFIX): text
         for position, text in archive.labels.items()}
        for archive in archives
    ]  # fmt: skip
    words = []
    for place in places:
        member = archives[place.archive].members[place.member]
        folder, _, name = member.name.rpartition("/")
        key = (f"{folder}/" if folder else "") + name.partition(".")[0]
        if not (word := keys[place.archive].get(key)):
            raise DataError(
                f"{member} has no label", hint=f"add {key}{LABEL_SUFFIX}, or leave the image out"
            )
        words.append(word)
    return words


def _list_of(archives: Sequence[TarIndex]) -> tuple[str, bytes] | None:
    """Name and contents of the list of labels in an archive, or beside it."""
    for archive in archives:
        for member in archive.members:
            if member.name.rpartition("/")[2] in LISTS:
                return str(member), member.read()
    path = archives[0].path
    names = [f"{path.stem}{suffix}" for suffix in LIST_SUFFIXES]
    names += [f"{path.stem}_map.txt", *LISTS]
    found = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    return None if found is None else (str(found), found.read_bytes())


def _from_list(
    listed: tuple[str, bytes], places: Sequence[_Place], names: Sequence[str], labels_from: int
) -> _Labelled:
    where, content = listed
    inner = dict(zip(_without_common_folder(names), places, strict=True))
    inner |= dict(zip(names, places, strict=True))
    files, words = parse_list(Path(where), content, inner.__contains__)
    if missing := [file for file in files if file not in inner]:
        raise DataError(
            f"{where}: {len(missing)} of {len(files)} listed images are missing in the archive; "
            f"the first is {missing[0]}",
            hint="names in the list are those in the archive, with or without a common folder",
        )
    labels, classes = labels_of(Path(where), words, labels_from)
    return [inner[file] for file in files], labels, classes


def _without_common_folder(names: Sequence[str]) -> list[str]:
    """The names without the folder that holds everything, such as ``val/``."""
    first = names[0].partition("/")[0] + "/"
    deep = all(name.startswith(first) for name in names)
    return [name.removeprefix(first) for name in names] if deep else list(names)


def _accompanies(name: str) -> bool:
    """Whether a member belongs to the layout: a list, or the metadata of webdataset's samples."""
    return name.rpartition("/")[2] in LISTS or name.endswith(".json")


def _named(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more archives"
