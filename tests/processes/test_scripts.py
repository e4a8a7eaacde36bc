"""Scripts without a `__main__` guard, from standard input, in threads and in event loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import ROOT

BUILDS = """
import optimizer
print("run once", flush=True)
def build():
    for engine, name in (("openvino", "m.blob"), ("onnxruntime", "m.ort.onnx")):
        print(optimizer.build({graph!r}, {out!r} + name, engine=engine, precision="fp32").path)
"""
PLAIN = BUILDS + "build()\n"
IN_A_THREAD = """
import threading
thread = threading.Thread(target=build)
thread.start()
thread.join()
"""
IN_AN_EVENT_LOOP = """
import asyncio
async def main():
    build()
asyncio.run(main())
"""
WITH_OWN_SIGNALS = """
import signal
for name in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGIO):
    signal.signal(name, signal.SIG_IGN)
build()
"""
IN_A_DELETED_FOLDER = """
import os
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
build()
"""


def run(command: list[str], folder: Path, text: str | None = None) -> list[str]:
    completed = subprocess.run(
        [sys.executable, *command],
        input=text, capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "RESNET_OPT_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def check(printed: list[str], out: str) -> None:
    """Both engines were built, and the script ran only once."""
    assert printed == ["run once", f"{out}m.blob", f"{out}m.ort.onnx"]
    for path in printed[1:]:
        assert Path(path).stat().st_size > 0


@pytest.mark.parametrize(
    "code",
    [
        PLAIN,
        pytest.param(BUILDS + IN_A_THREAD, marks=pytest.mark.long),
        pytest.param(BUILDS + IN_AN_EVENT_LOOP, marks=pytest.mark.slow),
        pytest.param(BUILDS + WITH_OWN_SIGNALS, marks=pytest.mark.long),
        pytest.param(BUILDS + IN_A_DELETED_FOLDER, marks=pytest.mark.long),
    ],
    ids=["plain", "thread", "event-loop", "signals", "deleted-folder"],
)
def test_a_script(code: str, small_graph: Path, tmp_path: Path) -> None:
    out = f"{tmp_path}/"
    (tmp_path / "script.py").write_text(code.format(graph=str(small_graph), out=out))
    check(run(["script.py"], tmp_path), out)


@pytest.mark.long
def test_a_script_from_standard_input(small_graph: Path, tmp_path: Path) -> None:
    out = f"{tmp_path}/"
    text = PLAIN.format(graph=str(small_graph), out=out)
    check(run(["-"], tmp_path, text), out)


IN_THE_SCRIPT = """
from pathlib import Path
from optimizer.engines import BuildSettings, register
from optimizer.engines.building import build_engine
from optimizer.errors import UsageError
from tests.processes.hanging import Hanging
class Own(Hanging):
    name = "own"
register(Own())
try:
    build_engine(Path({graph!r}), Path("e"), "own", BuildSettings(precision="fp32"))
except UsageError as error:
    print(error)
"""


def test_a_backend_defined_in_the_script_is_refused(small_graph: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IN_THE_SCRIPT.format(graph=str(small_graph)))
    (line,) = run(["script.py"], tmp_path)
    expected = "the backend own is defined in the main script, which build processes do not import"
    assert line.startswith(expected)
    assert "move the backend into its own module" in line
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


BESIDE_THE_SCRIPT = """
from pathlib import Path
from optimizer.engines import BuildSettings, register
from optimizer.engines.building import build_engine
import my_backend
register(my_backend.Mine())
print(build_engine(Path({graph!r}), Path("e"), "mine", BuildSettings(precision="fp32")).path)
"""
MY_BACKEND = """
import my_helper
from optimizer.engines import Built
from tests.processes.hanging import Hanging
class Mine(Hanging):
    name = "mine"
    def build(self, graph, output, settings, progress):
        output.write_text(my_helper.ENGINE)
        return Built(layers=[], seconds=0.0)
"""


def test_a_backend_in_a_module_beside_the_script_works(small_graph: Path, tmp_path: Path) -> None:
    """Its folder is searched last, although it is the current one."""
    (tmp_path / "my_backend.py").write_text(MY_BACKEND)
    (tmp_path / "my_helper.py").write_text("ENGINE = 'an engine'")
    (tmp_path / "script.py").write_text(BESIDE_THE_SCRIPT.format(graph=str(small_graph)))
    assert run(["script.py"], tmp_path) == ["e"]
    assert (tmp_path / "e").read_text() == "an engine"
