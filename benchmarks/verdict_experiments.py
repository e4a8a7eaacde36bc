"""Error rates of the speed verdict, from experiments resampled from long recordings of real engines.

A *recording* is one engine, started several times and measured in interleaved rounds for much longer
than a benchmark. An experiment uses the data of one `bench` run: three of the starts (baseline,
control, candidate) and a window of consecutive rounds, the same for all three. Nothing is modelled:
drift, load and start-to-start variation are those of the machine. Baseline and candidate are the same
engine, so *faster* and *slower* are false alarms. If the candidate's calls are lengthened by a known
factor, any verdict except *slower* and *inconclusive* is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.profiling.harness import Measured
from optimizer.profiling.intervals import Estimate, judge, ratio_of_medians
from optimizer.profiling.verdict import UNSTEADY, spread
from optimizer.results import ComparisonVerdict

__all__ = ["Outcome", "Recording", "record", "repeat"]


@dataclass(frozen=True)
class Recording:
    """Rounds of one engine, started several times.

    Attributes:
        starts: A list of rounds for each start, in milliseconds per call; all have the same rounds.
    """

    starts: Sequence[Sequence[NDArray[np.float64]]]

    @property
    def rounds(self) -> int:
        """Number of rounds of each start."""
        return len(self.starts[0])


def record(cells: Sequence[Measured]) -> Recording:
    """Make a recording from the compute spans of cells that were measured together.

    Raises:
        ValueError: Fewer than three cells, or one of them failed.
    """
    failed = [m.error for m in cells if m.status != "ok"]
    if failed or len(cells) < 3:
        raise ValueError(f"at least three successful starts are needed: {failed or len(cells)}")
    return Recording([[block.spans_ms[:, 1] for block in m.blocks] for m in cells])


@dataclass(frozen=True)
class Outcome:
    """Verdicts of many experiments.

    Attributes:
        alike: Counts by verdict for the unchanged candidate.
        slowed: Counts by verdict for the same candidate with longer calls.
        unsteady: Experiments whose control varies so much that a run of `bench` with ``--against``
            would have been inconclusive.
    """

    alike: Mapping[ComparisonVerdict, int]
    slowed: Mapping[ComparisonVerdict, int]
    unsteady: int

    @property
    def experiments(self) -> int:
        """Number of experiments."""
        return sum(self.alike.values())

    @property
    def false_alarms(self) -> float:
        """Share of experiments that find an engine faster or slower than itself."""
        return (self.alike.get("faster", 0) + self.alike.get("slower", 0)) / self.experiments

    @property
    def detected(self) -> float:
        """Share of experiments that detect the slowdown."""
        return self.slowed.get("slower", 0) / self.experiments

    @property
    def wrong(self) -> float:
        """Share of experiments that call the slowed engine faster or equivalent."""
        return (self.slowed.get("faster", 0) + self.slowed.get("equivalent", 0)) / self.experiments


def repeat(
    recording: Recording,
    *,
    rounds: int,
    experiments: int,
    slowdown: float,
    min_effect: float,
    seed: int,
) -> Outcome:
    """Resample experiments from a recording and judge each as `bench` does.

    Args:
        recording: The recording.
        rounds: Rounds per experiment.
        experiments: Number of experiments, each with a random window and three random starts.
        slowdown: Relative lengthening of the slowed candidate's calls; 0.05 for 5 %.
        min_effect: Smallest difference of interest.
        seed: Seed for windows, starts and resampling.

    Raises:
        ValueError: The recording has fewer rounds than an experiment needs.
    """
    if rounds > recording.rounds:
        raise ValueError(f"{rounds} rounds cannot be drawn from {recording.rounds}")
    generator = np.random.default_rng(seed)
    alike: Counter[ComparisonVerdict] = Counter()
    slowed: Counter[ComparisonVerdict] = Counter()
    unsteady = 0
    for number in range(experiments):
        first = int(generator.integers(0, recording.rounds - rounds + 1))
        chosen = generator.choice(len(recording.starts), 3, replace=False)
        a, again, b = (recording.starts[i][first : first + rounds] for i in chosen)
        control = ratio_of_medians(a, again, seed=number)
        speed = ratio_of_medians(a, b, seed=number)
        assert control.ci95 is not None
        assert speed.ci95 is not None
        floor = spread(control.ci95)
        drift = max(control.value, 1 / control.value) - 1
        unsteady += floor > UNSTEADY
        alike[judge(speed, min_effect=min_effect, floor=floor, drift=drift)] += 1
        # If all calls are longer by a factor, the ratio and interval are exactly these.
        factor = 1 + slowdown
        worse = Estimate(speed.value / factor, (speed.ci95[0] / factor, speed.ci95[1] / factor))
        slowed[judge(worse, min_effect=min_effect, floor=floor, drift=drift)] += 1
    return Outcome(alike, slowed, unsteady)
