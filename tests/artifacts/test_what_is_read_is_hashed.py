"""Everything that a stage reads is in its key: a change of any file that was read is seen.

What is read is what Python opens (an audit hook) and what the file system says was read (access
times), so files that native libraries or child processes open count too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from optimizer import build, calibrate, export, quantize, train
from optimizer.artifacts import Manifest, Plan, manifest_path, producing
from optimizer.errors import UsageError

_opened: set[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, Path)):
        _opened.add(str(arguments[0]))


sys.addaudithook(_audit)


class _Changed(Exception):
    """A stage has another key than in the first run."""


@contextmanager
def _seen(keys: set[str], *, first: bool) -> Iterator[None]:
    """Collect the keys of all stages; later, stop at the first other one."""
    original = producing._build

    def checked(plan: Plan, destination: Path, write: Callable[[Path], Any]) -> Manifest:
        if not first and plan.key not in keys:
            raise _Changed
        keys.add(plan.key)
        return original(plan, destination, write)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producing, "_build", checked)
        yield


def files_read(verb: Callable[[], Any], folder: Path) -> set[Path]:
    """The files below ``folder`` that a verb reads."""
    global _opened  # noqa: PLW0603 - audit hooks cannot be removed
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, (0, path.stat().st_mtime))
    _opened = set()
    try:
        verb()
    finally:
        opened, _opened = _opened, None
    return {path for path in files if str(path) in opened or path.stat().st_atime > 0}


# --- changes that leave a file valid ----------------------------------------------------------------


def _change_pixel(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(path)


def _change_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights, which are nearly the whole file
    path.write_bytes(data)


def _change_json(path: Path) -> None:
    """Another mean in a card, another scale in encodings, another class name in a manifest.

    Of the manifests of graphs and statistics, only the digest is used.
    """
    raw = json.loads(path.read_text())
    if path.name.endswith(".card.json"):
        raw["preprocessing"]["mean"][0] += 0.01
    elif path.name.endswith(".encodings.json"):
        next(iter(raw["tensors"].values()))["scale"] *= 1.01
    elif path.name.endswith((".onnx.json", ".npz.json")):
        raw["sha256"] = raw["sha256"][::-1]
    else:
        manifest = Manifest.model_validate(raw)
        manifest.classes = ["another", *(manifest.classes or ["zero", *map(str, range(1, 10))])[1:]]
        manifest.key = manifest.computed_key()
        raw = manifest.model_dump(mode="json")
    path.write_text(json.dumps(raw))


CHANGES: dict[str, Callable[[Path], None]] = {
    ".png": _change_pixel,
    ".safetensors": _change_weight,
    ".onnx": _change_weight,
    ".bin": _change_weight,
    ".npz": _change_weight,
    ".json": _change_json,
}


# --- the verbs ----------------------------------------------------------------------------------------


@pytest.fixture
def inputs(
    tmp_path: Path, small_checkpoint: Path, small_graph: Path, small_statistics: Path
) -> Path:
    """Images, weights with a card, a graph whose weights are in another file, statistics."""
    folder = tmp_path / "inputs"
    random = np.random.default_rng(0)
    for number in range(20):
        place = folder / "photos" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    for path in (small_checkpoint, small_graph, small_statistics):
        shutil.copyfile(path, folder / path.name)
        shutil.copyfile(manifest_path(path), manifest_path(folder / path.name))
    bare = folder / "bare.safetensors"
    shutil.copyfile(small_checkpoint, bare)
    card = {"preprocessing": {"mean": [0.5, 0.5, 0.5], "crop": 32, "resize": 32}}
    Path(f"{bare}.card.json").write_text(json.dumps(card))
    onnx.save_model(
        onnx.load(small_graph), folder / "external.onnx", save_as_external_data=True,
        all_tensors_to_one_file=True, location="weights.bin", size_threshold=0,
    )  # fmt: skip
    return folder


def _train(inputs: Path, out: Path) -> None:
    train(
        out / "t.safetensors", arch="resnet18", image_size=32, epochs=1, workers=0,
        data=str(inputs / "photos"), val=str(inputs / "photos"),
        init=str(inputs / "bare.safetensors"),
    )  # fmt: skip


def _quantize_with_encodings(inputs: Path, out: Path) -> None:
    encodings = inputs / "q.encodings.json"
    if not encodings.exists():
        first = inputs.parent / "first"
        quantize(
            inputs / "small.onnx", first / "q.onnx", target="openvino",
            stats=inputs / "small.stats.npz",
        )  # fmt: skip
        shutil.copyfile(first / "q.encodings.json", encodings)
    quantize(inputs / "small.onnx", out / "q.onnx", target="openvino", encodings=encodings)


VERBS: dict[str, Callable[[Path, Path], Any]] = {
    "train": _train,
    "export": lambda inputs, out: export(inputs / "bare.safetensors", out / "m.onnx"),
    "export-own": lambda inputs, out: export(inputs / "small.safetensors", out / "m.onnx"),
    "calibrate": lambda inputs, out: calibrate(
        inputs / "external.onnx", out / "s.npz", calib=str(inputs / "photos"), workers=0
    ),
    "quantize": lambda inputs, out: quantize(
        inputs / "small.onnx", out / "q.onnx", target="openvino", stats=inputs / "small.stats.npz"
    ),
    "quantize-encodings": _quantize_with_encodings,
    "build": lambda inputs, out: build(
        inputs / "external.onnx", out / "m.blob", engine="openvino", precision="fp32"
    ),
    "build-checkpoint": lambda inputs, out: build(
        inputs / "bare.safetensors", out / "m.safetensors", engine="torch"
    ),
}
EXPECTED = {
    "train": {"bare.safetensors", "bare.safetensors.card.json", "0.png"},
    "export": {"bare.safetensors", "bare.safetensors.card.json"},
    "export-own": {"small.safetensors", "small.safetensors.json"},
    "calibrate": {"external.onnx", "weights.bin", "0.png", "19.png"},
    "quantize": {"small.onnx", "small.stats.npz", "small.stats.npz.json"},
    "quantize-encodings": {"small.onnx", "q.encodings.json"},
    "build": {"external.onnx", "weights.bin"},
    "build-checkpoint": {"bare.safetensors", "bare.safetensors.card.json"},
}
"""Files that are surely read: the test would be worthless if it did not see these."""


LONG = {
    "train", "export", "export-own", "calibrate", "quantize-encodings", "build", "build-checkpoint",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", [pytest.param(v, marks=[pytest.mark.long] if v in LONG else []) for v in VERBS]
)
def test_a_change_of_any_file_that_is_read_is_seen(verb: str, inputs: Path, tmp_path: Path) -> None:
    out, keys = tmp_path / "out", set[str]()
    out.mkdir()
    if verb == "quantize-encodings":
        VERBS[verb](inputs, tmp_path / "unused")
    with _seen(keys, first=True):
        read = files_read(lambda: VERBS[verb](inputs, out), inputs)
    assert {path.name for path in read} >= EXPECTED[verb]
    photos = sorted(path for path in read if path.suffix == ".png")
    for path in sorted(read - set(photos[1:])):  # one image stands for all
        kept = path.read_bytes()
        CHANGES[path.suffix](path)
        assert path.read_bytes() != kept
        with _seen(keys, first=False):
            # A file with a manifest is refused once it does not fit.
            with pytest.raises((_Changed, UsageError)):
                VERBS[verb](inputs, out)
                pytest.fail(f"{verb} did not see the change of {path.name}")
        path.write_bytes(kept)
