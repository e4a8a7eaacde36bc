"""GPU records: their content, what they must not contain, and their replay.

The recorded sessions run on the simulated GPU. Records of real machines are replayed if there are any, in
``tests/gpu_record/records/`` or as named by ``RESNET_OPT_GPU_RECORD``.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import optimizer.engines.cuda as cuda
import optimizer.gpu_record.recording as recording
from optimizer.engines.cuda import cuda_devices
from optimizer.engines.tensorrt.library import TENSORRT_RTX, find
from optimizer.environment import describe
from optimizer.errors import ArtifactError, MissingDevice, ResnetOptError, UnsupportedPrecision
from optimizer.gpu_record import read_record, record
from optimizer.gpu_record.cuda_checks import check_cuda
from optimizer.gpu_record.engine_steps import PROFILES as PROFILES_RECORDED
from optimizer.gpu_record.engine_steps import images as recorded_images
from optimizer.gpu_record.recorded_calls import Calls
from optimizer.gpu_record.recorded_session import drive, recorded
from optimizer.gpu_record.storage import Cleaner, RecordFile
from optimizer.progress import Silent
from tests.engines.tensorrt import graphs
from tests.engines.tensorrt.hostgpu import HostCuda, HostEngine, opened
from tests.gpu.time_limit import RECORD, seconds_left, skip_after

from .replay import Different, replayed

PROFILES = [(1, 1, 1), (2, 4, 8)]
RECORDS = [
    *sorted((Path(__file__).parent / "records").glob("*.zip")),
    *([Path(os.environ["RESNET_OPT_GPU_RECORD"])] if "RESNET_OPT_GPU_RECORD" in os.environ else []),
]


@pytest.fixture(scope="module")
def trt() -> Any:
    installed = find(TENSORRT_RTX)
    if installed.module is None:
        pytest.skip(str(installed.fault))
    return installed.module


@pytest.fixture
def engine(trt: Any, tmp_path: Path) -> HostEngine:
    graph = graphs.save_resnet(tmp_path / "model.onnx", width=8)
    return HostEngine(trt, HostCuda(), graph, PROFILES)


def batches() -> list[Any]:
    return [graphs.images(best) for _, best, _ in PROFILES]


def record_session(engine: HostEngine) -> tuple[dict[str, Any], list[Any]]:
    calls = Calls()
    results = drive(recorded(opened(engine), calls), batches())
    # As read from the file.
    return json.loads(json.dumps(results)), json.loads(json.dumps(calls.entries))


def test_recorded_session_replays(trt: Any, engine: HostEngine) -> None:
    results, entries = record_session(engine)
    assert engine.cuda.held == 0
    assert results["run 1"] == [4, graphs.CLASSES]
    assert [x["time_ms"] for x in results["layer times 1"]] == [1.5, 0.5]
    assert {x["profile"] for x in results["layer times 1"]} == {1}
    assert results["gpu_ms 0"] == [2.0, 2.0, 2.0]
    assert results["notes"] == []
    again, player = replayed(entries, trt)
    assert json.loads(json.dumps(drive(again, batches()))) == results
    assert player.at == len(entries), "every recorded call was replayed"


def test_recorded_failures_replay(trt: Any, engine: HostEngine) -> None:
    """Failures of an allocation, a profile switch, a capture and an inference."""
    clean = HostEngine(trt, HostCuda(), Path(engine.session._model_path), PROFILES)
    record_session(clean)
    steps = clean.cuda.calls
    for call in ("malloc", "set_optimization_profile_async", "capture_end", "execute_async_v3"):
        one = HostEngine(trt, HostCuda(), Path(engine.session._model_path), PROFILES)
        one.cuda.fail_at[steps.index(call)] = "refused"
        results, entries = record_session(one)
        text = json.dumps(results)
        assert '"error"' in text or "cannot be captured as a CUDA graph" in text, call
        again, _ = replayed(entries, trt)
        replay = json.loads(json.dumps(drive(again, batches())))
        assert _without_reasons(replay) == _without_reasons(results), call
        assert one.cuda.held == 0


def _without_reasons(results: dict[str, Any]) -> dict[str, Any]:
    """Reasons come from the library's log, which is recorded separately."""
    return {
        name: {"error": value["error"]} if isinstance(value, dict) and "error" in value else value
        for name, value in results.items()
        if name != "notes"
    }


def test_different_calls_are_reported(trt: Any, engine: HostEngine) -> None:
    _, entries = record_session(engine)
    at = next(i for i, entry in enumerate(entries) if entry[2] == "infer_shapes")
    again, player = replayed(entries[:at] + entries[at + 1 :], trt)
    with pytest.raises(Different):
        drive(again, batches())
    # Closing the session makes different calls too.
    assert player.differences[0].startswith("context 0 call infer_shapes; recorded:")


def test_cuda_checks() -> None:
    api = HostCuda()
    api.allocations_left = None
    real = api.malloc

    def malloc(size: int) -> int:
        if size > 1 << 40:
            raise ResnetOptError("malloc: out of memory (CUDA error 2)")
        return real(size)

    api.malloc = malloc  # type: ignore[method-assign]
    results = check_cuda(api)
    assert results["round trip"]["same"]
    assert results["round trip"]["ms"] == 1.0
    assert results["capture of a copy"]["same"] == [True, True]
    assert results["out of memory"] == {
        "refused": "malloc: out of memory (CUDA error 2)",
        "goes on": True,
    }
    assert api.held == 0
    lost = HostCuda()
    lost.fail_at[3] = "device lost"
    assert all(
        "error" in part or part["same"] != [True, True] for part in check_cuda(lost).values()
    )
    assert lost.held == 0


# --- the file --------------------------------------------------------------------------------------


SECRETS = (
    "somebody", "secret-machine", "acme", "project-x", "Bob", "Smith", "bo", "nets", "catdog",
)  # fmt: skip


@pytest.fixture
def cleaner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cleaner:
    import getpass
    import platform

    home = tmp_path / "home" / "somebody"
    (home / "project-x").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project-x")
    monkeypatch.setattr(platform, "node", lambda: "secret-machine.acme.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    return Cleaner({tmp_path / "record": "<record>"})


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("{tmp}/record/fp16.onnx cannot be read", "<record>/fp16.onnx cannot be read"),
        ("{home}/nets/catdog.onnx", "<home>"),
        ("{home}/project-x/nets/catdog.onnx: no such file", "<cwd>: no such file"),
        ("open '/data/somebody/nets/catdog.onnx'", "open '<path>'"),
        ("/mnt/c/Users/Bob Smith/nets/catdog.onnx", "<path>"),
        ("/mnt/bo/env/lib/python3.12/site-packages/tensorrt/a.so", "<path>/site-packages/tensorrt/a.so"),
        ("/opt/acme/lib/libcuda.so.1: cannot open", "<path>/libcuda.so.1: cannot open"),
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"),
        ("In compileGraph at /_src/optimizer/myelin.cpp:1500", None),
        ("by Somebody@secret-machine", "by <name>@<name>"),
        ("host SECRET-MACHINE.acme.example", "host <name>"),
        ("somebody_else", "<name>_else"),
        ("layer1.0.conv1 + layer1.0.relu", None),
        ("[ONNX Layer: layer1.0.conv2][ONNX Layer: layer1.0.relu]", None),
        ("images/s and a/b", None),
    ],
)  # fmt: skip
def test_personal_data_is_removed(
    tmp_path: Path, cleaner: Cleaner, dirty: str, clean: str | None
) -> None:
    dirty = dirty.format(tmp=tmp_path, home=tmp_path / "home" / "somebody")
    assert cleaner.text(dirty) == (dirty if clean is None else clean)


def test_personal_data_is_removed_at_every_depth(cleaner: Cleaner) -> None:
    nested = {
        "/data/somebody/nets": ["/data/acme/project-x/a", {"who": "somebody"}, 3, None, True],
        "kept": ["layer1.0.conv1", 1.5],
    }
    text = json.dumps(cleaner.clean(nested))
    assert not [secret for secret in SECRETS if secret in text]
    assert json.loads(text)["kept"] == nested["kept"]


def test_file_is_valid_after_every_step(tmp_path: Path) -> None:
    path = tmp_path / "gpu.zip"
    file = RecordFile(path, Cleaner())
    assert read_record(path) == []
    for number in range(3):
        file.add("machine", {"number": number})
        assert [one["number"] for one in read_record(path)] == list(range(number + 1))
        assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_files_that_are_not_records(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "gpu.zip"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("record.json", '{"schema": 99}')
    else:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"gpu\.zip"):
        read_record(path)
    with pytest.raises(ArtifactError):
        read_record(tmp_path / "none.zip")


def test_a_step_that_fails_does_not_end_the_record(tmp_path: Path) -> None:
    path = tmp_path / "gpu.zip"
    file = RecordFile(path, Cleaner())
    with recording._step(file, "first one", Silent()) as entry:
        entry["before"] = 1
        raise ResnetOptError("it went wrong", hint="nothing")
    with recording._step(file, "second", Silent()):
        raise ZeroDivisionError("not foreseen")
    with recording._step(file, "third", Silent()):
        raise UnsupportedPrecision("FP8 needs sm89 or later")
    first, second, third = read_record(path)
    assert (first["step"], first["status"], first["before"]) == ("first-one", "failed", 1)
    assert (second["status"], second["error"]) == ("crashed", "ZeroDivisionError")
    assert (third["status"], third["message"]) == ("unsupported", "FP8 needs sm89 or later")


def test_a_process_that_dies_leaves_what_it_recorded(trt: Any, engine: HostEngine) -> None:
    """A call that ends the process is the last line of its file."""
    stream = io.StringIO()
    calls = Calls(stream=stream)
    context = engine.create_execution_context()
    assert context is not None

    def die(stream_handle: int) -> bool:
        raise SystemExit(stream_handle)

    context.execute_async_v3 = die  # type: ignore[method-assign]
    wrapped = calls.wrap("context", context)
    wrapped.set_input_shape("images", (1, 3, graphs.IMAGE, graphs.IMAGE))
    with pytest.raises(SystemExit):
        wrapped.execute_async_v3(7)
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert first[2] == "set_input_shape"
    assert last == ["context 0", "call", "execute_async_v3", [7]]


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
def test_a_step_in_its_own_process(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX builds without a GPU; the step then ends where a GPU is needed."""
    monkeypatch.setattr(cuda, "cuda_status", lambda: pytest.fail("not in this process"))
    graph = graphs.save_resnet(tmp_path / "model.onnx", precision="fp16")
    entry: dict[str, Any] = {}
    deadline = time.monotonic() + 200
    arguments = ["tensorrt-rtx", "fp16", graph]
    with pytest.raises(MissingDevice, match="needs a GPU"):
        recording._in_child("tensorrt_step", arguments, tmp_path, entry, deadline)
    assert entry["build s"] > 0
    assert entry["audit"]["verdict"] == "pass"
    assert {layer["profile"] for layer in entry["layers"] if "profile" in layer} == {1}
    assert any(severity == "INFO" for severity, _ in entry["build log"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_a_step_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_LEAST_SECONDS", 0.05)
    path = tmp_path / "gpu.zip"
    with recording._step(RecordFile(path, Cleaner()), "cuda", Silent()) as entry:
        recording._in_child("cuda_step", [], tmp_path, entry, deadline=0.0)
    (step,) = read_record(path)
    assert (step["status"], step["error"]) == ("crashed", "deadline")


def test_time_for_a_record_is_limited() -> None:
    entry: dict[str, Any] = {}
    assert not recording._begins(True, entry, deadline=0.0)
    assert entry == {"status": "skipped", "message": "the time for the record is up"}
    assert recording._begins(True, {}, deadline=time.monotonic() + 60)


def test_backends_of_other_packages_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    described = describe()
    private = {"acme": described.backends["torch"]}
    changed = described.model_copy(update={"backends": {**described.backends, **private}})
    monkeypatch.setattr(recording, "describe", lambda: changed)
    assert "acme" not in recording._environment()["backends"]
    assert "tensorrt-rtx" in recording._environment()["backends"]


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
def test_record_without_a_gpu(tmp_path: Path) -> None:
    (machine,) = read_record(record(tmp_path / "gpu.zip"))
    assert machine["status"] == "ok"
    assert machine["environment"]["gpus"] == []
    assert machine["environment"]["gpu_software"]["answer"]
    assert str(Path.home()) not in json.dumps(machine) or str(Path.home()) == "/"


# --- real ones -------------------------------------------------------------------------------------


def test_records_of_real_machines_replay(trt: Any) -> None:
    if not RECORDS:
        pytest.skip("there is no record of a real GPU: resnet-opt doctor --record makes one")
    for path in RECORDS:
        for step in read_record(path):
            if "calls" not in step:
                continue
            again, player = replayed(step["calls"], trt)
            batches_of = [recorded_images(best) for _, best, _ in PROFILES_RECORDED]
            replay = json.loads(json.dumps(drive(again, batches_of)))
            assert _without_reasons(replay) == _without_reasons(step["session"]), step["step"]
            assert player.at == len(step["calls"])


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_record_on_a_gpu() -> None:
    if not cuda_devices():
        pytest.skip("there is no GPU")
    folder = Path(__file__).parents[2] / "reports" / "gpu"
    folder.mkdir(exist_ok=True)
    skip_after(RECORD)
    steps = read_record(record(folder / "record.zip", seconds=seconds_left(RECORD)))
    assert [step["step"] for step in steps][:3] == ["machine", "cuda", "materials"]
    crashed = [step for step in steps if step["status"] == "crashed"]
    assert not [step["step"] for step in crashed if step["error"] != "deadline"]
