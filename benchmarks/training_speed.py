"""Images per second of trainings: our loop, a bare loop, other trainers' scripts, two processes.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --timm ../peers/timm/train.py \
        --torchvision ../peers/vision/references/classification/train.py --python ../peers/timm/bin/python

Loops (`training_worker.py`) run in processes of their own that wait for each other: round by round, in
random order, only one of them computes. Scripts train one epoch on the same folder of JPEG images with the
same network, batch and number of decoding processes, in turns; each reports its own speed, which leaves
out starting and importing. Ratios are medians over rounds with a 95 % interval from a bootstrap over
rounds. Peers that are not given are listed as not run.

Writes ``reports/training/speed.json`` and ``speed.md``. ``--quick`` only shows that it works.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from readme import write_record

from optimizer.environment import fingerprint

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "reports" / "training"
WORKER = Path(__file__).with_name("training_worker.py")
DRAWS = 10_000
WARM_UP = 2
LOOPS = ("ours", "bare", "contiguous")


class Loop:
    """A worker that trains when it is asked to."""

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        self._images = int(settings["steps"] * settings["batch"])
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), kind, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(settings["threads"]),
        )

    def round(self) -> float:
        """Images per second of one round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a training ended")
        return self._images / float(answer)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def environment(threads: int) -> dict[str, str]:
    """Environment of a process with this number of compute threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def measure_loops(settings: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Images per second of each loop in each round."""
    loops = {kind: Loop(kind, settings) for kind in LOOPS}
    speeds: dict[str, list[float]] = {kind: [] for kind in LOOPS}
    order = random.Random(0)
    try:
        for number in range(-WARM_UP, rounds):
            for kind in order.sample(LOOPS, len(LOOPS)):
                speed = loops[kind].round()
                if number >= 0:
                    speeds[kind].append(speed)
    finally:
        for loop in loops.values():
            loop.close()
    return speeds


def ratio(speeds: dict[str, list[float]], name: str, base: str) -> dict[str, Any]:
    """Median of the rounds' ratios, with a bootstrap interval."""
    values = np.array(speeds[name]) / np.array(speeds[base])
    draws = np.random.RandomState(0).randint(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return {
        "name": name,
        "base": base,
        "ratio": float(np.median(values)),
        "ci95": [float(low), float(high)],
    }


# --- scripts ------------------------------------------------------------------------------------


def make_photos(folder: Path, count: int) -> None:
    """JPEG files in two classes: crops of scikit-learn's two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = np.random.RandomState(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, number in (("train", count // 2), ("val", 4)):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                top, left = (generator.randint(side - 256) for side in photo.shape[:2])
                crop = Image.fromarray(photo[top : top + 256, left : left + 256])
                crop.save(folder / part / name / f"{index:04d}.jpg", quality=90)


def run(command: list[str], threads: int) -> str:
    """Run a trainer; returns everything it printed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(threads),
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def history_speed(output: Path) -> float:
    """Images per second of the last epoch of our training."""
    with (output.parent / f"{output.stem}.training" / "history.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["images_per_s"])


def our_script(arguments: argparse.Namespace, photos: Path, folder: Path) -> float:
    """``resnet-opt train`` with random crops and flips."""
    output = folder / "ours.safetensors"
    command = [
        sys.executable, "-m", "optimizer", "train", "--arch", arguments.arch, "--data",
        str(photos / "train"), "--image-size", str(arguments.photo_size), "--epochs", "1",
        "--batch-size", str(arguments.batch), "--augment", "crop", "--recipe", "tv-v1", "--device",
        "cpu", "--workers", "1", "--no-cache", "--force", "-o", str(output),
    ]  # fmt: skip
    run(command, arguments.threads)
    return history_speed(output)


def timm_script(arguments: argparse.Namespace, photos: Path, folder: Path) -> float:
    """The script of timm; its log states the mean speed of the epoch."""
    command = [
        arguments.python, str(arguments.timm), str(photos), "--model", arguments.arch, "--img-size",
        str(arguments.photo_size), "--epochs", "1", "--batch-size", str(arguments.batch), "--device",
        "cpu", "--workers", "1", "--num-classes", "2", "--opt", "sgd", "--lr", "0.1", "--sched", "step",
        "--aa", "", "--color-jitter", "0", "--channels-last", "--no-prefetcher", "--output",
        str(folder / "timm"), "--log-interval", "1", "--warmup-epochs", "0",
    ]  # fmt: skip
    printed = run(command, arguments.threads)
    return float(re.findall(r"\([\d.]+s,\s*([\d.]+)/s\)", printed)[-1])


def torchvision_script(arguments: argparse.Namespace, photos: Path, folder: Path) -> float:
    """The reference script of torchvision; its log states the time of the epoch."""
    command = [
        arguments.python, str(arguments.torchvision), "--data-path", str(photos), "--model",
        arguments.arch, "--device", "cpu", "--batch-size", str(arguments.batch), "--epochs", "1",
        "--workers", "1", "--train-crop-size", str(arguments.photo_size), "--val-crop-size",
        str(arguments.photo_size), "--val-resize-size", str(arguments.photo_size), "--print-freq", "1",
        "--output-dir", str(folder / "torchvision"),
    ]  # fmt: skip
    printed = run(command, arguments.threads)
    hours, minutes, seconds = re.findall(r"Epoch: \[0\] Total time: (\d+):(\d+):(\d+)", printed)[-1]
    batch = int(arguments.batch)
    images = len(list((photos / "train").rglob("*.jpg"))) // batch * batch
    return images / (3600 * int(hours) + 60 * int(minutes) + int(seconds))


def measure_scripts(arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Images per second of each script in each round."""
    photos = folder / "photos"
    make_photos(photos, arguments.photos)
    scripts: dict[str, Callable[..., float]] = {"resnet-opt train": our_script}
    if arguments.timm:
        scripts["timm train.py"] = timm_script
    if arguments.torchvision:
        scripts["torchvision train.py"] = torchvision_script
    speeds: dict[str, list[float]] = {name: [] for name in scripts}
    order = random.Random(0)
    for _ in range(arguments.script_rounds if len(scripts) > 1 else 0):
        for name in order.sample(list(scripts), len(scripts)):
            speeds[name].append(scripts[name](arguments, photos, folder))
    return {name: values for name, values in speeds.items() if values}


def measure_processes(arguments: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """One process with two threads against two processes with one thread each, by gloo."""
    one, two = "1 process x 2 threads", "2 processes x 1 thread"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    speeds: dict[str, list[float]] = {one: [], two: []}
    for number in range(arguments.script_rounds):
        for name in (one, two) if number % 2 else (two, one):
            processes = 1 if name == one else 2
            output = folder / "processes.safetensors"
            command = [
                sys.executable, *(launcher if processes == 2 else []), "-m", "optimizer", "train",
                "--arch", arguments.arch, "--image-size", str(arguments.image_size), "--epochs",
                str(arguments.epochs), "--batch-size", str(2 * arguments.batch // processes),
                "--device", "cpu", "--data", "digits:train", "--val", "digits:test", "--val-every",
                "99", "--no-cache", "--force", "-o", str(output),
            ]  # fmt: skip
            run(command, 2 // processes)
            speeds[name].append(history_speed(output))
    return speeds


# --- report -------------------------------------------------------------------------------------


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Speed of trainings",
        "",
        f"{report['device']['cpu']}, {report['device']['cores']} cores. `{report['command']}`",
        "",
        "| | images/s, median | against | ratio, 95 % interval |",
        "|---|---|---|---|",
    ]
    ratios = {row["name"]: row for row in report["ratios"]}
    for speeds in report["speeds"]:
        for name, values in speeds.items():
            row = ratios.get(name)
            shown = (
                ""
                if row is None
                else f"{row['ratio']:.3f} ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})"
            )
            base = "" if row is None else row["base"]
            lines.append(f"| {name} | {np.median(values):.1f} | {base} | {shown} |")
    lines += ["", *(f"Not run: {name}." for name in report["not_run"])]
    return "\n".join(lines).rstrip() + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=32, help="of the digits")
    parser.add_argument("--photo-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="per round of a loop")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--script-rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2, help="of a training with processes")
    parser.add_argument("--timm", type=Path, help="timm's train.py")
    parser.add_argument("--torchvision", type=Path, help="references/classification/train.py")
    parser.add_argument("--python", default=sys.executable, help="Python of these scripts")
    parser.add_argument("--quick", action="store_true", help="tiny, and nothing is written")
    arguments = parser.parse_args()
    if arguments.quick:
        small = {
            "arch": "resnet18", "image_size": 8, "photo_size": 32, "batch": 16, "steps": 1, "rounds": 3,
            "script_rounds": 1, "photos": 32, "epochs": 1,
        }  # fmt: skip
        vars(arguments).update(small)
    return arguments


def main() -> None:
    """Measure and write."""
    arguments = parse()
    settings = {
        name: getattr(arguments, name)
        for name in ("arch", "image_size", "batch", "threads", "steps")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loops = measure_loops(settings, arguments.rounds)
        scripts = measure_scripts(arguments, folder)
        processes = measure_processes(arguments, folder)
    ratios = [ratio(loops, "ours", "bare"), ratio(loops, "bare", "contiguous")]
    ratios += [
        ratio(scripts, "resnet-opt train", base) for base in scripts if "resnet-opt" not in base
    ]
    ratios.append(ratio(processes, "2 processes x 1 thread", "1 process x 2 threads"))
    report = {
        "device": fingerprint(),
        "command": " ".join(["python", "benchmarks/training_speed.py", f"--arch {arguments.arch}"]),
        "settings": {**settings, "photo_size": arguments.photo_size, "photos": arguments.photos},
        "speeds": [loops, scripts, processes],
        "ratios": ratios,
        "not_run": [
            f"{what} (its path was not given)"
            for what, path in (("timm", arguments.timm), ("torchvision", arguments.torchvision))
            if path is None
        ],
    }
    print(text(report))
    if not arguments.quick:
        write_record(OUTPUT / "speed.json", report, text(report))


if __name__ == "__main__":
    main()
