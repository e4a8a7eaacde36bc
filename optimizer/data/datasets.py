"""Opens a dataset by name: bundled digits, a folder, an image list or an NPZ file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.data.archives import TarSource, archives_of, open_archives
from optimizer.data.coco import open_coco
from optimizer.data.dataset import ImageDataset
from optimizer.data.digit_scenes import is_scenes, open_scenes
from optimizer.data.digits import open_digits
from optimizer.data.folder import (
    FileSource,
    has_class_folders,
    is_sorted_by_class,
    open_folder,
    open_unlabelled,
)
from optimizer.data.listing import LIST_SUFFIXES, LISTS, lists_a_subfolder, open_list
from optimizer.data.npz import open_npz
from optimizer.data.subset import stratified_subset
from optimizer.data.yolo import is_yolo, open_yolo
from optimizer.errors import DataError

__all__ = ["DATA_FORMS", "open_dataset"]

DATA_FORMS = (
    "accepted: digits, digits:train, digits:test (bundled), a folder with one subfolder per class, "
    "a folder with val.txt or that file itself, a .csv or .tsv list, file.tar, {000..049}.tar, or "
    "file.npz; for detection "
    "digits-scenes:train or digits-scenes:test (bundled), annotations.json in COCO's format, or a "
    "YOLO folder"
)


def open_dataset(
    name: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    workers: int | None = None,
    labelled: bool = True,
    labels_from: int = 0,
    image_folder: Path | None = None,
) -> ImageDataset:
    """Open a dataset.

    Args:
        name: ``digits``, ``digits:train``, ``digits:test``, a folder in ImageFolder layout, a
            folder of images with a ``val.txt`` (or that file), one or several tar archives (see
            `open_archives`), or an NPZ file. For detection:
            ``digits-scenes:train``, ``digits-scenes:test``, a JSON file in COCO's format, or a
            folder in YOLO's layout.
        limit: Size of a stratified subset; all images if there are fewer.
        seed: Seed of the subset.
        skip_bad_images: Leave out images that cannot be read and list them in ``skipped``, instead
            of failing at the first. Call ``verify()`` first if several readers must get the same
            images.
        workers: Processes that decode image files; 0 decodes in this process. Default: one per
            core. Images in memory need none.
        labelled: Whether labels are required. If not (for calibration, say), any folder of images
            or an NPZ file without labels is accepted, and all labels are 0.
        labels_from: Label of the first class in a list or an NPZ file.
        image_folder: Folder of the images of a COCO file; default: that of the file.

    Raises:
        DataError: There is no such dataset, or it cannot be used.
    """
    if workers is not None and workers < 0:
        raise DataError(f"{workers} worker processes", hint="use 0 or more")
    text = str(name)
    if image_folder is not None and not text.lower().endswith(".json"):
        raise DataError(
            f"a folder of images was given, but {text} is not a COCO file",
            hint="pass --images only with annotations in COCO's format (.json)",
        )
    if is_scenes(text):
        dataset = open_scenes(text)
    elif text.lower().endswith(".json") and Path(text).expanduser().is_file():
        dataset = open_coco(Path(text).expanduser(), image_folder, skip_bad_images=skip_bad_images)
    elif text == "digits" or text.startswith("digits:"):
        dataset = open_digits(text)
        if labels_from:
            raise DataError(
                f"--labels-from {labels_from}: the digits start at 0", hint="leave it out"
            )
    else:
        dataset = _open_path(text, skip_bad_images, labelled, labels_from)
    files = isinstance(dataset.source, (FileSource, TarSource))
    if labels_from and files and dataset.classes is not None:
        raise DataError(
            f"--labels-from {labels_from}: the classes of {text} are names, not numbers",
            hint="leave it out",
        )
    if limit is not None:
        dataset = dataset.select(stratified_subset(dataset.labels, limit, seed))
    return replace(dataset, name=text, workers=workers)


def _open_path(text: str, skip_bad_images: bool, labelled: bool, labels_from: int) -> ImageDataset:
    path = Path(text).expanduser()
    if archives := archives_of(text):
        return open_archives(
            archives, skip_bad_images=skip_bad_images, labelled=labelled, labels_from=labels_from
        )
    if path.is_dir():
        listed = next((path / name for name in LISTS if (path / name).is_file()), None)
        if is_yolo(path):
            return open_yolo(path, skip_bad_images=skip_bad_images)
        if listed is not None and (not has_class_folders(path) or lists_a_subfolder(listed)):
            return open_list(listed, skip_bad_images=skip_bad_images, labels_from=labels_from)
        if not labelled and not is_sorted_by_class(path):
            return open_unlabelled(path, skip_bad_images=skip_bad_images)
        return open_folder(path, skip_bad_images=skip_bad_images)
    if not path.exists():
        raise DataError(f"no data at {text!r}", hint=DATA_FORMS)
    if path.suffix.lower() in LIST_SUFFIXES:
        return open_list(path, skip_bad_images=skip_bad_images, labels_from=labels_from)
    if path.suffix.lower() != ".npz":
        raise DataError(f"{text} is no folder, list, archive or NPZ file", hint=DATA_FORMS)
    return open_npz(path, labelled=labelled, labels_from=labels_from)
