"""GPU records: their content, what they must not contain, and their replay.

The recorded sessions run on the simulated GPU. Records of real machines are replayed if there are any, in
``tests/gpu_record/records/`` or as named by ``RESNET_OPT_GPU_RECORD``.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

import optimizer.gpu_record.recording as recording
from optimizer.engines.cuda import cuda_devices
from optimizer.engines.tensorrt.library import TENSORRT_RTX, find
from optimizer.errors import ArtifactError, ResnetOptError
from optimizer.gpu_record import read_record, record
from optimizer.gpu_record.cuda_checks import check_cuda
from optimizer.gpu_record.recorded_calls import Calls
from optimizer.gpu_record.recorded_session import drive, recorded
from optimizer.gpu_record.storage import Cleaner, RecordFile
from tests.engines.tensorrt import graphs
from tests.engines.tensorrt.hostgpu import HostCuda, HostEngine, opened

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


def test_record_contains_no_personal_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform

    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(platform, "node", lambda: "secret-machine")
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    cleaner = Cleaner({tmp_path: "<record>"})
    dirty = {
        "path": f"{tmp_path}/model.onnx cannot be read",
        "nested": ["/home/somebody/nets/a.onnx", {"who": "somebody on secret-machine"}],
        "kept": ["layer1.0.conv1", 3, None, True],
    }
    cleaned = cleaner.clean(dirty)
    text = json.dumps(cleaned)
    for secret in (str(tmp_path), "somebody", "secret-machine", str(Path.cwd())):
        assert secret not in text
    assert cleaned["path"] == "<record>/model.onnx cannot be read"
    assert cleaned["nested"][0] == "<home>/nets/a.onnx"
    assert cleaned["kept"] == dirty["kept"]


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
    from optimizer.progress import Silent

    path = tmp_path / "gpu.zip"
    file = RecordFile(path, Cleaner())
    with recording._step(file, "first one", Silent()) as entry:
        entry["before"] = 1
        raise ResnetOptError("it went wrong", hint="nothing")
    with recording._step(file, "second", Silent()):
        raise ZeroDivisionError("not foreseen")
    first, second = read_record(path)
    assert (first["step"], first["status"], first["before"]) == ("first-one", "failed", 1)
    assert (second["status"], second["error"]) == ("crashed", "ZeroDivisionError")


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
            images = [recording._images(best) for _, best, _ in recording.PROFILES]
            replay = json.loads(json.dumps(drive(again, images)))
            assert _without_reasons(replay) == _without_reasons(step["session"]), step["step"]
            assert player.at == len(step["calls"])


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_record_on_a_gpu() -> None:
    if not cuda_devices():
        pytest.skip("there is no GPU")
    folder = Path(__file__).parents[2] / "reports" / "gpu"
    folder.mkdir(exist_ok=True)
    steps = read_record(record(folder / "record.zip"))
    assert [step["step"] for step in steps][:3] == ["machine", "cuda", "materials"]
    assert not [step for step in steps if step["status"] == "crashed"]
