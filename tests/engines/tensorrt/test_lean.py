"""The lean runtime: checked before a build that needs it, and loaded."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import optimizer.engines.tensorrt.backend as backend
from optimizer.engines.cuda import CudaDevice, CudaStatus
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRt
from optimizer.engines.tensorrt.lean import check_lean_runtime, load_lean_runtime
from optimizer.engines.tensorrt.library import TENSORRT, LibraryStatus
from optimizer.errors import MissingLibrary

VERSION = "11.4.0.106"


def install(site: Path, name: str, version: str, *files: str) -> Path:
    """A distribution as installed by pip."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_bytes(b"no library")
    return site


def only(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    """Make only the distributions of a folder visible."""
    installed = list(metadata.distributions(path=[str(site)]))
    monkeypatch.setattr(metadata, "distributions", lambda: installed)

    def version(name: str) -> str:
        for one in installed:
            if one.metadata["Name"] == name:
                return str(one.version)
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("flavour", "hint"), [("-cu13", "tensorrt-lean-cu13"), ("", "tensorrt-lean")]
)
def test_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flavour: str, hint: str) -> None:
    only(monkeypatch, install(tmp_path, f"tensorrt{flavour}", VERSION))
    with pytest.raises(MissingLibrary, match="it is not installed") as caught:
        check_lean_runtime(TENSORRT, VERSION)
    assert "lean runtime of TensorRT 11.4.0.106" in caught.value.message
    assert caught.value.hint == f'pip install "{hint}==11.4.0.106"'


def test_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = "tensorrt_lean_libs/libnvinfer_lean.so.11"
    only(monkeypatch, install(tmp_path, "tensorrt-lean-cu13-libs", "11.3.0.14", library))
    with pytest.raises(MissingLibrary, match=r"installed is 11\.3\.0\.14"):
        check_lean_runtime(TENSORRT, VERSION)


def test_matching_version_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, which compiles the library of this test")
    library = "tensorrt_lean_libs/libnvinfer_lean.so.11"
    only(monkeypatch, install(tmp_path, "tensorrt-lean-cu13-libs", VERSION, library))
    check_lean_runtime(TENSORRT, VERSION)
    with pytest.raises(MissingLibrary, match="the lean runtime cannot be loaded"):
        load_lean_runtime(VERSION)  # a damaged file
    source = tmp_path / "lean.c"
    source.write_text("int lean_runtime_of_a_test(void) { return 11; }\n")
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libnvinfer_lean.so.11", "-o"]
    subprocess.run([*command, tmp_path / library, source], check=True)
    load_lean_runtime(VERSION)
    import ctypes

    # By name, as TensorRT opens it.
    assert ctypes.CDLL("libnvinfer_lean.so.11").lean_runtime_of_a_test() == 11


def test_backend_checks_before_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch, install(tmp_path, "tensorrt-cu13", "11.5.0.1"))
    gpu = CudaDevice(0, "NVIDIA Test", (8, 6), 1 << 34)
    status = CudaStatus((gpu,), "cuda-python 13.4.4", "13.0", None, None)
    monkeypatch.setattr(backend, "cuda_status", lambda: status)
    # Another major version, because the test above has loaded the library of 11.
    monkeypatch.setattr(backend, "find", lambda _: LibraryStatus(object(), "12.5.0.1", None, None))
    requested = BuildSettings(precision="fp16", options={"version_compatible": True})
    with pytest.raises(MissingLibrary, match="needs the lean runtime of TensorRT 12"):
        TensorRt().engine_settings(requested)
    TensorRt().engine_settings(BuildSettings(precision="fp16"))
