"""The wheel and the source distribution: whole, and working without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.sharing import Shared

ROOT = Path(__file__).parents[1]
LEFT_OUT = {".git", ".venv", "build", "dist"}
NOT_IN_SDIST = {".dockerignore", ".gitattributes", ".github"}

RECIPE = """\
model: {model}
validation: {{data: "digits:test", limit: 64, workers: 0}}
build:
- engine: onnxruntime
  precision: fp32
bench: null
"""

pytestmark = pytest.mark.long


def run(
    command: list[object],
    folder: Path,
    *,
    path: str | None = None,
    codes: tuple[int, ...] = (0,),
    **variables: str,
) -> str:
    """Run a command with nothing of this checkout on its path; its output."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
    )  # fmt: skip
    assert done.returncode in codes, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(shared: Shared) -> Path:
    """A folder with both, built from a copy of the sources."""

    def make(folder: Path) -> None:
        sources = folder / "sources"
        names = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True, text=True, check=False,
        ).stdout.split("\0")  # fmt: skip
        if not any(names):
            pytest.skip("needs git and a checkout, to tell sources from what lies beside them")
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (sources / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, sources / name)
        run([sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", "."], sources)

    return shared("distributions", make)


def test_the_wheel_works_in_an_empty_environment(
    distributions: Path, small_checkpoint: Path, small_graph: Path, tmp_path: Path
) -> None:
    (wheel,) = (distributions / "dist").glob("*.whl")
    packaged = distributions / "sources" / "optimizer"
    expected = {str(p.relative_to(packaged.parent)) for p in packaged.rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == expected

    run([sys.executable, "-m", "venv", "--without-pip", "environment"], tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    run([sys.executable, "-m", "uv", "pip", "install", "--python", python, "--no-deps", "--offline",
         "--no-index", wheel], tmp_path)  # fmt: skip
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    work = tmp_path / "another folder"
    work.mkdir()
    where = run([python, "-c", "import optimizer; print(optimizer.__file__)"], work)
    assert Path(where.strip()).is_relative_to(site)
    command = python.with_name("resnet-opt")
    assert "resnet-opt build" in run([command, "build", "--help"], work)
    assert run([command, "--version"], work) == "resnet-opt 0.1.0\n", "it is no checkout"
    assert "onnxruntime" in run([command, "doctor"], work)
    cache = {"RESNET_OPT_CACHE": str(tmp_path / "cache")}
    for name in (small_graph.name, f"{small_graph.name}.json"):
        shutil.copyfile(small_graph.with_name(name), work / name)
    build = [command, "build", small_graph.name, "--engine", "onnxruntime", "-o", "e.ort.onnx"]
    assert "100" in run(build, work, **cache)
    (work / "recipe.yaml").write_text(RECIPE.format(model=small_checkpoint), encoding="utf-8")
    # The network is random, so its labels say little and the run is inconclusive.
    run([command, "run", "recipe.yaml", "-o", "job"], work, codes=(0, 6), **cache)
    run([command, "report", "job", "-o", "report.html"], work, **cache)
    assert "onnxruntime-fp32.ort.onnx" in (work / "report.html").read_text(encoding="utf-8")


def test_the_source_distribution_runs_its_own_tests(distributions: Path, tmp_path: Path) -> None:
    (sdist,) = (distributions / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    sources = distributions / "sources"
    missing = {
        str(path.relative_to(sources))
        for path in sources.rglob("*")
        if path.is_file() and not (folder / path.relative_to(sources)).is_file()
    }
    built = {name for name in missing if name.startswith(("build/", "resnet_opt.egg-info/"))}
    assert missing - built <= NOT_IN_SDIST
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    fast = ["-m", "not gpu and not slow and not long"]
    collected = run([*pytest_, *fast, "--collect-only"], folder, path=str(folder))
    assert " tests collected" in collected
    some = ["tests/test_units.py", "tests/test_errors.py", "tests/options", "tests/targets"]
    passed = run([*pytest_, *fast, *some], folder, path=str(folder))
    assert " passed" in passed
    assert " failed" not in passed
