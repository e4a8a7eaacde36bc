"""Calling functions in a child: results, failures and cleanup."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import optimizer
from optimizer.errors import AccuracyGateFailed, EnvironmentFault, MissingDevice, ResnetOptError
from optimizer.processes import Child, ChildFailed, Limits, call
from tests.processes.conftest import ROOT, assert_gone


def call_target(function: str, *arguments: Any, **options: Any) -> Any:
    return call(
        f"tests.processes.targets:{function}", arguments, import_from=[str(ROOT)], **options
    )


def open_files() -> int:
    return psutil.Process().num_fds()


# --- results -------------------------------------------------------------------------------------


def test_arguments_and_results_are_unchanged() -> None:
    a = np.arange(3_000_000, dtype=np.float64).reshape(3, -1)
    result = call_target("add", a, 1.0)
    np.testing.assert_array_equal(result, a + 1.0)
    assert call_target("add", (Path("a"),), (None,)) == (Path("a"), None)


def test_a_child_uses_this_package_in_its_own_session() -> None:
    child = call_target("look_around", threads=3, cpus=[min(os.sched_getaffinity(0))])
    assert child["package"] == optimizer.__file__
    assert child["parent"] == os.getpid()
    assert child["pid"] == child["group"] == child["session"] != os.getpid()
    assert child["arguments"] == ["optimizer.processes.calls:answer_call"]
    assert child["main"] is None, "a child has no script"
    assert child["stdin"] == b""
    assert child["threads"] == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert child["cpus"] == [min(os.sched_getaffinity(0))]
    assert child["first_to_go"] == "1000"
    assert len(child["descriptors"]) == 3 + 3 + 1, "its pipes and the listed folder"


def test_thread_variables_are_unchanged_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert call_target("look_around")["threads"] == {
        "OMP_NUM_THREADS": "5",
        "MKL_NUM_THREADS": None,
    }


def test_progress_is_forwarded() -> None:
    updates: list[Any] = []

    class Recorder:
        def start(self, label: str, total: int | None = None) -> None:
            updates.append((label, total))

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            updates.append((steps, note))

        def finish(self, note: str | None = None) -> None:
            updates.append(note)

    assert call_target("report_steps", progress=Recorder()) == "counted"
    assert updates == [("count", 2), (1, None), (1, "done"), "two"]


def test_printed_output_does_not_disturb_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_target("print_a_lot") == "result"
    assert capfd.readouterr() == ("", "")


def test_calls_work_in_threads_and_in_an_event_loop() -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda i: call_target("add", i, 1), range(3))) == [1, 2, 3]

    async def main() -> tuple[int, int]:
        return call_target("add", 1, 1), await asyncio.to_thread(call_target, "add", 2, 2)

    assert asyncio.run(main()) == (2, 4)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kind", "code", "hint"),
    [
        ("gate", AccuracyGateFailed, 4, "quantize less"),
        ("device", MissingDevice, 3, "plug it in"),
        ("odd", ResnetOptError, 1, "another number"),
    ],
)
@pytest.mark.parametrize("function", ["fail", "give_up_in_a_thread"])
def test_our_exceptions_are_raised_unchanged(
    function: str, how: str, kind: type[ResnetOptError], code: int, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        call_target(function, how)
    assert type(caught.value) is kind
    assert (caught.value.exit_code, caught.value.hint) == (code, hint)
    assert caught.value.message in {"lost too much", "no such GPU", "number 7"}


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        ("fail", "value", "raised ValueError: two lines"),
        ("fail", "interrupt", "raised KeyboardInterrupt:"),
        ("fail", "exit", "raised SystemExit: no more"),
        ("give_up_in_a_thread", "value", "raised ValueError: two lines"),
        ("nothing", "", "raised AttributeError: module 'tests.processes.targets' has no"),
        ("add", "", r"raised TypeError: add\(\) missing 1 required"),
    ],
)
def test_other_exceptions_are_named_with_their_traceback(
    function: str, argument: str, message: str
) -> None:
    with pytest.raises(ChildFailed, match=message) as caught:
        call_target(function, argument)
    assert caught.value.reason == "raised"
    assert "Traceback" in str(caught.value.__cause__)
    assert "\n" not in caught.value.message


def test_a_result_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(ChildFailed, match=r"raised .*pickle") as caught:
        call("threading:Lock")
    assert caught.value.reason == "raised"


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("SIGSEGV", "crashed", "crashed: killed by SIGSEGV (the library's last"),
        ("SIGTERM", "crashed", "crashed: killed by SIGTERM (the library's last"),
        ("exit", "crashed", "crashed: exit code 7 (the library's last"),
        (
            "SIGKILL",
            "killed",
            "was killed by SIGKILL, most likely because memory ran out (the library's last",
        ),
    ],
)
def test_the_failure_says_how_the_child_ended(how: str, reason: str, message: str) -> None:
    with pytest.raises(ChildFailed) as caught:
        call_target("die", how)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(message)
    assert caught.value.last_lines == ("the library's last words",)


def test_a_deadline_is_enforced() -> None:
    with pytest.raises(ChildFailed, match=r"within the time limit of 0\.5 s") as caught:
        call_target("sleep", 600, limits=Limits(seconds=0.5))
    assert caught.value.reason == "deadline"


def test_a_deadline_is_enforced_while_writing() -> None:
    """More data than a pipe holds, to a stopped child."""
    child = echo()
    try:
        os.kill(child.pid, signal.SIGSTOP)
        child.wait_policy.deadline = 0.0
        with pytest.raises(TimeoutError):
            child.requests.write(b"x" * 10_000_000)
    finally:
        child.end()


@pytest.mark.parametrize("in_another", [False, True])
def test_a_memory_limit_is_enforced(in_another: bool) -> None:
    limits = Limits(seconds=120, memory_bytes=300 << 20)
    with pytest.raises(ChildFailed, match=r"MiB of memory; the memory limit is 300 MiB") as caught:
        call_target("hold_memory", 400, in_another, limits=limits)
    assert caught.value.reason == "memory"
    assert not psutil.Process().children()


def test_a_child_that_closes_its_pipe_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.processes.child._EXIT_WAIT_S", 0.5)
    with pytest.raises(ChildFailed, match="closed its output but kept running") as caught:
        call_target("close_everything")
    assert caught.value.reason == "closed"
    assert not psutil.Process().children()


def test_an_invalid_answer_is_reported() -> None:
    with pytest.raises(ChildFailed, match="sent an invalid answer") as caught:
        call_target("send_nonsense")
    assert caught.value.reason == "garbled"
    assert not psutil.Process().children()


@pytest.mark.parametrize("program", ["", None])
def test_an_empty_executable_is_reported(
    program: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(EnvironmentFault, match=r"sys\.executable is empty") as caught:
        call_target("add", 1, 1)
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None


def test_a_missing_executable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = open_files()
    with pytest.raises(EnvironmentFault, match=r"cannot start a process: .*/no/such/python"):
        call_target("add", 1, 1)
    assert open_files() == before


# --- cleanup -------------------------------------------------------------------------------------


def test_calls_leave_nothing_behind_however_they_end() -> None:
    call_target("add", 1, 1)
    gc.collect()
    before = open_files()
    threads = threading.active_count()
    for function, argument in (("add", 1), ("fail", "gate"), ("die", "SIGSEGV"), ("sleep", 600)):
        try:
            call_target(function, argument, limits=Limits(seconds=2))
        except ResnetOptError:
            continue
    assert open_files() == before
    assert threading.active_count() == threads
    assert not psutil.Process().children()


def test_descendants_end_with_the_child() -> None:
    assert_gone([psutil.Process(call_target("start_and_leave"))])


# --- long-running children -----------------------------------------------------------------------


def echo(prefix: str = "") -> Child:
    child = Child("tests.processes.targets:echo_lines", [prefix], import_from=[str(ROOT)])
    child.wait_policy.deadline = None
    return child


def test_a_child_answers_until_its_requests_are_closed() -> None:
    child = echo("answer: ")
    for word in (b"one\n", b"two\n"):
        child.requests.write(word)
        assert child.answers.readline() == b"answer: " + word
    child.end(60)
    assert child.failure().message == "crashed: exit code 0"
    child.end()
    with pytest.raises(BrokenPipeError):
        child.requests.write(b"three\n")
    assert child.answers.readline() == b""


def test_a_child_outlives_the_thread_that_started_it() -> None:
    started: list[Child] = []
    thread = threading.Thread(target=lambda: started.append(echo()))
    thread.start()
    thread.join()
    (child,) = started
    try:
        child.requests.write(b"still there?\n")
        assert child.answers.readline() == b"still there?\n"
    finally:
        child.end()
    assert child.failure().reason == "ended"
