from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.data import ImageDataset, match_classes, open_dataset
from optimizer.data.imagenet import IMAGENET_SYNSETS
from optimizer.errors import DataError


def dataset(classes: tuple[str, ...] | None, labels: list[int] | None = None) -> ImageDataset:
    """Digits with other class names."""
    digits = open_dataset("digits", limit=30)
    count = 10 if classes is None else len(classes)
    chosen = np.array(labels) if labels else digits.labels % count
    return replace(digits, name="data", labels=np.resize(chosen, 30), classes=classes)


def words() -> tuple[str, ...]:
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def test_equal_classes_match() -> None:
    data = dataset(("a", "b", "c"))
    assert match_classes(data, 3, ("a", "b", "c")) is data
    assert match_classes(data, 3, ["a", "b", "c"]) is data


def test_without_names_the_counts_must_match() -> None:
    assert match_classes(dataset(None), 10, tuple("0123456789")).classes is None
    assert len(match_classes(dataset(("a", "b")), 2, None)) == 30
    with pytest.raises(DataError, match="label 9, but the model's 9 classes end at 8"):
        match_classes(dataset(None), 9, None)
    with pytest.raises(DataError, match="2 of the model's 3 classes"):
        match_classes(dataset(("a", "b")), 3, None)


def test_too_many_classes_are_rejected() -> None:
    with pytest.raises(DataError, match="data has 3 classes, but the model has 2"):
        match_classes(dataset(("a", "b", "c")), 2, ("a", "b"))


def test_another_order_is_rejected_and_names_the_classes() -> None:
    with pytest.raises(DataError, match="another order: a, b; the model: b, a"):
        match_classes(dataset(("a", "b")), 2, ("b", "a"))


def test_fewer_classes_are_mapped_by_name() -> None:
    data = dataset(("bee", "cat"), [0, 1])
    mapped = match_classes(data, 4, ("cat", "ant", "bee", "dog"))
    assert mapped.labels[:4].tolist() == [2, 0, 2, 0]
    assert mapped.classes == ("cat", "ant", "bee", "dog")
    assert mapped.sha256 != data.sha256
    assert data.labels[:2].tolist() == [0, 1]


def test_unknown_classes_are_rejected() -> None:
    with pytest.raises(DataError, match=r"'eel', which the model does not have .*cat, ant"):
        match_classes(dataset(("bee", "eel")), 3, ("cat", "ant", "bee"))


def test_duplicate_class_names_of_the_model_are_rejected() -> None:
    with pytest.raises(DataError, match="two classes named 'crane'"):
        match_classes(dataset(("crane", "tench")), 3, ("crane", "tench", "crane"))


def test_synsets_are_in_the_order_of_the_outputs() -> None:
    data = dataset(IMAGENET_SYNSETS)
    assert match_classes(data, 1000, words()) is data
    assert match_classes(data, 1000, None) is data
    three = dataset(("n00000001", "n00000002", "n00000003"))
    assert match_classes(three, 3, ("x", "y", "z")) is three


def test_a_subset_of_the_synsets_is_mapped() -> None:
    # Two classes of Imagenette: tench and parachute.
    data = dataset(("n01440764", "n03888257"), [0, 1])
    for classes in (words(), None):
        mapped = match_classes(data, 1000, classes)
        names = words()
        assert [names[label] for label in mapped.labels[:2]] == ["tench", "parachute"]
    with pytest.raises(DataError, match="n00000001"):
        match_classes(dataset(("n00000001", "n01440764")), 1000, words())


def test_the_list_of_synsets_is_complete() -> None:
    assert len(set(IMAGENET_SYNSETS)) == 1000
    assert list(IMAGENET_SYNSETS) == sorted(IMAGENET_SYNSETS)
