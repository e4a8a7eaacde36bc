"""Image folders in torchvision's ImageFolder layout: one folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.encoded_source import EncodedSource
from optimizer.data.file_digests import FileDigests
from optimizer.data.images import IMAGE_SUFFIXES
from optimizer.errors import DataError

__all__ = [
    "FileSource",
    "has_class_folders",
    "images_below",
    "is_image",
    "is_sorted_by_class",
    "note_left_out",
    "open_folder",
    "open_unlabelled",
]

_log = logging.getLogger(__name__)
_LAYOUT = "use the layout FOLDER/<class>/<image>.jpg, one folder per class"


class FileSource(EncodedSource):
    """Image files."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self._root = root
        self._files = files
        self._digests: dict[int, bytes] = {}
        self._remembered = FileDigests(root, len(files))

    def file(self, position: int) -> Path:
        """See `Source.file`."""
        return self._root / self._files[position]

    def image_id(self, position: int) -> str:
        """See `Source.image_id`: the path relative to the dataset's folder."""
        return self._files[position]

    def fingerprint(self, position: int) -> Iterable[bytes]:
        """See `Source.fingerprint`: the path and a digest of the file, computed once."""
        return (self._files[position].encode(), b"\0", *self.content(position))

    def content(self, position: int) -> Iterable[bytes]:
        """See `Source.content`: a digest of the file, computed once."""
        if position not in self._digests:
            self._digests[position] = self._remembered.of(self._files[position])
        return (self._digests[position],)

    def remember(self) -> None:
        """See `Source.remember`: remembers the digests for the next run."""
        self._remembered.remember()

    def size(self, position: int) -> int:
        """See `Source.size`; 0 if the file is gone, which decoding reports."""
        try:
            return self.file(position).stat().st_size
        except OSError:
            return 0


def open_folder(root: Path, *, skip_bad_images: bool = False) -> ImageDataset:
    """Open an image folder.

    Classes are the sorted folder names. Images are the files below them with one of
    `IMAGE_SUFFIXES`, in torchvision's order. Files and folders whose names start with a dot
    (``.ipynb_checkpoints``, ``._image.jpg``) are left out, and so are files of other kinds; the
    dataset's ``notes`` say how many.

    Args:
        root: The folder that contains the class folders.
        skip_bad_images: Leave out images that cannot be read instead of failing.

    Raises:
        DataError: There are no class folders, only one, or one without images.
    """
    classes, loose = _classes_of(root)
    if not classes:
        contents = "images but no class folders" if loose else "no class folders"
        raise DataError(f"{root} has {contents}", hint=_LAYOUT)
    files: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    others: list[str] = []
    for label, name in enumerate(classes):
        images, left_out = _images_below(root / name)
        others += [f"{name}/{other}" for other in left_out]
        if not images:
            empty.append(name)
        files += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    if not files:
        raise _no_images(root, others)
    if len(classes) == 1:
        raise DataError(f"{root} has only one class, {classes[0]}", hint=_LAYOUT)
    if empty:
        raise DataError(
            f"{root}: {len(empty)} of {len(classes)} class folders contain no images; "
            f"the first is {empty[0]}",
            hint="add images to it, or remove the folder",
        )
    return ImageDataset(
        name=str(root),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.int64),
        source=FileSource(root, files),
        positions=np.arange(len(files), dtype=np.int64),
        skip_bad_images=skip_bad_images,
        notes=note_left_out(root, others),
    )


def open_unlabelled(root: Path, *, skip_bad_images: bool = False) -> ImageDataset:
    """Open all images below a folder, regardless of its layout; every label is 0.

    Files and folders whose names start with a dot are left out, as in `open_folder`.

    Args:
        root: The folder.
        skip_bad_images: Leave out images that cannot be read instead of failing.

    Raises:
        DataError: There are no images.
    """
    images, others = _images_below(root)
    if not images:
        raise _no_images(root, others)
    return ImageDataset(
        name=str(root),
        classes=None,
        labels=np.zeros(len(images), dtype=np.int64),
        source=FileSource(root, images),
        positions=np.arange(len(images), dtype=np.int64),
        skip_bad_images=skip_bad_images,
        notes=note_left_out(root, others),
    )


def has_class_folders(root: Path) -> bool:
    """Whether a folder contains class folders."""
    return bool(_classes_of(root)[0])


def is_sorted_by_class(root: Path) -> bool:
    """Whether every image is in one of at least two class folders, none of which is empty."""
    classes, loose = _classes_of(root)
    return len(classes) > 1 and not loose and all(_images_below(root / name)[0] for name in classes)


def _classes_of(root: Path) -> tuple[list[str], bool]:
    """The sorted names of the class folders, and whether there are images beside them.

    The folder may hold all 50,000 images of ImageNet's validation set: the kind of an entry comes with
    its name, and a `Path` for each would take longer than everything else.
    """
    classes, loose = [], False
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    classes.append(entry.name)
            elif not loose:
                loose = is_image(entry.name)
    return sorted(classes), loose


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """The images below a folder, in order, and the files that are left out, relative to it."""
    images: list[str] = []
    others: list[str] = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        hidden = _is_hidden(prefix)
        for name in sorted(names):
            (images if not hidden and is_image(name) else others).append(prefix + name)
    return images, others


def images_below(folder: Path) -> list[str]:
    """All image files below a folder, relative to it, in torchvision's order."""
    return _images_below(folder)[0]


def note_left_out(root: Path | str, left_out: Sequence[str]) -> tuple[str, ...]:
    """What was left out, also logged as a warning so that every command says it."""
    if not left_out:
        return ()
    parts = []
    hidden = [name for name in left_out if _is_hidden(name)]
    if hidden:
        parts.append(f"{len(hidden)} whose names start with a dot ({hidden[0]})")
    kinds = {_kind(name) for name in left_out if not _is_hidden(name)}
    if kinds:
        named = ", ".join(sorted(kinds)[:5])
        parts.append(f"{len(left_out) - len(hidden)} that are not read as images ({named})")
    note = f"files of {root} that are left out: {' and '.join(parts)}"
    _log.warning(note)
    return (note,)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _kind(name: str) -> str:
    pure = PurePosixPath(name)
    return pure.suffix.lower() or pure.name


def _no_images(root: Path, others: Sequence[str]) -> DataError:
    paths = [PurePosixPath(name) for name in others]
    kinds = sorted({path.suffix.lower() for path in paths if not path.name.startswith(".")})
    found = f"; it has {', '.join(kinds[:5])}" if kinds else ""
    return DataError(
        f"{root} contains no images{found}", hint=f"images are {', '.join(IMAGE_SUFFIXES)}"
    )


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image; its name may have folders."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)
