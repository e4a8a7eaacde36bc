"""Whole commands killed at random moments; `benchmarks/random_kills.py` records many more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import random_kills
from random_kills import Place, Tally

from tests.torture.injecting import in_a_copy

COMMANDS = ("calibrate", "quantize", "predict")
KILLS = 6


@pytest.mark.long
def test_random_kills_leave_nothing_and_change_nothing(tmp_path: Path) -> None:
    def kill() -> int:
        tallies = random_kills.experiment(KILLS, tmp_path, names=COMMANDS, seed=1)
        faults = [fault for tally in tallies.values() for fault in tally.faults]
        (tmp_path / "faults").write_text("\n".join(faults))
        return len(faults)

    # In a copy, because loading the libraries must not change the other tests of this process.
    outcome = in_a_copy(kill, tmp_path / "nothing")
    assert outcome.status == 0, outcome.error or (tmp_path / "faults").read_text()


def test_what_is_not_whole_is_found(tmp_path: Path) -> None:
    place = Place(tmp_path / "p").make()
    (place.out / "m.onnx").write_bytes(b"half")
    (place.out / "r.json").write_text('{"digest": "x", "kind": "validate"}')
    assert random_kills.half_written(place.out) == ["m.onnx is not whole", "r.json is not whole"]


def test_what_is_left_is_found(tmp_path: Path) -> None:
    place = Place(tmp_path / "p").make()
    assert random_kills.left_behind(place, "none") == []
    (place.out / ".m.onnx.tmp").touch()
    (place.out / ".resnet-opt-training").touch()
    (place.temporary / "pixels").touch()
    (place.cache / "strange").mkdir(parents=True)
    (place.cache / "CACHEDIR.TAG").write_text("of resnet-opt")
    assert random_kills.left_behind(place, "none") == [
        "out/.m.onnx.tmp", "tmp/pixels", "cache/strange",
    ]  # fmt: skip


def test_the_table_counts_kills() -> None:
    rows: dict[str, Any] = {"build": vars(Tally(kills=30)), "train": vars(Tally(20, 1, ["x"]))}
    text = random_kills.block({"commands": json.loads(json.dumps(rows))})
    assert "| build | 30 | 0 | 0 | 0 |" in text
    assert "| all | 50 | 1 | 0 | 0 |" in text
