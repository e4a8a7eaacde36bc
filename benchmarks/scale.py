"""Tens of thousands of images: what a validation costs beside a bare script, and what a kill loses.

    python benchmarks/scale.py --part time [--images 600]
    python benchmarks/scale.py --part size [--images 50000]
    python benchmarks/scale.py --part kills [--kills 30]
    python benchmarks/scale.py --part peers [--images 300]

Images are crops of scikit-learn's two photographs, written as JPEGs. Everything runs in processes of
its own. Writes ``reports/scale/PART.json``; a part that exceeds its limit ends with exit code 1.

* time: ResNet-50 at 224 px with an FP32 OpenVINO engine (random weights, so that labels are what the
  reference predicts). A bare script decodes each batch, runs PyTorch on it, then the engine; it also
  gives the labels. Against it: the first validation, and that of a second engine, which finds the
  reference's predictions.
* size: ResNet-18 at 32 px on all images and on a tenth of them: memory, time, and how long a folder
  and an archive take to open for the first and for the second time.
* kills: `validate` and `calibrate` are ended by SIGKILL at random moments until one gets through;
  their results must be those of an undisturbed run, byte for byte.
* peers: torchvision's reference evaluation (`references/classification`: DataLoader and model) on the
  same folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts import read_tensors, write_text_atomically
from optimizer.data.shards import SHARD
from optimizer.environment import fingerprint

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports" / "scale"
SEED = 20_261_201
FIRST_LIMIT, FURTHER_LIMIT = 1.10, 1.15
MEMORY_LIMIT_MB, LINEAR_LIMIT = 100.0, 0.05
COLD_LIMIT_S, WARM_LIMIT_S = 5.0, 1.0
DECIDED_OR_NOT = 0, 6
"""Exit codes of a validation that passes, and of one with too few images: the times count either way."""
_JSON_RESULT = "result: "


# --- materials -----------------------------------------------------------------------------------


def write_images(folder: Path, count: int, size: int) -> None:
    """Write random crops of two photographs as JPEGs of ``size`` x ``size`` pixels into one folder."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(SEED)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    folder.mkdir(parents=True)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = int(rng.integers(min(64, size), photograph.height))
        left = int(rng.integers(0, photograph.width - side))
        top = int(rng.integers(0, photograph.height - side))
        crop = photograph.crop((left, top, left + side, top + side)).resize((size, size))
        crop.save(folder / f"ILSVRC2012_val_{number + 1:08d}.JPEG", quality=90)


def write_labels(folder: Path, labels: Sequence[int]) -> None:
    """Write ``val.txt`` beside the images."""
    names = sorted(path.name for path in folder.glob("*.JPEG"))
    lines = [f"{name} {label}\n" for name, label in zip(names, labels, strict=True)]
    (folder / "val.txt").write_text("".join(lines), encoding="utf-8")


def write_network(folder: Path, architecture: str, size: int) -> None:
    """Write ``model.safetensors``, ``model.onnx``, and FP32 engines of OpenVINO and ONNX Runtime."""
    from dataclasses import replace

    import optimizer
    from optimizer.data import Preprocessing
    from optimizer.models import load_model, save_checkpoint

    model = load_model(f"{architecture}:random")
    if size != model.preprocessing.image_size:
        model = replace(model, preprocessing=Preprocessing(resize=None, crop=size))
    save_checkpoint(model, folder / "model.safetensors", details={})
    optimizer.export(str(folder / "model.safetensors"), folder / "model.onnx")
    for engine, name in (("openvino", "model.blob"), ("onnxruntime", "model.ort")):
        optimizer.build(str(folder / "model.onnx"), folder / name, engine=engine, precision="fp32")


# --- processes -----------------------------------------------------------------------------------


@dataclass
class Ran:
    """How a process went.

    Attributes:
        seconds: Wall-clock time.
        cpu_s: CPU time with all its children.
        peak_mb: The largest resident memory of the process itself.
        output: Its standard output.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    output: str

    @property
    def result(self) -> Any:
        """The JSON value that it printed."""
        line = next(x for x in self.output.splitlines() if x.startswith(_JSON_RESULT))
        return json.loads(line.removeprefix(_JSON_RESULT))


def run(command: Sequence[object], folder: Path, *, accepted: Sequence[int] = (0,)) -> Ran:
    """Run a command with a cache in ``folder`` and measure it."""
    started = time.perf_counter()
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
        child = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=_environment(folder), stdout=out, stderr=errors
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if child.returncode not in accepted:
        raise SystemExit(f"{command}: {child.returncode}\n{(folder / 'stderr').read_text()}")
    return Ran(
        seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024,
        (folder / "stdout").read_text(),
    )  # fmt: skip


def _environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "RESNET_OPT_CACHE": str(folder / "cache")}
    return {**os.environ, **own}


def validation(engine: str, data: Path, output: str, *more: object) -> list[object]:
    """The command that validates an engine of `write_network`."""
    return [
        sys.executable, "-m", "optimizer", "validate", engine, "--reference", "model.safetensors",
        "--data", data, "--max-drop", "1pp", "-o", output, *more,
    ]  # fmt: skip


def itself(part: str, *arguments: object) -> list[object]:
    """The command that runs one of `INNER` in a process of its own."""
    return [sys.executable, Path(__file__), "--inner", part, *arguments]


# --- what runs in processes of its own -----------------------------------------------------------


def bare(folder: str, engine: str) -> dict[str, Any]:
    """What a short script does: decode a batch, run PyTorch on it, run the engine on it."""
    import torch

    from optimizer.data import open_dataset
    from optimizer.engines.opening import open_engine
    from optimizer.models import load_model

    model = load_model("model.safetensors")
    session = None if engine == "none" else open_engine(Path(engine))
    spent = {"decoding": 0.0, "reference": 0.0, "engine": 0.0}
    labels: list[int] = []
    data = open_dataset(folder, labelled=False, workers=0)
    batches = iter(data.batches(32, model.preprocessing))
    started = time.perf_counter()
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        spent["decoding"] += time.perf_counter() - before
        if batch is None:
            break
        before = time.perf_counter()
        with torch.inference_mode():
            labels += model.module(torch.from_numpy(batch.images)).argmax(1).tolist()
        spent["reference"] += time.perf_counter() - before
        before = time.perf_counter()
        if session is not None:
            session.run(batch.images)
        spent["engine"] += time.perf_counter() - before
    return {"seconds": time.perf_counter() - started, "spent": spent, "labels": labels}


def opening(data: str) -> dict[str, Any]:
    """How long it takes to open a dataset and to identify its contents."""
    from optimizer.data import open_dataset

    started = time.perf_counter()
    dataset = open_dataset(data)
    opened = time.perf_counter() - started
    digest = dataset.sha256
    return {"opened_s": opened, "digest_s": time.perf_counter() - started - opened,
            "images": len(dataset), "sha256": digest}  # fmt: skip


# --- the parts -----------------------------------------------------------------------------------


def measured_time(folder: Path, images: int) -> dict[str, Any]:
    """The first engine and a further one against a bare script."""
    write_images(folder / "val", images, 300)
    write_network(folder, "resnet50", 224)
    script = run(itself("bare", folder / "val", "model.blob"), folder).result
    write_labels(folder / "val", script.pop("labels"))
    rows = {}
    for name, engine, more in (
        ("first", "model.blob", ("--hops", "ends")),
        ("further", "model.ort", ("--hops", "ends")),
        ("again", "model.blob", ("--hops", "ends")),
        ("first_with_sample", "model.blob", ("--cache-limit", "0B")),
    ):
        command = validation(engine, folder / "val", f"{name}.json", *more)
        ran = run(command, folder, accepted=DECIDED_OR_NOT)
        timing = json.loads((folder / f"{name}.json").read_text())["timing"]
        rows[name] = {"seconds": ran.seconds, "cpu_s": ran.cpu_s, "timing": timing}
    further = run(itself("bare", folder / "val", "model.ort"), folder).result
    parts = further["spent"]
    first = rows["first"]["timing"]["pass_s"] / script["seconds"]
    second = rows["further"]["timing"]["pass_s"] / (parts["decoding"] + parts["engine"])
    return {
        "images": images,
        "script": script,
        "script_of_the_further_engine": parts,
        "validations": rows,
        "first_ratio": first,
        "further_ratio": second,
        "limits_held": first <= FIRST_LIMIT and second <= FURTHER_LIMIT,
    }


def measured_size(folder: Path, images: int) -> dict[str, Any]:
    """Memory and time of all images and of a tenth; opening."""
    write_network(folder, "resnet18", 32)
    rows = {}
    for count in (images // 10, images):
        data = folder / f"val{count}"
        write_images(data, count, 32)
        write_labels(data, run(itself("bare", data, "none"), folder).result["labels"])
        with tarfile.open(folder / f"{data.name}.tar", "w") as archive:
            archive.add(data, "val")
        time.sleep(3)  # digests of files that changed just now are not remembered
        row: dict[str, Any] = {}
        for name, source in (("folder", data), ("archive", f"{data}.tar")):
            cold, warm = (run(itself("opening", source), folder).result for _ in range(2))
            row[name] = {"cold_s": _total(cold), "warm_s": _total(warm), "images": cold["images"]}
        command = validation("model.blob", data, f"{count}.json", "--hops", "ends")
        ran = run(command, folder, accepted=DECIDED_OR_NOT)
        timing = json.loads((folder / f"{count}.json").read_text())["timing"]
        rows[count] = {**row, "peak_mb": ran.peak_mb, "pass_s": timing["pass_s"]}
    few, many = rows[images // 10], rows[images]
    growth = many["peak_mb"] - few["peak_mb"]
    linear = many["pass_s"] / few["pass_s"] / (images / (images // 10)) - 1
    opened = [many[source] for source in ("folder", "archive")]
    return {
        "rows": {str(count): row for count, row in rows.items()},
        "memory_growth_mb": growth,
        "slower_per_image": linear,
        "limits_held": {
            "memory": growth <= MEMORY_LIMIT_MB,
            "linear": abs(linear) <= LINEAR_LIMIT,
            "cold": all(row["cold_s"] <= COLD_LIMIT_S for row in opened),
            "warm": all(row["warm_s"] <= WARM_LIMIT_S for row in opened),
        },
    }


def _total(result: dict[str, Any]) -> float:
    return float(result["opened_s"] + result["digest_s"])


@dataclass(frozen=True)
class _Job:
    """A command that is killed until it gets through.

    Attributes:
        command: The command.
        result: Its output file.
        comparable: What of the file must not depend on kills.
    """

    command: list[object]
    result: str
    comparable: Callable[[Path], bytes]


def _validated(path: Path) -> bytes:
    """A result without the times that it contains."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("created", "timing", "digest", "predictions_sha256"):
        content.pop(name, None)
    return json.dumps(content, sort_keys=True).encode()


def measured_kills(folder: Path, kills: int, images: int = 2048) -> dict[str, Any]:
    """Kill at random moments; the next run must find every shard that was stored."""
    write_network(folder, "resnet18", 32)
    write_images(folder / "val", images, 32)
    script = run(itself("bare", folder / "val", "none"), folder).result
    write_labels(folder / "val", script["labels"])
    calibrate = [
        sys.executable, "-m", "optimizer", "calibrate", "model.onnx", "--calib", folder / "val",
        "--calib-images", images, "-o", "stats.npz",
    ]  # fmt: skip
    validate = validation("model.blob", folder / "val", "result.json", "--hops", "ends")
    jobs = {
        "validate": _Job(validate, "result.json", _validated),
        "calibrate": _Job(calibrate, "stats.npz", Path.read_bytes),
    }
    rows = {name: _killed(folder, job, kills) for name, job in jobs.items()}
    held = all(
        row["results_that_differ"] == 0 and row["images_stored_but_not_found"] == 0
        for row in rows.values()
    )
    return {"images": images, **rows, "limits_held": held}


def _killed(folder: Path, job: _Job, kills: int) -> dict[str, Any]:
    undisturbed = run(job.command, folder)
    expected = job.comparable(folder / job.result)
    rng = random.Random(SEED)
    done, through, differing, lost, found_by_kill = 0, 0, 0, 0, []
    while done < kills:
        _forget(folder, job)
        while not (folder / job.result).exists():
            stored = _stored(folder)
            limit = rng.uniform(0.3, 1.2) * undisturbed.seconds
            if _ended_by_itself(folder, job, limit):
                lost += max(0, stored - _said_found(folder))
                break
            done += 1
            found_by_kill.append(_stored(folder) - stored)
        through += 1
        differing += job.comparable(folder / job.result) != expected
    return {
        "kills": done,
        "kills_after_which_more_was_stored": sum(more > 0 for more in found_by_kill),
        "runs_that_got_through": through,
        "results_that_differ": differing,
        "images_stored_but_not_found": lost,
        "undisturbed_s": undisturbed.seconds,
    }


def _ended_by_itself(folder: Path, job: _Job, limit: float) -> bool:
    """Whether the command ended within ``limit`` seconds; otherwise it was killed."""
    with (folder / "stderr").open("wb") as errors, subprocess.Popen(
        list(map(str, job.command)), cwd=folder, env=_environment(folder),
        stdout=subprocess.DEVNULL, stderr=errors,
    ) as child:  # fmt: skip
        try:
            if child.wait(limit) != 0:
                raise SystemExit((folder / "stderr").read_text())
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            return False
    return True


def _said_found(folder: Path) -> int:
    """How many images the last run said that it had found."""
    said = re.search(r"(\d+) images were stored before", (folder / "stderr").read_text())
    return 0 if said is None else int(said[1])


def _stored(folder: Path) -> int:
    """Images whose shards are stored completely: for both networks, or in the sums."""
    predictions = Counter(
        path.name.partition(".")[0] for path in (folder / "cache" / "predictions").glob("[0-9a-f]*")
    )
    both = min(predictions.values()) if len(predictions) == 2 else 0
    parts = [read_tensors(path) for path in (folder / "cache" / "calibrations").glob("[0-9a-f]*")]
    covered = [set(json.loads(part[1])[1]) for part in parts if part is not None]
    return SHARD * (both + len(set().union(*covered)))


def _forget(folder: Path, job: _Job) -> None:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for path in folder.glob(f"{job.result.partition('.')[0]}.*"):
        path.unlink()


def measured_peers(folder: Path, images: int) -> dict[str, Any]:
    """`validate` with nothing stored against torchvision's reference evaluation of the checkpoint."""
    write_images(folder / "val", images, 300)
    write_network(folder, "resnet50", 224)
    script = run(itself("bare", folder / "val", "none"), folder).result
    write_labels(folder / "val", script["labels"])
    theirs = run(itself("torchvision", folder / "val"), folder).result
    command = validation("model.safetensors", folder / "val", "v.json", "--hops", "ends")
    run(command, folder, accepted=DECIDED_OR_NOT)
    timing = json.loads((folder / "v.json").read_text())["timing"]
    return {"images": images, "torchvision": theirs, "validate": timing}


def torchvision(folder: str) -> dict[str, Any]:
    """`evaluate` of torchvision's references/classification: a DataLoader, and top-1 by batch."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    from optimizer.models import load_model
    from optimizer.processes import hardware_threads

    model = load_model("model.safetensors")
    rows = [line.split() for line in Path(folder, "val.txt").read_text().splitlines()]
    change = v2.Compose([
        v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(model.preprocessing.mean), list(model.preprocessing.std)),
    ])  # fmt: skip

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, position: int) -> Any:
            name, label = rows[position]
            return change(Image.open(Path(folder, name)).convert("RGB")), int(label)

    started, right = time.perf_counter(), 0
    loader = torch.utils.data.DataLoader(
        Images(), batch_size=32, num_workers=hardware_threads(), multiprocessing_context="fork"
    )
    with torch.inference_mode():
        for pixels, labels in loader:
            right += int((model.module(pixels).argmax(1) == labels).sum())
    return {"seconds": time.perf_counter() - started, "top1": right / len(rows)}


INNER: dict[str, Callable[..., Any]] = {
    "bare": bare, "opening": opening, "torchvision": torchvision,
}  # fmt: skip
PARTS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "time": (measured_time, 600),
    "size": (measured_size, 50_000),
    "kills": (measured_kills, 30),
    "peers": (measured_peers, 300),
}
"""What measures a part, and the number of images (of kills) by default."""


def main() -> int:
    """Measure one part and write its record; returns 1 if a limit is exceeded."""
    if sys.argv[1:2] == ["--inner"]:
        print(_JSON_RESULT + json.dumps(INNER[sys.argv[2]](*sys.argv[3:])))
        return 0
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--images", type=int, help="number of images")
    parser.add_argument("--kills", type=int, help="kills of each command")
    parser.add_argument("--output", type=Path, help="file of the record")
    arguments = parser.parse_args()
    measure, usual = PARTS[arguments.part]
    count = (arguments.kills if arguments.part == "kills" else arguments.images) or usual
    with tempfile.TemporaryDirectory() as folder:
        report = {"device": fingerprint(), **measure(Path(folder), count)}
    text = json.dumps(report, indent=1) + "\n"
    write_text_atomically(arguments.output or REPORTS / f"{arguments.part}.json", text)
    print(text)
    held = report.get("limits_held", True)
    return 0 if (all(held.values()) if isinstance(held, dict) else held) else 1


if __name__ == "__main__":
    sys.exit(main())
