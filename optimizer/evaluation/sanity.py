"""The reference first: a model far below the accuracy it is known for sees the wrong data.

No engine can be judged by images that its own network does not recognize. The usual reasons: a
wrong resize or normalization, labels in another order, images of another data set.
"""

from __future__ import annotations

from optimizer.errors import AccuracyGateFailed
from optimizer.evaluation.paired_statistics import wilson_interval

__all__ = ["check_early", "check_reference"]

_EARLY_IMAGES = 512


def check_reference(
    correct: int, n: int, expected: float | None, dataset: str, *, confidence: float = 0.99
) -> None:
    """Compare the reference's top-1 with what it is known for.

    Args:
        correct: Images that the reference has right.
        n: Images in all.
        expected: Its published or trained top-1, a fraction of one; ``None`` checks nothing.
        dataset: Name of the data, for the message.
        confidence: Of the interval; at 99 % one honest random subset in 200 is stopped.

    Raises:
        AccuracyGateFailed: The whole interval of the measured top-1 lies below ``expected``.
    """
    if expected is None or n == 0:
        return
    low, high = wilson_interval(correct, n, confidence)
    if high >= expected:
        return
    raise AccuracyGateFailed(
        f"the FP32 reference itself has {100 * correct / n:.2f} % top-1 on {n} images of {dataset} "
        f"({100 * confidence:g} % interval {100 * low:.2f} to {100 * high:.2f}), "
        f"it is known for {100 * expected:.2f} %: the data or the preprocessing is wrong",
        hint="check labels, class order, resize, colour order, mean and std; "
        "resnet-opt preprocess --diff DATA",
    )


def check_early(correct: int, n: int, expected: float | None, dataset: str) -> None:
    """`check_reference` while the pass goes on: only what no chance explains stops it.

    The interval is so wide (all but one in 10^9) that looking after every batch does not matter.
    """
    if n >= _EARLY_IMAGES:
        check_reference(correct, n, expected, dataset, confidence=1 - 1e-9)
