"""One set of tests for every CPU engine: building, opening, running, layers, and refused input."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.artifacts import load_artifact, manifest_path
from optimizer.engines import (
    Backend,
    Bound,
    BuildSettings,
    closing,
    get_backend,
    open_engine,
    open_streams,
)
from optimizer.engines.building import build_engine, check_buildable
from optimizer.engines.onnxruntime import as_written
from optimizer.engines.opening import graph_of
from optimizer.errors import UnsupportedPrecision, UsageError
from optimizer.precision import quantize
from tests.conftest import Engines, Quantized

CASES = [
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("torch", "fp32"),
]


@dataclass
class Case:
    backend: Backend
    precision: str
    graph: Path
    """The graph that the engine was built from."""
    engine: Path


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(
    request: pytest.FixtureRequest,
    small_graph: Path,
    small_quantized: Quantized,
    small_engines: Engines,
) -> Case:
    name, precision = request.param
    graph = small_quantized("int8", name) if precision == "int8" else small_graph
    return Case(get_backend(name), precision, graph, small_engines(name, precision))


def _images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 32, 32)).astype(np.float32)


def test_an_engine_matches_its_graph(case: Case) -> None:
    images = _images(16)
    expected = as_written(case.graph).run(images)
    with closing(open_engine(case.engine, threads=1)) as session:
        outputs = session.run(images)
    assert outputs.shape == (16, 10)
    assert outputs.dtype == np.float32
    noise = 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(outputs - expected))
    # INT8 engines may round ties differently: one step in one tensor, and its consequences.
    assert noise > (20 if case.precision == "int8" else 80)


def test_rows_do_not_depend_on_the_batch(case: Case) -> None:
    images = _images(5)
    with closing(open_engine(case.engine, threads=1)) as session:
        together = session.run(images)
        alone = np.concatenate([session.run(image[None]) for image in images])
    difference = np.abs(together - alone).max(axis=1) / np.abs(together).max()
    # INT8: a tie rounded differently shifts one tensor by one step, in single images.
    stepped = difference > 2e-3
    assert stepped.sum() <= (1 if case.precision == "int8" else 0)
    assert difference.max() < (5e-2 if case.precision == "int8" else 2e-3)


def test_a_bound_batch_gives_the_same_outputs(case: Case) -> None:
    images = _images(4)
    with closing(open_engine(case.engine, threads=1)) as session:
        expected = session.run(images)
        bound = session.bind(images)
        assert isinstance(bound, Bound)
        for _ in range(2):
            bound.upload()
            bound.enqueue()
            bound.wait()
            bound.download()
        np.testing.assert_array_equal(bound.output(), expected)


def test_concurrent_streams_match_a_single_session(case: Case) -> None:
    batches = [_images(3, seed) for seed in range(2)]
    with closing(open_engine(case.engine, threads=1)) as session:
        expected = [session.run(batch) for batch in batches]
    sessions = open_streams(case.engine, 2, threads=2)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            outputs = list(threads.map(lambda s, b: s.run(b), sessions, batches))
            for got, want in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
    for session in sessions:
        session.close()


def test_outputs_are_not_overwritten(case: Case) -> None:
    with closing(open_engine(case.engine, threads=1)) as session:
        first = session.run(_images(2, 1))
        kept = first.copy()
        session.run(_images(2, 2))
        np.testing.assert_array_equal(first, kept)


def test_layers_report_their_precision(case: Case) -> None:
    layers = load_artifact(case.engine).manifest.details["layers"]
    if case.backend.name == "torch":
        with closing(open_engine(case.engine, threads=1)) as session:
            assert {layer.precision for layer in session.layers()} == {"fp32"}
        return
    weighted = [layer for layer in layers if layer.get("flops")]
    names = {name for layer in weighted for name in layer["torch_names"]}
    assert {"conv1", "layer1.0.conv1", "layer4.1.conv2", "fc"} <= names
    convolutions = [layer for layer in weighted if layer["torch_names"] != ["fc"]]
    assert {layer["precision"] for layer in convolutions} == {case.precision}


def test_the_manifest_records_the_build(case: Case) -> None:
    manifest = load_artifact(case.engine, kind="engine").manifest
    assert manifest.settings["backend"] == case.backend.name
    assert manifest.settings["precision"] == case.precision
    assert manifest.details["build_s"] >= 0
    assert set(manifest.libraries) <= set(case.backend.libraries)
    assert manifest.libraries
    if case.backend.name != "torch":
        graph = graph_of(case.engine)
        assert graph is not None
        assert load_artifact(graph).manifest.sha256 == manifest.inputs[0].sha256
        assert manifest.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 16, 16), np.float32),
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
    ],
    ids=["size", "pixels", "rank", "none"],
)
def test_an_unsuitable_batch_is_refused(case: Case, images: np.ndarray) -> None:
    with closing(open_engine(case.engine, threads=1)) as session:
        with pytest.raises(UsageError, match="the engine takes N x 3 x 32 x 32 float32"):
            session.run(images)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_fp16_is_refused_except_as_storage(name: str, small_graph: Path, tmp_path: Path) -> None:
    backend = get_backend(name)
    with pytest.raises(UnsupportedPrecision, match="would compute in FP32"):
        backend.engine_settings(BuildSettings(precision="fp16"))
    half = quantize(small_graph, tmp_path / "half.onnx", precision="fp16").path
    settings = BuildSettings(precision="fp16", options={"storage_only": True})
    built = build_engine(half, tmp_path / f"half{backend.suffix}", name, settings)
    assert "fp16 storage, FP32 compute" in built.manifest.details["notes"]
    images = _images(4)
    with closing(open_engine(built.path, threads=1)) as session:
        np.testing.assert_allclose(
            session.run(images), as_written(half).run(images), atol=1e-2, rtol=1e-2
        )


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_worker_loads_only_its_own_library(name: str, small_engines: Engines) -> None:
    engine = small_engines(name, "fp32")
    code = (
        "import sys\nfrom pathlib import Path\nfrom optimizer.engines import open_engine\n"
        f"open_engine(Path({str(engine)!r}))\nprint(*(m for m in sys.modules if '.' not in m))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert name in loaded
    assert not {"torch", "openvino", "onnxruntime"} - {name} & set(loaded)


def test_a_static_engine_takes_any_number_of_images(
    small_checkpoint: Path, small_graph: Path, tmp_path: Path
) -> None:
    from optimizer.exporting import export_onnx
    from optimizer.models import load_model

    graph = export_onnx(load_model(str(small_checkpoint)), tmp_path / "static.onnx", batch=4)
    images = _images(7)
    expected = as_written(small_graph).run(images)
    for name in ("openvino", "onnxruntime"):
        output = tmp_path / f"static{get_backend(name).suffix}"
        built = build_engine(graph.path, output, name, BuildSettings(precision="fp32", batch=4))
        with closing(open_engine(built.path, threads=1)) as session:
            np.testing.assert_allclose(
                session.run(images), expected, atol=1e-4 * np.abs(expected).max()
            )


def test_an_engine_without_its_manifest_is_refused(small_engines: Engines, tmp_path: Path) -> None:
    from optimizer.errors import ArtifactError

    copy = tmp_path / "alone.blob"
    copy.write_bytes(small_engines("openvino", "fp32").read_bytes())
    with pytest.raises(ArtifactError, match="has no manifest"):
        open_engine(copy)
    assert not manifest_path(copy).exists()


_WITH_PROVIDERS = "tensorrt, tensorrt-rtx and onnxruntime"
_ENGINES_WITH = {
    "--target": "tensorrt-rtx",
    "--tf32": "tensorrt and tensorrt-rtx",
    **dict.fromkeys(["--profile", "--workspace", "--opt-level", "--timing-cache"], _WITH_PROVIDERS),
}
_REFUSED_BY_CPU_PROVIDER = {
    **{
        ("onnxruntime", flag): (f"provider cpu has no {flag}", f"remove {flag}")
        for flag in ("--profile", "--workspace", "--opt-level")
    },
    ("onnxruntime", "--timing-cache"): (
        "--timing-cache does not apply to provider cpu",
        "remove it",
    ),
}
"""Options that ONNX Runtime supports, but only with GPU providers."""


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"profile": (1, 8, 32)}, "--profile"),
        ({"targets": ("sm86",)}, "--target"),
        ({"workspace_bytes": 1 << 30}, "--workspace"),
        ({"opt_level": 0}, "--opt-level"),
        ({"timing_cache": Path("cache")}, "--timing-cache"),
        ({"options": {"tf32": True}}, "--tf32"),
    ],
)
def test_tensorrt_options_are_refused_by_other_engines(
    name: str, setting: dict[str, Any], flag: str
) -> None:
    backend = get_backend(name)
    with pytest.raises(UsageError) as caught:
        check_buildable(backend, BuildSettings(precision="fp32", **setting))
    assert (caught.value.message, caught.value.hint) == _REFUSED_BY_CPU_PROVIDER.get(
        (name, flag),
        (
            f"{flag} is for {_ENGINES_WITH[flag]}, not for {name}",
            f"leave it out, or --engine {_ENGINES_WITH[flag].split(',')[0].split()[0]}",
        ),
    )
    check_buildable(backend, BuildSettings(precision="fp32"))
