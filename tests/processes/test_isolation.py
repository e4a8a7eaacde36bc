"""No child executes files in the current folder that have the names of libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import optimizer
from optimizer.cli.commands import PANELS
from optimizer.data import Preprocessing, open_dataset
from optimizer.engines import BuildSettings
from optimizer.engines.building import build_engine
from optimizer.processes import call
from optimizer.profiling.ceilings import ceilings
from optimizer.profiling.loadgen_request import Request
from optimizer.profiling.scenarios import run_scenario
from optimizer.profiling.worker_process import Worker
from optimizer.progress import Silent
from optimizer.search.cost import timed
from tests.processes.conftest import ROOT, Trap
from tests.profiling.conftest import QUICK, MakeEngine


def run(
    *command: object, expect: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run in the current folder."""
    completed = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if expect is not None:
        assert completed.returncode == expect, completed.stderr
    return completed


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images in ten classes."""
    random = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "photos" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


# --- each kind of child --------------------------------------------------------------------------


def test_traps_catch_ordinary_children(trap: Trap) -> None:
    run(sys.executable, "-m", "json.tool", expect=None)
    assert "json" in trap.executed


def test_a_call(trap: Trap) -> None:
    assert call("optimizer.units:parse_duration", ["5s"]) == 5.0
    assert trap.executed == ""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_a_build(
    trap: Trap, tmp_path: Path, small_graph: Path, small_checkpoint: Path, engine: str
) -> None:
    graph = small_graph if engine != "torch" else small_checkpoint
    built = build_engine(graph, tmp_path / "engine", engine, BuildSettings(precision="fp32"))
    assert built.path.stat().st_size > 0
    assert trap.executed == ""


def test_a_worker_of_the_harness(trap: Trap, make_engine: MakeEngine) -> None:
    path = make_engine()
    worker = Worker(threads=1)
    try:
        worker.ask("load", timeout_s=60, path=str(path), threads=1, device=None)
        worker.ask("prepare", timeout_s=60, batch=1, image_size=None, seed=0)
    finally:
        worker.close()
    assert trap.executed == ""


def test_decoding(trap: Trap, photos: Path) -> None:
    data = open_dataset(photos, workers=2)
    batches = list(data.batches(4, Preprocessing(resize=32, crop=32)))
    assert sum(len(batch.labels) for batch in batches) == 20
    assert trap.executed == ""


def test_a_scenario_of_loadgen(trap: Trap, make_engine: MakeEngine) -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install 'resnet-opt[loadgen]'")
    request = Request(
        engine=str(make_engine()),
        scenario="offline",
        folder="",
        duration_s=0.05,
        threads=1,
        batch=1,
    )
    result = run_scenario("e", "offline", request)
    assert (result.status, result.error) == ("ok", None)
    assert trap.executed == ""


def test_ceilings(trap: Trap) -> None:
    assert ceilings(1, cache=None, effort=QUICK, progress=Silent()).compute["fp32"].rate > 0
    assert trap.executed == ""


def test_timing_in_a_search(trap: Trap, small_graph: Path) -> None:
    (timing,) = timed([small_graph], 32)
    assert timing.total_ms > 0
    assert trap.executed == ""


# --- each verb that starts one -------------------------------------------------------------------

VERBS = {
    "build": "build {graph} --engine openvino -o {out}/e.blob",
    "build-mixed": "build {graph} --engine openvino --precision mixed --max-drop 50pp "
    "--calib digits:train --calib-images 64 --data digits:test -o {out}/m.blob",
    "calibrate": "calibrate {graph} --calib {photos} --workers 2 -o {out}/stats.npz",
    "quantize": "quantize {graph} --precision int8 --target openvino --calib {photos} --workers 2 "
    "-o {out}/q.onnx",
    "validate": "validate {graph} --reference {checkpoint} --data {photos} --workers 2 "
    "-o {out}/v.json",
    "bench": "bench {checkpoint} --duration 0.1s --threads 1 --scenario offline -o {out}/b.json",
    "profile": "profile {checkpoint} --no-ceilings --duration 0.1s --threads 1 -o {out}/p.json",
    "train": "train --arch resnet18 --data {photos} --epochs 1 --image-size 32 --workers 2 "
    "-o {out}/t.safetensors",
    "prune": "prune {checkpoint} --data digits:train --val digits:test --engine openvino "
    "--precision fp32 --keep-flops 80% --epochs 1 --max-drop 100pp -o {out}/narrow.safetensors",
    "latency_table": "latency-table --model {checkpoint} --engine openvino --precision fp32 "
    "-o {out}/table.json",
    "export": "export {checkpoint} -o {out}/e.onnx",
    "refit": "refit {graph} {checkpoint} -o {out}/r.plan",
    "predict": "predict {checkpoint} {photos}/0",
    "inspect": "inspect {graph}",
    "compare": "compare {out}/v.json {out}/v.json",
    "report": "report {out} -o {out}/r.html",
    "preprocess": "preprocess --diff {photos}",
    "doctor": "doctor",
    "clean": "clean",
    "demo": "demo --save-recipe {out}/demo.yaml",
    "run": "run {checkpoint} --data digits:test --calib digits:train --limit 50 --engine openvino "
    "--precision fp32 --duration 0.1s --threads 1 -o {out}/run",
}


LONG = (
    "build", "build-mixed", "bench", "calibrate", "latency_table", "profile", "prune", "quantize", "run",
)  # fmt: skip
REFUSED = ("refit", "compare", "report")
"""Verbs whose inputs do not exist here; what they import first is looked at."""
NO_FILE = (
    *REFUSED,
    "predict",
    "inspect",
    "preprocess",
    "doctor",
    "clean",
    "prune",
    "latency_table",
)
"""Verbs that leave no file; the last two only on a machine that is too busy to time layers."""


def test_every_verb_is_tried() -> None:
    commands = {command.__name__ for panel in PANELS.values() for command in panel}
    assert commands == {name.partition("-")[0] for name in VERBS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [pytest.param(verb, marks=[pytest.mark.long] if verb in LONG else []) for verb in VERBS],
)
def test_a_verb(
    trap: Trap, tmp_path: Path, photos: Path, small_graph: Path, small_checkpoint: Path, verb: str
) -> None:
    """Run like the console script, which does not have the current folder on its path."""
    out = tmp_path / "out"
    out.mkdir()
    line = VERBS[verb].format(
        graph=small_graph, checkpoint=small_checkpoint, photos=photos, out=out
    )
    completed = run(
        sys.executable, "-P", "-m", "optimizer", *line.split(), expect=None,
        RESNET_OPT_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert trap.executed == ""
    assert completed.returncode in ({2} if verb in REFUSED else {0, 4, 5, 6}), completed.stderr
    assert verb in NO_FILE or any(out.iterdir()), completed.stderr


@pytest.mark.slow
def test_python_m_does_not_search_the_current_folder(
    tmp_path: Path, small_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for its own first imports; only a package ``optimizer`` there would be run, as asked for."""
    names = {*sys.stdlib_module_names, *metadata.packages_distributions()} - {"optimizer"}
    trap = Trap(tmp_path, [*names, "sitecustomize", "usercustomize"])
    monkeypatch.chdir(trap.folder)
    line = ["build", small_graph, "--no-cache", "--engine", "openvino", "-o", tmp_path / "e.blob"]
    run(sys.executable, "-m", "optimizer", *line)
    assert (tmp_path / "e.blob").is_file()
    assert trap.executed == ""


# --- what a child does import --------------------------------------------------------------------


def module_in(folder: Path, name: str = "a_plugin") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text("")
    return folder


def imported(name: str = "a_plugin") -> Path:
    return Path(call("tests.processes.targets:import_module", [name], import_from=[str(ROOT)]))


def test_modules_are_found_on_pythonpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = module_in(tmp_path / "plugins")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert imported().parent == folder


def test_modules_are_found_on_sys_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = module_in(tmp_path / "plugins")
    monkeypatch.syspath_prepend(str(folder))
    assert imported().parent == folder


@pytest.mark.parametrize("entry", ["", ".", "./"])
def test_pythonpath_does_not_add_the_current_folder(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(module_in(tmp_path / "here"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([entry, str(tmp_path)]))
    for path in ("", str(tmp_path / "here")):
        monkeypatch.syspath_prepend(path)
    with pytest.raises(Exception, match="No module named 'a_plugin'"):
        imported()


SCRIPT = """
import sys
{before}
import optimizer
from optimizer.processes import call
print(optimizer.__file__)
{after}
look = "tests.processes.targets:look_around"
print(call(look, import_from=[{root!r}])["package"])
"""


def script(tmp_path: Path, before: str = "", after: str = "") -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(before=before, after=after, root=str(ROOT)))
    return path


def test_the_same_package_is_found_from_any_current_folder(tmp_path: Path) -> None:
    """From a checkout, by an entry relative to a folder that is left and deleted afterwards."""
    (tmp_path / "checkout").symlink_to(ROOT)
    (tmp_path / "gone").mkdir()
    path = script(
        tmp_path,
        "import os; os.chdir(sys.argv[1]); sys.path.insert(0, 'checkout')",
        "os.chdir('gone'); os.rmdir('../gone')",
    )
    completed = run(sys.executable, path, tmp_path, PYTHONPATH="")
    ours, theirs = completed.stdout.split()
    assert ours == theirs == str(tmp_path / "checkout" / "optimizer" / "__init__.py")


def test_the_same_package_is_found_in_a_zip_file(tmp_path: Path) -> None:
    package = Path(optimizer.__file__).parent
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for path in package.rglob("*.py"):
            file.write(path, path.relative_to(package.parent))
    completed = run(sys.executable, script(tmp_path), PYTHONPATH=str(packed))
    ours, theirs = completed.stdout.split()
    assert ours == theirs == str(packed / "optimizer" / "__init__.py")


def test_an_isolated_python_has_isolated_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -I` ignores environment variables, and so do its children."""
    folder = module_in(tmp_path / "plugins")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "isolated.py"
    path.write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from optimizer.processes import call\n"
        "print(*call('tests.processes.targets:look_around')['path'])\n"
    )
    completed = run(sys.executable, "-I", path, PYTHONPATH=str(folder))
    assert str(folder) not in completed.stdout.split()
    assert str(ROOT) in completed.stdout.split()
