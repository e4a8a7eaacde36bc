"""The state of the machine, read between rounds; of GPUs also while engines compute.

What a system does not tell is absent, never zero. Nothing here decides a verdict: a disturbed
round is marked and kept, and the interval of the result is as wide as the disturbance made it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.nvml import Nvml
from optimizer.results import Conditions

__all__ = ["EnergyMeter", "GpuSampler", "Gpus", "Monitor", "Reading"]

OTHER_CPU_LIMIT = 0.10
"""Share of all cores that other processes may use in a round that counts as undisturbed."""
SHORTEST_COUNT_S = 0.2
"""Core seconds below which the system's ticks of 10 ms are too coarse to tell a share."""
CLOCK_LIMIT = 0.90
"""A round with less than this share of the run's median frequency is disturbed."""
# Reasons for low GPU clocks that mean "held back" and not "idle" or "set so by the user".
_THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """The state after one round; shares and counts are about the time since the reading before."""

    mhz: float | None
    load_1min: float | None
    other_cpu_share: float | None
    quota_stops: int | None
    """How often a container's CPU quota stopped it."""
    gpus: list[dict[str, Any]] = field(default_factory=list)


class Monitor:
    """Reads the machine's state; `begin` before the first round, `read` after each one.

    Args:
        pids: The processes that belong to the measurement; the calling process is one of them.
        sysfs: Root of ``/sys``.
    """

    def __init__(self, pids: Iterable[int], *, sysfs: Path = Path("/sys")) -> None:
        self._pids = [os.getpid(), *pids]
        self._sysfs = sysfs
        self._gpus = Gpus()
        self._sampler = GpuSampler(self._gpus)
        self._readings: list[Reading] = []
        self._others = _cpu_of_each(self._pids)
        self._before = self._counters()

    def begin(self) -> None:
        """Count from now on."""
        self._others = _cpu_of_each(self._pids)
        self._before = self._counters()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """While an engine computes: GPUs hold their clocks back then, and not between rounds."""
        self._sampler.resume()
        try:
            yield
        finally:
            self._sampler.pause()

    def close(self) -> None:
        """Stop reading."""
        self._sampler.close()

    def read(self) -> Reading:
        """Read the state and keep it as that of the round just over."""
        before, now = self._before, self._counters()
        reading = Reading(
            mhz=_mhz(),
            load_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            other_cpu_share=_other_share(before, now),
            quota_stops=None
            if now.stops is None or before.stops is None
            else now.stops - before.stops,
            gpus=self._sampler.take() or self._gpus.read(),
        )
        self._readings.append(reading)
        self._before = self._counters()
        return reading

    def summary(self, notes: Sequence[str] = ()) -> Conditions:
        """Everything read so far, with the disturbed rounds marked."""
        from optimizer.targets.hardware import cpu_features

        readings = self._readings
        found = list(notes)
        shares = _of_every_round([r.other_cpu_share for r in readings], 4)
        if readings and not shares:
            found.append(
                "how busy other processes were cannot be told: the rounds are too short, "
                "or this system does not count"
            )
        marked = disturbed(readings)
        if marked and (busiest := _busiest(self._others, _cpu_of_each(self._pids))):
            found.append(f"of the other processes, most time was used by {busiest}")
        return Conditions(
            cpu=cpu_features().model,
            governor=governor(self._sysfs),
            mhz=_of_every_round([r.mhz for r in readings], 1),
            load_1min=_of_every_round([r.load_1min for r in readings], 2),
            other_cpu_share=shares,
            disturbed_rounds=marked,
            gpu=[{"round": i, **gpu} for i, r in enumerate(readings) for gpu in r.gpus],
            notes=found,
        )

    def _counters(self) -> _Counters:
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time in `user` as well.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):  # a worker that ended keeps no time
                spent = psutil.Process(pid).cpu_times()
                own += spent.user + spent.system
        return _Counters(sum(times) - guests, idle, own, _quota_stops(self._sysfs))


@dataclass(frozen=True)
class _Counters:
    total: float
    idle: float
    own: float
    stops: int | None


def _cpu_of_each(own: Sequence[int]) -> dict[tuple[int, str], float]:
    """CPU seconds of every process but those of the measurement, by id and name."""
    import psutil

    spent = {}
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid not in own and times is not None:
            spent[process.pid, str(process.info["name"])] = times.user + times.system
    return spent


def _busiest(
    before: Mapping[tuple[int, str], float], now: Mapping[tuple[int, str], float], most: int = 3
) -> str:
    """The names that used most time in between, those below a tenth of a second left out.

    What began and ended in between is in neither reading, and so not here.
    """
    used: dict[str, float] = {}
    for (pid, name), seconds in now.items():
        used[name] = used.get(name, 0.0) + max(0.0, seconds - before.get((pid, name), 0.0))
    order = sorted(used, key=lambda name: -used[name])[:most]
    named = [f"{name} ({used[name]:.1f} s)" for name in order if used[name] >= 0.1]
    return ", ".join(named)


def _of_every_round(values: Sequence[float | None], digits: int) -> list[float]:
    """One value a round, or none at all: a list with gaps would be read by the wrong round."""
    known = [round(v, digits) for v in values if v is not None]
    return known if len(known) == len(values) else []


def _other_share(before: _Counters, now: _Counters) -> float | None:
    total = now.total - before.total
    if total < SHORTEST_COUNT_S:
        return None
    busy = total - (now.idle - before.idle)
    return min(1.0, max(0.0, busy - max(0.0, now.own - before.own)) / total)


def disturbed(readings: Sequence[Reading]) -> list[int]:
    """Numbers of the rounds in which something else used, slowed or stopped the processors."""
    clocks = sorted(r.mhz for r in readings if r.mhz is not None)
    usual = clocks[len(clocks) // 2] if clocks else 0.0
    return [
        i
        for i, r in enumerate(readings)
        if (r.other_cpu_share or 0.0) > OTHER_CPU_LIMIT
        or (r.mhz is not None and r.mhz < CLOCK_LIMIT * usual)
        or (r.quota_stops or 0) > 0
        or any(gpu.get("held_back_by") for gpu in r.gpus)
    ]


def governor(sysfs: Path = Path("/sys")) -> str | None:
    """The governor of all cores; several are joined; ``None`` where there is none."""
    files = sysfs.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({f.read_text(encoding="ascii").strip() for f in files})) or None


def _mhz() -> float | None:
    import psutil

    with contextlib.suppress(OSError, NotImplementedError):
        frequency = psutil.cpu_freq()
        if frequency is not None and frequency.current > 0:
            return float(frequency.current)
    return None


def _quota_stops(sysfs: Path) -> int | None:
    for path in ("fs/cgroup/cpu.stat", "fs/cgroup/cpu/cpu.stat"):
        with contextlib.suppress(OSError, ValueError):
            for line in (sysfs / path).read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "nr_throttled":
                    return int(value)
    return None


class Gpus:
    """NVIDIA's GPUs as NVML tells them; none where there is no driver."""

    def __init__(self) -> None:
        self._nvml = Nvml()

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return bool(self._nvml.handles)

    def read(self) -> list[dict[str, Any]]:
        """Clocks, temperature, power and what holds the clocks back, of every GPU."""
        return [{"gpu": index, **self._read(handle)} for index, handle in self._nvml.handles]

    def _read(self, handle: Any) -> dict[str, Any]:
        nvml, get = self._nvml.library, self._nvml.get
        values: dict[str, Any] = {
            "sm_mhz": get(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": get(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": get(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        }
        power = get(nvml.nvmlDeviceGetPowerUsage, handle)
        values["power_w"] = None if power is None else power / 1e3
        reasons = get(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if reasons is not None:
            values["held_back_by"] = held_back_by(reasons)
        return {name: value for name, value in values.items() if value is not None}

    def memory_bytes(self, pid: int) -> int | None:
        """GPU memory that a process holds; ``None`` if NVML does not know the process."""
        nvml = self._nvml
        used = [
            process.usedGpuMemory
            for _, handle in nvml.handles
            for process in nvml.get(nvml.library.nvmlDeviceGetComputeRunningProcesses, handle) or []
            if process.pid == pid and process.usedGpuMemory is not None
        ]
        return sum(used) if used else None

    def joules(self) -> float | None:
        """Energy of all GPUs since the driver was loaded; ``None`` unless every one tells."""
        nvml = self._nvml
        read = [
            nvml.get(nvml.library.nvmlDeviceGetTotalEnergyConsumption, handle)
            for _, handle in nvml.handles
        ]
        return None if not read or None in read else sum(read) / 1e3


class GpuSampler:
    """Reads GPUs ten times a second while they compute, in a thread of this process.

    Engines compute in processes of their own, whose calls are the ones that are timed.

    Args:
        gpus: What to read.
        every_s: Seconds between two readings.
    """

    def __init__(self, gpus: Gpus, every_s: float = 0.1) -> None:
        self._gpus = gpus
        self._every_s = every_s
        self._samples: list[list[dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._computing = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Read from now on; the thread is started when it is first needed."""
        if self._thread is None and self._gpus.present and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)
            self._thread.start()
        self._computing.set()

    def pause(self) -> None:
        """Read no more."""
        self._computing.clear()

    def take(self) -> list[dict[str, Any]]:
        """What was read since the last time, as one reading a GPU; empty if nothing was."""
        with self._lock:
            samples, self._samples = self._samples, []
        of_each: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            for gpu in sample:
                of_each.setdefault(gpu["gpu"], []).append(gpu)
        return [summed_up(readings) for readings in of_each.values()]

    def close(self) -> None:
        """End the thread; twice is harmless."""
        self._ended.set()
        self._computing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._computing.clear()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._computing.wait()
            if self._ended.is_set():
                return
            sample = self._gpus.read()
            with self._lock:
                self._samples.append(sample)


def summed_up(readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Readings of one GPU as one: medians, the lowest clock, and every reason to hold clocks back."""
    found: dict[str, Any] = {"gpu": readings[0]["gpu"], "readings": len(readings)}
    for name in ("sm_mhz", "memory_mhz", "temperature_c", "power_w"):
        values = [reading[name] for reading in readings if name in reading]
        if values:
            found[name] = statistics.median(values)
    clocks = [reading["sm_mhz"] for reading in readings if "sm_mhz" in reading]
    if clocks:
        found["lowest_sm_mhz"] = min(clocks)
    reasons = [reading["held_back_by"] for reading in readings if "held_back_by" in reading]
    if reasons:
        found["held_back_by"] = list(dict.fromkeys(name for some in reasons for name in some))
    return found


def held_back_by(reasons: int) -> list[str]:
    """Names of the reasons in NVML's bit mask that hold clocks back."""
    return [name for bit, name in _THROTTLE_REASONS.items() if reasons & bit]


class EnergyMeter:
    """Energy of processor packages (RAPL) and GPUs (NVML), of the whole machine.

    Args:
        sysfs: Root of ``/sys``.
    """

    def __init__(self, *, sysfs: Path = Path("/sys")) -> None:
        self._gpus = Gpus()
        self._packages = sorted(
            folder
            for folder in sysfs.glob("class/powercap/*-rapl:[0-9]*")
            if folder.name.count(":") == 1 and os.access(folder / "energy_uj", os.R_OK)
        )
        self._before = self._read()

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def joules(self) -> float | None:
        """Energy since `begin`; ``None`` where nothing tells."""
        spent = []
        for name, (now, wrap) in self._read().items():
            before = self._before.get(name, (now, wrap))[0]
            spent.append(now - before if now >= before else now + wrap - before)
        return sum(spent) if spent else None

    def _read(self) -> dict[str, tuple[float, float]]:
        """Counter and the value at which it starts again, in joules, by its name."""
        read = {
            folder.name: (_micro(folder / "energy_uj"), _micro(folder / "max_energy_range_uj"))
            for folder in self._packages
        }
        if (gpus := self._gpus.joules()) is not None:
            read["gpus"] = (gpus, 0.0)
        return read


def _micro(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6


def joined(parts: Sequence[tuple[Conditions, int]]) -> Conditions:
    """The conditions of measurements that followed each other, their rounds numbered on.

    Args:
        parts: Conditions and number of rounds of each, at least one.
    """
    whole = parts[0][0].model_copy(deep=True)
    before = parts[0][1]
    for part, rounds in parts[1:]:
        for series in ("mhz", "load_1min", "other_cpu_share"):
            known = getattr(whole, series)
            more = getattr(part, series)
            setattr(whole, series, known + more if known and more else [])
        whole.disturbed_rounds += [before + i for i in part.disturbed_rounds]
        whole.gpu += [{**gpu, "round": before + gpu["round"]} for gpu in part.gpu]
        whole.notes += [note for note in part.notes if note not in whole.notes]
        before += rounds
    return whole
