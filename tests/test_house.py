"""The shape of the house: order of the rooms, what importing costs, what is public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

PACKAGE = Path(optimizer.__file__).parent
ROOMS = [
    "data",
    "models",
    "exporting",
    "targets",
    "precision",
    "training",
    "engines",
    "environment",
    "evaluation",
    "profiling",
    "search",
    "reporting",
    "verbs",
    "gpu_record",
    "stages",
    "pipeline",
    "cli",
    "pytest_plugin",
]
HALLWAY = {
    "_version", "errors", "gpu_software", "nvml", "progress", "processes", "units", "artifacts",
    "results", "recipe",
}  # fmt: skip
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "sklearn",
    "scipy",
    "numpy",
    "pandas",
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("optimizer.")}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in {"__init__", "__main__"}:
        return
    allowed = HALLWAY if own in HALLWAY else HALLWAY | set(ROOMS[: ROOMS.index(own) + 1])
    assert _imports(path) - {"__version__"} <= allowed


def test_every_module_belongs_to_a_room_or_the_hallway() -> None:
    names = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])} - {"__main__"}
    assert names == HALLWAY | set(ROOMS)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_all_lists_what_there_is() -> None:
    for found in pkgutil.walk_packages([str(PACKAGE)], "optimizer."):
        if found.name == "optimizer.__main__":
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{found.name}.{name}"


def test_verbs_are_not_shadowed_by_rooms() -> None:
    importlib.import_module("optimizer.exporting.exporter")
    for name in optimizer.__all__:
        if name != "__version__":
            assert callable(getattr(optimizer, name)), name


@pytest.mark.parametrize("statement", ["import optimizer", "import optimizer.cli"])
def test_importing_is_light(statement: str) -> None:
    code = f"import sys; {statement}; print(*(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)


def test_help_of_every_command_needs_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from optimizer.cli.app import app\n"
        "import typer.main\n"
        "for name in typer.main.get_command(app).commands:\n"
        "    result = CliRunner().invoke(app, [name, '--help'])\n"
        "    assert result.exit_code == 0, (name, result.output)\n"
        "    assert 'Example:' in result.output, name\n"
        "print(*(m for m in sys.modules if '.' not in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
