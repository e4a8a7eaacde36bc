"""Every public method of a session and of a bound batch, with every failure at every step.

The methods are found by introspection, so none can be forgotten. The steps are all calls to CUDA and
TensorRT that the simulated GPU counts in a run without failures.
"""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.engines.tensorrt.library import TENSORRT_RTX, find
from optimizer.engines.tensorrt.session import TensorRtBound, TensorRtSession
from optimizer.errors import ResnetOptError, UsageError

from . import graphs
from .hostgpu import FAILURES, HostCuda, HostEngine, open_session

PROFILES = [(1, 1, 1), (2, 4, 4)]
CALLS: dict[str, Callable[[TensorRtSession, TensorRtBound], object]] = {
    "TensorRtSession.run": lambda session, bound: session.run(graphs.images(6)),
    "TensorRtSession.bind": lambda session, bound: session.bind(graphs.images(3)),
    "TensorRtSession.layers": lambda session, bound: session.layers(),
    "TensorRtSession.time_layers": lambda session, bound: session.time_layers(graphs.images(2), 2),
    "TensorRtSession.close": lambda session, bound: session.close(),
    "TensorRtBound.upload": lambda session, bound: bound.upload(),
    "TensorRtBound.enqueue": lambda session, bound: bound.enqueue(),
    "TensorRtBound.wait": lambda session, bound: bound.wait(),
    "TensorRtBound.download": lambda session, bound: bound.download(),
    "TensorRtBound.output": lambda session, bound: bound.output(),
    "TensorRtBound.gpu_ms": lambda session, bound: bound.gpu_ms(),
    "TensorRtBound.close": lambda session, bound: bound.close(),
}
NEVER_RAISES = {"TensorRtSession.close", "TensorRtBound.close"}


@pytest.fixture(scope="module")
def trt() -> Any:
    installed = find(TENSORRT_RTX)
    if installed.module is None:
        pytest.skip(str(installed.fault))
    return installed.module


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.save_resnet(tmp_path_factory.mktemp("graph") / "model.onnx", width=8)


@dataclass
class Machine:
    """A simulated GPU with an engine on it."""

    trt: Any
    graph: Path
    cuda_graph: bool

    def __post_init__(self) -> None:
        self.cuda = HostCuda()
        self.engine = HostEngine(self.trt, self.cuda, self.graph, PROFILES)

    def ready(self) -> tuple[TensorRtSession, TensorRtBound]:
        """A session that has computed, and a bound batch of it."""
        session = open_session(self.engine, cuda_graph=self.cuda_graph)
        bound = session.bind(graphs.images(2))
        bound.upload()
        bound.enqueue()
        bound.wait()
        return session, bound

    def check_all_released(self) -> None:
        cuda = self.cuda
        held = {*cuda.memory, *cuda.streams, *cuda.events, *cuda.graphs}
        assert not held, cuda.calls
        assert not cuda.capturing
        if self.engine.contexts:
            gc.collect()  # a traceback may keep one alive in a reference cycle
        assert len(self.engine.contexts) == 0

    def check_works(self) -> None:
        """A new session computes correct results."""
        batch = graphs.images(3)
        session = open_session(self.engine, cuda_graph=self.cuda_graph)
        bound = session.bind(batch)
        bound.upload()
        bound.enqueue()
        bound.download()
        (expected,) = self.engine.session.run(None, {"images": batch})
        np.testing.assert_allclose(bound.output(), expected, atol=1e-5)
        session.close()
        self.check_all_released()


def public_calls() -> set[str]:
    return {
        f"{kind.__name__}.{name}"
        for kind in (TensorRtSession, TensorRtBound)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_public_method_is_covered() -> None:
    assert public_calls() == set(CALLS)


def error_of(call: str, session: TensorRtSession, bound: TensorRtBound) -> str | None:
    """The message of a `ResnetOptError`; other exceptions propagate."""
    try:
        CALLS[call](session, bound)
    except ResnetOptError as error:
        return error.message
    return None


def steps_of(machine: Machine, call: str) -> range:
    """The numbers of the library calls that a public call makes."""
    session, bound = machine.ready()
    first = len(machine.cuda.calls)
    CALLS[call](session, bound)
    last = len(machine.cuda.calls)
    session.close()
    machine.check_all_released()
    return range(first, last)


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["", "cuda graph"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("call", CALLS)
def test_failure_raises_our_error_and_frees_everything(
    trt: Any, graph: Path, call: str, failure: str, cuda_graph: bool
) -> None:
    failed = 0
    for step in steps_of(Machine(trt, graph, cuda_graph), call):
        machine = Machine(trt, graph, cuda_graph)
        session, bound = machine.ready()
        machine.cuda.fail_at[step] = failure
        failed += error_of(call, session, bound) is not None
        session.close()
        machine.check_all_released()
        if failure != "refused":  # the process cannot use such a device any more
            with pytest.raises(ResnetOptError):
                machine.check_works()
            machine = Machine(trt, graph, cuda_graph)
        machine.check_works()
    # A kernel fault is reported at the next synchronization, and some calls do not synchronize.
    if call in NEVER_RAISES:
        assert failed == 0
    elif call != "TensorRtBound.output" and failure != "kernel fault":
        assert failed > 0, "expected at least one step that can fail"


@pytest.mark.parametrize("failure", ["refused", "device lost"])
def test_opening_fails_at_every_step(trt: Any, graph: Path, failure: str) -> None:
    clean = Machine(trt, graph, cuda_graph=False)
    open_session(clean.engine).close()
    for step in range(3):  # the device, the stream, the context
        machine = Machine(trt, graph, cuda_graph=False)
        machine.cuda.fail_at[step] = failure
        with pytest.raises(ResnetOptError):
            open_session(machine.engine)
        machine.check_all_released()
        if failure == "refused":
            machine.check_works()


@pytest.mark.parametrize("call", [name for name in CALLS if name not in NEVER_RAISES])
def test_full_gpu_memory(trt: Any, graph: Path, call: str) -> None:
    """Out of memory at the first, second … allocation; everything works again once memory is free."""
    for allocations in range(12):
        machine = Machine(trt, graph, cuda_graph=False)
        session, bound = machine.ready()
        machine.cuda.allocations_left = allocations
        message = error_of(call, session, bound)
        assert message is None or "memory" in message.lower()
        machine.cuda.allocations_left = None
        CALLS[call](session, bound)  # the same session still works
        session.close()
        machine.check_all_released()
        machine.check_works()
        if message is None:
            return
    pytest.fail("a dozen allocations for one call")


@pytest.mark.parametrize("call", [name for name in CALLS if name not in NEVER_RAISES])
def test_use_after_close(trt: Any, graph: Path, call: str) -> None:
    machine = Machine(trt, graph, cuda_graph=True)
    session, bound = machine.ready()
    if call.startswith("TensorRtBound"):
        bound.close()
        with pytest.raises(UsageError, match="this bound batch is closed"):
            CALLS[call](session, bound)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        CALLS[call](session, bound)
    session.close()
    bound.close()
    machine.check_all_released()


@pytest.mark.parametrize("call", [name for name in CALLS if name not in NEVER_RAISES])
def test_use_from_another_thread(trt: Any, graph: Path, call: str) -> None:
    machine = Machine(trt, graph, cuda_graph=True)
    session, bound = machine.ready()
    before = len(machine.cuda.calls)
    messages: list[str] = []

    def use() -> None:
        try:
            CALLS[call](session, bound)
        except UsageError as error:
            messages.append(error.message)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert messages == ["this session belongs to another thread"]
    assert len(machine.cuda.calls) == before
    session.close()
    machine.check_all_released()


def test_threads_get_their_own_errors(trt: Any, graph: Path) -> None:
    """TensorRT has one logger per process: messages are attributed by thread."""
    machine = Machine(trt, graph, cuda_graph=False)
    session, _ = machine.ready()
    log = machine.engine.log

    def other() -> None:
        log.add("ERROR", "trouble of another thread")

    execute = machine.engine.newest().execute_async_v3

    def fails(stream: int) -> bool:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        machine.cuda.fail_at[len(machine.cuda.calls)] = "refused"
        return bool(execute(stream))

    log.add("ERROR", "an old error that was handled")
    context = session._execution.context
    context.execute_async_v3 = fails
    with pytest.raises(ResnetOptError, match="execute_async_v3 was refused"):
        session.run(graphs.images(2))
    session.close()
