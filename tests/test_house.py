"""The shape of the house: order of the rooms, what importing costs, what is public."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import optimizer

PACKAGE = Path(optimizer.__file__).parent
ROOMS = [
    "frameworks", "data", "models", "targets", "graphs", "exporting", "precision", "tasks", "training",
    "engines", "environment", "evaluation", "profiling", "search", "pruning", "reporting", "verbs",
    "gpu_record", "cli", "pytest_plugin",
]  # fmt: skip
HALLWAY = {
    "_version", "errors", "gpu_software", "installed", "nvml", "progress", "processes", "units", "artifacts",
    "results", "options", "recipe", "tables",
}  # fmt: skip
LONGEST_FUNCTION = 60
"""Lines of code, without the docstring."""
MODULES = sorted(PACKAGE.rglob("*.py"))
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
    "keras",
    "tensorflow",
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in {"__init__", "__main__"}:
        return
    allowed = HALLWAY if own in HALLWAY else HALLWAY | set(ROOMS[: ROOMS.index(own) + 1])
    assert _imports(path) - {"__version__"} <= allowed


def test_graphs_are_opened_and_written_in_one_place() -> None:
    """`optimizer.graphs` alone calls the libraries for it, and spells the keys of the metadata."""
    calls = re.compile(r"(onnx|ir|onnx_ir)\.(load|save|load_model|save_model|checker\.check_model)")
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] == "graphs":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not calls.fullmatch(ast.unparse(node.func)), path
            if isinstance(node, ast.Constant) and str(node.value).startswith("resnet_opt."):
                assert node.value == "resnet_opt.engines", path


def test_every_module_belongs_to_a_room_or_the_hallway() -> None:
    names = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])} - {"__main__"}
    assert names == HALLWAY | set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_fit_a_screen(path: Path) -> None:
    """Their number of parameters is ruff's to check (PLR0913)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {
        node.name: _length(node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and _length(node) > LONGEST_FUNCTION
    }
    assert not long


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first after the docstring to the last."""
    first, *rest = function.body
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    begin = rest[0].lineno if is_docstring and rest else first.lineno
    return (function.end_lineno or begin) - begin + 1


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {_module_name(path): path for path in MODULES}
    imports = {name: _modules_imported(path, set(names)) - {name} for name, path in names.items()}
    assert _cycle(imports) is None


def _module_name(path: Path) -> str:
    parts = ["optimizer", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules_imported(path: Path, known: set[str]) -> set[str]:
    """Modules that importing this one runs; what functions and type checkers import is not."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def _cycle(imports: dict[str, set[str]]) -> list[str] | None:
    """A path of imports that ends where it begins."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(imports[name]):
            if (found := follow(other, [*path, name])) is not None:
                return found
        done.add(name)
        return None

    return next((found for name in imports if (found := follow(name, []))), None)


SAME_THING = {
    # Two backends, and ONNX Runtime's providers, implement the same part of the protocol.
    "session.py",
}  # fmt: skip


def test_a_file_name_says_what_is_in_it_once() -> None:
    counts = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert {name for name, count in counts.items() if count > 1} <= SAME_THING


STARTS_PROCESSES = {
    "asyncio.subprocess", "concurrent.futures.process", "concurrent.futures.ProcessPoolExecutor",
    "multiprocessing", "pexpect", "pty", "runpy", "subprocess", "torch.multiprocessing",
}  # fmt: skip
OS_STARTS = re.compile(
    r"os\.(fork|forkpty|popen|posix_spawnp?|startfile|system|(exec|spawn)[lv]\w*)$"
    r"|asyncio\.create_subprocess_\w+$"
)


def _ways_to_start(path: Path) -> list[str]:
    ways: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        ways += [
            name
            for name in names
            if OS_STARTS.match(name)
            or any(name == way or name.startswith(f"{way}.") for way in STARTS_PROCESSES)
        ]
    return ways


def test_one_room_starts_processes() -> None:
    """Tools of the system too (`optimizer.processes.output_of`), so there are no exceptions."""
    found = {str(p.relative_to(PACKAGE)): _ways_to_start(p) for p in PACKAGE.rglob("*.py")}
    starting = {path for path, ways in found.items() if ways}
    assert starting == {"processes/child.py", "processes/tools.py"}


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "from multiprocessing import get_context",
        "from concurrent.futures import ProcessPoolExecutor",
        "import torch.multiprocessing as mp",
        "import os\nos.execv('a', [])",
        "import os\nos.posix_spawn('a', [], {})",
        "import asyncio\nasyncio.create_subprocess_exec('a')",
        "import concurrent.futures\nconcurrent.futures.ProcessPoolExecutor()",
    ],
)
def test_ways_to_start_a_process_are_seen(code: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(code)
    assert _ways_to_start(tmp_path / "m.py")


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
        "import contextlib, io, sys\n"
        "from optimizer.cli.app import run_command_line\n"
        "from optimizer.cli.commands import PANELS\n"
        "for command in (command for panel in PANELS.values() for command in panel):\n"
        "    name, out = command.__name__.replace('_', '-'), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out):\n"
        "        assert run_command_line([name, '--help']) == 0, name\n"
        "    assert 'Example:' in out.getvalue(), name\n"
        "print(*(m for m in sys.modules if '.' not in m))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


CALLERS = [
    *sorted((PACKAGE.parent / "benchmarks").glob("*.py")),
    *sorted((PACKAGE.parent / "examples").glob("*.py")),
]


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_pass_options_that_exist(path: Path) -> None:
    """Type checkers do not see keywords that come from option models."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("optimizer"), attr=verb)):
                accepted = inspect.signature(getattr(optimizer, verb)).parameters
                given = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                assert given <= accepted.keys(), f"{path.name}:{node.lineno}: {verb}"


ADAPTERS = {
    # TensorRT, whose releases differ in more than versions; the other libraries need none at present.
    "engines/tensorrt/library.py",
}
LIBRARIES = {
    "cv2", "ir", "load", "np", "onnx", "onnxruntime", "onnxscript", "openvino", "ort", "ov", "timm",
    "torch", "torchvision", "trt",
}  # fmt: skip
"""Names that libraries have in this package."""


def _adaptations(tree: ast.AST) -> list[str]:
    """Code that does something else for another release of a library."""
    found: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("hasattr"), args=[of, _]):
                pass
            case ast.Call(func=ast.Name("getattr"), args=[of, _, _]):
                pass
            case ast.Compare() if "version" in ast.unparse(node.left).lower():
                of = node.left
            case ast.ExceptHandler(type=ast.Name("AttributeError")):
                found.append(ast.unparse(node))
                continue
            case _:
                continue
        if {name.id for name in ast.walk(of) if isinstance(name, ast.Name)} & LIBRARIES:
            found.append(ast.unparse(node))
    return found


def test_releases_of_libraries_are_told_apart_in_one_place() -> None:
    """One module a library, so that an adaptation leaves when the declared range does not need it."""
    adapting = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if _adaptations(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert adapting == ADAPTERS


@pytest.mark.parametrize(
    "code",
    [
        "hasattr(torch.onnx, 'export')",
        "getattr(ort, 'Name', None)",
        "torch.__version__ < '3'",
        "if Version(ov.__version__) >= Version('2026'): pass",
        "try:\n    f()\nexcept AttributeError:\n    g()",
    ],
)
def test_adaptations_are_seen(code: str) -> None:
    assert _adaptations(ast.parse(code))
    assert not _adaptations(
        ast.parse("getattr(options, name); hasattr(os, 'x'); schema_version < 2")
    )
