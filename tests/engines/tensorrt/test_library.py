from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.engines.tensorrt.library import TENSORRT, TENSORRT_RTX, find, load, version_tuple
from optimizer.errors import MissingLibrary


def library(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch, version: str = "") -> None:
    """Put a module named ``tensorrt`` on the path, and a distribution of that name."""
    package = folder / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    if version:
        info = folder / f"tensorrt-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n"
        )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def _forget() -> object:
    before = sys.modules.get("tensorrt")
    yield
    if before is None:
        sys.modules.pop("tensorrt", None)


def test_a_missing_library_names_its_extra() -> None:
    nowhere = replace(TENSORRT, module="tensorrt_of_another_world")
    status = find(nowhere)
    assert status.module is None
    with pytest.raises(MissingLibrary, match="is not installed") as caught:
        load(nowhere)
    assert caught.value.hint == 'pip install "resnet-opt[tensorrt]"'
    assert TENSORRT_RTX.hint == 'pip install "resnet-opt[tensorrt-rtx]"'


def test_a_folder_of_that_name_is_not_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tensorrt_folder_only"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "is not installed" in str(find(replace(TENSORRT, module=name)).fault)


@pytest.mark.parametrize("told_by", ["distribution", "module"])
def test_tensorrt_10_3_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    # JetPack installs it without Python package metadata.
    version = "10.3.0" if told_by == "distribution" else ""
    code = "raise RuntimeError('must not be imported')" if version else "__version__ = '10.3.0'"
    library(tmp_path, code, monkeypatch, version)
    status = find(TENSORRT)
    assert status.module is None
    assert status.version == "10.3.0"
    assert str(status.fault).startswith("TensorRT 10.3.0 is older than 10.12: strong typing")
    assert "JetPack" in str(status.fault)


def test_a_library_whose_shared_objects_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
    library(tmp_path, code, monkeypatch, "11.4.0.106")
    status = find(TENSORRT)
    assert "cannot be imported: libnvinfer.so.11" in str(status.fault)
    assert "--force-reinstall" in str(status.hint)


def test_supported_version_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, "__version__ = '10.16.1.11'", monkeypatch, "10.16.1.11")
    assert load(TENSORRT).__version__ == "10.16.1.11"


def test_versions() -> None:
    assert version_tuple("10.16.1.11") == (10, 16, 1, 11)
    assert version_tuple("10.3.0.post1") == (10, 3, 0)
    assert version_tuple("9.10") < (10, 12) < version_tuple("11.0")
