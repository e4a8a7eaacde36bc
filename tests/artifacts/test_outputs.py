"""Output files: nothing is lost by writing them, and what cannot be written is refused first."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.artifacts import (
    OutputFile,
    Plan,
    check_outputs,
    manifest_path,
    mark_zip,
    marked_png,
    produce,
    write_marked_text,
)
from optimizer.errors import EnvironmentFault, UsageError


def artifact(path: Path, kind: str = "graph", text: str = "contents") -> Path:
    def write(temporary: Path) -> dict[str, int]:
        temporary.write_text(text)
        return {}

    return produce(Plan(kind=kind, settings={"text": text}), path, write).path


def graph(path: Path) -> OutputFile:
    return OutputFile(path, "graph")


def result(path: Path) -> OutputFile:
    return OutputFile(path, "report", has_manifest=False)


def test_a_new_file_leaves_no_trace(tmp_path: Path) -> None:
    new = tmp_path / "new" / "result.json"
    check_outputs([result(new)], [tmp_path / "absent", "digits:train", None])
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        check_outputs([result(tmp_path)])
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below.json", Path("/proc/none/result.json")):
        with pytest.raises(EnvironmentFault, match="cannot be written"):
            check_outputs([result(place)])
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("x" * 250 + ".onnx", "x" * 251 + ".json", "a"):
        with pytest.raises(UsageError, match="cannot be written"):
            check_outputs([graph(tmp_path / name)])
    check_outputs([graph(tmp_path / ("x" * 240 + ".onnx"))])


def test_devices_fifos_and_sockets_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for node, name in (("fifo", "a FIFO"), ("link", "a device"), ("socket", "a socket")):
            for force in (False, True):
                with pytest.raises(UsageError, match=f"{node} is {name}"):
                    check_outputs([result(tmp_path / node)], force=force)
    with pytest.raises(UsageError, match="/dev/full is a device"):
        check_outputs([result(Path("/dev/full"))], force=True)


@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_replaced(tmp_path: Path, force: bool) -> None:
    own = artifact(tmp_path / "own.onnx")
    (tmp_path / "link.onnx").symlink_to(own)
    os.link(own, tmp_path / "hard.onnx")
    for name in ("own.onnx", "link.onnx", "hard.onnx", "own.onnx.json"):
        with pytest.raises(UsageError, match="would overwrite the input own"):
            check_outputs([result(tmp_path / name)], [own], force=force)
    encodings = tmp_path / "x.onnx.json"
    encodings.write_text("{}")
    with pytest.raises(UsageError, match=r"would overwrite the input x\.onnx\.json"):
        check_outputs([graph(tmp_path / "x.onnx")], [encodings], force=force)


def test_two_outputs_of_one_name(tmp_path: Path) -> None:
    files = [graph(tmp_path / "a"), result(tmp_path / "a.json")]
    with pytest.raises(UsageError, match=r"a\.json would be written twice"):
        check_outputs(files)


def test_artifacts_are_replaced_by_their_own_kind(tmp_path: Path) -> None:
    path = artifact(tmp_path / "m.onnx")
    check_outputs([graph(path)])
    with pytest.raises(UsageError, match="is a file of kind graph, not engine") as caught:
        check_outputs([OutputFile(path, "engine")])
    assert "--force" in str(caught.value.hint)
    check_outputs([OutputFile(path, "engine")], force=True)
    with pytest.raises(UsageError, match="kind graph, not report"):
        check_outputs([result(path)])
    path.unlink()  # what remains is a manifest of ours
    check_outputs([graph(path)])


def test_files_of_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("somebody's")
    with pytest.raises(UsageError, match=r"m\.onnx exists and was not written by resnet-opt"):
        check_outputs([graph(path)])
    check_outputs([graph(path)], force=True)
    path.unlink()
    manifest_path(path).write_text('{"notes": "of years"}')
    with pytest.raises(UsageError, match=r"m\.onnx\.json exists and is no manifest"):
        check_outputs([graph(path)])


def test_edited_files_are_kept(tmp_path: Path) -> None:
    path = artifact(tmp_path / "m.encodings.json", "encodings")
    path.write_text("edited")
    with pytest.raises(UsageError, match="was edited since it was written") as caught:
        check_outputs([OutputFile(path, "encodings")])
    assert f"--encodings {path}" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["r.html", "r.md", "r.yaml"])
def test_marks_of_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_marked_text(path, "one\ntwo", "report")
    assert path.read_text().startswith("one\ntwo\n")
    check_outputs([result(path)])
    with pytest.raises(UsageError, match="kind report, not recipe"):
        check_outputs([OutputFile(path, "recipe", has_manifest=False)])
    marked = path.read_text()
    for edited in (marked.replace("two", "2"), marked + "three\n", "zero\n" + marked, "", "one"):
        path.write_text(edited)
        with pytest.raises(UsageError, match="was not written by resnet-opt, or was edited"):
            check_outputs([result(path)])


def test_marks_of_npz(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, a=np.arange(1000))
    with pytest.raises(UsageError, match="was not written"):
        check_outputs([result(path)])
    mark_zip(path, "report")
    check_outputs([result(path)])
    with np.load(path) as arrays:
        assert arrays["a"].sum() == 499500
    for at in (40, 200, -30):  # the header of a member, its data, the end of the archive
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        changed = tmp_path / "changed.npz"
        changed.write_bytes(data)
        with pytest.raises(UsageError, match="was not written"):
            check_outputs([result(changed)])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UsageError, match="was not written"):
        check_outputs([result(path)])


def test_a_file_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.json"
    path.write_text("secret")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(EnvironmentFault, match="cannot be read, so it is not replaced"):
        check_outputs([result(path)])


def test_a_marked_image_is_replaced_and_an_edited_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "found.png"
    encoded = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(encoded, format="PNG")
    marked = marked_png(encoded.getvalue(), "annotated")
    path.write_bytes(marked)
    with Image.open(path) as opened:
        opened.load()
        assert opened.getpixel((0, 0)) == (255, 0, 0)
        assert str(opened.info["Software"]).startswith("resnet-opt annotated sha256:")
    file = OutputFile(path, "annotated", has_manifest=False, option="--annotate")
    check_outputs([file])
    for content in (
        encoded.getvalue(),
        marked.replace(b"\0\0\0\x09", b"\0\0\0\x08"),
        marked + b"x",
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="was not written by resnet-opt") as caught:
            check_outputs([file])
        assert str(caught.value.hint).startswith("--annotate with another name")


def test_a_file_that_is_added_to_must_be_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    file = OutputFile(
        path, "log", has_manifest=False, option="--log-file",
        updated=lambda existing: existing.read_bytes() == b"own",
    )  # fmt: skip
    check_outputs([file])
    for content in (b"", b"own"):
        path.write_bytes(content)
        check_outputs([file])
    path.write_bytes(b"other")
    for force in (False, True):
        with pytest.raises(UsageError, match="is no log of resnet-opt") as caught:
            check_outputs([file], force=force)
        assert caught.value.hint == "--log-file with a new name"
