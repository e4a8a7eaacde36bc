"""Recorded output of trtexec, and running the tool as a process.

``recorded/trtexec-10.txt`` is the performance summary that a user posted in NVIDIA/TensorRT issue
4177 (2024-10), ``recorded/trtexec-8.txt`` one of TensorRT 8 on an RTX 3070 from a YOLOv7 export guide
(2022-09). The banner, the text of the warning and the ``[E]`` lines follow ``samples/common`` of
NVIDIA/TensorRT.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import trtexec
from trtexec import ToolFailed, command, parse, time_engine

RECORDED = Path(__file__).parent / "recorded"
RECORDED_10 = (RECORDED / "trtexec-10.txt").read_text(encoding="utf-8")
RECORDED_8 = (RECORDED / "trtexec-8.txt").read_text(encoding="utf-8")
REFUSED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v110201] [b3] # trtexec --loadEngine=m.plan
[09/25/2026-10:00:02] [E] Error[1]: The engine plan file is not compatible with this version of TensorRT
[09/25/2026-10:00:02] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v110201] [b3] # trtexec --loadEngine=m.plan
"""  # fmt: skip


def test_the_summary_of_10() -> None:
    result = parse(RECORDED_10, batch=8)
    assert result.version == "10.4.0"
    assert result.batches_per_s == 130.298
    assert result.images_per_s == pytest.approx(8 * 130.298)
    assert result.gpu_compute_ms.median == 7.14139
    assert result.gpu_compute_ms.percentiles == {"90": 10.2881, "95": 10.8175, "99": 12.9485}
    # Not "H2D Latency", which ends with the same word.
    assert (result.latency_ms.minimum, result.latency_ms.maximum) == (5.38672, 13.3664)
    assert result.enqueue_ms is not None
    assert result.enqueue_ms.mean == 7.63062
    assert result.warnings == [
        (
            "Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be "
            "under-utilized."
        )
    ]
    raw = result.as_json()
    assert (raw["batches_per_s"], raw["images_per_s"]) == (130.298, 8 * 130.298)


def test_the_summary_of_8_without_a_banner() -> None:
    result = parse(RECORDED_8, batch=1)
    assert result.version == ""
    assert result.images_per_s == result.batches_per_s == 1004.27
    assert result.gpu_compute_ms.percentiles == {"99": 1.29016}
    assert result.warnings == []


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v8602]", "8.6.2"),
        ("[TensorRT v100300]", "10.3.0"),
        ("[TensorRT v101601]", "10.16.1"),
        ("[TensorRT v110400]", "11.4.0"),
        ("[TensorRT v11.1.0.106]", "11.1.0.106"),
        ("[TensorRT-RTX v10701]", "1.7.1"),
    ],
)
def test_versions_in_banners(banner: str, version: str) -> None:
    assert parse(f"&&&& RUNNING {banner}\n{RECORDED_8}", batch=1).version == version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no output"),
        (REFUSED, "The engine plan file is not compatible"),
        (RECORDED_10.partition("[I] GPU Compute Time")[0], "printed no summary"),
        (RECORDED_8.replace("median = 0.97998 ms", "median = nan"), "printed no summary"),
    ],
)
def test_incomplete_summaries_are_refused(text: str, message: str) -> None:
    with pytest.raises(ToolFailed, match=message):
        parse(text, batch=1)


def test_the_command_line_matches_our_measurement() -> None:
    line = command(
        "trtexec", Path("m.plan"), input_name="images", shape=(8, 3, 224, 224), seconds=5, device=1
    )
    assert line[:3] == ["trtexec", "--loadEngine=m.plan", "--shapes=images:8x3x224x224"]
    assert {"--device=1", "--warmUp=200", "--duration=5"} < set(line)
    assert {"--useCudaGraph", "--noDataTransfers", "--useSpinWait"} < set(line)


def stand_in(folder: Path, code: str) -> str:
    """Create a program in place of the tool."""
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run(tool: str, timeout_s: float = 30) -> trtexec.ToolResult:
    return time_engine(
        tool,
        Path("m.plan"),
        input_name="images",
        shape=(4, 3, 8, 8),
        seconds=1,
        timeout_s=timeout_s,
    )


def test_a_tool_that_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = tmp_path / "arguments"
    code = f"open({str(arguments)!r}, 'w').write(' '.join(sys.argv[1:]))\nprint({RECORDED_10!r})"
    stand_in(tmp_path, code)
    monkeypatch.setenv("PATH", str(tmp_path))
    tool = trtexec.find_tool("tensorrt")
    assert tool is not None
    assert trtexec.find_tool("tensorrt-rtx") is None
    assert run(tool).images_per_s == pytest.approx(4 * 130.298)
    assert "--shapes=images:4x3x8x8" in arguments.read_text()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            f"sys.stderr.write({REFUSED!r}); sys.exit(1)",
            "failed with exit code 1: .*not compatible",
        ),
        ("sys.exit(139)", "trtexec failed with exit code 139: no output"),
        ("print('Usage: trtexec')", "printed no summary: Usage"),
    ],
)
def test_a_tool_that_fails(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ToolFailed, match=message):
        run(stand_in(tmp_path, code))


def test_a_tool_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="timed out after 0 s"):
        run(stand_in(tmp_path, "time.sleep(60)"), timeout_s=0.3)
