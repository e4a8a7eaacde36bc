"""How the command line ends: closed pipes, signals, odd environments, results on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optimizer.results import read_result

from .conftest import Command

ROOT = Path(__file__).parents[2]
START = "import sys; from optimizer.cli import main; sys.argv[0] = 'resnet-opt'; main()"


def start(*words: object, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", START, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,  # type: ignore[call-overload]
    )  # fmt: skip


VERDICT = """
import sys
from optimizer.errors import Inconclusive
from optimizer.cli import commands, main

def verb(*_, **__):
    class Comparison:
        def as_text(self): return "x" * 200_000
        def error(self): return Inconclusive("too few images")
    return Comparison()

import optimizer.verbs.compare as module
module.compare = verb
sys.argv = ["resnet-opt", "compare", "a.json", "b.json"]
main()
"""


def test_a_closed_pipe_does_not_hide_the_verdict() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", VERDICT], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.wait(120) == 6
        assert b"error: too few images" in process.stderr.read()


def test_errors_are_printed_whatever_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("0", "", "00"):
        monkeypatch.setenv("COLUMNS", columns)
        with start("inspect", "absent") as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert b"error: no such file: absent" in errors


@pytest.mark.long
def test_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setenv("PYTHONUTF8", "0")
    for name in (os.fsdecode(b"\xff\xfe.onnx"), "é.onnx"):
        (tmp_path / name).write_bytes(b"no graph")
        for verb in ("inspect", "calibrate", "predict"):
            more = ["--calib", "digits:train", "-o", "s.npz"] if verb == "calibrate" else []
            more = ["x.png"] if verb == "predict" else more
            with start(verb, name, *more, cwd=tmp_path) as process:
                _, errors = process.communicate(timeout=120)
            assert process.returncode == 2, errors
            assert b"internal error" not in errors
            assert errors.startswith(b"error: ")


def test_a_deleted_current_folder(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); {START}"
    for words in (["calibrate", "m.onnx", "--calib", "x", "-o", "s.npz"], ["--version"]):
        gone.mkdir(exist_ok=True)
        completed = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=gone, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert completed.returncode in ({0} if words == ["--version"] else {2, 3}), completed.stderr
        assert "internal error" not in completed.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_ends_a_run_unless_nohup_ignores_it(tmp_path: Path, ignored: bool) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"
        "import optimizer.cli.app as app\n"
        "def wait(_):\n"
        f"    pathlib.Path({str(ready)!r}).write_text('x')\n"
        "    try:\n"
        "        time.sleep(600 if not signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else 1)\n"
        "    except KeyboardInterrupt:\n"
        "        return app.INTERRUPTED\n"
        "    return 0\n"
        "app.run_command_line = wait\n"
        "app.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        end = time.monotonic() + 120
        while not ready.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == (0 if ignored else 130)


@pytest.mark.slow
def test_results_go_to_standard_output(
    resnet_opt: Command, small_graph: Path, small_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    completed = resnet_opt(
        "validate", small_graph, "--reference", small_checkpoint, "--data", "digits:test",
        "--limit", 20, "-o", "-",
    )  # fmt: skip
    assert completed.code in {0, 4, 6}, completed.err
    assert json.loads(completed.out)["kind"] == "validate"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "v.json").write_text(completed.out)
    assert read_result(tmp_path / "v.json").kind == "validate"
    refused = resnet_opt("export", small_checkpoint, "-o", "-")
    assert refused.code == 2
    assert "only validate, bench and profile write to standard output" in refused.err


def test_a_changed_graph_is_refused_by_every_verb(
    resnet_opt: Command, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "m.onnx"
    data = bytearray(small_graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    Path(f"{graph}.json").write_bytes(Path(f"{small_graph}.json").read_bytes())
    calib = ["--calib", "digits:train", "-o", tmp_path / "out"]
    for line in (
        ["inspect", graph],
        ["calibrate", graph, *calib],
        ["quantize", graph, *calib],
        ["build", graph, "-o", tmp_path / "m.blob"],
        ["validate", graph, "--reference", small_checkpoint, "--data", "digits:test", "-o",
         tmp_path / "v.json"],
    ):  # fmt: skip
        completed = resnet_opt(*line)
        assert completed.code == 2, line
        assert "m.onnx was changed since its manifest was written" in completed.err, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


def test_a_relabelled_manifest_is_refused(
    resnet_opt: Command, small_graph: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "m.onnx"
    graph.write_bytes(small_graph.read_bytes())
    for change in ({"libraries": {}}, {"settings": {"precision": "int8"}}):
        raw = {**json.loads(Path(f"{small_graph}.json").read_text()), **change}
        Path(f"{graph}.json").write_text(json.dumps(raw))
        completed = resnet_opt("inspect", graph)
        assert completed.code == 2
        assert "its key does not follow from its other fields" in completed.err
    Path(f"{graph}.json").write_text("[" * 100_000)
    completed = resnet_opt("inspect", graph)
    assert completed.code == 2
    assert "m.onnx.json is damaged" in completed.err
