"""Linked libraries are read from real shared objects, compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from optimizer.engines.providers.shared_objects import (
    linked_libraries,
    locate,
    other_versions,
    preload,
    version_of,
)
from optimizer.engines.providers.status import library_of
from optimizer.engines.providers.table import CUDA, TENSORRT


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``libupper.so.3``, which links ``liblower.so.7`` in a folder below."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, which compiles the shared objects")
    folder = tmp_path_factory.mktemp("objects")
    below = folder / "below"
    below.mkdir()

    def compile_(code: str, target: Path, *more: str) -> None:
        source = target.with_suffix(".c")
        source.write_text(code, encoding="ascii")
        soname = f"-Wl,-soname,{target.name}"
        command = ["gcc", "-shared", "-fPIC", soname, "-o", str(target), str(source), *more]
        subprocess.run(command, check=True, timeout=60)

    compile_("int lower(void) { return 7; }", below / "liblower.so.7")
    compile_(
        "int lower(void); int upper(void) { return lower() + 1; }",
        folder / "libupper.so.3",
        str(below / "liblower.so.7"),
        "-Wl,--no-as-needed",
        "-lm",
    )
    return folder


def test_linked_libraries_without_system_libraries(pair: Path) -> None:
    assert linked_libraries(pair / "libupper.so.3") == ["liblower.so.7"]
    assert linked_libraries(pair / "below" / "liblower.so.7") == []


@pytest.mark.parametrize("contents", [b"", b"not a shared object", b"\x7fELF" + b"\0" * 8])
def test_other_files_are_refused(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "libfalse.so"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="is not a shared object"):
        linked_libraries(path)


def test_a_library_is_found_on_the_loader_path(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("liblower.so.7") is None
    assert locate("liblower.so.7", pair / "below") == pair / "below" / "liblower.so.7"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{pair / 'below'}")
    assert locate("liblower.so.7") == pair / "below" / "liblower.so.7"
    assert locate("libupper.so.3") is None


def test_other_major_versions_are_listed(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("8", "8.1.0", "x"):
        shutil.copy(pair / "below" / "liblower.so.7", tmp_path / f"liblower.so.{version}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert other_versions("liblower.so.7") == ["liblower.so.8"]
    assert other_versions("liblower.so.8") == []


def test_a_longer_version_beside_the_provider_matches(pair: Path, tmp_path: Path) -> None:
    shutil.copy(pair / "below" / "liblower.so.7", tmp_path / "liblower.so.7.1.2")
    assert locate("liblower.so.7", tmp_path) == tmp_path / "liblower.so.7.1.2"


def test_libraries_are_loaded_in_any_order(pair: Path) -> None:
    with pytest.raises(OSError, match=r"liblower\.so\.7"):
        ctypes.CDLL(str(pair / "libupper.so.3"))
    both = pair / "both"
    both.mkdir()
    for path in (pair / "libupper.so.3", pair / "below" / "liblower.so.7"):
        shutil.copy(path, both)
    preload(["libupper.so.3", "liblower.so.7", "libnowhere.so.1"], both)
    assert ctypes.CDLL("libupper.so.3").upper() == 8


def test_version_from_soname() -> None:
    assert version_of("libnvinfer.so.10") == ("libnvinfer", "10")


@pytest.mark.parametrize(("provider", "library"), [(CUDA, "libcudart"), (TENSORRT, "libnvinfer")])
def test_requirements_of_the_installed_providers(provider: object, library: str) -> None:
    path = library_of(provider)  # type: ignore[arg-type]
    if path is None:
        pytest.skip("this build of onnxruntime has no GPU provider")
    versions = dict(version_of(name) for name in linked_libraries(path))
    assert versions[library].isdecimal()
    assert not {"libc", "libm", "libstdc++"} & set(versions)
