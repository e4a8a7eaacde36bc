"""Image lists: text files with one image and its label per line, like ImageNet's ``val.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.folder import FileSource
from optimizer.errors import DataError

__all__ = ["LISTS", "open_list"]

LISTS = ("val.txt", "val_map.txt")
_FORMAT = "each line is IMAGE LABEL, such as ILSVRC2012_val_00000001.JPEG 65"


def open_list(path: Path, *, skip_bad_images: bool = False) -> ImageDataset:
    """Open the images of a list.

    A label is the index of a model's output (as in Caffe's and MLPerf's lists for ImageNet) or a
    class name, such as a synset. Paths are relative to the list's folder, or to the folder next to
    it with the same name (``val/`` for ``val.txt``). Empty lines and comments (``#``) are ignored.

    Args:
        path: The list, UTF-8.
        skip_bad_images: Leave out images that cannot be read instead of failing.

    Raises:
        DataError: The list is malformed or empty, an image is missing or listed twice, or the
            labels are partly numbers and partly names.
    """
    files, words = _parse(path)
    root = next(
        (r for r in (path.parent, path.with_suffix("")) if (r / files[0]).is_file()), path.parent
    )
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(files)} listed images are missing; "
            f"the first is {missing[0]}",
            hint=f"put them into {root}, or put the list into their folder",
        )
    labels, classes = _labels(path, words)
    return ImageDataset(
        name=str(path),
        classes=classes,
        labels=labels,
        source=FileSource(root, files, [(root / name).stat().st_size for name in files]),
        positions=np.arange(len(files), dtype=np.int64),
        skip_bad_images=skip_bad_images,
    )


def _parse(path: Path) -> tuple[list[str], list[str]]:
    """Paths and labels as written in the list."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_FORMAT) from error
    files: list[str] = []
    words: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, label = line.strip().rpartition(" ")
        name = name.strip()
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path}, line {number}: {line.strip()!r}", hint=_FORMAT)
        if name in seen:
            raise DataError(f"{path}, line {number}: {name} is listed twice", hint="remove a line")
        seen.add(name)
        files.append(name)
        words.append(label)
    if not files:
        raise DataError(f"{path} lists no images", hint=_FORMAT)
    return files, words


def _labels(path: Path, words: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    numbers = [word.isdecimal() for word in words]
    if all(numbers):
        return np.array([int(word) for word in words], dtype=np.int64), None
    if any(numbers):
        raise DataError(
            f"{path} mixes labels that are numbers and labels that are names ({words[0]}, "
            f"{words[numbers.index(not numbers[0])]})",
            hint="use one kind of label for all images",
        )
    classes = sorted(set(words))
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[word] for word in words], dtype=np.int64), tuple(classes)
