"""Layer profiles of real engines of every CPU backend, and of engines that cannot be profiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from optimizer.artifacts import Cache
from optimizer.errors import ArtifactError, EnvironmentFault, UsageError
from optimizer.graphs.facts import layer_flops, layer_work
from optimizer.profiling.layer_profile import profile
from optimizer.results import (
    EngineProfile,
    ProfileResult,
    TimedPart,
    read_result,
    write_result,
)
from tests.conftest import Engines
from tests.profiling.conftest import QUICK, MakeEngine

BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
BATCH = 2
ROUNDS = 6  # minimum for an interval


@pytest.fixture(scope="module")
def profiled(
    small_checkpoint: Path, small_engines: Engines, ceilings_cache: Cache
) -> ProfileResult:
    """PyTorch and both CPU backends, against quickly measured ceilings."""
    engines = [
        small_checkpoint,
        small_engines("openvino", "int8"),
        small_engines("onnxruntime", "fp32"),
        small_engines("onnxruntime", "int8"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimizer.profiling.layer_rounds.ROUNDS", ROUNDS)
        return profile(
            engines,
            batch=BATCH,
            threads=1,
            duration="0.1s",
            effort=QUICK,
            cache=ceilings_cache,
        )


@pytest.fixture(params=range(4), ids=["torch", "openvino-int8", "ort-fp32", "ort-int8"])
def engine_profile(profiled: ProfileResult, request: pytest.FixtureRequest) -> EngineProfile:
    return profiled.engines[request.param]


def _named(parts: list[TimedPart]) -> dict[str, TimedPart]:
    assert len({part.name for part in parts}) == len(parts)
    return {part.name: part for part in parts}


@pytest.mark.slow
def test_all_operations_of_the_graph_are_in_the_layers(
    engine_profile: EngineProfile, small_graph: Path
) -> None:
    flops = layer_flops(small_graph)
    assert sum(layer.flops or 0 for layer in engine_profile.layers) == BATCH * sum(flops.values())
    owners = [
        n for layer in engine_profile.layers if layer.flops for n in layer.torch_names if n in flops
    ]
    assert sorted(owners) == sorted(flops), "each module with weights is in one layer"
    for layer in engine_profile.layers:
        if layer.flops:
            assert layer.flops == BATCH * sum(flops.get(name, 0) for name in layer.torch_names)


@pytest.mark.slow
def test_blocks_contain_all_layers_and_all_time(engine_profile: EngineProfile) -> None:
    blocks = _named(engine_profile.blocks)
    assert [name for name in blocks if name in BLOCKS] == BLOCKS
    assert {"stem", "head"} <= set(blocks)
    assert sum(block.share for block in engine_profile.blocks) == pytest.approx(1)
    assert sum(layer.share for layer in engine_profile.layers) == pytest.approx(1)
    for block in engine_profile.blocks:
        members = [
            layer for layer in engine_profile.layers if (layer.block or layer.name) == block.name
        ]
        assert members
        assert block.flops == (sum(layer.flops or 0 for layer in members) or None)
        if block.time_ci95_ms is not None:
            low, high = block.time_ci95_ms
            assert low * (1 - 1e-9) <= block.time_ms <= high * (1 + 1e-9)


@pytest.mark.slow
def test_a_layer_without_modules_is_its_own_block(engine_profile: EngineProfile) -> None:
    for layer in engine_profile.layers:
        if not layer.torch_names:
            assert layer.block is None
            assert layer.name in _named(engine_profile.blocks)


@pytest.mark.slow
def test_layers_are_compared_with_the_whole_call(engine_profile: EngineProfile) -> None:
    assert engine_profile.status == "ok"
    assert (
        engine_profile.rounds,
        engine_profile.batch,
        engine_profile.image_size,
        engine_profile.threads,
    ) == (ROUNDS, BATCH, 32, 1)
    assert engine_profile.calls >= 3
    assert engine_profile.whole_ms is not None
    assert engine_profile.layers_ms is not None
    assert engine_profile.outside_ms == pytest.approx(
        engine_profile.whole_ms - engine_profile.layers_ms
    )
    assert engine_profile.layers_ms > 0
    assert engine_profile.whole_ms > 0


@pytest.mark.slow
def test_bytes_are_counted_in_the_types_of_the_engine(
    profiled: ProfileResult, small_graph: Path
) -> None:
    work = layer_work(small_graph)["layer2.0.conv1"]  # one activation in, one out
    for engine, size in zip(profiled.engines, (4, 1, 4, 1), strict=True):
        (layer,) = [p for p in engine.layers if "layer2.0.conv1" in p.torch_names and p.flops]
        moved = size * (work.weights + BATCH * (work.inputs + work.outputs))
        assert layer.bytes is not None
        # Biases, scales and zero points come on top of weights and activations.
        assert moved <= layer.bytes <= moved + 4 * 4 * 128 + 64, engine.name
        assert layer.precision == ("int8" if size == 1 else "fp32")


@pytest.mark.slow
def test_every_block_of_a_network_has_a_verdict(engine_profile: EngineProfile) -> None:
    for name in (*BLOCKS, "stem", "head"):
        block = _named(engine_profile.blocks)[name]
        assert block.bound in {"compute", "memory", "overhead"}
        assert block.roof_ms is not None
        assert block.ceiling in {"fp32", "int8", "memory", "cache"}
        assert block.ceiling_share == pytest.approx(block.roof_ms / block.time_ms)


@pytest.mark.slow
def test_a_profile_survives_its_file(profiled: ProfileResult, tmp_path: Path) -> None:
    write_result(profiled, tmp_path / "profile.json")
    assert read_result(tmp_path / "profile.json") == profiled
    assert profiled.conditions is not None
    assert profiled.ceilings_note is None


# --- known layer times ---------------------------------------------------------------------------


def test_known_layer_times_are_reported(make_engine: MakeEngine, small_graph: Path) -> None:
    times = {"conv1": 0.5, "layer1.0.conv1": 0.25, "reorder": 0.125}
    engine = make_engine(layers=times, busy_ms=1.0)
    shutil.copy(small_graph, f"{engine}.graph.onnx")
    (result,) = profile([engine], batch=4, threads=1, duration="0.05s", ceilings=False).engines
    assert {p.name: p.time_ms for p in result.layers} == times
    assert [(p.name, p.time_ms) for p in result.blocks] == [
        ("stem", 0.5), ("layer1.0", 0.25), ("reorder", 0.125),
    ]  # fmt: skip
    assert result.layers_ms == pytest.approx(0.875)
    assert result.whole_ms == pytest.approx(1.0)
    assert [p.torch_names for p in result.layers] == [["conv1"], ["layer1.0.conv1"], []]
    assert {p.bytes for p in result.layers} == {4000}
    assert {p.bound for p in result.blocks} == {None}


def test_an_engine_that_crashes_leaves_the_others(
    make_engine: MakeEngine, small_graph: Path
) -> None:
    engines = [
        make_engine("bad", layers={"conv1": 1.0}, crash_in_layers=True),
        make_engine("good", layers={"conv1": 1.0}),
    ]
    for engine in engines:
        shutil.copy(small_graph, f"{engine}.graph.onnx")
    result = profile(engines, threads=1, duration="0.05s", ceilings=False)
    assert [engine.status for engine in result.engines] == ["failed", "ok"]
    assert "SIGSEGV" in str(result.engines[0].error)
    assert result.engines[0].layers == []
    assert result.ceilings is None
    assert result.ceilings_note == "ceilings: not measured, as requested"


# --- bad input -----------------------------------------------------------------------------------


def test_an_engine_without_layer_times_is_refused(
    make_engine: MakeEngine, small_graph: Path
) -> None:
    engine = make_engine()
    shutil.copy(small_graph, f"{engine}.graph.onnx")
    with pytest.raises(UsageError, match="its backend does not report layer times"):
        profile([engine], threads=1, duration="0.05s", ceilings=False)


@pytest.mark.slow
def test_a_missing_or_wrong_graph_is_refused(
    profiled: ProfileResult, small_graph: Path, tmp_path: Path
) -> None:
    built = Path(profiled.engines[1].file)
    for name in (built.name, f"{built.name}.json"):
        shutil.copy(built.with_name(name), tmp_path)
    engine = tmp_path / built.name
    with pytest.raises(
        ArtifactError, match=r"openvino-int8\.blob\.graph\.onnx is missing"
    ) as missing:
        profile([engine], ceilings=False)
    assert "resnet-opt build" in str(missing.value.hint)
    shutil.copy(small_graph, f"{engine}.graph.onnx")  # the FP32 graph it was quantized from
    with pytest.raises(ArtifactError, match=r"is not the graph openvino-int8\.blob was built from"):
        profile([engine], ceilings=False)


def test_invalid_requests_are_refused_before_anything_runs(
    make_engine: MakeEngine, small_graph: Path
) -> None:
    with pytest.raises(UsageError, match="no engine to profile"):
        profile([])
    with pytest.raises(UsageError, match="built for batches 1 to 4, not 8"):
        profile([make_engine(profile=(1, 2, 4))], batch=8)
    with pytest.raises(UsageError, match="not an engine"):
        profile([small_graph])
    with pytest.raises(UsageError, match="no such file"):
        profile([Path("missing.blob")])
    with pytest.raises(UsageError, match="duration"):
        profile([make_engine()], duration="0s")


def test_a_machine_that_can_run_no_engine_is_reported(
    make_engine: MakeEngine, small_graph: Path
) -> None:
    engine = make_engine(layers={}, needs_device=True)
    shutil.copy(small_graph, f"{engine}.graph.onnx")
    with pytest.raises(EnvironmentFault, match="no such accelerator here"):
        profile([engine], threads=1, ceilings=False)


# --- the profilers of the libraries ---------------------------------------------------------------


def test_openvino_means_are_converted_to_calls() -> None:
    """Call times are recovered exactly from the running means."""
    from optimizer.engines.openvino_layers import LayerClock

    calls = [0.004, 0.001, 0.001, 0.003]
    status = SimpleNamespace(EXECUTED="executed")

    def request(number: int) -> SimpleNamespace:
        from datetime import timedelta

        mean = timedelta(seconds=sum(calls[:number]) / number)
        ran = SimpleNamespace(node_name="a", real_time=mean, status="executed", Status=status)
        idle = SimpleNamespace(node_name="b", real_time=mean, status="not run", Status=status)
        return SimpleNamespace(get_profiling_info=lambda: [ran, idle])

    clock = LayerClock()
    times = [clock.read(request(number)) for number in (1, 2, 3, 4)]
    assert [list(call) for call in times] == [["a"]] * 4
    np.testing.assert_allclose([call["a"] for call in times], calls, atol=4e-6)


def test_openvino_reports_running_means(small_graph: Path, tmp_path: Path) -> None:
    """If a version reported single calls instead, `LayerClock` would be wrong."""
    import openvino as ov

    core = ov.Core()
    model = core.compile_model(core.read_model(small_graph), "CPU", {"PERF_COUNT": "YES"})
    request = model.create_infer_request()

    def conv(images: int) -> float:
        request.infer([np.zeros((images, 3, 32, 32), np.float32)])
        return next(
            i.real_time.total_seconds()
            for i in request.get_profiling_info()
            if "layer1.0.conv2" in i.node_name
        )

    for _ in range(20):
        conv(1)
    large = [conv(64) for _ in range(3)][-1]
    # A single call would drop to the time of one image; a running mean hardly changes.
    assert conv(1) > 0.5 * large


def test_pytorch_layers_account_for_all_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from optimizer.engines import torch_layers

    passed = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: passed[0])
    monkeypatch.setattr(torch_layers, "time", clock)

    class Slow(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, seconds: float) -> None:
            super().__init__()
            self.inner, self.seconds = module, seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            passed[0] += self.seconds
            return self.inner(x)

    class Relu(torch.nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            passed[0] += 0.004
            return super().forward(x)

    conv = torch.nn.Conv2d(3, 4, 3, bias=False)
    network = torch.nn.Sequential(Slow(conv, 0.02), Relu()).eval()

    class Bound:
        def enqueue(self) -> None:
            with torch.inference_mode():
                network(torch.zeros(2, 3, 3, 3))

        def wait(self) -> None:
            pass

    timed = torch_layers.time_modules(network, Bound(), 3)  # type: ignore[arg-type]
    layers = {layer.name: layer for layer in timed}
    assert {name: layer.time_ms for name, layer in layers.items()} == pytest.approx(
        {"0.inner": 0, "0": 20, "1": 4, "Sequential": 0}, abs=1e-9
    )
    assert list(layers) == ["0.inner", "0", "1", "Sequential"]
    assert layers["0.inner"].flops == 2 * 4 * 3 * 9
    assert layers["0.inner"].bytes == 4 * (4 * 3 * 9 + 2 * 3 * 9 + 2 * 4)
    assert layers["0"].bytes is None
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.slow
def test_openvino_layers_are_in_milliseconds(
    profiled: ProfileResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer.engines import open_engine, openvino

    class TwoMilliseconds(openvino.LayerClock):
        def read(self, request: object) -> dict[str, float]:
            return dict.fromkeys(super().read(request), 0.002)

    monkeypatch.setattr(openvino, "LayerClock", TwoMilliseconds)
    session = open_engine(Path(profiled.engines[1].file))
    layers = session.time_layers(np.zeros((BATCH, 3, 32, 32), np.float32), 2)
    assert len(layers) > 20
    assert {layer.time_ms for layer in layers} == {2.0}


def test_an_onnxruntime_profile_is_in_milliseconds(tmp_path: Path) -> None:
    """The median over timed calls of the total of a node's kernels per call."""
    import onnx
    from onnx import helper

    from optimizer.engines.onnxruntime_layers import timed_by_profile

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        [value("x", 1, [2])],
        [value("y", 1, [2])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "e.onnx")
    sizes = {"activation_size": "8", "output_size": "8", "parameter_size": "0"}

    def run(start_us: int, kernels_us: list[int]) -> list[dict]:
        kernel = {"cat": "Node", "name": "relu_kernel_time", "args": {"node_index": "0", **sizes}}
        return [
            {"cat": "Session", "name": "model_run", "ts": start_us, "dur": 9000, "args": {}},
            *({**kernel, "ts": start_us + 1 + i, "dur": us} for i, us in enumerate(kernels_us)),
        ]

    events = [
        *run(0, [8000]),
        *run(10_000, [1500]),
        *run(20_000, [1000, 1000]),
        *run(30_000, [4000]),
    ]
    (layer,) = timed_by_profile(tmp_path / "e.onnx", events, 3)
    assert (layer.name, layer.time_ms, layer.bytes) == ("relu", 2.0, 16)


def test_an_incomplete_onnxruntime_profile_is_refused(tmp_path: Path) -> None:
    from optimizer.engines.onnxruntime_layers import timed_by_profile

    events = [{"cat": "Session", "name": "model_run", "ts": 1, "dur": 1, "args": {}}]
    with pytest.raises(EnvironmentFault, match="profile is truncated: it has 1 of 3 runs"):
        timed_by_profile(tmp_path / "none.onnx", events, 3)


def test_a_graph_executed_as_written_has_no_layer_times(small_graph: Path) -> None:
    from optimizer.engines.onnxruntime import as_written

    with pytest.raises(UsageError, match="executed as written"):
        as_written(small_graph).time_layers(np.zeros((1, 3, 32, 32), np.float32), 3)


@pytest.mark.gpu
def test_pytorch_layers_on_a_gpu(small_checkpoint: Path) -> None:
    import torch

    from optimizer.engines import TimesLayers, open_engine

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    session = open_engine(small_checkpoint, device="cuda:0")
    assert isinstance(session, TimesLayers)
    layers = session.time_layers(np.zeros((8, 3, 32, 32), np.float32), 5)
    assert sum(layer.time_ms or 0.0 for layer in layers) > 0
    assert all(layer.bytes for layer in layers if layer.type == "Conv2d")


def test_gpu_layers_are_not_compared_with_cpu_ceilings() -> None:
    from optimizer.profiling.engine_facts import EngineFacts
    from optimizer.profiling.layer_profile import _ceilings_note, _on_cpu

    eager = EngineFacts(path=Path("m"), name="m", backend="torch", precision="fp32")
    assert [_on_cpu(eager, device) for device in (None, "cpu", "cuda:0")] == [True, True, False]
    assert _ceilings_note(enabled=True, on_cpu=[True]) is None
    assert "not measured on GPUs" in str(_ceilings_note(enabled=True, on_cpu=[True, False]))
