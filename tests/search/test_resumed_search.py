"""A search that was killed goes on where it was, and chooses what an undisturbed one chooses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts import Cache, UnfinishedWork, unfinished
from optimizer.data import open_dataset
from optimizer.options import QuantizeOptions
from optimizer.progress import Silent
from optimizer.results import SearchResult, read_result
from optimizer.search import layer_timing, mixed_search
from tests.search.networks import OPTIONS, data, graph_file


class Computed(Silent):
    """Counts the parts that are computed, ends the search before one, keeps what it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        self.die_after: int | None = None
        self.said: list[str] = []
        part = UnfinishedWork.part

        def counted(work: UnfinishedWork, kind: str, items: Any, compute: Callable[[], Any]) -> Any:
            def computed() -> Any:
                if len(self.kinds) == self.die_after:
                    raise KeyboardInterrupt
                result = compute()
                self.kinds.append(kind)
                return result

            return part(work, kind, items, computed)

        monkeypatch.setattr(UnfinishedWork, "part", counted)

    def finish(self, note: str | None = None) -> None:
        self.said.append(str(note))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    graph_file(folder / "m.onnx")
    data(folder / "c.npz", 400, 1)
    return folder


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    return Computed(monkeypatch)


def _search(
    folder: Path,
    output: Path,
    computed: Computed,
    target: str = "tensorrt",
    max_drop: str = "1pp",
) -> tuple[SearchResult, list[str]]:
    """The result without its date, and the kinds of the parts that were computed."""
    computed.kinds, computed.said = [], []
    output.mkdir(exist_ok=True)
    options = QuantizeOptions(
        precision="mixed", target=target, calib=str(folder / "c.npz"), calib_images=64,
        max_drop=max_drop, **OPTIONS.as_given(),
    )  # fmt: skip
    mixed_search.search(
        folder / "m.onnx", output / "m.encodings.json", open_dataset(folder / "c.npz"), options,
        result=output / "m.search.json", cache=Cache(output / "cache"), progress=computed,
    )  # fmt: skip
    result = read_result(output / "m.search.json")
    assert isinstance(result, SearchResult)
    return result.model_copy(update={"created": ""}), computed.kinds


def test_a_search_that_was_stopped_loses_one_part(
    folder: Path, tmp_path: Path, computed: Computed
) -> None:
    expected, everything = _search(folder, tmp_path / "undisturbed", computed)
    encodings = (tmp_path / "undisturbed" / "m.encodings.json").read_bytes()
    assert len(expected.front) > 2
    ranked = everything.index("sqnr") + 2
    for count in (ranked, len(everything) - 1):
        output = tmp_path / str(count)
        computed.die_after = count
        with pytest.raises(KeyboardInterrupt):
            _search(folder, output, computed)
        computed.die_after = None
        result, kinds = _search(folder, output, computed)
        assert kinds == everything[count:]
        assert result == expected
        assert (output / "m.encodings.json").read_bytes() == encodings
        assert list((output / "cache" / "searches").iterdir()) == []
    measured, evaluated = (
        next(int(found[1]) for text in computed.said if (found := re.search(pattern, text)))
        for pattern in (r"measurements stored before: (\d+)", r"graphs evaluated before: (\d+)")
    )
    assert measured >= len(expected.sensitivity)
    assert evaluated in {len(expected.front) - 1, len(expected.front)}


def test_layers_are_timed_once(
    folder: Path, tmp_path: Path, computed: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other times the rerun would walk another way than the stored graphs."""
    timed = []
    measure = layer_timing.measured_costs
    monkeypatch.setattr(
        layer_timing, "measured_costs", lambda *a: timed.append(measure(*a)) or timed[-1]
    )
    computed.die_after = 4
    with pytest.raises(KeyboardInterrupt):
        _search(folder, tmp_path, computed, "openvino", "100pp")
    assert "layer times" in computed.kinds
    computed.die_after = None
    result, kinds = _search(folder, tmp_path, computed, "openvino", "100pp")
    assert kinds == ["outputs"]
    (costs,) = timed
    assert result.cost_source == "measured"
    assert result.int8_ms == costs.predict(())


def test_a_full_disk_and_damaged_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"x": np.arange(3.0)}

    def of(work: UnfinishedWork) -> tuple[list[float], str]:
        arrays, note = work.part("kind", [1, "a"], lambda: (values, "text"))
        return arrays["x"].tolist(), note

    first = UnfinishedWork(tmp_path, {"job": 1})
    assert of(first) == ([0.0, 1.0, 2.0], "text")
    for other in (UnfinishedWork(tmp_path, {"job": 2}), UnfinishedWork(None, {"job": 1})):
        assert of(other) == ([0.0, 1.0, 2.0], "text")
        assert other.found["kind"] == 0
    again = UnfinishedWork(tmp_path, {"job": 1})
    assert of(again) == ([0.0, 1.0, 2.0], "text")
    assert again.found["kind"] == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    damaged = UnfinishedWork(tmp_path, {"job": 1})
    assert of(damaged) == ([0.0, 1.0, 2.0], "text")
    assert damaged.found["kind"] == 0
    damaged.clear()
    assert len(list(tmp_path.iterdir())) == 1  # of the other job
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "write_tensors", full)
    unstored = UnfinishedWork(tmp_path, {"job": 1})
    assert list(tmp_path.iterdir()) == []  # nobody came back for it
    assert of(unstored) == ([0.0, 1.0, 2.0], "text")
    assert unstored.error == "No space left on device"


@pytest.mark.long
def test_a_killed_process_loses_one_part(folder: Path, tmp_path: Path) -> None:
    data(tmp_path / "d.npz", 64, 2)
    command = [
        sys.executable, "-m", "optimizer", "quantize", folder / "m.onnx", "--precision", "mixed",
        "--target", "tensorrt", "--calib", folder / "c.npz", "--data", tmp_path / "d.npz",
        "--max-drop", "1pp", "--method", "minmax", "--no-equalize",
    ]  # fmt: skip

    def run(name: str, kill_at: int | None) -> tuple[SearchResult | None, int, str]:
        """The result, the parts that are stored after a kill, and what was said."""
        output = tmp_path / name
        output.mkdir(exist_ok=True)
        stored = output / "cache" / "searches"
        with (output / "stderr").open("wb") as errors, subprocess.Popen(
            [*map(str, command), "-o", str(output / "m.onnx")], stderr=errors,
            stdout=subprocess.DEVNULL, env={**os.environ, "RESNET_OPT_CACHE": str(output / "cache")},
        ) as child:  # fmt: skip
            while kill_at is not None and child.poll() is None:
                if len(list(stored.glob("[0-9a-f]*"))) >= kill_at:
                    child.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.01)
        said = (output / "stderr").read_text()
        parts = len(list(stored.glob("[0-9a-f]*")))
        if child.returncode == -signal.SIGKILL:
            return None, parts, said
        result = read_result(output / "m.search.json")
        assert isinstance(result, SearchResult)
        return result, parts, said

    expected, _, _ = run("undisturbed", None)
    killed, parts, _ = run("killed", 6)
    assert killed is None
    assert parts >= 6
    result, left, said = run("killed", None)
    assert expected is not None
    assert result is not None
    assert (result.front, result.chosen) == (expected.front, expected.chosen)
    assert left == 0
    assert "measurements stored before: " in said
    assert "graphs evaluated before: " in said
