"""The machine between rounds: what is read, what is marked, what is absent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from optimizer.profiling.conditions import (
    EnergyMeter,
    Gpus,
    Monitor,
    Reading,
    _busiest,
    disturbed,
    governor,
    held_back_by,
    joined,
)
from optimizer.results import Conditions


def reading(**values) -> Reading:
    usual = {"mhz": 3000.0, "load_1min": 1.0, "other_cpu_share": 0.01, "quota_stops": 0}
    return Reading(**{**usual, **values})


@pytest.mark.parametrize(
    "disturbance",
    [
        {"other_cpu_share": 0.3},
        {"mhz": 2000.0},
        {"quota_stops": 1},
        {"gpus": [{"gpu": 0, "held_back_by": ["power cap"]}]},
    ],
)
def test_a_disturbed_round_is_marked(disturbance: dict) -> None:
    readings = [reading() for _ in range(5)]
    readings[3] = reading(**disturbance)
    assert disturbed(readings) == [3]


def test_what_is_not_known_is_no_disturbance() -> None:
    unknown = Reading(mhz=None, load_1min=None, other_cpu_share=None, quota_stops=None)
    assert disturbed([unknown] * 3) == []
    assert disturbed([]) == []
    assert disturbed([reading(gpus=[{"gpu": 0, "held_back_by": []}])]) == []


def test_nvml_reasons_that_hold_clocks_back() -> None:
    assert held_back_by(0) == []
    assert held_back_by(0x1 | 0x2) == [], "idle, and set so by the user"
    assert held_back_by(0x4 | 0x40) == ["power cap", "thermal, hardware"]


def burn(seconds: float) -> subprocess.Popen:
    code = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    return subprocess.Popen([sys.executable, "-c", code])


def test_other_processes_are_told_from_our_own() -> None:
    """The same load counts as a disturbance, or as the measurement, by whose it is."""
    process = burn(1.6)
    try:
        theirs, ours = Monitor([]), Monitor([process.pid])
        time.sleep(0.1)
        theirs.begin()
        ours.begin()
        before, started = _used(process), time.monotonic()
        time.sleep(0.8)
        given = (_used(process) - before) / (time.monotonic() - started)
        seen, known = theirs.read(), ours.read()
    finally:
        process.wait()
    assert seen.other_cpu_share is not None
    assert known.other_cpu_share is not None
    # Other work on this machine moves both alike; the difference is what the one process was given.
    assert seen.other_cpu_share - known.other_cpu_share > 0.5 * given / (os.cpu_count() or 1)


def _used(process: subprocess.Popen) -> float:
    """Seconds of a core that the process has had."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def test_a_summary_has_a_value_for_every_round_or_none_at_all() -> None:
    monitor = Monitor([])
    for _ in range(3):
        monitor.begin()
        time.sleep(0.15)
        monitor.read()
    found = monitor.summary(["a note"])
    assert found.cpu
    assert len(found.other_cpu_share) == 3
    assert all(0 <= share <= 1 for share in found.other_cpu_share)
    assert len(found.load_1min) == 3
    assert len(found.mhz) in {0, 3}
    assert found.notes[0] == "a note"
    assert found.gpu == []


def test_rounds_too_short_for_the_ticks_say_so() -> None:
    monitor = Monitor([])
    monitor.read()
    found = monitor.summary()
    assert found.other_cpu_share == []
    assert any("too short" in note for note in found.notes)


def test_the_governor_is_absent_or_read(tmp_path: Path) -> None:
    assert governor(tmp_path) is None
    for cpu, name in enumerate(["powersave", "performance", "powersave"]):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(name + "\n")
    assert governor(tmp_path) == "performance, powersave"


def test_a_containers_quota_is_counted(tmp_path: Path) -> None:
    stat = tmp_path / "fs/cgroup/cpu.stat"
    stat.parent.mkdir(parents=True)
    stat.write_text("usage_usec 12\nnr_periods 5\nnr_throttled 7\n")
    monitor = Monitor([], sysfs=tmp_path)
    monitor.begin()
    stat.write_text("usage_usec 15\nnr_periods 6\nnr_throttled 9\n")
    assert monitor.read().quota_stops == 2
    assert monitor.summary().disturbed_rounds == [0]


def rapl(root: Path, name: str, microjoules: int, wrap: int = 1_000_000_000) -> None:
    folder = root / "class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{wrap}\n")


def test_energy_of_the_packages_is_added_up(tmp_path: Path) -> None:
    assert EnergyMeter(sysfs=tmp_path).joules() is None or Gpus().read()
    rapl(tmp_path, "intel-rapl:0", 5_000_000)
    rapl(tmp_path, "intel-rapl:1", 999_000_000)
    rapl(tmp_path, "intel-rapl:0:0", 1)  # cores within package 0: part of it
    meter = EnergyMeter(sysfs=tmp_path)
    meter.begin()
    rapl(tmp_path, "intel-rapl:0", 7_500_000)
    rapl(tmp_path, "intel-rapl:1", 1_000_000)  # its counter started again
    rapl(tmp_path, "intel-rapl:0:0", 900_000_000)
    if not Gpus().read():
        assert meter.joules() == pytest.approx(2.5 + 2.0)


def test_conditions_of_measurements_after_each_other() -> None:
    first = Conditions(
        cpu="x", mhz=[1.0, 2.0], load_1min=[0.1, 0.2], disturbed_rounds=[1], notes=["n"]
    )
    second = Conditions(
        cpu="x",
        mhz=[3.0],
        disturbed_rounds=[0],
        gpu=[{"round": 0, "gpu": 0}],
        notes=["n", "m"],
    )
    whole = joined([(first, 2), (second, 1)])
    assert whole.mhz == [1.0, 2.0, 3.0]
    assert whole.load_1min == [], "the second does not tell: no list with gaps"
    assert whole.disturbed_rounds == [1, 2]
    assert whole.gpu == [{"round": 2, "gpu": 0}]
    assert whole.notes == ["n", "m"]
    assert first.disturbed_rounds == [1], "parts are left as they are"


def test_what_disturbed_a_run_is_named() -> None:
    """A process that burns time beside the rounds is told by its name; our own are not."""
    burn = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    own = subprocess.Popen([sys.executable, "-c", burn])
    other = subprocess.Popen([sys.executable, "-c", burn])
    try:
        monitor = Monitor([own.pid])
        time.sleep(0.3)  # both have started
        monitor.begin()
        time.sleep(1.0)
        monitor.read()
        told = monitor.summary()
        name = psutil.Process(other.pid).name()
        spent = sum(psutil.Process(other.pid).cpu_times()[:2])
    finally:
        for process in (own, other):
            process.kill()
            process.wait()
    if told.disturbed_rounds and spent > 0.5:  # many cores, or a starved process: nothing to tell
        note = next(n for n in told.notes if n.startswith("of the other processes"))
        assert name in note


def test_only_the_busiest_are_named_by_what_they_used_meanwhile() -> None:
    before = {(1, "idle"): 100.0, (2, "busy"): 5.0, (3, "python"): 0.0, (4, "python"): 1.0}
    now = {
        (1, "idle"): 100.05,
        (2, "busy"): 6.0,
        (3, "python"): 2.0,
        (4, "python"): 2.5,
        (5, "new"): 0.2,
    }
    assert _busiest(before, now) == "python (3.5 s), busy (1.0 s), new (0.2 s)"
    assert _busiest(before, before) == ""
