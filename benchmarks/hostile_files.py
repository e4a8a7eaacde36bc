"""Feed damaged and hostile files to the commands, and count how they end.

    python benchmarks/hostile_files.py --cases 10000
    python benchmarks/hostile_files.py --cases 10000 --minutes 20 --kind npz --kind recipe

The second command stops each kind after its minutes, and keeps what is recorded of other kinds.

A case is *right* (exit code 0, and what was written can be used) or *refused* (one clear error with
the exit code that `optimizer/errors.py` gives it). Everything else is a fault: an internal error, a
signal, an unusable file with exit code 0, a pass of a network that computes something else, code of a
file that ran, 60 seconds of CPU time, or 1 GiB more memory than before. Writes
``reports/hostile/hostile.json``; the texts in ``docs/hostile_input.md`` come from that file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hostile_cases import KINDS, Base, Command, make_base
from readme import write_between_marks, write_record

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "reports" / "hostile" / "hostile.json"
DOCUMENT = ROOT / "docs" / "hostile_input.md"
CPU_SECONDS = 60
MEMORY = 1 << 30
REFUSED = {2, 3, 4, 5, 6, 7}
"""Exit codes of errors and verdicts; 1 is for internal errors and for libraries that fail to build."""


# --- in the child --------------------------------------------------------------------------------


def run_cases(kind: str, first: int, count: int, base: Base, folder: Path) -> Iterator[str]:
    """Run cases in this process; yields ``right``, ``refused`` or what is wrong for each."""
    _warm_up(base, folder)
    before = _peak()
    for seed in range(first, first + count):
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir(parents=True)
        # The default action of the signal ends the process, also inside a library.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        commands = KINDS[kind](random.Random(f"{kind} {seed}"), base, case)
        outcomes = [_outcome(command, base, case) for command in commands]
        signal.setitimer(signal.ITIMER_PROF, 0)
        faults = [outcome for outcome in outcomes if outcome not in {"right", "refused"}]
        if not faults and _peak() > before + MEMORY:
            faults.append(f"took {(_peak() - before) / 2**30:.1f} GiB more memory")
            before = _peak()
        yield faults[0] if faults else outcomes[-1]


def _warm_up(base: Base, folder: Path) -> None:
    """Load the libraries, so that their memory is not counted."""
    out = str(folder / "warm")
    for command in (
        ["quantize", str(base.graph), "--precision", "fp16", "-o", f"{out}.onnx"],
        ["validate", str(base.engine), "--reference", str(base.graph), "--data", str(base.data),
         "-o", f"{out}.json"],
        ["predict", str(base.folder / "none.pth"), str(base.image)],
    ):  # fmt: skip
        _run(command)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _run(command: Command) -> tuple[int, str]:
    from optimizer.cli.app import run_command_line

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = run_command_line(command)
    return code, errors.getvalue()


def _outcome(command: Command, base: Base, folder: Path) -> str:
    code, text = _run(command)
    line = next((line for line in text.splitlines() if line.startswith(("error", "internal"))), "")
    where = f"{command[0]}: exit code {code}, {line[:300]!r}"
    if (folder / "executed").exists():
        return f"{where}: code in the file was executed"
    if "internal error" in text:
        return where
    if code == 0:
        return _written(command, base) or "right"
    if code in REFUSED and line:
        return "refused"
    return where


def _written(command: Command, base: Base) -> str | None:
    """What is wrong with the result of a command that ended with exit code 0."""
    import numpy as np

    if command[0] == "validate":
        drop = _drop(Path(command[1]), base)
        wrong = drop is not None and drop > 0.01
        return f"validate: passed a graph that loses {drop:.1%}" if wrong else None
    if command[0] != "quantize":
        return None
    logits = _logits(Path(command[command.index("-o") + 1]), base)
    finite = logits is not None and bool(np.isfinite(logits).all())
    return None if finite else "quantize: exit code 0, but the graph does not compute finite logits"


def _logits(graph: Path, base: Base) -> Any:
    """Logits of the first images, computed by ONNX Runtime alone; ``None`` if it cannot."""
    import numpy as np
    import onnxruntime as ort

    from optimizer.data import Preprocessing

    with np.load(base.data) as data:
        batch = Preprocessing.digits(8).normalize(data["images"][:200])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        values = batch if source.type == "tensor(float)" else batch.astype(np.float16)
        return session.run(None, {source.name: values})[0]
    except Exception:  # noqa: BLE001 - what it raises has no common base class
        return None


def _drop(graph: Path, base: Base) -> float | None:
    """Share of the first images that an ONNX file classifies differently from their labels."""
    import numpy as np

    if graph.suffix != ".onnx":
        return None
    logits = _logits(graph, base)
    if logits is None:
        return 1.0
    with np.load(base.data) as data:
        return float((np.argmax(logits, axis=1) != data["labels"][:200]).mean())


# --- in the parent -------------------------------------------------------------------------------


def outcomes(
    kind: str, cases: int, folder: Path, *, first: int = 0, seconds: float | None = None
) -> dict[int, str]:
    """The outcome of each case by its seed; a child that dies is started again at the next one.

    Args:
        kind: One of `hostile_cases.KINDS`.
        cases: Number of cases.
        folder: Where files are written; the valid ones in ``base``, made if they are not there.
        first: Seed of the first case.
        seconds: Run no further cases after this time; ``None`` for all of them.
    """
    base = Base(folder / "base")
    if not base.image.is_file():
        make_base(base.folder)
    found: dict[int, str] = {}
    ends = time.monotonic() + (math.inf if seconds is None else seconds)
    while len(found) < cases and time.monotonic() < ends:
        start = first + len(found)
        with subprocess.Popen(
            [sys.executable, __file__, "--child", kind, str(start), str(cases - len(found)), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env={**os.environ, "RESNET_OPT_CACHE": str(folder / "cache"), "COLUMNS": "400"},
        ) as child:  # fmt: skip
            assert child.stdout is not None
            for line in child.stdout:
                found[first + len(found)] = json.loads(line)
                if time.monotonic() >= ends:
                    child.kill()
                    child.wait()
                    return found
            code = child.wait()
        if len(found) < cases:
            reason = f"{CPU_SECONDS} s of CPU time" if code == -signal.SIGPROF else f"status {code}"
            found[first + len(found)] = f"the process ended: {reason}"
    return found


def _child(kind: str, first: int, count: int, folder: Path) -> None:
    # Libraries write to descriptor 1 too; only this process's lines may reach the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for outcome in run_cases(kind, first, count, Base(folder / "base"), Path(own)):
            print(json.dumps(outcome), file=answers)


def record(
    kinds: list[str], cases: int, folder: Path, *, seconds: float | None = None
) -> dict[str, Any]:
    """Run the cases of each kind and count the outcomes."""
    from optimizer.environment import describe

    counted: dict[str, Any] = {}
    for kind in kinds:
        started = time.monotonic()
        found = outcomes(kind, cases, folder, seconds=seconds)
        counts = Counter(outcome for outcome in found.values() if outcome in {"right", "refused"})
        faults = {seed: text for seed, text in found.items() if text not in {"right", "refused"}}
        counted[kind] = {
            "cases": len(found), "right": counts["right"], "refused": counts["refused"], "faults": faults,
        }  # fmt: skip
        took = time.monotonic() - started
        print(f"{kind:<12} {len(found)} cases, {len(faults)} faults, {took:.0f} s", flush=True)
    environment = describe()
    return {"libraries": environment.libraries, "kinds": counted}


def block(report: dict[str, Any]) -> str:
    """The table of the document."""
    lines = ["| file | cases | right | refused | faults |", "|---|---:|---:|---:|---:|"]
    for kind, row in report["kinds"].items():
        cells = [row["cases"], row["right"], row["refused"], len(row["faults"])]
        lines.append(f"| {kind} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, write the record and the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="cases of each kind")
    parser.add_argument("--minutes", type=float, help="stop each kind after this time")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="only this kind")
    parser.add_argument("--write-only", action="store_true", help="only rewrite the document")
    parser.add_argument("--child", nargs=4, metavar="ARGUMENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, first, count, folder = options.child
        _child(kind, int(first), int(count), Path(folder))
        return
    if not options.write_only:
        with tempfile.TemporaryDirectory() as made:
            seconds = None if options.minutes is None else 60 * options.minutes
            kinds = options.kind or list(KINDS)
            report = record(kinds, options.cases, Path(made), seconds=seconds)
        if options.kind and RECORD.exists():
            before = json.loads(RECORD.read_text(encoding="utf-8"))["kinds"]
            report["kinds"] = dict(sorted((before | report["kinds"]).items()))
        write_record(RECORD, report)
    report = json.loads(RECORD.read_text(encoding="utf-8"))
    write_between_marks(DOCUMENT, "hostile", f"\n{block(report)}\n")


if __name__ == "__main__":
    main()
