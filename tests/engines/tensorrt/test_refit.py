"""Refit from checkpoint to engine: the checks before a GPU is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from optimizer import refit
from optimizer.artifacts import load_artifact, manifest_path
from optimizer.engines.building import build_engine
from optimizer.engines.cuda import cuda_devices
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.library import TENSORRT_RTX
from optimizer.engines.tensorrt.weight_refit import stays_refittable
from optimizer.errors import ArtifactError, CheckpointError, GraphError, MissingDevice, UsageError
from optimizer.models import load_model, save_checkpoint
from optimizer.options import EncodingOptions
from optimizer.precision import quantize
from tests import manifests

without_gpu = pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")


def edit_manifest(engine: Path, **changes: Any) -> None:
    """Edit a manifest: without a driver, no engine is really refittable."""
    raw = json.loads(manifest_path(engine).read_text())
    manifests.edit_manifest(engine, **{name: raw[name] | new for name, new in changes.items()})


@pytest.fixture(scope="session")
def built(
    rtx: TensorRtRtx, small_graph: Path, small_statistics: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """Real engines of the small ResNet-18 by precision."""
    folder = tmp_path_factory.mktemp("refit")
    engines = {}
    for precision in ("fp16", "int8"):
        graph = quantize(
            small_graph, folder / f"{precision}.onnx", precision=precision, target="tensorrt",
            stats=small_statistics if precision == "int8" else None,
            options=EncodingOptions(equalize=False, bias_correction="none") if precision == "int8" else None,
        ).path  # fmt: skip
        settings = BuildSettings(precision=precision, targets=("sm89",))
        engines[precision] = build_engine(
            graph, folder / f"{precision}.rtx", "tensorrt-rtx", settings
        ).path
    return engines


@pytest.fixture
def engine(built: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the FP16 engine with a manifest that declares it refittable."""
    return copy(built["fp16"], tmp_path)


@pytest.fixture
def other_checkpoint(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small ResNet-18 with a different classifier."""
    model = load_model(str(small_checkpoint))
    weight = model.module.state_dict()["fc.weight"]
    weight.copy_(weight.flip(0))
    return save_checkpoint(
        model, tmp_path_factory.mktemp("other") / "other.safetensors", details={}
    ).path


def copy(engine: Path, folder: Path) -> Path:
    for file in engine.parent.glob(f"{engine.name}*"):
        (folder / file.name).write_bytes(file.read_bytes())
    edit_manifest(folder / engine.name, settings={"options": {"refittable": True}})
    return folder / engine.name


@pytest.mark.long
@without_gpu
def test_a_checkpoint_gets_as_far_as_the_driver(
    engine: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    """Export, conversion and comparison are done, and nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MissingDevice, match="TensorRT-RTX needs a GPU to run: no NVIDIA") as caught:
        refit(engine, str(small_checkpoint), tmp_path / "new.rtx")
    assert caught.value.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before


@without_gpu
def test_an_onnx_file_gets_as_far_as_the_driver(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDevice):
        refit(engine, f"{engine}.graph.onnx", tmp_path / "new.rtx")


@without_gpu
def test_int8_engine_needs_a_graph(
    built: dict[str, Path], small_checkpoint: Path, tmp_path: Path
) -> None:
    engine = copy(built["int8"], tmp_path)
    with pytest.raises(UsageError, match="its scales belong to the weights") as caught:
        refit(engine, str(small_checkpoint), tmp_path / "new.rtx")
    assert "--precision int8 --engine tensorrt-rtx --calib" in str(caught.value.hint)
    with pytest.raises(MissingDevice):
        refit(engine, f"{engine}.graph.onnx", tmp_path / "new.rtx")


@pytest.mark.long
@without_gpu
def test_stripped_engine_accepts_only_its_weights(
    engine: Path, small_checkpoint: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    """Other weights are undefined behaviour in the library unless ``refittable`` is set."""
    edit_manifest(engine, settings={"options": {"strip_weights": True}})
    with pytest.raises(MissingDevice):
        refit(engine, str(small_checkpoint), tmp_path / "new.rtx")
    with pytest.raises(GraphError, match="accepts only the weights it was compiled with") as caught:
        refit(engine, str(other_checkpoint), tmp_path / "new.rtx")
    assert "--strip-weights --refittable" in str(caught.value.hint)
    edit_manifest(engine, settings={"options": {"strip_weights": True, "refittable": True}})
    with pytest.raises(MissingDevice):
        refit(engine, str(other_checkpoint), tmp_path / "new.rtx")


def test_stays_refittable(engine: Path) -> None:
    """TensorRT-RTX 1.7 has the flag; an engine without the option cannot be refitted again."""
    manifest = load_artifact(engine).manifest
    assert stays_refittable(TENSORRT_RTX, manifest)
    edit_manifest(engine, settings={"options": {"strip_weights": True}})
    assert not stays_refittable(TENSORRT_RTX, load_artifact(engine).manifest)


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("resnet34:random:10", UsageError, "is a resnet34, but the engine is a resnet18"),
        ("resnet18:random:7", GraphError, "its output is logits N x 7, not logits N x 10"),
        ("none.safetensors", CheckpointError, "none.safetensors"),
        ("none.onnx", ArtifactError, "no such file"),
    ],
)
def test_other_networks_are_refused(
    engine: Path, tmp_path: Path, model: str, kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind, match=expected):
        refit(engine, model, tmp_path / "new.rtx")
    assert not (tmp_path / "new.rtx").exists()


def test_another_precision_is_refused(engine: Path, small_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="is not the network of"):
        refit(engine, str(small_graph), tmp_path / "new.rtx")


def test_engines_that_cannot_be_refitted(
    engine: Path, small_graph: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    def refused(path: Path, kind: type[Exception], expected: str) -> str:
        with pytest.raises(kind, match=expected) as caught:
            refit(path, str(small_checkpoint), tmp_path / "new.rtx")
        return str(caught.value.hint)  # type: ignore[attr-defined]

    refused(small_graph, ArtifactError, "is a graph, not an engine")
    refused(tmp_path / "none.rtx", ArtifactError, "no such file")
    with pytest.raises(UsageError, match="the output would overwrite the input"):
        refit(engine, str(small_checkpoint), engine)
    edit_manifest(engine, settings={"options": {}})
    hint = refused(engine, ArtifactError, "was not built to be refitted")
    assert hint.startswith(f"resnet-opt build {engine.name}.graph.onnx")
    assert hint.endswith("--refittable")
    edit_manifest(
        engine, settings={"options": {"refittable": True}}, libraries={"tensorrt-rtx": "1.6.0"}
    )
    refused(engine, ArtifactError, r"does not fit this machine: TensorRT-RTX 1\.6\.0 at build")
    edit_manifest(engine, settings={"backend": "openvino"})
    refused(engine, UsageError, "only TensorRT engines can be refitted")


def test_an_engine_without_its_graph(engine: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    Path(f"{engine}.graph.onnx").unlink()
    with pytest.raises(ArtifactError, match="is not beside it") as caught:
        refit(engine, str(small_checkpoint), tmp_path / "new.rtx")
    assert f"{engine.name}.graph.onnx" in str(caught.value.hint)


def test_damaged_engine_is_reported_first(
    engine: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 0xFF
    engine.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="was changed since its manifest was written"):
        refit(engine, str(small_checkpoint), tmp_path / "new.rtx")


@pytest.mark.gpu
def test_a_refitted_engine_computes_the_new_checkpoint(
    rtx: TensorRtRtx, small_graph: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    """With a driver: the whole refit, with the new engine's manifest and graph."""
    import numpy as np

    from optimizer.engines import closing, open_engine
    from optimizer.engines.onnxruntime import as_written

    expected = rtx.availability()
    if not expected.can_run:
        pytest.skip(f"tensorrt-rtx: {expected.reason}")
    settings = BuildSettings(precision="fp32", options={"refittable": True})
    engine = build_engine(small_graph, tmp_path / "m.rtx", "tensorrt-rtx", settings).path
    artifact = refit(engine, str(other_checkpoint), tmp_path / "new.rtx")
    assert [one.role for one in artifact.manifest.inputs] == ["engine", "checkpoint"]
    assert load_artifact(artifact.path).manifest.settings["refitted"]
    graph = Path(f"{artifact.path}.graph.onnx")
    size = onnx.load(graph).graph.input[0].type.tensor_type.shape.dim[2].dim_value
    batch = np.random.default_rng(0).standard_normal((4, 3, size, size), np.float32)
    with closing(open_engine(artifact.path)) as session, closing(as_written(graph)) as expected:
        assert np.abs(session.run(batch) - expected.run(batch)).max() < 1e-3
