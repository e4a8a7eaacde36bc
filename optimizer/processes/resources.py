"""What this process may use: cores, memory and threads, within the limits of its container.

A container's limits are those of its control group and of every group above it, in version 1 or 2
(`Linux kernel documentation`, ``admin-guide/cgroup-v2.rst`` and ``cgroup-v1/memory.rst``). What the
system reports elsewhere (``os.cpu_count``, ``/proc/meminfo``) is the whole machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = [
    "THREAD_VARIABLES",
    "available_memory",
    "cpu_quota",
    "hardware_threads",
    "limit_library_threads",
    "memory_limit",
    "total_memory",
    "usable_cores",
]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that the libraries read when they are loaded."""
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Compute threads that can run at the same time, each on a core of its own.

    The smallest of the CPUs that this process may run on, the physical cores, and the container's
    CPU quota. A quota of 2.5 cores counts as 2: a third thread would be stopped for a part of each
    period, and the others would wait for it.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or 1
    return max(1, min(hardware_threads(), physical))


def hardware_threads() -> int:
    """Hardware threads that this process may use, for work that does not fill a core.

    As `usable_cores`, but a core with two hardware threads counts twice.
    """
    allowed = _allowed_cpus()
    quota = cpu_quota()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def _allowed_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """The CPU quota of the container, in cores.

    Args:
        root: Where the control groups (version 1 or 2) are mounted.
        membership: The groups of this process, as ``/proc/self/cgroup`` lists them.

    Returns:
        ``None`` if it is unlimited or unknown.
    """
    quotas = []
    for group in _groups(root, membership, "cpu"):
        quota_file, period_file = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
        words = _words(group / "cpu.max") or [*_words(quota_file), *_words(period_file)]
        numbers = [int(word) for word in words if word.isdecimal()]
        if len(numbers) == 2 and numbers[1] > 0:  # "max" and "-1" are no limit
            quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)


def memory_limit(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """The memory limit of the container in bytes; ``None`` if there is none.

    Args:
        root: As for `cpu_quota`.
        membership: As for `cpu_quota`.
    """
    limits = [limit for _, limit in _limited_groups(root, membership)]
    return min(limits, default=None)


def total_memory() -> int:
    """Memory that this process may use, in bytes: the machine's, or the container's limit."""
    import psutil

    machine = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return machine if limit is None else min(machine, limit)


def available_memory(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Memory that can be allocated now, in bytes, on the machine and within the container's limit.

    File pages that the kernel can drop count as available.

    Args:
        root: As for `cpu_quota`.
        membership: As for `cpu_quota`.
    """
    import psutil

    rooms = [int(psutil.virtual_memory().available)]
    for group, limit in _limited_groups(root, membership):
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if used:
            rooms.append(max(0, limit - int(used[0]) + _droppable(group)))
    return min(rooms)


def limit_library_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that keep libraries from starting more threads than a CPU quota allows.

    Libraries count CPUs, not quotas. Without a quota they choose well by themselves.

    Args:
        environment: The environment variables; those that are set there are left alone.

    Returns:
        The variables to add; empty without a quota.
    """
    if hardware_threads() >= _allowed_cpus():
        return {}
    count = str(usable_cores())
    return {name: count for name in THREAD_VARIABLES if name not in environment}


def _limited_groups(root: Path, membership: Path) -> Iterator[tuple[Path, int]]:
    """The groups with a memory limit, and the limit in bytes."""
    for group in _groups(root, membership, "memory"):
        words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        # Version 1 writes "no limit" as the largest multiple of a page below 2**63.
        if words and words[0].isdecimal() and int(words[0]) < 1 << 60:
            yield group, int(words[0])


def _droppable(group: Path) -> int:
    """Bytes of file pages that the kernel can drop, by the group's own count."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.partition(" ")[::2] for line in lines)
    inactive = fields.get("total_inactive_file", fields.get("inactive_file", "0"))
    return int(inactive)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all groups above it, where they can be seen.

    In a container the folder that ``membership`` names often does not exist, because the mount
    begins at the container's own group. Then the mount's root is that group.
    """
    for line in _lines(membership) or ["0::/"]:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        for mount in dict.fromkeys(mounts):
            group = mount / path.lstrip("/")
            while group != mount and mount in group.parents:
                yield group
                group = group.parent
            yield mount


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    """The words of a control file; none if it is not there or the kernel refuses."""
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
