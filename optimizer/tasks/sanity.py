"""Check the reference first: if it is far below its expected accuracy, the data is wrong.

Engines cannot be judged on images that the reference itself misclassifies. Common causes: wrong
resize or normalization, labels in a different order, images of another dataset.
"""

from __future__ import annotations

from optimizer.errors import AccuracyGateFailed
from optimizer.tasks.paired_statistics import wilson_interval

__all__ = ["check_early", "check_reference"]

_EARLY_IMAGES = 512


def check_reference(
    correct: int, n: int, expected: float | None, dataset: str, *, confidence: float = 0.99
) -> None:
    """Compare the reference's top-1 with its expected top-1.

    Args:
        correct: Images that the reference classifies correctly.
        n: Number of images.
        expected: Published or trained top-1, a fraction of one; ``None`` skips the check.
        dataset: Name of the data, for the message.
        confidence: Confidence of the interval; at 99 %, one in 200 valid random subsets is rejected.

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
        f"({100 * confidence:g} % interval {100 * low:.2f} to {100 * high:.2f}) instead of the "
        f"expected {100 * expected:.2f} %: the data or the preprocessing is wrong",
        hint="check labels, class order, resize, colour order, mean and std; "
        "run resnet-opt preprocess --diff DATA",
    )


def check_early(correct: int, n: int, expected: float | None, dataset: str) -> None:
    """`check_reference` during the pass: stops only for a deviation that chance cannot explain.

    The interval is so wide (1 - 10^-9) that checking after every batch causes no false alarms.
    """
    if n >= _EARLY_IMAGES:
        check_reference(correct, n, expected, dataset, confidence=1 - 1e-9)
