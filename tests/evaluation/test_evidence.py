"""When a hop passes."""

from __future__ import annotations

import pytest

from optimizer.evaluation.evidence import judge_hop
from optimizer.evaluation.paired_statistics import Paired
from optimizer.results import Gates

GATES = Gates(max_drop_pp=1.0)


@pytest.mark.parametrize("informative", [True, False])
def test_nothing_passes_where_the_reference_is_right_on_no_image(informative: bool) -> None:
    same = Paired(2000, 0, 0)
    arguments = {"labels_informative": informative}
    assert judge_hop(same, 0, GATES, **arguments, reference_correct=0) == "inconclusive"
    assert judge_hop(same, 0, GATES, **arguments, reference_correct=1) == "pass"


def test_a_failure_stays_one() -> None:
    worse = Paired(2000, 0, 0)
    gates = Gates(max_drop_pp=1.0, max_flips=0.01)
    assert judge_hop(worse, 1000, gates, reference_correct=0) == "fail"
