"""The time that ``make test-gpu`` has, ten minutes by default: what is left out when it is over.

Shares of it are reserved, so that a card on which everything builds slowly is measured all the same.
"""

from __future__ import annotations

import os
import time

import pytest

__all__ = ["FULL_SIZE_BUILDS", "RECORD", "SECONDS", "SMALL_ENGINES", "seconds_left", "skip_after"]

SECONDS = float(os.environ.get("GPU_SUITE_SECONDS", "600"))
RECORD = 0.25
"""The share after which the record begins no step."""
SMALL_ENGINES = 0.4
"""The share after which no small engine is tried."""
FULL_SIZE_BUILDS = 0.7
"""The share after which the first model's engines are measured, and no more are built before."""
_STARTED = time.monotonic()


def seconds_left(share: float = 1.0) -> float:
    """Seconds until this share of the time has passed; negative afterwards."""
    return share * SECONDS - (time.monotonic() - _STARTED)


def skip_after(share: float = 1.0) -> None:
    """Skip the current test if this share of the time has passed."""
    if seconds_left(share) < 0:
        pytest.skip(f"{share * SECONDS:.0f} s have passed (GPU_SUITE_SECONDS)")
