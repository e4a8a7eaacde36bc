from __future__ import annotations

import pytest

from optimizer.models import Model, load_model


@pytest.fixture(scope="session")
def resnet18() -> Model:
    """A small network with seeded weights and ten classes; do not modify it."""
    return load_model("resnet18:random:10", image_size=32)
