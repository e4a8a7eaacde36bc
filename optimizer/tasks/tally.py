"""Running sums of one hop, so that outputs need not be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.tasks.paired_statistics import Paired, sqnr_db, sums_of_squares

__all__ = ["Noise", "Tally", "label_rank"]

Logits = NDArray[np.float32]


def label_rank(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of each image's label among its logits, 0 for the largest.

    Ties are broken like `numpy.argmax`: the lower class index comes first.
    """
    label_logit = np.take_along_axis(logits, labels[:, None], axis=1)
    ahead = logits > label_logit
    equal_before = (logits == label_logit) & (np.arange(logits.shape[1]) < labels[:, None])
    rank: NDArray[np.int64] = (ahead | equal_before).sum(axis=1)
    return rank


@dataclass
class Noise:
    """Sums of squares of a signal and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: NDArray[Any], other: NDArray[Any]) -> None:
        """Add one batch."""
        signal, noise = sums_of_squares(reference, other)
        self.signal += signal
        self.noise += noise

    def merge(self, other: Noise) -> None:
        """Add another process's sums."""
        self.signal += other.signal
        self.noise += other.noise

    @property
    def db(self) -> float | None:
        """Signal-to-noise ratio in decibels; ``None`` for identical outputs."""
        return sqnr_db(self.signal, self.noise)


class Tally:
    """Running sums of one hop; tallies of different images can be merged.

    Attributes:
        n: Images.
        correct, correct5: Images whose label is the top-1 prediction, among the top 5.
        losses, gains: Images that only the reference, only this hop classifies correctly.
        flips, flips_vs_parent: Images whose top-1 class differs from the reference's, the parent's.
        parent_losses, parent_gains: Like ``losses`` and ``gains``, relative to the parent.
        noise, noise_vs_parent: Error of the logits relative to the reference, the parent.
        max_abs_diff: Largest absolute difference of a logit from the reference's.
        worst: Dataset index of the image with that difference; ``None`` without any difference.
        classes: Number of outputs.
        n_vs_parent: Images that could be compared with the parent too.
    """

    def __init__(self) -> None:
        self.n_vs_parent = 0
        self.n = self.correct = self.correct5 = self.classes = 0
        self.losses = self.gains = self.flips = self.flips_vs_parent = 0
        self.parent_losses = self.parent_gains = 0
        self.noise, self.noise_vs_parent = Noise(), Noise()
        self.max_abs_diff = 0.0
        self.worst: int | None = None

    def add(
        self,
        logits: Logits,
        labels: NDArray[np.int64],
        indices: NDArray[np.int64],
        reference: Logits,
        parent: Logits | None,
    ) -> None:
        """Add one batch.

        Args:
            logits: N x classes float32 of this hop.
            labels: N int64.
            indices: N int64, positions in the dataset.
            reference: The reference's logits.
            parent: The parent hop's logits; ``None`` if the parent failed.
        """
        rank = label_rank(logits, labels)
        right, reference_right = rank == 0, label_rank(reference, labels) == 0
        top, reference_top = logits.argmax(axis=1), reference.argmax(axis=1)
        self.n += len(labels)
        self.classes = logits.shape[1]
        self.correct += int(right.sum())
        self.correct5 += int((rank < 5).sum())
        self.losses += int((reference_right & ~right).sum())
        self.gains += int((right & ~reference_right).sum())
        self.flips += int((top != reference_top).sum())
        self.noise.add(reference, logits)
        if parent is not None:
            self.n_vs_parent += len(labels)
            parent_right = label_rank(parent, labels) == 0
            self.parent_losses += int((parent_right & ~right).sum())
            self.parent_gains += int((right & ~parent_right).sum())
            self.flips_vs_parent += int((top != parent.argmax(axis=1)).sum())
            self.noise_vs_parent.add(parent, logits)
        difference = np.abs(logits.astype(np.float64) - reference).max(axis=1)
        position = int(difference.argmax())
        if difference[position] > self.max_abs_diff:
            self.max_abs_diff = float(difference[position])
            self.worst = int(indices[position])

    def merge(self, other: Tally) -> None:
        """Add a tally of different images."""
        for name in (
            "n", "correct", "correct5", "losses", "gains", "flips", "flips_vs_parent",
            "n_vs_parent", "parent_losses", "parent_gains",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.noise.merge(other.noise)
        self.noise_vs_parent.merge(other.noise_vs_parent)
        self.classes = max(self.classes, other.classes)
        if other.max_abs_diff > self.max_abs_diff:
            self.max_abs_diff, self.worst = other.max_abs_diff, other.worst

    @property
    def paired(self) -> Paired:
        """The comparison with the reference."""
        return Paired(self.n, self.losses, self.gains)

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the top 5; ``None`` with five or fewer outputs."""
        return self.correct5 / self.n if self.classes > 5 else None
