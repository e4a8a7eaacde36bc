"""Matches the categories of a detection dataset with the classes of a detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.data import ImageDataset
from optimizer.errors import DataError

__all__ = ["match_categories"]


def match_categories(
    dataset: ImageDataset, num_classes: int, classes: Sequence[str] | None
) -> ImageDataset:
    """Map the categories of the objects to the network's classes.

    - If both have names, by name: the data may have fewer categories than the network has classes
      (COCO's 80 of torchvision's 91).
    - If the network has no names, categories that are as many as the classes match in their order, and
      fewer match by their ids, if these are class numbers.

    Args:
        dataset: Images with objects.
        num_classes: Number of the network's classes.
        classes: Their names, or ``None``.

    Returns:
        The dataset with mapped classes; its class names are the network's.

    Raises:
        DataError: The categories match in none of these ways.
    """
    names = dataset.classes
    assert names is not None
    if classes is not None:
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(
                f"{dataset.name} has the category {unknown[0]!r}, which the network does not have "
                f"(it has {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})",
                hint="use the data that the network was trained for, with the same names",
            )
        twice = [name for name in names if list(classes).count(name) > 1]
        if twice:
            raise DataError(f"the network has two classes named {twice[0]!r}, which is ambiguous")
        mapping = [list(classes).index(name) for name in names]
        return dataset.relabel_objects(np.array(mapping, np.int64), classes)
    if len(names) == num_classes:
        return dataset
    ids = dataset.category_ids
    if ids is not None and ids[0] >= 0 and ids[-1] < num_classes:
        all_names = [str(number) for number in range(num_classes)]
        for number, name in zip(ids, names, strict=True):
            all_names[number] = name
        return dataset.relabel_objects(np.array(ids, np.int64), all_names)
    raise DataError(
        f"{dataset.name} has {len(names)} categories, but the network has {num_classes} classes "
        "without names",
        hint="name the network's classes in a card file, or give data with the same categories",
    )
