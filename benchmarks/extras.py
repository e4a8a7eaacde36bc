"""Measure what the package and each of its extras bring, in the environment that runs this.

    python benchmarks/extras.py

Sizes are those of the installed files. Of an extra they are what it adds to the default set. Extras
that are not installed are left as they were recorded. Writes ``reports/extras/extras.json``; the table
in README.md comes from that file. The result does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))

from readme import ROOT, write_into_readme

RECORD = ROOT / "reports" / "extras" / "extras.json"
PACKAGE = "resnet-opt"
NO_GPU = re.compile(r"nvidia-(?!ml-py$)|triton$|cuda-(bindings|pathfinder|toolkit)|cuda-python$")
"""Packages that only a GPU needs."""
DEFAULT, GPU_ONLY = "–", "of that, for GPUs only"
PROVIDES = {
    DEFAULT: "PyTorch, ONNX Runtime, OpenVINO and all verbs, on any machine",
    GPU_ONLY: "CUDA's libraries and Triton, which PyTorch's build for CUDA requires",
    "tensorrt-rtx": "TensorRT-RTX: compiles engines for GeForce and RTX cards, even on a machine without one",
    "tensorrt": "TensorRT 11",
    "tensorrt10": "TensorRT 10.12 to 10.16, which ONNX Runtime's TensorRT provider needs",
    "cuda12": "PyTorch, ONNX Runtime and cuda-python for a driver that serves CUDA 12 and not 13",
    "tensorrt-cuda12": "TensorRT 11 for CUDA 12",
    "tensorrt10-cuda12": "TensorRT 10 for CUDA 12",
    "tensorrt-rtx-cuda12": "TensorRT-RTX for CUDA 12",
    "cuda": "device memory and streams for running TensorRT engines",
    "pycuda": "the same by another library; one of them is enough",
    "timm": "models by timm's names, the optimizer LAMB",
    "tensorboard": "`train --track tensorboard`",
    "mlflow": "`train --track mlflow`",
    "keras": "Keras itself as the reference of `validate`, on the installed PyTorch",
    "tensorflow": "`export` of SavedModels; may be in another environment (`--framework-python`)",
    "loadgen": "MLPerf's load generator, for `bench --scenario`",
    "dev": "what the tests and `make` need",
}
"""What each row brings; every extra has one."""


def closure(requirements: Iterable[Requirement]) -> set[str] | None:
    """Names of the installed packages that requirements bring; ``None`` if one is not installed."""
    found: set[str] = set()
    queue = [
        (requirement.name, extra) for requirement in requirements for extra in _extras(requirement)
    ]
    seen = set(queue)
    while queue:
        name, extra = queue.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return None
        found.add(_normal(name))
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                for more in _extras(requirement):
                    if (requirement.name, more) not in seen:
                        seen.add((requirement.name, more))
                        queue.append((requirement.name, more))
    return found


def _extras(requirement: Requirement) -> list[str]:
    return ["", *requirement.extras]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def size(names: Iterable[str]) -> int:
    """Bytes of the installed files of packages, without compiled Python."""
    paths = {
        Path(str(file.locate()))
        for name in names
        for file in metadata.distribution(name).files or ()
        if file.suffix != ".pyc"
    }
    return sum(path.stat().st_size for path in paths if path.is_file())


def measure() -> dict[str, dict[str, Any]]:
    """Packages and bytes of the default set and of each extra that is installed."""
    requires = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    own = [r for r in requires if r.marker is None or r.marker.evaluate({"extra": ""})]
    default = closure(own)
    if default is None:
        raise SystemExit("a package of the default set is not installed\nhint: make install")
    for_gpu = {name for name in default if NO_GPU.match(name)}
    rows: dict[str, dict[str, Any]] = {DEFAULT: _row(default), GPU_ONLY: _row(for_gpu)}
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        added = [r for r in requires if r not in own and _is_of(r, extra)]
        if all(map(_is_met, added)) and (names := closure(added)) is not None:
            rows[extra] = _row(names - default)
    return rows


def _is_of(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement) -> bool:
    """Whether a version that an extra asks for is the installed one; some replace the default's."""
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(installed, prereleases=True)


def _row(names: set[str]) -> dict[str, Any]:
    return {"packages": sorted(names), "bytes": size(names)}


def block(report: dict[str, Any]) -> str:
    """The table of the README."""
    lines = ["| extra | provides | packages | MB |", "|---|---|---:|---:|"]
    for name, provides in PROVIDES.items():
        row = report["sets"].get(name)
        shown = name if name in {DEFAULT, GPU_ONLY} else f"`{name}`"
        weight = (
            "not measured | not measured"
            if row is None
            else f"{len(row['packages'])} | {row['bytes'] / 1e6:,.0f}"
        )
        lines.append(f"| {shown} | {provides} | {weight} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the record and the README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write-only", action="store_true", help="only rewrite the README")
    options = parser.parse_args()
    if not options.write_only:
        before = json.loads(RECORD.read_text(encoding="utf-8"))["sets"] if RECORD.exists() else {}
        system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        report = {"system": system, "sets": {**before, **measure()}}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    report = json.loads(RECORD.read_text(encoding="utf-8"))
    write_into_readme("extras", f"\n{block(report)}\n")


if __name__ == "__main__":
    main()
