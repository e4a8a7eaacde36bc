"""Cores, threads and memory within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from optimizer import processes
from optimizer.processes import resources
from optimizer.processes.resources import (
    available_memory,
    cpu_quota,
    hardware_threads,
    limit_library_threads,
    memory_limit,
    total_memory,
    usable_cores,
)

GIB = 1 << 30
V1 = "4:memory:/\n3:cpu,cpuacct:/\n0::/\n"
NO_LIMIT_V1 = "9223372036854771712\n"


def _groups(folder: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    """A tree of control groups as the kernel shows it, and the groups of a process in it."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (folder / "self").write_text(membership)
    return root, folder / "self"


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 0.5),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            V1,
            2.0,
        ),
        # A limit of a group above counts, and so does one that only the process's own group has.
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 3.0),
        ({"a/cpu.max": "max 100000\n", "a/b/cpu.max": "100000 100000"}, "0::/a/b\n", 1.0),
        # The mount begins at the container's group: the path of the membership is not there.
        ({"cpu.max": "100000 100000\n"}, "0::/docker/0123\n", 1.0),
        # Another group's limit does not count.
        ({"a/cpu.max": "max 100000\n", "c/cpu.max": "100000 100000"}, "0::/a\n", None),
        ({"cpu.max": "garbage\n"}, "0::/\n", None),
        ({"cpu.max": "100000 0\n"}, "0::/\n", None),
    ],
)
def test_cpu_quota(
    tmp_path: Path, files: dict[str, str], membership: str, cores: float | None
) -> None:
    assert cpu_quota(*_groups(tmp_path, files, membership)) == cores


@pytest.mark.parametrize(
    ("files", "membership", "limit"),
    [
        ({}, "0::/\n", None),
        ({"memory.max": "max\n"}, "0::/\n", None),
        ({"memory.max": f"{2 * GIB}\n"}, "0::/\n", 2 * GIB),
        ({"a/memory.max": f"{GIB}\n", "a/b/memory.max": f"{2 * GIB}\n"}, "0::/a/b\n", GIB),
        ({"memory/memory.limit_in_bytes": NO_LIMIT_V1}, V1, None),
        ({"memory/memory.limit_in_bytes": f"{3 * GIB}\n"}, V1, 3 * GIB),
    ],
)
def test_memory_limit(
    tmp_path: Path, files: dict[str, str], membership: str, limit: int | None
) -> None:
    assert memory_limit(*_groups(tmp_path, files, membership)) == limit


@pytest.mark.parametrize(
    ("prefix", "limit", "used", "stat"),
    [
        ("", "memory.max", "memory.current", "anon 9\ninactive_file 1000\n"),
        (
            "memory/",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "inactive_file 5\ntotal_inactive_file 1000\n",
        ),
    ],
)
def test_available_memory_ends_at_the_limit(
    tmp_path: Path, prefix: str, limit: str, used: str, stat: str
) -> None:
    files = {
        f"{prefix}{limit}": "1000000\n",
        f"{prefix}{used}": "900000\n",
        f"{prefix}memory.stat": stat,
    }
    membership = V1 if prefix else "0::/\n"
    assert available_memory(*_groups(tmp_path, files, membership)) == 101_000


def test_a_quota_limits_every_count(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert 1 <= usable_cores() <= hardware_threads() <= allowed
    for quota, threads in ((0.5, 1), (1.0, 1), (1.9, 1), (1e6, min(allowed, hardware_threads()))):
        monkeypatch.setattr(resources, "cpu_quota", lambda quota=quota: quota)
        assert hardware_threads() == threads
        assert usable_cores() == min(threads, psutil.cpu_count(logical=False) or 1)


def test_libraries_get_a_limit_under_a_quota_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_allowed_cpus", lambda: 64)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 32)
    monkeypatch.setattr(resources, "cpu_quota", lambda: None)
    assert limit_library_threads({}) == {}
    monkeypatch.setattr(resources, "cpu_quota", lambda: 2.0)
    assert limit_library_threads({"OMP_NUM_THREADS": "8"}) == {
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
    }


def test_memory_is_the_limit_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = psutil.virtual_memory().total
    monkeypatch.setattr(resources, "memory_limit", lambda: None)
    assert total_memory() == machine
    monkeypatch.setattr(resources, "memory_limit", lambda: GIB)
    assert total_memory() == GIB
    monkeypatch.setattr(resources, "memory_limit", lambda: machine * 2)
    assert total_memory() == machine


def test_a_missing_home_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.home_variable({"HOME": "/nowhere"}) == {}
    monkeypatch.setattr(Path, "home", classmethod(_no_home))
    assert processes.home_variable({}) == {"HOME": "/"}


def _no_home(cls: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")
