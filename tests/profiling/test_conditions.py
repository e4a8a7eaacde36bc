"""Machine conditions: readings, disturbed rounds and absent values."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from optimizer.profiling.conditions import (
    EnergyMeter,
    Gpus,
    Monitor,
    Reading,
    _busiest,
    _cpu_of_each,
    disturbed,
    governor,
    held_back_by,
    merge_conditions,
)
from optimizer.results import Conditions


def reading(**values) -> Reading:
    defaults = {"mhz": 3000.0, "load_1min": 1.0, "other_cpu_share": 0.01, "quota_stops": 0}
    return Reading(**{**defaults, **values})


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


def test_unknown_values_are_no_disturbance() -> None:
    unknown = Reading(mhz=None, load_1min=None, other_cpu_share=None, quota_stops=None)
    assert disturbed([unknown] * 3) == []
    assert disturbed([]) == []
    assert disturbed([reading(gpus=[{"gpu": 0, "held_back_by": []}])]) == []


def test_nvml_throttling_reasons() -> None:
    assert held_back_by(0) == []
    assert held_back_by(0x1 | 0x2) == [], "idle, and set so by the user"
    assert held_back_by(0x4 | 0x40) == ["power cap", "thermal, hardware"]


class Machine:
    """A fake psutil for a machine with two cores; `work` advances its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pid = os.getpid()
        self.spent = {(self.pid, "python"): 1.0}
        self.idle = self.guest = 0.0
        monkeypatch.setattr(psutil, "cpu_times", self._cpu_times)
        monkeypatch.setattr(psutil, "Process", self._process)
        monkeypatch.setattr(psutil, "process_iter", lambda _: map(self._listed, self.spent))

    def work(self, seconds: float, *, used: dict[tuple[int, str], float]) -> None:
        """Let seconds pass in which processes used core seconds."""
        for process, cores in used.items():
            self.spent[process] = self.spent.get(process, 0.0) + cores
        self.idle += 2 * seconds - sum(used.values())

    def _cpu_times(self) -> Any:
        busy = sum(self.spent.values())
        # Linux includes guest time in user time.
        return namedtuple("Times", "user idle iowait guest")(busy, self.idle, 0.0, self.guest)

    def _process(self, pid: int) -> Any:
        times = [spent for (number, _), spent in self.spent.items() if number == pid]
        if not times:
            raise psutil.NoSuchProcess(pid)
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=times[0], system=0.0))

    def _listed(self, process: tuple[int, str]) -> Any:
        times = SimpleNamespace(user=self.spent[process], system=0.0)
        return SimpleNamespace(pid=process[0], info={"name": process[1], "cpu_times": times})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_other_processes_are_distinguished_from_the_measurement(machine: Machine) -> None:
    """Load counts as a disturbance unless the process belongs to the measurement."""
    worker, other = (8, "python"), (9, "cc1plus")
    machine.work(1.0, used={worker: 0.1, other: 0.1})
    theirs, ours = Monitor([]), Monitor([8])
    machine.work(1.0, used={(machine.pid, "python"): 0.1, worker: 0.8, other: 0.5})
    machine.guest += 0.3
    assert theirs.read().other_cpu_share == pytest.approx((0.8 + 0.5) / 2.0)
    assert ours.read().other_cpu_share == pytest.approx(0.5 / 2.0)
    machine.work(1.0, used={worker: 1.0, other: 0.0})
    assert theirs.read().other_cpu_share == pytest.approx(0.5)
    assert ours.read().other_cpu_share == 0


def test_cpu_time_of_a_real_process_is_counted() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        deadline = time.monotonic() + 60
        while sum(psutil.Process(process.pid).cpu_times()[:2]) < 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        alone = Monitor([])._counters()
        counted = Monitor([process.pid])._counters()
        assert counted.measured >= alone.measured + 0.05
        assert counted.total >= counted.idle > 0
        others = _cpu_of_each([process.pid])
        assert process.pid not in {pid for pid, _ in others}
        assert (process.pid, psutil.Process(process.pid).name()) in _cpu_of_each([])
    finally:
        process.kill()
        process.wait()


def test_a_summary_has_a_value_for_every_round_or_none_at_all(machine: Machine) -> None:
    monitor = Monitor([])
    for share in (0.0, 0.1, 0.25):
        monitor.begin()
        machine.work(0.5, used={(9, "cc1plus"): share})
        monitor.read()
    summary = monitor.summary(["a note"])
    assert summary.cpu
    assert summary.other_cpu_share == [0.0, 0.1, 0.25]
    assert len(summary.load_1min) == 3
    assert len(summary.mhz) in {0, 3}
    assert summary.notes[0] == "a note"
    assert summary.gpu == [] or Gpus().read()


def test_rounds_shorter_than_the_ticks_are_reported(machine: Machine) -> None:
    monitor = Monitor([])
    machine.work(0.09, used={(9, "cc1plus"): 0.05})
    monitor.read()
    summary = monitor.summary()
    assert summary.other_cpu_share == []
    assert any("too short" in note for note in summary.notes)


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
    rapl(tmp_path, "intel-rapl:1", 1_000_000)  # its counter wrapped around
    rapl(tmp_path, "intel-rapl:0:0", 900_000_000)
    if not Gpus().read():
        assert meter.joules() == pytest.approx(2.5 + 2.0)


def test_conditions_of_consecutive_measurements_are_merged() -> None:
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
    whole = merge_conditions([(first, 2), (second, 1)])
    assert whole.mhz == [1.0, 2.0, 3.0]
    assert whole.load_1min == [], "missing in the second: no list with gaps"
    assert whole.disturbed_rounds == [1, 2]
    assert whole.gpu == [{"round": 2, "gpu": 0}]
    assert whole.notes == ["n", "m"]
    assert first.disturbed_rounds == [1], "inputs are not modified"


def test_disturbing_processes_are_named(machine: Machine) -> None:
    """Busy processes are named unless they belong to the measurement."""
    machine.work(1.0, used={(8, "python3"): 0.1, (9, "cc1plus"): 0.1})
    monitor = Monitor([8])
    machine.work(1.0, used={(8, "python3"): 1.0, (9, "cc1plus"): 0.6})
    monitor.read()
    summary = monitor.summary()
    assert summary.disturbed_rounds == [0]
    assert summary.notes == ["busiest other processes: cc1plus (0.6 s)"]


def test_only_the_busiest_processes_are_named() -> None:
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
