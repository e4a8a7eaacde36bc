"""No child outlives the process that started it, however that process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes.conftest import ROOT, assert_gone, runs, wait_for_text
from tests.profiling.conftest import MakeEngine

TARGETS = "tests.processes.targets"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Parents to be killed; the fixture ends those that a failing test leaves running."""
    parents: list[subprocess.Popen[bytes]] = []
    yield parents
    for parent in parents:
        parent.kill()
        parent.wait()


def parent_that_runs(
    code: str, started: list[subprocess.Popen[bytes]], folder: Path
) -> subprocess.Popen[bytes]:
    """Start a script that runs for a long time."""
    script = folder / "parent.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (folder / "errors").open("wb") as errors:
        parent = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
    started.append(parent)
    return parent


def descendants(parent: subprocess.Popen[bytes], size: int) -> list[psutil.Process]:
    """The processes a parent has started, as soon as there are ``size``."""
    limit = time.monotonic() + 120
    while True:
        assert parent.poll() is None, "it ended by itself"
        processes = psutil.Process(parent.pid).children(recursive=True)
        if len(processes) >= size:
            return processes
        assert time.monotonic() < limit, processes
        time.sleep(0.02)


def end(parent: subprocess.Popen[bytes], how: signal.Signals) -> None:
    parent.send_signal(how)
    assert parent.wait(60) == -how


CALL = "from optimizer.processes import call\n"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "function", ["sleep", "hold_the_interpreter", "start_another", "call_another"]
)
def test_a_call(
    how: signal.Signals, function: str, started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Also while native code holds the interpreter lock, and with grandchildren."""
    marker = tmp_path / "marker"
    arguments = [600, str(marker)] if function == "sleep" else [str(marker)]
    code = f"{CALL}call('{TARGETS}:{function}', {arguments}, import_from=[{str(ROOT)!r}])"
    parent = parent_that_runs(code, started, tmp_path)
    wait_for_text(marker)
    processes = descendants(parent, 2 if function.endswith("another") else 1)
    end(parent, how)
    assert_gone(processes)
    errors = (tmp_path / "errors").read_text()
    assert errors.count("Traceback") == (how == signal.SIGINT), errors


def hanging_build(graph: Path, output: Path) -> str:
    return f"""
from pathlib import Path
from optimizer.engines import BuildSettings, register
from optimizer.engines.building import build_engine
from tests.processes.hanging import Hanging
register(Hanging())
build_engine(Path({str(graph)!r}), Path({str(output)!r}), "hanging", BuildSettings(precision="fp32"))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_build(
    how: signal.Signals,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    small_graph: Path,
) -> None:
    output = tmp_path / "engines" / "e.hanging"
    parent = parent_that_runs(hanging_build(small_graph, output), started, tmp_path)
    processes = descendants(parent, 2)  # the build and its child
    end(parent, how)
    assert_gone(processes)
    assert not output.exists()
    if how == signal.SIGINT:
        assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_measurement(
    how: signal.Signals,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    make_engine: MakeEngine,
) -> None:
    """Two workers, one of which hangs."""
    engines = [str(make_engine("a")), str(make_engine("b", hang=True, after=3))]
    code = (
        "from pathlib import Path\n"
        "from optimizer.profiling.benchmark import bench\n"
        f"bench([Path(e) for e in {engines}], threads=1, control=False, duration='1s', "
        "call_timeout_s=600)"
    )
    parent = parent_that_runs(code, started, tmp_path)
    processes = descendants(parent, 2)
    end(parent, how)
    assert_gone(processes)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_scenario_of_loadgen(
    how: signal.Signals,
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    make_engine: MakeEngine,
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install 'resnet-opt[loadgen]'")
    request = {
        "engine": str(make_engine(busy_ms=5.0)), "scenario": "single-stream", "folder": "",
        "duration_s": 600, "threads": 1, "batch": 1,
    }  # fmt: skip
    code = (
        "from optimizer.profiling.loadgen_request import Request\n"
        "from optimizer.profiling.scenarios import run_scenario\n"
        f"run_scenario('e', 'single-stream', Request(**{request}))"
    )
    parent = parent_that_runs(code, started, tmp_path)
    processes = descendants(parent, 1)
    (folder,) = tmp_path.glob(".loadgen.resnet-opt-*")
    limit = time.monotonic() + 120
    while not (folder / "mlperf_log_detail.txt").exists():  # LoadGen's test is running
        assert time.monotonic() < limit
        time.sleep(0.02)
    end(parent, how)
    assert_gone(processes)
    if how == signal.SIGINT:
        assert not folder.exists()


@pytest.mark.slow
def test_a_build_of_the_command_line(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, small_graph: Path
) -> None:
    output = tmp_path / "out" / "e.blob"
    code = (
        "import sys\n"
        "from optimizer.cli import main\n"
        f"sys.argv = ['resnet-opt', 'build', {str(small_graph)!r}, '--no-cache', '--engine', "
        f"'openvino', '-o', {str(output)!r}]\n"
        "main()"
    )
    parent = parent_that_runs(code, started, tmp_path)
    processes = descendants(parent, 1)
    end(parent, signal.SIGKILL)
    assert_gone(processes)
    assert not output.exists()


FORKED = f"""
import os, time
from pathlib import Path
from optimizer.processes import Child
child = Child("{TARGETS}:echo_lines", [""], import_from=[{str(ROOT)!r}])
if os.fork() == 0:
    child.end()
    Path("copy").write_text(str(os.getpid()))
    time.sleep(600)
while not Path("copy").exists():
    time.sleep(0.02)
child.requests.write(b"still there?\\n")
Path("answer").write_bytes(str(child.pid).encode() + b" " + child.answers.readline())
child.answers.readline()
"""


def test_a_forked_copy_neither_ends_nor_keeps_a_child(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.fork`, also in multiprocessing, copies the ends of the pipes."""
    monkeypatch.chdir(tmp_path)
    parent = parent_that_runs(FORKED, started, tmp_path)
    copy = psutil.Process(int(wait_for_text(tmp_path / "copy")))
    try:
        pid, answer = wait_for_text(tmp_path / "answer").split(maxsplit=1)
        assert answer == "still there?\n"
        child = psutil.Process(int(pid))
        end(parent, signal.SIGKILL)
        assert_gone([child])
        assert runs(copy)
    finally:
        copy.kill()


WATCHED = """
import fcntl, os, subprocess, sys, time
for name in ("F_SETSIG",) if sys.argv[1] == "thread" else ():
    delattr(fcntl, name)
from optimizer.processes.child_main import _end_with_parent
watched, life = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.close(life)
    _end_with_parent(watched)
    started = subprocess.Popen(["sleep", "600"])
    open(sys.argv[2], "w").write(f"{os.getpid()} {started.pid}")
    time.sleep(600)
os.close(watched)
time.sleep(600)
"""


@pytest.mark.parametrize("by", ["kernel", "thread"])
def test_the_kernel_or_a_thread_watches_the_parent(
    by: str, started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    parent = subprocess.Popen(
        [sys.executable, "-c", WATCHED, by, str(marker)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started.append(parent)
    group = [psutil.Process(int(pid)) for pid in wait_for_text(marker).split()]
    parent.kill()
    assert_gone(group)
