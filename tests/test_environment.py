"""The description of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

from optimizer import environment
from optimizer.artifacts import content_key
from optimizer.engines import backends
from optimizer.environment import Environment, describe, fingerprint, libraries
from optimizer.processes import total_memory


def test_describe() -> None:
    result = describe()
    assert Environment.model_validate_json(result.model_dump_json()) == result
    assert result.cpu.model
    assert 1 <= result.cpu.physical_cores <= result.cpu.logical_cores
    assert result.memory_bytes == total_memory()
    assert result.python == ".".join(map(str, sys.version_info[:3]))
    assert set(result.backends) == set(backends())
    for name, backend in backends().items():
        availability = backend.availability()
        assert result.backends[name].can_run == availability.can_run
        assert result.backends[name].reason == availability.reason
        if not result.backends[name].can_run:
            assert result.backends[name].hint, f"{name} has no hint"
    assert result.fingerprint == fingerprint()["sha256"]


def test_providers_of_onnxruntime() -> None:
    result = describe().providers
    assert list(result) == ["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]
    assert result["cpu"].usable
    for name, provider in result.items():
        assert provider.usable == (provider.hint is None), name
        assert set(provider.missing) <= set(provider.needs)


def test_libraries_have_versions_or_none() -> None:
    result = libraries()
    assert result["torch"] == metadata.version("torch")
    assert "tensorrt-rtx" in result, "optional ones are listed too"
    assert "pytest" not in result, "development tools are not"
    for name, version in result.items():
        if version is None:
            with pytest.raises(metadata.PackageNotFoundError):
                metadata.version(name)


def test_fingerprint_excludes_software() -> None:
    result = fingerprint()
    assert result == fingerprint()
    facts = {name: value for name, value in result.items() if name != "sha256"}
    assert result["sha256"] == content_key(facts)
    text = json.dumps(facts)
    assert metadata.version("torch") not in text
    assert "driver" not in text


def test_other_machines_have_other_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    here = fingerprint()["sha256"]
    gpu = environment.Gpu(
        index=0, name="A GPU", memory_bytes=80 << 30, compute_capability="9.0", driver="1"
    )
    newer = gpu.model_copy(update={"driver": "2"})
    result = []
    for listed in ([gpu], [newer], [gpu, gpu]):
        monkeypatch.setattr(environment, "gpus", lambda listed=listed: listed)
        result.append(fingerprint()["sha256"])
    assert result[0] != here
    assert result[1] == result[0], "a driver can be upgraded"
    assert result[2] != result[0]


def test_importing_it_imports_no_heavy_library() -> None:
    code = (
        "import sys, optimizer.environment, optimizer.profiling\n"
        "optimizer.environment.fingerprint()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy', 'tensorrt_rtx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
