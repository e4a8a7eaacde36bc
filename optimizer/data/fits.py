"""Whether a dataset's labels mean what the model's outputs mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.imagenet import IMAGENET_SYNSETS
from optimizer.errors import DataError

__all__ = ["check_fits"]

_SYNSET = re.compile(r"n\d{8}")


def check_fits(
    dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
) -> ImageDataset:
    """Give the dataset with labels that are indices of the model's outputs, or refuse it.

    - No names on one of the sides: every label must be below ``num_classes``, and named classes
      must be as many as the model's outputs, since nothing else says which is which.
    - Equal names in equal order fit.
    - As many synset folders (``n01440764`` …) as the model has outputs fit outputs named by words:
      sorted synsets are in the order of the outputs.
    - Fewer of ImageNet's synsets are mapped to 1,000 outputs named by words or not at all.
    - Fewer classes whose names are all among the model's are mapped by name.

    Args:
        dataset: The dataset.
        num_classes: Outputs of the model.
        classes: Names of the outputs in order, or ``None``.

    Raises:
        DataError: None of the above.
    """
    names = dataset.classes
    if names is not None and len(names) > num_classes:
        raise DataError(
            f"{dataset.name} has {len(names)} classes, the model has {num_classes}",
            hint="use the data that the model was trained for",
        )
    highest = int(dataset.labels.max(initial=0))
    if highest >= num_classes:
        raise DataError(
            f"{dataset.name} has label {highest}, the model's {num_classes} classes end at "
            f"{num_classes - 1}",
            hint="use the data that the model was trained for",
        )
    if names is None or (classes is not None and tuple(classes) == names):
        return dataset
    synsets = _are_synsets(names) and (classes is None or not _are_synsets(classes))
    if synsets and len(names) < num_classes == len(IMAGENET_SYNSETS):
        return _fits_by_name(dataset, names, IMAGENET_SYNSETS, classes)
    if classes is None or synsets:
        return _fits_by_count(dataset, names, num_classes)
    return _fits_by_name(dataset, names, classes, classes)


def _are_synsets(names: Sequence[str]) -> bool:
    return all(_SYNSET.fullmatch(name) for name in names)


def _fits_by_count(dataset: ImageDataset, names: Sequence[str], num_classes: int) -> ImageDataset:
    if len(names) == num_classes:
        return dataset
    raise DataError(
        f"{dataset.name} has {len(names)} of the model's {num_classes} classes and their names "
        f"({names[0]}, …) do not say which",
        hint="keep all class folders, or use an NPZ file with the model's labels",
    )


def _fits_by_name(
    dataset: ImageDataset,
    names: Sequence[str],
    known: Sequence[str],
    classes: Sequence[str] | None,
) -> ImageDataset:
    """Map labels by the names that are ``known`` in the order of the outputs."""
    index = {name: position for position, name in enumerate(known)}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise DataError(
            f"{dataset.name} has the class {unknown[0]!r}, which the model does not know "
            f"(it knows {_some(known)})",
            hint="name the class folders as the model's classes",
        )
    twice = [name for name in names if known.count(name) > 1]
    if twice:
        raise DataError(f"the model has two classes named {twice[0]!r}: which one is meant?")
    if len(names) == len(known):
        raise DataError(
            f"{dataset.name} has the model's classes in another order: "
            f"{_some(names)}; the model: {_some(known)}",
            hint="name the folders so that they sort in the model's order",
        )
    mapping = np.array([index[name] for name in names], dtype=np.int64)
    return dataset.relabel(mapping[dataset.labels], classes or known)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
