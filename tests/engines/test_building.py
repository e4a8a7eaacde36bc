"""Builds are checked first, run in a child process, and leave nothing behind when they fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts import Cache, manifest_path
from optimizer.engines import Availability, BuildSettings, Built, get_backend, open_engine, register
from optimizer.engines.building import Limits, build_engine
from optimizer.engines.opening import check_opens
from optimizer.engines.registry import backends
from optimizer.errors import ArtifactError, BuildError, MissingDevice, MissingLibrary, UsageError
from tests.manifests import edit_manifest


class Misbehaving:
    """A backend that fails as its options request."""

    name = "misbehaving"
    suffix = ".bad"
    libraries = ("numpy",)

    def availability(self) -> Availability:
        return Availability(True, True, "always here")

    def device(self) -> dict[str, Any]:
        return {"kind": "cpu"}

    def engine_settings(self, settings: BuildSettings) -> dict[str, Any]:
        return {}

    def build(self, graph: Path, output: Path, settings: BuildSettings, progress: Any) -> Built:
        progress.start("misbehave", total=1)
        match settings.options["how"]:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("the library's own words")
            case "hang":
                output.write_text("half an engine")
                time.sleep(60)
            case "grow":
                output.write_text("half an engine")
                self._grow(settings)
        output.write_text("an engine")
        progress.advance()
        progress.finish()
        return Built(layers=[], seconds=0.0)

    def _grow(self, settings: BuildSettings) -> None:
        """Allocate 600 MiB in a process started by this one."""
        code = "import time; held = b'1' * (600 << 20); time.sleep(60)"
        started = subprocess.Popen([sys.executable, "-c", code])
        Path(settings.options["pid"]).write_text(str(started.pid))
        started.wait()

    def load(self, engine: Path, *, threads: int | None = None, device: str | None = None) -> Any:
        raise NotImplementedError


register(Misbehaving())


def _settings(how: str) -> BuildSettings:
    return BuildSettings(precision="fp32", options={"how": how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", "misbehaving's build crashed: killed by SIGSEGV"),
        ("raise", "misbehaving's build raised ValueError: the library's own words"),
        ("kill", "build was killed by SIGKILL, most likely because memory ran out"),
        ("hang", "did not finish within the time limit of 1.5 s .set a longer --build-timeout"),
    ],
)
def test_a_failing_build_leaves_nothing(
    tmp_path: Path, small_graph: Path, how: str, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        build_engine(
            small_graph,
            tmp_path / "e.bad",
            "misbehaving",
            _settings(how),
            limits=Limits(seconds=1.5 if how == "hang" else 60),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_build_over_the_memory_limit_is_killed_with_its_children(
    tmp_path: Path, small_graph: Path
) -> None:
    import psutil

    pid, folder = tmp_path / "pid", tmp_path / "engines"
    settings = BuildSettings(precision="fp32", options={"how": "grow", "pid": str(pid)})
    with pytest.raises(
        BuildError, match=r"the memory limit is 500 MiB .set a larger --memory-limit"
    ):
        build_engine(
            small_graph,
            folder / "e.bad",
            "misbehaving",
            settings,
            limits=Limits(memory_bytes=500 << 20),
        )
    assert list(folder.iterdir()) == []
    with contextlib.suppress(psutil.NoSuchProcess):
        grown = psutil.Process(int(pid.read_text()))
        deadline = time.monotonic() + 10  # releasing its memory takes a while
        while grown.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        assert grown.status() == psutil.STATUS_ZOMBIE


def test_the_peak_memory_of_a_build_excludes_the_parent(tmp_path: Path, small_graph: Path) -> None:
    held = b"1" * (400 << 20)
    built = build_engine(small_graph, tmp_path / "e.bad", "misbehaving", _settings("well"))
    assert 10 << 20 < built.manifest.details["build_peak_bytes"] < len(held)


def test_progress_crosses_the_process(tmp_path: Path, small_graph: Path) -> None:
    events: list[str] = []

    class Recorder:
        def start(self, label: str, total: int | None = None) -> None:
            events.append(f"start {label}")

        def advance(self, steps: int = 1, *, note: str | None = None) -> None:
            events.append("advance")

        def finish(self, note: str | None = None) -> None:
            events.append("finish")

    build_engine(
        small_graph, tmp_path / "e.bad", "misbehaving", _settings("well"), progress=Recorder()
    )
    assert events == ["start misbehave", "advance", "finish"]


def test_a_duplicate_name_is_refused() -> None:
    with pytest.raises(UsageError, match="exists already"):
        register(Misbehaving())


def test_every_backend_is_listed_whether_installed_or_not() -> None:
    assert {"openvino", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx"} <= set(backends())


def test_an_unknown_engine_lists_the_available_ones() -> None:
    with pytest.raises(UsageError, match="openvino"):
        get_backend("tensorflow")


def test_a_precision_other_than_the_graphs_is_refused(tmp_path: Path, small_graph: Path) -> None:
    with pytest.raises(UsageError, match="is an FP32 graph, not INT8"):
        build_engine(small_graph, tmp_path / "e.blob", "openvino", BuildSettings(precision="int8"))


def test_a_second_build_comes_from_the_cache(tmp_path: Path, small_graph: Path) -> None:
    cache, settings = Cache(tmp_path / "cache"), BuildSettings(precision="fp32")
    first = build_engine(small_graph, tmp_path / "a" / "e.blob", "openvino", settings, cache=cache)
    second = build_engine(small_graph, tmp_path / "b" / "e.blob", "openvino", settings, cache=cache)
    assert not first.cached
    assert second.cached
    assert first.manifest.sha256 == second.manifest.sha256
    open_engine(second.path).close()


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("libraries", {"openvino": "1.0"}, r"was built with openvino 1\.0, but .* is installed"),
        ("device", {"flags": ["AMX-INT8"]}, "was built for flags AMX-INT8, but this machine has"),
    ],
)
def test_an_engine_from_another_machine_is_refused_with_the_rebuild_command(
    tmp_path: Path, small_graph: Path, field: str, change: dict, message: str
) -> None:
    built = build_engine(
        small_graph, tmp_path / "e.blob", "openvino", BuildSettings(precision="fp32")
    )
    raw = json.loads(manifest_path(built.path).read_text())
    edit_manifest(built.path, **{field: {**raw[field], **change}})
    with pytest.raises(ArtifactError, match=message) as caught:
        open_engine(built.path)
    assert caught.value.hint == "resnet-opt build e.blob.graph.onnx --engine openvino -o e.blob"


@pytest.mark.parametrize(("can_build", "error"), [(True, MissingDevice), (False, MissingLibrary)])
def test_an_engine_that_cannot_run_is_refused_with_the_reason(
    tmp_path: Path, small_graph: Path, can_build: bool, error: type[Exception]
) -> None:
    class Absent(Misbehaving):
        def availability(self) -> Availability:
            return Availability(can_build, False, "no driver", "install it")

    built = build_engine(small_graph, tmp_path / "e.bad", "misbehaving", _settings("well"))
    with pytest.raises(error, match="no driver"):
        check_opens(Absent(), built.path, built.manifest)


def test_a_graph_is_not_an_engine(small_graph: Path) -> None:
    with pytest.raises(ArtifactError, match="is a graph, not an engine"):
        open_engine(small_graph)


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(tmp_path: Path, small_graph: Path) -> None:
    """Ctrl-C in the middle of a real build, as the terminal sends it: to the whole group."""
    output = tmp_path / "e.blob"
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer", "build", str(small_graph), "--no-cache",
         "--engine", "openvino", "-o", str(output)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".e.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []
