"""Image lists: text files with one image and its label per line, like ImageNet's ``val.txt``."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from optimizer.data.dataset import ImageDataset
from optimizer.data.folder import FileSource
from optimizer.data.labels import as_labels
from optimizer.errors import DataError

__all__ = ["LISTS", "LIST_SUFFIXES", "labels_of", "lists_a_subfolder", "open_list", "parse_list"]

LISTS = ("val.txt", "val_map.txt", "val.csv", "val.tsv")
"""Names under which a folder's list is found."""
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
_FORMAT = (
    "each line is IMAGE LABEL, such as ILSVRC2012_val_00000001.JPEG 65, separated by a space, "
    "a tab, a comma or a semicolon"
)
_SUBFOLDER = "val"
"""Where MLPerf keeps the images beside ``val_map.txt``."""
_IMAGE_COLUMNS = frozenset(
    {"image", "images", "filename", "file", "file_name", "path", "image_path"}
)
_LABEL_COLUMNS = frozenset(
    {"label", "labels", "class", "target", "class_id", "label_id", "category"}
)
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def open_list(path: Path, *, skip_bad_images: bool = False, labels_from: int = 0) -> ImageDataset:
    """Open the images of a list.

    A label is the index of a model's output (as in Caffe's and MLPerf's lists for ImageNet) or a
    class name, such as a synset. Image and label are separated by a space, a tab, a comma or a
    semicolon; a first line with column names is understood. Paths are relative to the list's folder,
    to the folder next to it with the same name (``val/`` for ``val.txt``), or to ``val/``. Empty
    lines and comments (``#``) are ignored.

    Args:
        path: The list, UTF-8 or UTF-16, with or without a byte order mark.
        skip_bad_images: Leave out images that cannot be read instead of failing.
        labels_from: Number of the first class.

    Raises:
        DataError: The list is malformed or empty, an image is missing or listed twice, or the
            labels are partly numbers and partly names, or start below ``labels_from``.
    """
    files, words = _parse(path)
    root = _root(path, files)
    present = set(os.listdir(root))  # noqa: PTH208 - cheaper than asking for each of 50,000 files
    missing = [name for name in files if name not in present and not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(files)} listed images are missing; "
            f"the first is {missing[0]}",
            hint=f"put them into {root}, or put the list into their folder",
        )
    labels, classes = labels_of(path, words, labels_from)
    return ImageDataset(
        name=str(path),
        classes=classes,
        labels=labels,
        source=FileSource(root, files),
        positions=np.arange(len(files), dtype=np.int64),
        skip_bad_images=skip_bad_images,
    )


def lists_a_subfolder(path: Path) -> bool:
    """Whether the images of a list are in ``val/`` or the folder of its name, as MLPerf's are."""
    try:
        files, _ = _parse(path)
    except DataError:
        return False
    inside = (path.with_suffix("").name, _SUBFOLDER)
    first = PurePosixPath(files[0])
    return _root(path, files) != path.parent or (len(first.parts) == 2 and first.parts[0] in inside)


def _root(path: Path, files: Sequence[str]) -> Path:
    """The folder that paths are relative to."""
    roots = (path.parent, path.with_suffix(""), path.parent / _SUBFOLDER)
    return next((root for root in roots if (root / files[0]).is_file()), path.parent)


def _parse(path: Path) -> tuple[list[str], list[str]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}", hint=_FORMAT) from error
    return parse_list(path, data, lambda name: (_root(path, [name]) / name).is_file())


def parse_list(
    path: Path, data: bytes, exists: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Names of images and labels as written in a list.

    Args:
        path: The list, for messages.
        data: Its contents.
        exists: Whether there is an image of this name, which tells what separates name and label.

    Raises:
        DataError: The list is malformed or empty, or names an image twice.
    """
    files: list[str] = []
    words: list[str] = []
    seen: set[str] = set()
    lines = _lines(path, data)
    for number, written, label in _rows(lines, exists):
        name = written.strip().replace("\\", "/")
        # Not as a path object: for 50,000 names those take longer than everything else.
        if not name or not label or name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{path}, line {number}: {lines[number]!r}", hint=_FORMAT)
        if name in seen:
            raise DataError(f"{path}, line {number}: {name} is listed twice", hint="remove a line")
        seen.add(name)
        files.append(name)
        words.append(label.strip())
    if not files:
        raise DataError(f"{path} lists no images", hint=_FORMAT)
    return files, words


def _lines(path: Path, data: bytes) -> dict[int, str]:
    """The lines that are not empty or comments, by number."""
    try:
        text = data.decode(_BOMS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}", hint=_FORMAT) from error
    return {
        number: line.strip()
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    }


def _rows(lines: dict[int, str], exists: Callable[[str], bool]) -> Iterator[tuple[int, str, str]]:
    """Number, image and label of each line."""
    if not lines:
        return
    first = next(iter(lines.values()))
    for separator in "\t,;":
        names = [name.strip().lower() for name in first.split(separator)]
        image = next((i for i, name in enumerate(names) if name in _IMAGE_COLUMNS), None)
        label = next((i for i, name in enumerate(names) if name in _LABEL_COLUMNS), None)
        if image is not None and label is not None:
            for number, line in list(lines.items())[1:]:
                cells = next(csv.reader([line], delimiter=separator))
                short = len(cells) <= max(image, label)
                yield (number, "", "") if short else (number, cells[image], cells[label])
            return
    separator = _separator(first, exists)
    for number, line in lines.items():
        name, _, label_text = line.rpartition(separator)
        yield number, name.strip('"'), label_text.strip().strip('"')


def _separator(line: str, exists: Callable[[str], bool]) -> str:
    """What separates image and label: the first candidate that leaves the name of a file."""
    candidates = [separator for separator in "\t,; " if separator in line]
    for separator in candidates:
        name = line.rpartition(separator)[0].strip().strip('"').replace("\\", "/")
        if name and exists(name):
            return separator
    return candidates[0] if len(candidates) == 1 else " "


def labels_of(
    path: Path, words: Sequence[str], labels_from: int
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Labels from words that are all numbers, or all names of classes.

    Args:
        path: Where they are from, for messages.
        words: One for each image.
        labels_from: Number of the first class.

    Raises:
        DataError: They are partly numbers and partly names, or a number is out of range.
    """
    numbers = [word.isdecimal() for word in words]
    if all(numbers):
        digits = [word.lstrip("0") or "0" for word in words]
        too_long = next((word for word in digits if len(word) > 9), None)
        if too_long is not None:  # int() refuses thousands of digits
            raise DataError(f"{path}: label {too_long[:40]} is out of range", hint=_FORMAT)
        labels = [int(word) for word in digits]
        if min(labels) < labels_from:
            raise DataError(
                f"{path} has label {min(labels)}, below --labels-from {labels_from}",
                hint="leave out --labels-from, or give the smallest label of all classes",
            )
        return as_labels(labels, path.name, first=labels_from), None
    if any(numbers):
        raise DataError(
            f"{path} mixes labels that are numbers and labels that are names ({words[0]}, "
            f"{words[numbers.index(not numbers[0])]})",
            hint="use one kind of label for all images",
        )
    classes = sorted(set(words))
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[word] for word in words], dtype=np.int64), tuple(classes)
