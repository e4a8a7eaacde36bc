"""The weights of the extras: what counts as theirs, and that every extra is listed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import extras
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_every_extra_has_a_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = set(extras.PROVIDES) - {extras.DEFAULT, extras.GPU_ONLY}
    assert listed == set(project["optional-dependencies"])


def test_a_closure_holds_what_is_needed_here() -> None:
    found = extras.closure([Requirement("jinja2")])
    assert found == {"jinja2", "markupsafe"}
    assert extras.size(found) > 100_000
    assert extras.closure([Requirement("no-such-package")]) is None


def test_gpu_packages_are_told_from_others() -> None:
    for name in ("nvidia-cublas", "nvidia-cudnn-cu13", "triton", "cuda-bindings"):
        assert extras.NO_GPU.match(name)
    for name in ("nvidia-ml-py", "torch", "onnxruntime-gpu", "tritonclient"):
        assert not extras.NO_GPU.match(name)


def test_extras_that_are_not_installed_say_so() -> None:
    text = extras.block({"sets": {"timm": {"packages": ["timm"], "bytes": 27_400_000}}})
    assert "| `timm` | models by timm's names, the optimizer LAMB | 1 | 27 |" in text
    assert (
        "| `pycuda` | the same by another library; one of them is enough | not measured |" in text
    )
