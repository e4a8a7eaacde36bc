"""Real builds with TensorRT-RTX, and their errors."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from optimizer.engines.cuda import cuda_devices
from optimizer.engines.protocol import BuildSettings
from optimizer.engines.tensorrt import TensorRtRtx
from optimizer.engines.tensorrt.library import load
from optimizer.errors import (
    BuildError,
    GraphError,
    MissingDevice,
    UnsupportedPrecision,
    UsageError,
)
from optimizer.progress import Silent

from . import graphs


def settings(precision: str = "fp16", *targets: str, **options: Any) -> BuildSettings:
    return BuildSettings(precision=precision, targets=targets or ("sm86",), **options)


# --- builds -------------------------------------------------------------------------------


def test_engine_and_its_layers(rtx: TensorRtRtx, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.rtx"
    built = rtx.build(model, output, settings(profile=(1, 2, 4)), Silent())
    assert output.stat().st_size > 300_000  # 113,000 FP16 weights and the kernels
    assert built.seconds > 0
    assert built.notes == []
    assert len(built.layers) > 8
    assert list(tmp_path.glob(".model*")) == []
    pickle.loads(pickle.dumps(built))


def test_an_engine_is_read_by_its_own_runtime(
    rtx: TensorRtRtx, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.rtx"
    rtx.build(model, output, settings(), Silent())
    trt = load(rtx.library)
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    validity, diagnostics = runtime.get_engine_validity(b"\0" * 4096)
    assert validity == trt.EngineValidity.INVALID
    assert int(diagnostics) & malformed
    _, diagnostics = runtime.get_engine_validity(output.read_bytes())
    assert not int(diagnostics) & malformed


@pytest.mark.parametrize(("precision", "smaller_than"), [("fp16", 0.85), ("bf16", 0.999)])
def test_half_the_weights_make_a_smaller_engine(
    rtx: TensorRtRtx, tmp_path: Path, precision: str, smaller_than: float
) -> None:
    sizes = []
    for name in ("fp32", precision):
        graph = graphs.save_resnet(tmp_path / f"{name}.onnx", name)
        rtx.build(graph, tmp_path / f"{name}.rtx", settings(name), Silent())
        sizes.append((tmp_path / f"{name}.rtx").stat().st_size)
    assert sizes[1] < sizes[0] * smaller_than


def test_a_fixed_batch_needs_no_profile(rtx: TensorRtRtx, tmp_path: Path) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16", batch=4)
    built = rtx.build(graph, tmp_path / "model.rtx", settings(batch=4), Silent())
    (conv,) = [layer for layer in built.layers if "layer1.0.conv1" in layer.torch_names]
    assert built.notes == []
    assert 0 <= (conv.bytes or 0) - (2 * 32 * 64 + 32 * 32 * 9 + 32) * 2 <= 16  # of one image


def test_several_profiles(rtx: TensorRtRtx, model: Path, tmp_path: Path) -> None:
    options = {"profiles": [(8, 16, 32)]}
    rtx.build(model, tmp_path / "m.rtx", settings(profile=(1, 1, 1), options=options), Silent())
    assert (tmp_path / "m.rtx").is_file()


def test_int8_on_turing_is_labelled(rtx: TensorRtRtx, tmp_path: Path) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", "int8")
    with pytest.raises(UnsupportedPrecision, match="compute in half precision on sm75"):
        rtx.build(graph, tmp_path / "m.rtx", settings("int8", "sm75"), Silent())
    allowed = settings("int8", "sm75", "sm89", options={"storage_only": True}, profile=(1, 2, 4))
    built = rtx.build(graph, tmp_path / "m.rtx", allowed, Silent())
    products = {
        name: layer.precision
        for layer in built.layers
        for name in layer.torch_names
        if name in graphs.MODULES
    }
    assert products.pop("fc") == "int8"
    assert set(products.values()) == {"fp16"}
    assert built.notes[0].startswith("INT8 storage, FP16 compute")


def test_ignored_options_are_noted(rtx: TensorRtRtx, model: Path, tmp_path: Path) -> None:
    ignored = BuildSettings(
        precision="fp16",
        opt_level=5,
        timing_cache=tmp_path / "timing.cache",
        threads=2,
        options={"hardware_compatibility": "ampere-plus", "sparsity": True, "tf32": True},
    )
    notes = "\n".join(rtx.build(model, tmp_path / "m.rtx", ignored, Silent()).notes)
    for word in ("hardware compatibility", "optimization level", "timing cache", "sparsity", "TF32",
                 "threads", "no target given", "no profile given: batches 1:8:32"):  # fmt: skip
        assert word in notes
    assert not (tmp_path / "timing.cache").exists()


def test_a_default_fp8_engine_is_not_built_for_gpus_without_fp8(
    rtx: TensorRtRtx, tmp_path: Path
) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp8")
    built = rtx.build(graph, tmp_path / "m.rtx", BuildSettings(precision="fp8"), Silent())
    assert "compiled for sm89, sm120 and later" in built.notes[0]


# --- errors -----------------------------------------------------------------------------


def build_error(
    rtx: TensorRtRtx, graph: Path, requested: BuildSettings, kind: type[Exception]
) -> Any:
    output = graph.with_suffix(".rtx")
    with pytest.raises(kind) as caught:
        rtx.build(graph, output, requested, Silent())
    assert not output.exists()
    assert "\n" not in str(caught.value)
    assert caught.value.hint  # type: ignore[attr-defined]
    return caught.value


def with_node(path: Path, operator: str, name: str, domain: str = "") -> Path:
    """The small network with one more node after its first convolution."""
    model = graphs.small_resnet("fp16")
    node = helper.make_node(operator, ["conv1.out"], [f"{name}.out"], name=name, domain=domain)
    model.graph.node.insert(2, node)
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("operator", "domain"), [("Det", ""), ("Frobnicate", "custom")])
def test_unsupported_operator(rtx: TensorRtRtx, tmp_path: Path, operator: str, domain: str) -> None:
    graph = with_node(tmp_path / "model.onnx", operator, "layer9.0.odd", domain)
    error = build_error(rtx, graph, settings(), GraphError)
    assert error.message == (
        f"TensorRT-RTX does not support node layer9.0.odd ({operator}, PyTorch layer layer9.0.odd)"
    )
    assert operator in error.hint


def test_mismatched_types(rtx: TensorRtRtx, tmp_path: Path) -> None:
    """A weakly typed TensorRT 10 would have converted these silently."""
    model = graphs.small_resnet("fp16")
    float32 = graphs.small_resnet("fp32")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("layer1.0.conv2."):
            (other,) = [t for t in float32.graph.initializer if t.name == tensor.name]
            tensor.CopyFrom(other)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = build_error(rtx, path, settings(), GraphError)
    assert "contradict each other" in error.message
    assert "node name: layer1.0.conv2" in error.message


def taking_images(path: Path, first: str) -> Path:
    """The small network on N x H x W x 3 UINT8, with Cast or Transpose as the first node."""
    model = graphs.small_resnet("fp32")
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[3].dim_value = graphs.IMAGE, 3
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    steps = {"Cast": {"to": onnx.TensorProto.FLOAT}, "Transpose": {"perm": [0, 3, 1, 2]}}
    tensor = "images"
    order = [first, *(step for step in steps if step != first)]
    for index, step in enumerate(order):
        node = helper.make_node(
            step, [tensor], [f"{step}.out"], name=f"images.{step}", **steps[step]
        )
        graph.node.insert(index, node)
        tensor = f"{step}.out"
    (conv,) = [node for node in graph.node if node.name == "conv1"]
    conv.input[0] = tensor
    onnx.save(model, path)
    return path


def test_images_are_cast_first(rtx: TensorRtRtx, tmp_path: Path) -> None:
    graph = taking_images(tmp_path / "model.onnx", "Cast")
    assert rtx.build(graph, tmp_path / "m.rtx", settings("fp32"), Silent()).layers
    graph = taking_images(tmp_path / "other.onnx", "Transpose")
    error = build_error(rtx, graph, settings("fp32"), GraphError)
    assert "node images.Transpose (Transpose" in error.message
    assert error.hint.startswith("cast the images")


@pytest.mark.parametrize(
    ("present", "requested"),
    [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "fp32"), ("int8", "fp16"), ("fp16", "fp8")],
)
def test_precision_that_the_graph_does_not_have(
    rtx: TensorRtRtx, tmp_path: Path, present: str, requested: str
) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", present)
    error = build_error(rtx, graph, settings(requested, "sm89"), GraphError)
    assert f"has {present}, not {requested}" in error.message
    assert f"--precision {requested}" in error.hint


def test_mixed_accepts_any_precision(rtx: TensorRtRtx, model: Path, tmp_path: Path) -> None:
    assert rtx.build(model, tmp_path / "m.rtx", settings("mixed"), Silent()).layers


@pytest.mark.parametrize(
    ("precision", "high", "target", "wrong"),
    [
        ("fp8", None, "sm86", "FP8 needs sm89 or later, sm86 is among the targets"),
        ("bf16", None, "sm75", "BF16 needs sm80 or later"),
        ("fp32", None, "sm75", "no FP32 matrix product on sm75"),
    ],
)
def test_targets_are_checked_before_the_build(
    rtx: TensorRtRtx, tmp_path: Path, precision: str, high: str | None, target: str, wrong: str
) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", precision, high=high)
    assert (
        wrong in build_error(rtx, graph, settings(precision, target), UnsupportedPrecision).message
    )


def test_fp32_around_int8_on_turing(rtx: TensorRtRtx, tmp_path: Path) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", "int8", high="fp32")
    requested = settings("int8", "sm75", options={"storage_only": True})
    error = build_error(rtx, graph, requested, UnsupportedPrecision)
    assert "--high-precision fp16" in error.hint


def test_a_workspace_that_is_too_small(rtx: TensorRtRtx, model: Path) -> None:
    error = build_error(rtx, model, settings(workspace_bytes=1024), UsageError)
    assert error.message.startswith("a workspace of 1,024 bytes is too small: ")
    assert "--workspace" in error.hint


@pytest.mark.parametrize("profile", [(8, 4, 32), (0, 8, 32), (4, 8, 2)])
def test_a_profile_that_contradicts_itself(
    rtx: TensorRtRtx, model: Path, profile: tuple[int, int, int]
) -> None:
    build_error(rtx, model, settings(profile=profile), UsageError)


def test_a_profile_for_a_fixed_batch(rtx: TensorRtRtx, tmp_path: Path) -> None:
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16", batch=2)
    assert (
        "fixed batch of 2"
        in build_error(rtx, graph, settings(profile=(1, 8, 32)), UsageError).message
    )


def test_library_failure_is_one_line(rtx: TensorRtRtx, tmp_path: Path) -> None:
    """A convolution with an empty output."""
    graph = graphs.save_resnet(tmp_path / "model.onnx", "fp16", image=1)
    model = onnx.load(graph)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pads":
                del attribute.ints[:]
                attribute.ints.extend([0, 0, 0, 0])
    graph.write_bytes(model.SerializeToString())
    error = build_error(rtx, graph, settings(), (GraphError, BuildError))  # type: ignore[arg-type]
    assert "\n" not in error.message
    assert "layer2.0.conv1" in error.message


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a GPU")
@pytest.mark.parametrize("option", ["refittable", "strip_weights"])
def test_options_that_need_a_driver(rtx: TensorRtRtx, model: Path, option: str) -> None:
    error = build_error(rtx, model, settings(options={option: True}), MissingDevice)
    assert "needs the driver for refittable or stripped engines" in error.message


# --- progress and interrupts ---------------------------------------------------------------------


class Recorder:
    """Records progress calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def start(self, label: str, total: int | None = None) -> None:
        self.calls.append(("start", (label, total)))

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        self.calls.append(("advance", (steps, note)))

    def finish(self, note: str | None = None) -> None:
        self.calls.append(("finish", note))


def test_progress_is_one_task_with_notes(rtx: TensorRtRtx, model: Path, tmp_path: Path) -> None:
    progress = Recorder()
    rtx.build(model, tmp_path / "m.rtx", settings(), progress)
    kinds = [kind for kind, _ in progress.calls]
    assert kinds.count("start") == kinds.count("finish") == 1
    assert kinds[0] == "start"
    label, total = progress.calls[0][1]
    assert label == "tensorrt-rtx fp16"
    advanced = [steps for kind, (steps, _) in progress.calls[1:-1] if kind == "advance"]
    assert 1 <= sum(advanced) <= total
    notes = [note for kind, (_, note) in progress.calls[1:-1] if kind == "advance" and note]
    assert len(notes) > 2


class Broken(Recorder):
    """Fails to report progress: its parent is gone."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        raise BrokenPipeError("the parent is gone")


class Interrupting(Recorder):
    """Sends SIGINT during the build."""

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        if len(self.calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        super().advance(steps, note=note)


def interrupt_build(model: Path, progress: Recorder, error: type[BaseException]) -> None:
    """An interrupted build leaves no files, and the library works afterwards."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = model.with_name("broken-off.rtx")
    rtx = TensorRtRtx()
    with pytest.raises(error):
        rtx.build(model, output, settings(), progress)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not output.exists()
    assert list(model.parent.glob(".broken*")) == []
    rtx.build(model, output, settings(), Silent())


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("progress", "error"), [(Broken(), BrokenPipeError), (Interrupting(), KeyboardInterrupt)]
)
def test_interrupted_build(model: Path, progress: Recorder, error: type[BaseException]) -> None:
    """In a separate process, as every build is.

    If OpenVINO was used earlier in the same process, the library crashes when it is interrupted.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=interrupt_build, args=(model, progress, error)
    )
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_process_that_ignores_ctrl_c_keeps_ignoring_it(
    rtx: TensorRtRtx, model: Path, tmp_path: Path
) -> None:
    """The subprocess of a build does so: its parent handles the signal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        rtx.build(model, tmp_path / "m.rtx", settings(), Interrupting())
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "m.rtx").is_file()


@pytest.mark.long
def test_builds_in_separate_processes(rtx: TensorRtRtx, tmp_path: Path) -> None:
    """Backend, settings and result can be pickled."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for precision in ("fp32", "fp16", "bf16", "int8"):
            for target in ("sm86", "sm89", "sm120"):
                graph = graphs.save_resnet(tmp_path / f"{precision}.onnx", precision)
                output = tmp_path / f"{precision}-{target}.rtx"
                requested = settings(precision, target)
                built = pool.apply(rtx.build, (graph, output, requested, Silent()))
                products = {
                    layer.precision
                    for layer in built.layers
                    if set(layer.torch_names) & set(graphs.MODULES)
                }
                assert products == {precision}
