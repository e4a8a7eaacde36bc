"""Kill whole commands with SIGKILL at random moments, and check what is left.

    python benchmarks/random_kills.py --kills 200

Each command runs in a forked copy of a process that has loaded the libraries, so that kills fall into
its work and not into imports. After each kill, files are checked (*half-written*), the command is run
again, and what is there is compared with a run that nobody disturbed (*left behind*, *differs*).
Writes ``reports/reliability/kills.json``; the table in ``docs/reliability.md`` comes from that file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hostile_cases import Base, make_base
from readme import write_between_marks, write_record

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "reports" / "reliability" / "kills.json"
DOCUMENT = ROOT / "docs" / "reliability.md"
TOKEN = "RESNET_OPT_KILLED_RUN"
"""Environment variable by which the processes of one run are found."""
CHILDREN_END_S = 10
KEPT = {".resnet-opt-training"}
"""Hidden files that belong there."""
OF_LIBRARIES = {".ses"}
"""In the folder for temporary files: ONNX Runtime 1.31 writes a session's id there when it is imported."""

Command = list[str]
COMMANDS: dict[str, Callable[[Base], Command]] = {
    "export": lambda _: ["export", "resnet18:random:5", "--image-size", "32", "-o", "m.onnx"],
    "calibrate": lambda base: [
        "calibrate", str(base.graph), "--calib", str(base.data), "--workers", "0", "-o", "s.npz",
    ],
    "quantize": lambda base: [
        "quantize", str(base.graph), "--calib", str(base.data), "--workers", "0", "-o", "q.onnx",
    ],
    "build": lambda base: [
        "build", str(base.graph), "--int8", "--engine", "onnxruntime", "--stats", str(base.statistics),
        "-o", "e.ort.onnx",
    ],
    "validate": lambda base: [
        "validate", str(base.engine), "--reference", str(base.graph), "--data", str(base.data),
        "-o", "v.json",
    ],
    "predict": lambda base: ["predict", str(base.engine), str(base.image), "--json"],
    "train": lambda base: [
        "train", "--arch", "resnet18", "--data", str(base.data), "--epochs", "2", "--image-size", "32",
        "--workers", "0", "--seed", "1", "-o", "t.safetensors",
    ],
    "run": lambda base: ["run", str(base.folder / "recipe.yaml"), "-o", "run"],
}  # fmt: skip
RECIPE = """\
model: resnet18:random:5
export: {{image_size: 32}}
validation: {{data: {data}, workers: 0, limit: 64}}
build:
- engine: onnxruntime
  precision: fp32
bench: null
"""


@dataclass
class Place:
    """The folders of one run."""

    folder: Path

    @property
    def out(self) -> Path:
        """The working folder of the command."""
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        """Its cache."""
        return self.folder / "cache"

    @property
    def temporary(self) -> Path:
        """Its folder for temporary files."""
        return self.folder / "tmp"

    def make(self) -> Place:
        """Make them, empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in (self.out, self.temporary):
            path.mkdir(parents=True)
        return self


@dataclass
class Tally:
    """What happened to one command.

    Attributes:
        kills: Runs that a kill ended.
        finished: Runs that were done before their kill; they do not count.
        half_written: Faults: a file under its final name that is not whole.
        left_behind: Faults: temporary files or processes after the next run.
        differs: Faults: the next run ended otherwise, or wrote something else.
    """

    kills: int = 0
    finished: int = 0
    half_written: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All of them."""
        return self.half_written + self.left_behind + self.differs


# --- running -------------------------------------------------------------------------------------


def preload() -> None:
    """Load what the commands load, without starting a thread: copies of this process are made."""
    import onnx
    import onnxruntime
    import torch
    import torchvision

    import optimizer.cli
    import optimizer.evaluation
    import optimizer.exporting
    import optimizer.search
    import optimizer.training

    del onnx, onnxruntime, torchvision, optimizer
    torch.set_num_threads(1)


def start(command: Command, place: Place, token: str) -> int:
    """Start a command in a forked copy of this process; returns its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # libraries have threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _command_line(command, place, token)
    finally:
        os._exit(code)


def _command_line(command: Command, place: Place, token: str) -> int:
    from optimizer.cli import main

    os.environ.update(
        {TOKEN: token, "TMPDIR": str(place.temporary), "RESNET_OPT_CACHE": str(place.cache)}
    )
    tempfile.tempdir = None
    os.chdir(place.out)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (place.folder / name).open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.argv = ["resnet-opt", *command]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        return int(end.code or 0)


def finish(command: Command, place: Place, token: str) -> int:
    """Run a command to its end; returns its exit code."""
    _, status = os.waitpid(start(command, place, token), 0)
    return os.waitstatus_to_exitcode(status)


def killed(command: Command, place: Place, token: str, after_s: float) -> bool:
    """Run a command and kill it after a time; whether the kill ended it."""
    pid = start(command, place, token)
    time.sleep(after_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


# --- looking -------------------------------------------------------------------------------------


def half_written(out: Path) -> list[str]:
    """Files under final names that are not whole, right after a kill.

    A file is whole if a manifest, also one that is not renamed yet, has its sha256, or if its own mark
    fits.
    """
    from optimizer.artifacts import digest, mark_of

    stated, wrong = set(), []
    for path in out.rglob("*.json"):
        with contextlib.suppress(ValueError, AttributeError):
            stated.add(json.loads(path.read_text(encoding="utf-8")).get("sha256"))
    for path in sorted(out.rglob("*")):
        parts = path.relative_to(out).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        if parts[0].endswith(".training"):  # checkpoints: the next run has to go on from them
            continue
        if not (_is_manifest(path) or digest(path) in stated or mark_of(path) is not None):
            wrong.append(f"{path.relative_to(out)} is not whole")
    return wrong


def _is_manifest(path: Path) -> bool:
    from optimizer.artifacts import read_manifest

    if path.suffix != ".json":
        return False
    with contextlib.suppress(Exception):
        return read_manifest(path.with_suffix("")).file == path.stem
    return False


def left_behind(place: Place, token: str) -> list[str]:
    """Temporary files, cache entries that `clean` does not remove, and processes."""
    from optimizer.artifacts import Cache

    found = [
        f"out/{path.relative_to(place.out)}"
        for path in sorted(place.out.rglob(".*"))
        if path.name not in KEPT
    ]
    found += [
        f"tmp/{path.name}"
        for path in sorted(place.temporary.iterdir())
        if path.name not in OF_LIBRARIES
    ]
    found += [f"process {pid}" for pid in running(token)]
    if place.cache.exists():
        Cache(place.cache).clear()
        found += [f"cache/{p.name}" for p in place.cache.iterdir() if p.name != "CACHEDIR.TAG"]
    return found


def running(token: str) -> list[int]:
    """Processes of a run that do not end within some seconds."""
    end = time.monotonic() + CHILDREN_END_S
    while (pids := _with_token(token)) and time.monotonic() < end:
        time.sleep(0.05)
    return pids


def _with_token(token: str) -> list[int]:
    wanted, found = f"{TOKEN}={token}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def facts(place: Place, code: int) -> dict[str, str]:
    """What a run left: its exit code, what it printed as JSON, and each file with its contents."""
    from optimizer.artifacts import digest

    found = {"exit code": str(code)}
    stdout = (place.folder / "stdout").read_text(encoding="utf-8")
    if stdout.startswith(("[", "{")):
        found["stdout"] = stdout
    for path in sorted(place.out.rglob("*")):
        name = str(path.relative_to(place.out))
        if path.is_dir() or any(part.startswith(".") for part in Path(name).parts):
            continue
        text = path.read_text(encoding="utf-8") if path.suffix == ".json" else ""
        if _is_manifest(path):
            found[name] = json.loads(text)["key"]
        elif text:
            raw = json.loads(text)
            found[name] = json.dumps([raw.get("kind"), raw.get("verdict"), raw.get("arch")])
        else:
            found[name] = digest(path)
    return found


# --- the experiment ------------------------------------------------------------------------------


class Experiment:
    """Kills of one command, against two runs that nobody disturbed."""

    def __init__(self, name: str, base: Base, folder: Path) -> None:
        self.command = COMMANDS[name](base)
        self.name, self.folder = name, folder
        self.tally = Tally()
        self._numbers = itertools.count()
        first, self.seconds = self._undisturbed()
        second, _ = self._undisturbed()
        assert first["exit code"] == second["exit code"], f"{name} ends differently without a kill"
        self.names = set(first)
        self.same = {key: value for key, value in first.items() if second.get(key) == value}
        """What does not differ between runs anyway, as times of a report do."""

    def _undisturbed(self) -> tuple[dict[str, str], float]:
        place, token = self._next()
        started = time.monotonic()
        code = finish(self.command, place, token)
        seconds = time.monotonic() - started
        found = facts(place, code)
        assert not (rest := left_behind(place, token)), rest
        return found, seconds

    def _next(self) -> tuple[Place, str]:
        number = next(self._numbers)
        return Place(self.folder / self.name).make(), f"{os.getpid()}-{self.name}-{number}"

    def kill(self, share: float) -> None:
        """Kill one run after a share of its time, check, run again, and compare."""
        place, token = self._next()
        if not killed(self.command, place, token, share * self.seconds):
            self.tally.finished += 1
            return
        self.tally.kills += 1
        at = f"{self.name} killed after {share:.0%}"
        alive = running(token)
        self.tally.left_behind += [f"{at}: process {pid} outlives it" for pid in alive]
        self.tally.half_written += [f"{at}: {wrong}" for wrong in half_written(place.out)]
        again = f"{token}-again"
        found = facts(place, finish(self.command, place, again))
        self.tally.left_behind += [f"{at}: {rest}" for rest in left_behind(place, again)]
        self.tally.differs += [f"{at}: {name}" for name in sorted(self._differences(found))]

    def _differences(self, found: dict[str, str]) -> set[str]:
        changed = {name for name, value in self.same.items() if found.get(name) != value}
        return changed | (self.names ^ set(found))


def experiment(
    kills: int, folder: Path, *, names: tuple[str, ...] = tuple(COMMANDS), seed: int = 0
) -> dict[str, Tally]:
    """Kill each command in turn, until ``kills`` runs were killed.

    Args:
        kills: Number of kills.
        folder: Where everything is written; the valid files are made in ``base`` if not there.
        names: The commands.
        seed: Seed of the moments.
    """
    base = Base(folder / "base")
    if not base.image.is_file():
        make_base(base.folder)
    (base.folder / "recipe.yaml").write_text(RECIPE.format(data=base.data), encoding="utf-8")
    preload()
    experiments = [Experiment(name, base, folder) for name in names]
    moments = random.Random(seed)
    turns = itertools.cycle(experiments)
    while sum(one.tally.kills for one in experiments) < kills:
        one = next(turns)
        one.kill(moments.random())
        done = sum(other.tally.kills for other in experiments)
        print(f"{done}/{kills} {one.name}: {len(one.tally.faults)} faults", flush=True)
    return {one.name: one.tally for one in experiments}


def block(report: dict[str, Any]) -> str:
    """The table of the document."""
    lines = [
        "| command | kills | half-written | left behind | differs |",
        "|---|---:|---:|---:|---:|",
    ]
    rows = [
        [name, row["kills"], *(len(row[key]) for key in ("half_written", "left_behind", "differs"))]
        for name, row in report["commands"].items()
    ]
    rows.append(["all", *(sum(int(row[i]) for row in rows) for i in range(1, 5))])
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def main() -> None:
    """Kill, write the record and the document; exit code 1 if there was a fault."""
    from optimizer.environment import describe

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--write-only", action="store_true", help="only rewrite the document")
    options = parser.parse_args()
    if not options.write_only:
        with tempfile.TemporaryDirectory() as made:
            tallies = experiment(options.kills, Path(made), seed=options.seed)
        report = {
            "seed": options.seed,
            "libraries": describe().libraries,
            "commands": {name: vars(tally) for name, tally in tallies.items()},
        }
        write_record(RECORD, report)
    report = json.loads(RECORD.read_text(encoding="utf-8"))
    write_between_marks(DOCUMENT, "kills", f"\n{block(report)}\n")
    sys.exit(any(len(row[key]) for row in report["commands"].values() for key in (
        "half_written", "left_behind", "differs")))  # fmt: skip


if __name__ == "__main__":
    main()
