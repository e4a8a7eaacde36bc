"""What the host work of a call costs, on a GPU that does nothing."""

from __future__ import annotations

import pytest
from host_overhead import LIMIT_US, measure, page

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.runtime")


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_call_costs_at_most_twenty_microseconds(cuda_graph: bool) -> None:
    """It costs one or two; the limit leaves room for slow and busy machines."""
    found = measure(cuda_graph=cuda_graph, calls=400)
    whole = found["a call: enqueue and wait"]
    assert 0 < whole <= LIMIT_US
    assert all(spent > 0 for spent in found.values())
    assert whole < 3 * (found["enqueue"] + found["wait"])
    assert "| a call: enqueue and wait |" in page({"CUDA graph": found})
