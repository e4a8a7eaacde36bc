"""Classifiers with one output: a sigmoid between two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_classes"]


def as_classes(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits with at least two columns.

    One logit z is the sigmoid's, with a threshold of 0.5: class 1 where z > 0. Its logits as two
    classes are 0 and z, whose softmax is that sigmoid, so top-1, flips and noise need no other
    rule. The zeros add nothing to signal or noise.

    Args:
        logits: N x outputs.

    Returns:
        N x 2 if there is one output, else ``logits`` itself.
    """
    if logits.ndim != 2 or logits.shape[1] != 1:
        return logits
    return np.concatenate([np.zeros_like(logits), logits], axis=1)
