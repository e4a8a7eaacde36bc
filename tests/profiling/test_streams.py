"""Concurrent calls."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import UsageError
from optimizer.profiling.bench_worker import time_calls
from optimizer.profiling.benchmark import bench
from optimizer.profiling.streams import Streams, work_and_wall
from optimizer.profiling.worker_process import Worker, WorkerFailed
from optimizer.targets.hardware import cpu_features
from tests.profiling.conftest import MakeEngine


def calls(rows: list[tuple[int, int, int]]) -> tuple[float, float]:
    start, end, stream = np.array(rows).T
    return work_and_wall(start, end, stream.astype(np.int32))


def test_one_stream_is_its_calls_over_its_time() -> None:
    assert calls([(0, 10, 0), (10, 20, 0), (20, 50, 0)]) == (3.0, 50e-9)


def test_only_time_with_all_streams_active_counts() -> None:
    # Stream 1 runs from 10 to 30, so the first and the last call of stream 0 count by one half.
    rows = [(0, 20, 0), (20, 40, 0), (10, 20, 1), (20, 30, 1)]
    assert calls(rows) == (3.0, 20e-9)


def test_streams_that_never_overlap_count_in_full() -> None:
    assert calls([(0, 10, 0), (20, 30, 1)]) == (2.0, 30e-9)


@given(st.integers(1, 6), st.integers(4, 30), st.integers(1, 1000), st.integers(0, 999))
def test_the_rate_is_proportional_to_equal_streams(n: int, k: int, ms: int, offset: int) -> None:
    rows = [
        (offset % ms * s + i * ms, offset % ms * s + (i + 1) * ms, s)
        for s in range(n)
        for i in range(k + offset)
    ]
    work, wall = calls(rows)
    assert work / wall == pytest.approx(n / (ms * 1e-9))


class Recording:
    """A session, and its bound batch, that records which threads use it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def bind(self, images: np.ndarray) -> Recording:
        self.images = images
        return self

    def _note(self) -> None:
        self.threads.add(threading.get_ident())

    upload = enqueue = wait = download = _note

    def output(self) -> np.ndarray:
        self._note()
        return np.zeros((1, 10), np.float32)


def test_every_session_belongs_to_one_thread() -> None:
    sessions = [Recording() for _ in range(3)]
    streams = Streams(sessions, time_calls)  # type: ignore[arg-type]
    streams.bind(np.zeros((1, 3, 8, 8), np.float32))
    timed, lead_in, owner = streams.time(seconds=0, min_calls=5, min_lead_in=2)
    assert len(streams.outputs()) == 3
    used = [session.threads for session in sessions]
    assert all(len(threads) == 1 for threads in used)
    assert len(set.union(*used)) == 3
    assert threading.get_ident() not in set.union(*used)
    assert len(timed) == len(owner) == 3 * 7
    assert lead_in == 3 * 2, "the lead-ins of all streams come first"
    assert np.bincount(owner[:lead_in]).tolist() == [2, 2, 2]
    assert np.bincount(owner[lead_in:]).tolist() == [5, 5, 5]
    assert sessions[0].images is not sessions[1].images


def test_streams_run_concurrently() -> None:
    """Every call waits for a call of the other stream, so sequential calls would time out."""
    meeting = threading.Barrier(2)

    class Meeting(Recording):
        def wait(self) -> None:
            meeting.wait(timeout=60)

    streams = Streams([Meeting(), Meeting()], time_calls)  # type: ignore[list-item]
    streams.bind(np.zeros((1, 3, 8, 8), np.float32))
    timed, _, owner = streams.time(seconds=0, min_calls=5)
    assert np.bincount(owner).tolist() == [5, 5]
    starts, ends = timed[:, 0], timed.sum(axis=1)
    for first, second in zip(np.flatnonzero(owner == 0), np.flatnonzero(owner == 1), strict=True):
        assert starts[first] <= ends[second]
        assert starts[second] <= ends[first]


def test_calls_of_two_streams_count_together(make_engine: MakeEngine) -> None:
    if cpu_features().physical_cores < 2:
        pytest.skip("two streams need two cores, and there is one")
    engine = make_engine(backend="tiny-streams", sleep_ms=4.0)
    rates = {}
    for streams in (1, 2):
        result = bench([engine], threads=2, streams=[streams], duration="0.3s", control=False)
        (measured,) = result.engines
        assert measured.status == "ok"
        assert measured.streams == streams
        assert measured.latency_ms is not None
        assert measured.latency_ms.p50 == pytest.approx(4.05), "the duration of a call is unchanged"
        rates[streams] = measured.images_per_s
    assert rates[2] == pytest.approx(2 * rates[1])


def test_an_engine_without_streams_is_refused(make_engine: MakeEngine) -> None:
    worker = Worker(threads=1)
    try:
        with pytest.raises(
            WorkerFailed, match="tiny computes one batch at a time, not 2"
        ) as failure:
            worker.ask(
                "load", timeout_s=120, path=str(make_engine()), threads=1, device=None, streams=2
            )
        assert failure.value.usage
    finally:
        worker.close()


def test_one_stream_that_fails_fails_the_engine(make_engine: MakeEngine) -> None:
    worker = Worker(threads=1)
    path = make_engine(backend="tiny-streams", nan=True, after=1)
    try:
        worker.ask("load", timeout_s=120, path=str(path), threads=1, device=None, streams=2)
        worker.ask("prepare", timeout_s=120, batch=1, image_size=None, seed=0)
        with pytest.raises(WorkerFailed, match="NaN or infinity"):
            worker.ask("time", timeout_s=120, seconds=0, min_calls=1)
    finally:
        worker.close()


def test_more_streams_than_threads_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="2 streams need at least 2 threads, not 1"):
        bench([make_engine(backend="tiny-streams")], threads=[1], streams=[1, 2])
