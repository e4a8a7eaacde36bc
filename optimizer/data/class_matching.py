"""Checks that a dataset's labels match the model's outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from optimizer.data.dataset import ImageDataset
from optimizer.data.imagenet import IMAGENET_SYNSETS
from optimizer.errors import DataError

__all__ = ["match_classes"]

_SYNSET = re.compile(r"n\d{8}")


def match_classes(
    dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
) -> ImageDataset:
    """Map the labels to indices of the model's outputs.

    - If either side has no class names, every label must be below ``num_classes``, and named
      classes must be as many as the outputs, since they can only be matched by position.
    - Equal names in equal order match.
    - If there are as many synset folders (``n01440764`` …) as outputs, they match outputs with
      other names: sorted synsets are in the order of the outputs.
    - A subset of ImageNet's synsets is mapped to 1,000 outputs with other names or none.
    - A subset of the model's class names is mapped by name.

    Args:
        dataset: The dataset.
        num_classes: Number of the model's outputs.
        classes: Names of the outputs in order, or ``None``.

    Returns:
        The dataset, with mapped labels where needed.

    Raises:
        DataError: The labels match in none of these ways.
    """
    names = dataset.classes
    if names is not None and len(names) > num_classes:
        raise DataError(
            f"{dataset.name} has {len(names)} classes, but the model has {num_classes}",
            hint="use the data that the model was trained for",
        )
    highest = int(dataset.labels.max(initial=0))
    if highest == num_classes and int(dataset.labels.min(initial=highest)) == 1:
        raise DataError(
            f"the labels of {dataset.name} are 1 to {highest}, but the model's classes are 0 to "
            f"{num_classes - 1}",
            hint="if label 1 is the first class, use --labels-from 1",
        )
    if highest >= num_classes:
        raise DataError(
            f"{dataset.name} has label {highest}, but the model's {num_classes} classes end at "
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
        f"({names[0]}, …) do not identify them",
        hint="keep all class folders, or use an NPZ file with the model's labels",
    )


def _fits_by_name(
    dataset: ImageDataset,
    names: Sequence[str],
    output_names: Sequence[str],
    classes: Sequence[str] | None,
) -> ImageDataset:
    """Map labels by name; ``output_names`` are in the order of the outputs."""
    index = {name: position for position, name in enumerate(output_names)}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise DataError(
            f"{dataset.name} has the class {unknown[0]!r}, which the model does not have "
            f"(it has {_first_few(output_names)})",
            hint="give the class folders the names of the model's classes",
        )
    ambiguous = [name for name in names if output_names.count(name) > 1]
    if ambiguous:
        raise DataError(f"the model has two classes named {ambiguous[0]!r}, which is ambiguous")
    if len(names) == len(output_names):
        raise DataError(
            f"{dataset.name} has the model's classes in another order: "
            f"{_first_few(names)}; the model: {_first_few(output_names)}",
            hint="rename the folders so that they sort in the model's order",
        )
    mapping = np.array([index[name] for name in names], dtype=np.int64)
    return dataset.relabel(mapping[dataset.labels], classes or output_names)


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
