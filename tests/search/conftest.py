"""One PyTorch thread, and shared variants of the hostile network for tests that do not modify them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.search.variants import Variants
from optimizer.targets.rules import TARGETS
from tests.precision.conftest import _one_thread
from tests.precision.networks import images
from tests.search.networks import OPTIONS, hostile, statistics

__all__ = ["_one_thread"]


def variants_for(target: str) -> Variants:
    rules = replace(TARGETS[target], high_precision="fp32", constants="fp32", weight_max=127)
    return Variants(hostile(), statistics(hostile(), [images(64, 1)]), rules, "0", OPTIONS)


@pytest.fixture(scope="package")
def variants() -> Variants:
    return variants_for("openvino")
