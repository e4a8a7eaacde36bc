"""Tar archives are read as they are, in any order, and nothing in them is trusted."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.artifacts import Cache
from optimizer.data import ImageDataset, Preprocessing, open_dataset, tar_index
from optimizer.errors import DataError

PREPROCESSING = Preprocessing(resize=None, crop=8)
CLASSES = ("cat", "dog", "eel")
IMAGES = 12


def _png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _archive(path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _by_class(prefix: str = "") -> dict[str, bytes]:
    order = np.random.default_rng(0).permutation(IMAGES).tolist()
    return {f"{prefix}{CLASSES[n % 3]}/{n:02d}.png": _png(n) for n in order}


def _pixels(data: ImageDataset) -> np.ndarray:
    return np.concatenate([batch.images for batch in data.batches(5, PREPROCESSING, as_uint8=True)])


@pytest.mark.parametrize("prefix", ["", "./", "val/", "./val/"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_class_folders_are_those_of_the_unpacked_archive(
    tmp_path: Path, prefix: str, kind: int
) -> None:
    _archive(tmp_path / "val.tar", _by_class(prefix), kind)
    for name, content in _by_class().items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    packed, unpacked = open_dataset(tmp_path / "val.tar"), open_dataset(tmp_path / "folder")
    assert packed.classes == unpacked.classes == CLASSES
    assert packed.labels.tolist() == unpacked.labels.tolist()
    everything = np.arange(IMAGES)
    assert packed.content(everything) == unpacked.content(everything)
    assert np.array_equal(_pixels(packed), _pixels(unpacked))


def test_workers_read_archives_too(tmp_path: Path) -> None:
    path = _archive(tmp_path / "val.tar", _by_class())
    alone, workers = open_dataset(path, workers=0), open_dataset(path, workers=2)
    assert np.array_equal(_pixels(alone), _pixels(workers))


@pytest.mark.parametrize("where", ["inside", "beside", "of the folder"])
def test_lists_of_labels(tmp_path: Path, where: str) -> None:
    members = {f"ILSVRC_{n:02d}.png": _png(n) for n in (2, 0, 1)}
    text = b"ILSVRC_00.png 7\nILSVRC_01.png 0\nILSVRC_02.png 3\n"
    if where == "inside":
        members["val.txt"] = text
    else:
        (tmp_path / ("images.txt" if where == "beside" else "val_map.txt")).write_bytes(text)
    data = open_dataset(_archive(tmp_path / "images.tar", members))
    assert [data.image_id(i) for i in range(3)] == [f"ILSVRC_{n:02d}.png" for n in range(3)]
    assert data.labels.tolist() == [7, 0, 3]
    assert data.notes == ()
    (tmp_path / "images.txt").write_bytes(b"ILSVRC_00.png 7\ngone.png 1\n")
    with pytest.raises(DataError, match=r"1 of 2 listed images are missing.*gone\.png"):
        open_dataset(_archive(tmp_path / "images.tar", {"ILSVRC_00.png": _png(0)}))


def _shards(folder: Path, labels: list[str]) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for n, label in list(enumerate(labels))[shard::2]:
            members |= {f"{n:05d}.cls": label.encode(), f"{n:05d}.png": _png(n)}
            members[f"{n:05d}.json"] = b"{}"
        _archive(folder / f"test-{shard:03d}.tar", members)


@pytest.mark.parametrize("name", ["test-{000..001}.tar", ""])
def test_shards_of_webdataset(tmp_path: Path, name: str) -> None:
    _shards(tmp_path, ["4", "0", "2", "1"])
    data = open_dataset(tmp_path / name)
    assert data.labels.tolist() == [4, 2, 0, 1]
    assert data.image_id(2) == "test-001.tar/00001.png"
    assert data.notes == ()
    with pytest.raises(
        DataError, match=r"1 of 3 archives .* missing; the first is .*test-002\.tar"
    ):
        open_dataset(tmp_path / "test-{000..002}.tar")


def test_labels_of_shards_may_be_names(tmp_path: Path) -> None:
    _shards(tmp_path, ["dog", "cat", "cat", "dog"])
    data = open_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0, 0, 1]


def test_an_image_without_its_label_is_named(tmp_path: Path) -> None:
    _archive(tmp_path / "t.tar", {"0.png": _png(0), "0.cls": b"1", "1.png": _png(1)})
    with pytest.raises(DataError, match=r"1\.png has no label"):
        open_dataset(tmp_path / "t.tar")
    _archive(tmp_path / "t.tar", {"0.png": _png(0), "0.cls": b"1" * 5000})
    with pytest.raises(DataError, match=r"0\.cls is no label: it has 5000 bytes"):
        open_dataset(tmp_path / "t.tar")


def test_images_without_labels_calibrate_only(tmp_path: Path) -> None:
    path = _archive(tmp_path / "t.tar", {f"{n}.png": _png(n) for n in range(3)})
    assert len(open_dataset(path, labelled=False)) == 3
    with pytest.raises(DataError, match="have no labels"):
        open_dataset(path)


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    members = {**_by_class(), "cat/._00.png": b"x", "readme.md": b"x"}
    data = open_dataset(_archive(tmp_path / "t.tar", members))
    assert len(data) == IMAGES
    assert "1 whose names start with a dot" in data.notes[0]
    assert "1 that are not read as images (.md)" in data.notes[0]


def _member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            _member("a/l.png", tarfile.SYMTYPE, "/etc/passwd"),
            r"'a/l\.png' is a link to /etc/passwd",
        ),
        (_member("a/h.png", tarfile.LNKTYPE, "cat/00.png"), r"'a/h\.png' is a link to cat/00"),
        (_member("a/f.png", tarfile.FIFOTYPE), r"'a/f\.png' is no regular file"),
        (_member("a/d.png", tarfile.CHRTYPE), r"'a/d\.png' is no regular file"),
        (_member("/etc/x.png", tarfile.REGTYPE), r"'/etc/x\.png' has a name that leaves"),
        (_member("a/../../x.png", tarfile.REGTYPE), "has a name that leaves the archive"),
        (_member("cat/00.png", tarfile.REGTYPE), r"'cat/00\.png' occurs twice"),
    ],
)
def test_members_that_are_not_plain_files_are_refused_by_name(
    tmp_path: Path, info: tarfile.TarInfo, message: str
) -> None:
    path = _archive(tmp_path / "t.tar", _by_class())
    with tarfile.open(path, "a") as archive:
        archive.addfile(info)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


def test_archives_that_are_cut_off_or_damaged_are_refused(tmp_path: Path) -> None:
    content = _archive(tmp_path / "t.tar", _by_class()).read_bytes()
    end = len(content.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for size in [*range(1024, end, 1024), -(-end // 512) * 512]:
        cut.write_bytes(content[:size])
        with pytest.raises(DataError, match="cut off"):
            open_dataset(cut)
    second = content.index(b"ustar", 1024) - 257
    cut.write_bytes(content[:second] + b"\xff" * 512 + content[second + 512 :])
    with pytest.raises(DataError, match="cut off or damaged after 1 files"):
        open_dataset(cut)


def test_a_claim_beyond_the_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("cat/00.png")
    info.size = 10**12
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match=r"cut off|more than the archive has"):
        open_dataset(path)


@pytest.mark.parametrize("content", [b"", b"text", bytes(5)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"no tar archive|cut off"):
        open_dataset(tmp_path / "t.tar")


def test_a_compressed_archive_names_the_tool(tmp_path: Path) -> None:
    path = _archive(tmp_path / "t.tar", _by_class())
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="is compressed") as raised:
        open_dataset(path)
    assert "gunzip" in (raised.value.hint or "")


def test_a_damaged_image_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    path = _archive(tmp_path / "t.tar", {**_by_class(), "cat/00.png": _png(0)[:40]})
    with pytest.raises(DataError, match=r"t\.tar/cat/00\.png"):
        open_dataset(path).verify()
    data = open_dataset(path, skip_bad_images=True)
    assert len(data.verify()) == IMAGES - 1
    assert data.skipped == ["cat/00.png"]


def test_the_index_is_remembered_until_the_archive_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_index, "_FEW_MEMBERS", 1)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)
    path = _archive(tmp_path / "t.tar", _by_class())
    first = open_dataset(path)
    assert first.sha256
    with monkeypatch.context() as patch:
        patch.setattr(tar_index.TarMember, "read", lambda self: pytest.fail("read again"))
        patch.setattr(tar_index, "_read_headers", lambda path: pytest.fail("indexed again"))
        again = open_dataset(path)
        assert again.sha256 == first.sha256
    (stored,) = (tmp_path / "cache" / "archives").iterdir()
    stored.write_text(stored.read_text()[:-9])
    assert open_dataset(path).sha256 == first.sha256
    changed = {**_by_class(), "cat/00.png": _png(99)}
    assert open_dataset(_archive(path, changed)).sha256 != first.sha256
    assert Cache.default().clear() > 0
