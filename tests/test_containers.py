"""The command line where containers run it: limits, read-only file systems, users without a home.

Each case is a real process in a mount namespace of its own, in which files are bound over those of
this machine. That needs root, so elsewhere the tests are skipped.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import optimizer
from optimizer.artifacts import read_manifest

ROOT = Path(optimizer.__file__).parents[1]
GIB = 1 << 30
NOBODY = 54321
"""A user id without an entry in ``/etc/passwd``."""
AS_NOBODY = (
    f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    # May read the interpreter wherever it is installed, and write nothing of others.
    " --inh-caps +dac_read_search --ambient-caps +dac_read_search"
)


def _can_isolate() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return tools and subprocess.run(probe, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_isolate(), reason="mount namespaces need Linux, root, unshare and setpriv"
)


def _run(prepare: str, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a mount namespace, after shell commands that prepare it."""
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f"{prepare}\n{command}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _bound_groups(folder: Path, files: dict[str, str], membership: str) -> str:
    """Shell commands that put control groups in the place of this machine's, for ``exec``."""
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    (folder / "membership").write_text(membership)
    return (
        f"mount --bind {shlex.quote(str(folder / 'groups'))} /sys/fs/cgroup\n"
        f"mount --bind {shlex.quote(str(folder / 'membership'))} /proc/$$/cgroup\n"
        "exec 2>&1"
    )


V1 = "3:memory:/x\n2:cpu:/x\n0::/\n"
QUOTAS = {
    "version 2": ({"cpu.max": "100000 100000"}, "0::/\n"),
    "version 1": ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, V1),
    "of a group above": ({"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n"),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_a_quota_of_one_core_gives_one_thread(tmp_path: Path, case: str) -> None:
    code = (
        "from optimizer.data.decoding import workers_for;"
        "from optimizer.processes import hardware_threads, usable_cores;"
        "from optimizer.processes.launching import environment;"
        "from optimizer.targets.hardware import cpu_features;"
        "print(usable_cores(), hardware_threads(), cpu_features().physical_cores,"
        " workers_for(None, 10**6), environment(None).get('OMP_NUM_THREADS', 1))"
    )
    done = _run(_bound_groups(tmp_path, *QUOTAS[case]), f"exec {_python('-c', code)}")
    assert done.stdout.split() == ["1"] * 5, done.stdout


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"memory.max": f"{GIB}"}, "0::/\n"),
        ({"memory/memory.limit_in_bytes": f"{GIB}"}, V1),
    ],
    ids=["version 2", "version 1"],
)
def test_the_memory_is_that_of_the_container(
    tmp_path: Path, files: dict[str, str], membership: str
) -> None:
    code = "from optimizer.processes import total_memory; print(total_memory())"
    done = _run(_bound_groups(tmp_path, files, membership), f"exec {_python('-c', code)}")
    assert done.stdout.split() == [str(min(GIB, psutil.virtual_memory().total))], done.stdout


def test_affinity_gives_as_many_threads() -> None:
    code = "from optimizer.processes import usable_cores; print(usable_cores())"
    done = _run("", f"taskset -c {_first_cpu()} {_python('-c', code)}")
    assert done.stdout.split() == ["1"], done.stderr


READ_ONLY = """
mount --bind "$W" "$W"
mount -o remount,bind,ro /
mount --bind "$W" "$W"
"""
NO_SHARED_MEMORY = "mount -t tmpfs -o size=4k none /dev/shm"
PLACES = {
    "read-only root": (READ_ONLY, "", {"HOME": "/root"}),
    "no shared memory": (NO_SHARED_MEMORY, "", {"HOME": "/root"}),
    "no HOME": ("", "", {}),
    "a HOME that is not there": ("", AS_NOBODY, {"HOME": "/not/there"}),
    "a user without a name": ("", AS_NOBODY, {}),
    "umask 077": ("umask 077", "", {"HOME": "/root"}),
    "a cache that cannot be made": ("", "", {"RESNET_OPT_CACHE": "/proc/cache"}),
}


@pytest.mark.long
@pytest.mark.parametrize("case", PLACES)
def test_a_build_works(tmp_path: Path, small_graph: Path, case: str) -> None:
    _build_in(tmp_path, small_graph, *PLACES[case])


def test_a_build_works_where_everything_is_missing(tmp_path: Path, small_graph: Path) -> None:
    prepare = f"{NO_SHARED_MEMORY}\n{READ_ONLY}\numask 077"
    done = _build_in(tmp_path, small_graph, prepare, AS_NOBODY, {})
    (warning,) = [line for line in done.stderr.splitlines() if "without a cache" in line]
    assert "RESNET_OPT_CACHE" in warning
    assert "--no-cache" in warning


def _build_in(
    folder: Path, graph: Path, prepare: str, user: str, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Build an engine in a folder that the user can write to, and check that it is whole."""
    work = folder / "writable"
    work.mkdir()
    work.chmod(0o777)
    shutil.copy(graph, work / "net.onnx")
    build = _python(
        "-m", "optimizer", "build", "net.onnx", "--precision", "fp32", "--engine", "openvino",
        "-o", "net.blob",
    )  # fmt: skip
    done = _run(f"{prepare}\ncd {work}", f"{user} {build}", W=str(work), **variables)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert read_manifest(work / "net.blob").details["layers"]
    return done


def test_without_any_folder_for_temporary_files_the_error_says_what_to_set(tmp_path: Path) -> None:
    code = "from optimizer.processes import call; call('os:getpid', [])"
    done = _run("mount -o remount,bind,ro /", f"cd / && {_python('-c', code)}")
    assert "EnvironmentFault" in done.stderr
    assert "set TMPDIR to a folder that can be written" in done.stderr


def _python(*arguments: str) -> str:
    return shlex.join([sys.executable, "-W", "ignore", *arguments])


def _first_cpu() -> int:
    return min(psutil.Process().cpu_affinity())
