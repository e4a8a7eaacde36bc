"""Machine state, read between rounds (for GPUs also while engines compute).

Values that a system does not report are absent, never zero. This does not affect verdicts: disturbed
rounds are marked but kept, and the disturbance widens the intervals.
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

from optimizer.engines.cuda import nvml_gpus
from optimizer.engines.placement import runs_on
from optimizer.nvml import Nvml
from optimizer.results import Conditions

__all__ = ["EnergyMeter", "GpuSampler", "Gpus", "Monitor", "Reading", "gpus_of"]

OTHER_CPU_LIMIT = 0.10
"""A round is disturbed if other processes use more than this share of all cores."""
SHORTEST_COUNT_S = 0.2
"""Core seconds below which 10 ms ticks are too coarse to compute a share."""
CLOCK_LIMIT = 0.90
"""A round is disturbed if the frequency is below this share of the run's median."""
# NVML's reasons for low clocks that are real throttling, not idling or user settings.
_THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """The state after one round; shares and counts cover the time since the previous reading."""

    mhz: float | None
    load_1min: float | None
    other_cpu_share: float | None
    quota_stops: int | None
    """How often the cgroup's CPU quota throttled this process."""
    gpus: list[dict[str, Any]] = field(default_factory=list)


class Monitor:
    """Reads the machine's state; call `begin` before the first round and `read` after each one.

    Args:
        pids: Processes that belong to the measurement, in addition to the calling process.
        gpus: The GPUs that are measured; all of the machine by default.
        sysfs: Root of ``/sys``.
    """

    def __init__(
        self, pids: Iterable[int], *, gpus: Gpus | None = None, sysfs: Path = Path("/sys")
    ) -> None:
        self._pids = [os.getpid(), *pids]
        self._sysfs = sysfs
        self._gpus = gpus or Gpus()
        self._sampler = GpuSampler(self._gpus)
        self._readings: list[Reading] = []
        self._others = _cpu_of_each(self._pids)
        self._before = self._counters()

    def begin(self) -> None:
        """Start counting."""
        self._others = _cpu_of_each(self._pids)
        self._before = self._counters()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Sample GPUs while an engine computes: they throttle under load and not between rounds."""
        self._sampler.resume()
        try:
            yield
        finally:
            self._sampler.pause()

    def close(self) -> None:
        """Stop the sampler."""
        self._sampler.close()

    def read(self) -> Reading:
        """Record the state for the round that just ended."""
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
        """All readings so far, with the disturbed rounds marked."""
        from optimizer.targets.hardware import cpu_features

        readings = self._readings
        notes = list(notes)
        shares = _of_every_round([r.other_cpu_share for r in readings], 4)
        if readings and not shares:
            notes.append(
                "the load from other processes is unknown: the rounds are too short, or this system "
                "does not report it"
            )
        marked = disturbed(readings)
        if marked and (busiest := _busiest(self._others, _cpu_of_each(self._pids))):
            notes.append(f"busiest other processes: {busiest}")
        return Conditions(
            cpu=cpu_features().model,
            governor=governor(self._sysfs),
            mhz=_of_every_round([r.mhz for r in readings], 1),
            load_1min=_of_every_round([r.load_1min for r in readings], 2),
            other_cpu_share=shares,
            disturbed_rounds=marked,
            gpu=[{"round": i, **gpu} for i, r in enumerate(readings) for gpu in r.gpus],
            notes=notes,
        )

    def _counters(self) -> _Counters:
        import psutil

        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux includes guest time in `user`.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        measured = 0.0
        for pid in self._pids:
            with contextlib.suppress(psutil.Error):  # the worker has ended
                used = psutil.Process(pid).cpu_times()
                measured += used.user + used.system
        return _Counters(sum(times) - guests, idle, measured, _quota_stops(self._sysfs))


@dataclass(frozen=True)
class _Counters:
    """CPU seconds (all states, idle, used by the measurement) and quota throttling events."""

    total: float
    idle: float
    measured: float
    stops: int | None


def _cpu_of_each(excluded: Sequence[int]) -> dict[tuple[int, str], float]:
    """CPU seconds of every process except the excluded ones, by process id and name."""
    import psutil

    used = {}
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid not in excluded and times is not None:
            used[process.pid, str(process.info["name"])] = times.user + times.system
    return used


def _busiest(
    before: Mapping[tuple[int, str], float], now: Mapping[tuple[int, str], float], limit: int = 3
) -> str:
    """Names of the processes that used the most CPU time in between, at least 0.1 s each.

    Processes that started and ended in between are not visible.
    """
    used: dict[str, float] = {}
    for (pid, name), seconds in now.items():
        used[name] = used.get(name, 0.0) + max(0.0, seconds - before.get((pid, name), 0.0))
    order = sorted(used, key=lambda name: -used[name])[:limit]
    named = [f"{name} ({used[name]:.1f} s)" for name in order if used[name] >= 0.1]
    return ", ".join(named)


def _of_every_round(values: Sequence[float | None], digits: int) -> list[float]:
    """One value per round; empty if any is missing, because gaps would shift the round numbers."""
    known = [round(v, digits) for v in values if v is not None]
    return known if len(known) == len(values) else []


def _other_share(before: _Counters, now: _Counters) -> float | None:
    total = now.total - before.total
    if total < SHORTEST_COUNT_S:
        return None
    busy = total - (now.idle - before.idle)
    return min(1.0, max(0.0, busy - max(0.0, now.measured - before.measured)) / total)


def disturbed(readings: Sequence[Reading]) -> list[int]:
    """Numbers of the rounds affected by other processes, lower clocks, throttling or quotas."""
    clocks = sorted(r.mhz for r in readings if r.mhz is not None)
    median = clocks[len(clocks) // 2] if clocks else 0.0
    return [
        i
        for i, r in enumerate(readings)
        if (r.other_cpu_share or 0.0) > OTHER_CPU_LIMIT
        or (r.mhz is not None and r.mhz < CLOCK_LIMIT * median)
        or (r.quota_stops or 0) > 0
        or any(gpu.get("held_back_by") for gpu in r.gpus)
    ]


def governor(sysfs: Path = Path("/sys")) -> str | None:
    """The frequency governors of all cores, comma-separated; ``None`` if there is none."""
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
    """NVIDIA GPUs as reported by NVML; none without a driver.

    Other GPUs of the machine do not affect a measurement: they are left out, even if they are busy.

    Args:
        names: CUDA's names of the GPUs that are measured, ``cuda:1``; ``None`` for all GPUs of the
            machine.
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._nvml = Nvml()
        self._handles = self._nvml.handles
        if names is not None:
            known = nvml_gpus(self._nvml)
            self._handles = [known[name] for name in sorted(set(names)) if name in known]

    @property
    def present(self) -> bool:
        """Whether there is at least one GPU."""
        return bool(self._handles)

    def read(self) -> list[dict[str, Any]]:
        """Clocks, temperature, power and throttling reasons of each GPU, by NVML's index."""
        return [{"gpu": index, **self._read(handle)} for index, handle in self._handles]

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
        """GPU memory used by a process; ``None`` if NVML does not report it."""
        nvml = self._nvml
        used = [
            process.usedGpuMemory
            for _, handle in self._handles
            for process in nvml.get(nvml.library.nvmlDeviceGetComputeRunningProcesses, handle) or []
            if process.pid == pid and process.usedGpuMemory is not None
        ]
        return sum(used) if used else None

    def joules(self) -> float | None:
        """Energy of all GPUs since the driver was loaded; ``None`` unless all report it."""
        nvml = self._nvml
        millijoules = [
            nvml.get(nvml.library.nvmlDeviceGetTotalEnergyConsumption, handle)
            for _, handle in self._handles
        ]
        return None if not millijoules or None in millijoules else sum(millijoules) / 1e3


def gpus_of(placed: Iterable[tuple[Path, str | None]]) -> Gpus:
    """The GPUs that engines run on; all GPUs if that is unknown for one of them.

    Args:
        placed: Each engine or checkpoint, and the device it is opened on.
    """
    names = [runs_on(engine, device) for engine, device in placed]
    if None in names:  # a third-party backend
        return Gpus()
    return Gpus([name for name in names if name is not None and name != "cpu"])


class GpuSampler:
    """Reads GPUs ten times per second while engines compute, in a thread of this process.

    The thread does not disturb the timed calls, which run in worker processes.

    Args:
        gpus: The GPUs to read.
        every_s: Seconds between readings.
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
        """Start sampling; the first call starts the thread."""
        if self._thread is None and self._gpus.present and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)
            self._thread.start()
        self._computing.set()

    def pause(self) -> None:
        """Stop sampling."""
        self._computing.clear()

    def take(self) -> list[dict[str, Any]]:
        """Samples since the last call, summarized as one reading per GPU; may be empty."""
        with self._lock:
            samples, self._samples = self._samples, []
        by_gpu: dict[int, list[dict[str, Any]]] = {}
        for sample in samples:
            for gpu in sample:
                by_gpu.setdefault(gpu["gpu"], []).append(gpu)
        return [summarize_readings(readings) for readings in by_gpu.values()]

    def close(self) -> None:
        """End the thread; further calls do nothing."""
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


def summarize_readings(readings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize readings of one GPU: medians, the lowest clock and all throttling reasons."""
    summary: dict[str, Any] = {"gpu": readings[0]["gpu"], "readings": len(readings)}
    for name in ("sm_mhz", "memory_mhz", "temperature_c", "power_w"):
        values = [reading[name] for reading in readings if name in reading]
        if values:
            summary[name] = statistics.median(values)
    clocks = [reading["sm_mhz"] for reading in readings if "sm_mhz" in reading]
    if clocks:
        summary["lowest_sm_mhz"] = min(clocks)
    reasons = [reading["held_back_by"] for reading in readings if "held_back_by" in reading]
    if reasons:
        summary["held_back_by"] = list(dict.fromkeys(name for names in reasons for name in names))
    return summary


def held_back_by(reasons: int) -> list[str]:
    """Names of the throttling reasons in NVML's bit mask."""
    return [name for bit, name in _THROTTLE_REASONS.items() if reasons & bit]


class EnergyMeter:
    """Energy of all CPU packages (RAPL) and GPUs (NVML) of a measurement.

    Args:
        gpus: The GPUs that are measured; all of the machine by default.
        sysfs: Root of ``/sys``.
    """

    def __init__(self, *, gpus: Gpus | None = None, sysfs: Path = Path("/sys")) -> None:
        self._gpus = gpus or Gpus()
        self._packages = sorted(
            folder
            for folder in sysfs.glob("class/powercap/*-rapl:[0-9]*")
            if folder.name.count(":") == 1 and os.access(folder / "energy_uj", os.R_OK)
        )
        self._before = self._read()

    def begin(self) -> None:
        """Start counting."""
        self._before = self._read()

    def joules(self) -> float | None:
        """Energy since `begin`; ``None`` if no counter is available."""
        used = []
        for name, (now, wrap) in self._read().items():
            before = self._before.get(name, (now, wrap))[0]
            used.append(now - before if now >= before else now + wrap - before)
        return sum(used) if used else None

    def _read(self) -> dict[str, tuple[float, float]]:
        """Value and wrap-around of each counter in joules, by name."""
        counters = {
            folder.name: (_micro(folder / "energy_uj"), _micro(folder / "max_energy_range_uj"))
            for folder in self._packages
        }
        if (gpus := self._gpus.joules()) is not None:
            counters["gpus"] = (gpus, 0.0)
        return counters


def _micro(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6


def merge_conditions(parts: Sequence[tuple[Conditions, int]]) -> Conditions:
    """Merge the conditions of consecutive measurements, numbering rounds consecutively.

    Args:
        parts: Conditions and number of rounds of each measurement; at least one.
    """
    merged = parts[0][0].model_copy(deep=True)
    offset = parts[0][1]
    for part, rounds in parts[1:]:
        for series in ("mhz", "load_1min", "other_cpu_share"):
            first, second = getattr(merged, series), getattr(part, series)
            setattr(merged, series, first + second if first and second else [])
        merged.disturbed_rounds += [offset + i for i in part.disturbed_rounds]
        merged.gpu += [{**gpu, "round": offset + gpu["round"]} for gpu in part.gpu]
        merged.notes += [note for note in part.notes if note not in merged.notes]
        offset += rounds
    return merged
