"""How often the verdict is wrong: experiments cut out of long recordings of real engines.

A *recording* is one engine, started several times, measured in interleaved rounds for much longer
than a benchmark takes. An experiment takes what a run of `bench` has: three of the starts (the
baseline, its control, a candidate) and a stretch of consecutive rounds, the same ones of all three.
Nothing is modelled: drift, load and the difference between starts are those of the machine. Since
baseline and candidate are the same engine, *faster* and *slower* are false alarms; with the
candidate's calls made longer by a known factor, anything but *slower* or *inconclusive* is wrong.
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
        starts: A list of rounds for each start, milliseconds a call; the same rounds of all.
    """

    starts: Sequence[Sequence[NDArray[np.float64]]]

    @property
    def rounds(self) -> int:
        """How many rounds every start has."""
        return len(self.starts[0])


def record(cells: Sequence[Measured]) -> Recording:
    """The compute spans of cells that were measured together.

    Raises:
        ValueError: Fewer than three cells, or one of them failed.
    """
    failed = [m.error for m in cells if m.status != "ok"]
    if failed or len(cells) < 3:
        raise ValueError(f"three starts that work are needed: {failed or len(cells)}")
    return Recording([[block.spans_ms[:, 1] for block in m.blocks] for m in cells])


@dataclass(frozen=True)
class Outcome:
    """Verdicts of many experiments.

    Attributes:
        alike: Of the candidate as it was: counts by verdict.
        slowed: Of the same candidate with every call made longer.
        unsteady: Experiments whose control reached so far that a run of `bench` with ``--against``
            would have said that nothing can be said.
    """

    alike: Mapping[ComparisonVerdict, int]
    slowed: Mapping[ComparisonVerdict, int]
    unsteady: int

    @property
    def experiments(self) -> int:
        """How many there were."""
        return sum(self.alike.values())

    @property
    def false_alarms(self) -> float:
        """Share of experiments that call an engine faster or slower than itself."""
        return (self.alike.get("faster", 0) + self.alike.get("slower", 0)) / self.experiments

    @property
    def found(self) -> float:
        """Share of experiments that find the slowdown."""
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
    """Cut experiments out of a recording and judge each as `bench` does.

    Args:
        recording: The recording.
        rounds: Rounds of an experiment.
        experiments: How many; each has a stretch of rounds and three starts of its own choice.
        slowdown: By how much the slowed candidate's calls are longer, 0.05 for 5 %.
        min_effect: Smallest difference of interest.
        seed: Decides stretches, starts and resampling.

    Raises:
        ValueError: The recording has fewer rounds than an experiment.
    """
    if rounds > recording.rounds:
        raise ValueError(f"{rounds} rounds cannot be cut out of {recording.rounds}")
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
        # Calls that are all longer by a factor have exactly this ratio and this interval.
        factor = 1 + slowdown
        worse = Estimate(speed.value / factor, (speed.ci95[0] / factor, speed.ci95[1] / factor))
        slowed[judge(worse, min_effect=min_effect, floor=floor, drift=drift)] += 1
    return Outcome(alike, slowed, unsteady)
