from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small trainings gain nothing from threads and are slowed down by them on a busy machine."""
    threads = torch.get_num_threads()
    if not {"slow", "long"} & set(request.keywords):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
