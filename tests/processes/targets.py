"""Functions that children run in these tests. Imports nothing that a trap folder could shadow."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import optimizer
from optimizer.errors import AccuracyGateFailed, MissingDevice, ResnetOptError
from optimizer.processes import call, give_up


def add(a: Any, b: Any) -> Any:
    return a + b


def look_around() -> dict[str, Any]:
    return {
        "package": optimizer.__file__,
        "path": sys.path,
        "arguments": sys.argv,
        "main": sys.modules["__main__"].__dict__.get("__file__"),
        "stdin": os.read(0, 100),
        "group": os.getpgrp(),
        "session": os.getsid(0),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "descriptors": [entry.name for entry in Path("/proc/self/fd").iterdir()],
        "threads": {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "cpus": sorted(os.sched_getaffinity(0)),
        "first_to_go": Path("/proc/self/oom_score_adj").read_text().strip(),
    }


def import_module(name: str) -> str:
    return str(__import__(name).__file__)


class OddError(ResnetOptError):
    """Cannot be unpickled: its constructor takes other arguments."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}", hint="another number")

    def __reduce__(self) -> Any:
        return OddError, ("no", "such", "arguments")


def fail(how: str) -> None:
    if how == "gate":
        raise AccuracyGateFailed("lost too much", hint="quantize less")
    if how == "device":
        raise MissingDevice("no such GPU", hint="plug it in")
    if how == "odd":
        raise OddError(7)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "exit":
        sys.exit("no more")
    raise ValueError("two\nlines")


def die(how: str) -> None:
    print("the library's last words", flush=True)
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(600)


def close_everything() -> None:
    os.closerange(3, 256)
    time.sleep(600)


def send_nonsense() -> None:
    for descriptor in range(3, 256):
        try:
            os.write(descriptor, b"\x00" * 7 + b"\x04nope" + b"x" * 100)
        except OSError:
            continue
    time.sleep(600)


def sleep(seconds: float, marker: str | None = None) -> None:
    if marker is not None:
        Path(marker).write_text(str(os.getpid()))
    time.sleep(seconds)


def hold_the_interpreter(marker: str) -> None:
    """Native code that holds the interpreter lock."""
    Path(marker).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def start_another(marker: str) -> None:
    """Start a foreign process and wait for it."""
    started = subprocess.Popen(["sleep", "600"])
    Path(marker).write_text(f"{os.getpid()} {started.pid}")
    started.wait()


def start_and_leave() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def call_another(marker: str) -> None:
    """A child that starts a child with `call`."""
    call("tests.processes.targets:sleep", [600, marker])


def hold_memory(mebibytes: int, in_another: bool) -> None:
    if in_another:
        code = f"import time; held = b'1' * ({mebibytes} << 20); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code]).wait()
    held = b"1" * (mebibytes << 20)
    time.sleep(600)
    del held


def report_steps(*, progress: Any) -> str:
    progress.start("count", total=2)
    progress.advance()
    progress.advance(note="done")
    progress.finish("two")
    return "counted"


def give_up_in_a_thread(how: str) -> None:
    def work() -> None:
        try:
            fail(how)
        except Exception as error:  # noqa: BLE001 - like callbacks from native code
            give_up(error)

    threading.Thread(target=work).start()
    time.sleep(600)


def print_a_lot() -> str:
    print("x" * 200_000)
    os.system("echo printed by another process")
    return "result"


def echo_lines(prefix: str, requests: BinaryIO, answers: BinaryIO) -> None:
    for line in requests:
        answers.write(prefix.encode() + line)
        answers.flush()
