"""One function in a child: what comes back, what goes wrong, what is left of it."""

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


def ask(function: str, *arguments: Any, **options: Any) -> Any:
    return call(
        f"tests.processes.targets:{function}", arguments, import_from=[str(ROOT)], **options
    )


def open_files() -> int:
    return psutil.Process().num_fds()


# --- what comes back -----------------------------------------------------------------------------


def test_arguments_and_results_cross_as_they_are() -> None:
    a = np.arange(3_000_000, dtype=np.float64).reshape(3, -1)
    result = ask("add", a, 1.0)
    np.testing.assert_array_equal(result, a + 1.0)
    assert ask("add", (Path("a"),), (None,)) == (Path("a"), None)


def test_a_child_is_one_of_ours_and_apart() -> None:
    seen = ask("look_around", threads=3, cpus=[min(os.sched_getaffinity(0))])
    assert seen["package"] == optimizer.__file__
    assert seen["parent"] == os.getpid()
    assert seen["pid"] == seen["group"] == seen["session"] != os.getpid()
    assert seen["arguments"] == ["optimizer.processes.calls:answer_call"]
    assert seen["main"] is None, "it has no script"
    assert seen["stdin"] == b""
    assert seen["threads"] == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert seen["cpus"] == [min(os.sched_getaffinity(0))]
    assert seen["first_to_go"] == "1000"
    assert len(seen["descriptors"]) == 3 + 3 + 1, "its pipes, and the folder that was listed"


def test_threads_are_left_alone_where_nobody_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert ask("look_around")["threads"] == {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": None}


def test_progress_is_reported_here() -> None:
    heard: list[Any] = []

    class Ear:
        def start(self, label: str, total: int | None = None) -> None:
            heard.append((label, total))

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            heard.append((steps, note))

        def finish(self, note: str | None = None) -> None:
            heard.append(note)

    assert ask("report_steps", progress=Ear()) == "counted"
    assert heard == [("count", 2), (1, None), (1, "done"), "two"]


def test_what_is_printed_does_not_come_between(capfd: pytest.CaptureFixture[str]) -> None:
    assert ask("print_a_lot") == "result"
    assert capfd.readouterr() == ("", "")


def test_it_may_be_asked_in_threads_and_in_an_event_loop() -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda i: ask("add", i, 1), range(3))) == [1, 2, 3]

    async def main() -> tuple[int, int]:
        return ask("add", 1, 1), await asyncio.to_thread(ask, "add", 2, 2)

    assert asyncio.run(main()) == (2, 4)


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kind", "code", "hint"),
    [
        ("gate", AccuracyGateFailed, 4, "quantize less"),
        ("device", MissingDevice, 3, "plug it in"),
        ("odd", ResnetOptError, 1, "another number"),
    ],
)
@pytest.mark.parametrize("function", ["fail", "give_up_in_a_thread"])
def test_our_exceptions_cross_as_themselves(
    function: str, how: str, kind: type[ResnetOptError], code: int, hint: str
) -> None:
    with pytest.raises(kind) as caught:
        ask(function, how)
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
        ask(function, argument)
    assert caught.value.reason == "raised"
    assert "Traceback" in str(caught.value.__cause__)
    assert "\n" not in caught.value.message


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ChildFailed, match=r"raised .*pickle") as caught:
        call("threading:Lock")
    assert caught.value.reason == "raised"


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("SIGSEGV", "crashed", "crashed: its process was ended by SIGSEGV (the library's last"),
        ("SIGTERM", "crashed", "crashed: its process was ended by SIGTERM (the library's last"),
        ("exit", "crashed", "crashed: its process was ended with exit code 7 (the library's last"),
        (
            "SIGKILL",
            "killed",
            "was killed from outside, most likely because memory ran out: its process was ended by",
        ),
    ],
)
def test_an_obituary_says_how_it_ended(how: str, reason: str, message: str) -> None:
    with pytest.raises(ChildFailed) as caught:
        ask("die", how)
    assert caught.value.reason == reason
    assert caught.value.message.startswith(message)
    assert caught.value.last_lines == ("the library's last words",)


def test_a_deadline_is_kept() -> None:
    with pytest.raises(ChildFailed, match=r"within the time limit of 0\.5 s") as caught:
        ask("sleep", 600, limits=Limits(seconds=0.5))
    assert caught.value.reason == "deadline"


def test_a_deadline_is_kept_while_it_does_not_even_read() -> None:
    """More than a pipe holds, to a child that is stopped."""
    child = echo()
    try:
        os.kill(child.pid, signal.SIGSTOP)
        child.patience.until = 0.0
        with pytest.raises(TimeoutError):
            child.requests.write(b"x" * 10_000_000)
    finally:
        child.end()


@pytest.mark.parametrize("in_another", [False, True])
def test_a_memory_limit_is_kept(in_another: bool) -> None:
    limits = Limits(seconds=120, memory_bytes=300 << 20)
    with pytest.raises(ChildFailed, match=r"MiB of memory, the memory limit is 300 MiB") as caught:
        ask("hold_memory", 400, in_another, limits=limits)
    assert caught.value.reason == "memory"
    assert not psutil.Process().children()


def test_a_child_that_closes_its_pipe_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.processes.child._DYING_S", 0.5)
    with pytest.raises(ChildFailed, match="closed its output and went on running") as caught:
        ask("close_everything")
    assert caught.value.reason == "closed"
    assert not psutil.Process().children()


def test_nonsense_is_no_answer() -> None:
    with pytest.raises(ChildFailed, match="sent something that is no answer") as caught:
        ask("send_nonsense")
    assert caught.value.reason == "garbled"
    assert not psutil.Process().children()


@pytest.mark.parametrize("program", ["", None])
def test_a_python_that_does_not_know_itself(
    program: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(EnvironmentFault, match=r"sys\.executable is empty") as caught:
        ask("add", 1, 1)
    assert caught.value.exit_code == 3
    assert caught.value.hint is not None


def test_a_python_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = open_files()
    with pytest.raises(EnvironmentFault, match=r"cannot start a process: .*/no/such/python"):
        ask("add", 1, 1)
    assert open_files() == before


# --- what is left --------------------------------------------------------------------------------


def test_nothing_is_left_of_calls_that_ended_in_any_way() -> None:
    ask("add", 1, 1)
    gc.collect()
    before = open_files()
    threads = threading.active_count()
    for function, argument in (("add", 1), ("fail", "gate"), ("die", "SIGSEGV"), ("sleep", 600)):
        try:
            ask(function, argument, limits=Limits(seconds=2))
        except ResnetOptError:
            continue
    assert open_files() == before
    assert threading.active_count() == threads
    assert not psutil.Process().children()


def test_what_a_child_started_ends_with_it() -> None:
    assert_gone([psutil.Process(ask("start_and_leave"))])


# --- children that go on answering ---------------------------------------------------------------


def echo(prefix: str = "") -> Child:
    child = Child("tests.processes.targets:echo_lines", [prefix], import_from=[str(ROOT)])
    child.patience.until = None
    return child


def test_a_child_answers_until_nothing_is_asked_any_more() -> None:
    child = echo("you said ")
    for word in (b"one\n", b"two\n"):
        child.requests.write(word)
        assert child.answers.readline() == b"you said " + word
    child.end(60)
    assert child.failure().message == "crashed: its process was ended with exit code 0"
    child.end()
    with pytest.raises(BrokenPipeError):
        child.requests.write(b"three\n")
    assert child.answers.readline() == b""


def test_a_child_lives_on_when_the_thread_ends_that_started_it() -> None:
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
