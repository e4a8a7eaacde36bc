"""The session on a GPU simulated in host memory; see ``hostgpu``."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from optimizer.engines.protocol import Bound
from optimizer.engines.tensorrt.library import TENSORRT_RTX, find
from optimizer.engines.tensorrt.session import TensorRtSession
from optimizer.errors import UsageError

from . import graphs
from .hostgpu import KERNEL_MS, HostContext, HostCuda, HostEngine, HostInspector, open_session


@pytest.fixture(scope="module")
def trt() -> Any:
    installed = find(TENSORRT_RTX)
    if installed.module is None:
        pytest.skip(str(installed.fault))
    return installed.module


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return graphs.save_resnet(tmp_path / "model.onnx", width=8)


def open_on_host(
    trt: Any, graph: Path, *profiles: tuple[int, int, int], cuda_graph: bool = False
) -> tuple[TensorRtSession, HostContext, HostCuda]:
    cuda = HostCuda()
    engine = HostEngine(trt, cuda, graph, list(profiles))
    session = open_session(engine, cuda_graph=cuda_graph)
    return session, engine.newest(), cuda


def reference(graph: Path, batch: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def test_input_and_output(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    assert (session.input.name, session.input.shape) == ("images", (None, 3, 16, 16))
    assert (session.output.name, session.output.dtype) == ("logits", "float32")


@pytest.mark.parametrize(
    ("profiles", "images", "executed"),
    [
        ([(1, 2, 4)], 3, [3]),
        ([(1, 2, 4)], 9, [4, 4, 1]),  # split
        ([(2, 2, 4)], 1, [2]),  # padded
        ([(2, 2, 4)], 5, [4, 2]),  # split, and the rest padded
        ([(1, 1, 1), (4, 8, 8)], 1, [1]),
        ([(1, 1, 1), (4, 8, 8)], 9, [8, 1]),  # the second profile, then the first
        ([(1, 1, 1), (4, 8, 8)], 2, [4]),
    ],
)
def test_any_batch_size(
    trt: Any, graph: Path, profiles: list[tuple[int, int, int]], images: int, executed: list[int]
) -> None:
    session, context, _ = open_on_host(trt, graph, *profiles)
    batch = graphs.images(images)
    np.testing.assert_allclose(session.run(batch), reference(graph, batch), atol=1e-5)
    assert context.executed == executed
    # Again, reusing the memory.
    np.testing.assert_allclose(session.run(batch[::-1]), reference(graph, batch[::-1]), atol=1e-5)


def test_a_fixed_batch_is_always_filled(trt: Any, tmp_path: Path) -> None:
    graph = graphs.save_resnet(tmp_path / "fixed.onnx", width=8, batch=4)
    session, context, _ = open_on_host(trt, graph, (4, 4, 4))
    batch = graphs.images(6)
    expected = np.concatenate(
        [reference(graph, batch[:4]), reference(graph, np.concatenate([batch[4:], batch[4:]]))[:2]]
    )
    np.testing.assert_allclose(session.run(batch), expected, atol=1e-5)
    assert context.executed == [4, 4]


def test_shapes_are_set_only_when_they_change(trt: Any, graph: Path) -> None:
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    bound = session.bind(graphs.images(2))
    for _ in range(3):
        bound.enqueue()
    assert context.shapes_set == 1
    session.run(graphs.images(2))
    bound.enqueue()
    assert context.shapes_set == 3


def test_bound_batch_step_by_step(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    batch = graphs.images(3)
    bound = session.bind(batch)
    assert isinstance(bound, Bound)
    bound.upload()
    bound.enqueue()
    bound.wait()
    assert not np.any(bound.output()), "nothing was downloaded yet"
    bound.download()
    np.testing.assert_allclose(bound.output(), reference(graph, batch), atol=1e-5)


def test_two_bound_batches_do_not_disturb_each_other(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    first, second = graphs.images(2), graphs.images(4)[1:]
    bounds = [session.bind(first), session.bind(second)]
    for bound in bounds:
        bound.upload()
        bound.enqueue()
    for bound in bounds:
        bound.download()
    np.testing.assert_allclose(bounds[0].output(), reference(graph, first), atol=1e-5)
    np.testing.assert_allclose(bounds[1].output(), reference(graph, second), atol=1e-5)


def test_cuda_graph_is_captured_once(trt: Any, graph: Path) -> None:
    session, context, cuda = open_on_host(trt, graph, (1, 2, 4), cuda_graph=True)
    batch = graphs.images(2)
    bound = session.bind(batch)
    bound.upload()
    for _ in range(5):
        bound.enqueue()
        bound.wait()
    assert len(context.executed) == 2  # the warm-up and the capture
    assert cuda.launches == 5
    bound.download()
    np.testing.assert_allclose(bound.output(), reference(graph, batch), atol=1e-5)


def test_cuda_graph_is_captured_again_after_the_context_changed(trt: Any, graph: Path) -> None:
    """A graph captured before is undefined after shape and addresses have changed."""
    session, context, cuda = open_on_host(trt, graph, (1, 2, 4), cuda_graph=True)
    first, second = graphs.images(2), graphs.images(4)[1:4]
    bound = session.bind(first)
    bound.upload()
    bound.enqueue()
    bound.wait()
    np.testing.assert_allclose(session.run(second), reference(graph, second), atol=1e-5)
    before = len(context.executed)
    bound.enqueue()
    bound.enqueue()
    bound.download()
    assert len(context.executed) == before + 2, "warmed up and recorded once more"
    assert cuda.launches == 3
    np.testing.assert_allclose(bound.output(), reference(graph, first), atol=1e-5)


def test_gpu_time_excludes_copies(trt: Any, graph: Path) -> None:
    session, _, cuda = open_on_host(trt, graph, (1, 2, 4))
    bound = session.bind(graphs.images(2))
    assert bound.gpu_ms() == KERNEL_MS
    assert not cuda.events


def test_batch_larger_than_the_profile_cannot_be_bound(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    with pytest.raises(UsageError, match="larger than the engine's maximum of 4") as caught:
        session.bind(graphs.images(5))
    assert "--batch 4" in str(caught.value.hint)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 16, 17), np.float32),
        np.zeros((1, 3, 16, 16), np.float64),
        np.zeros((0, 3, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.float32),
    ],
)
def test_batch_of_a_wrong_shape_is_rejected(trt: Any, graph: Path, batch: np.ndarray) -> None:
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    with pytest.raises(UsageError):
        session.run(batch)
    assert not context.executed


def test_second_thread_is_rejected(trt: Any, graph: Path) -> None:
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    caught: list[BaseException] = []

    def use() -> None:
        try:
            session.run(graphs.images(1))
        except UsageError as error:
            caught.append(error)

    session.run(graphs.images(1))
    bound = session.bind(graphs.images(1))

    def use_bound() -> None:
        try:
            bound.enqueue()
        except UsageError as error:
            caught.append(error)

    for target in (use, use_bound):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert ["belongs to another thread" in str(error) for error in caught] == [True, True]
    assert context.executed == [1]


def test_the_thread_that_computes_first_owns_the_session(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    thread = threading.Thread(target=session.run, args=(graphs.images(1),))
    thread.start()
    thread.join()
    with pytest.raises(UsageError, match="another thread"):
        session.run(graphs.images(1))


def test_close_frees_everything(trt: Any, graph: Path) -> None:
    finished: list[int] = []
    cuda = HostCuda()
    engine = HostEngine(trt, cuda, graph, [(1, 2, 4)])
    session = open_session(engine, cuda_graph=True, on_close=lambda: finished.append(1))
    session.run(graphs.images(2))
    session.run(graphs.images(3))
    bound = session.bind(graphs.images(1))
    bound.enqueue()
    session.bind(graphs.images(1)).close()
    session.close()
    session.close()
    assert finished == [1]
    assert cuda.held == 0
    with pytest.raises(UsageError, match="closed"):
        session.run(graphs.images(1))


def test_layers_come_with_times(trt: Any, graph: Path) -> None:
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    layers = session.layers()
    assert [(x.torch_names, x.precision, x.time_ms) for x in layers] == [
        (["conv1"], "fp16", None),
        (["fc"], "fp16", None),
    ]
    timed = session.time_layers(graphs.images(2), 5)
    assert [layer.time_ms for layer in timed] == [1.5, 0.5]
    assert [layer.bytes for layer in timed] == [2 * (layer.bytes or 0) for layer in layers]
    conv1_bytes = 2 * (3 * 16 * 16 + 8 * 16 * 16)
    assert layers[0].bytes == conv1_bytes
    assert context.executed == [], "layers are timed in a context of their own"


def test_whole_calls_have_no_profiler_after_layers_were_timed(trt: Any, graph: Path) -> None:
    """A profiler cannot be detached, and a context with a profiler cannot be captured."""
    session, context, cuda = open_on_host(trt, graph, (1, 2, 4), cuda_graph=True)
    bound = session.bind(graphs.images(2))
    for _ in range(2):
        session.time_layers(graphs.images(2), 2)
        bound.enqueue()
        bound.wait()
    assert context.profiler is None
    assert session.notes == []
    assert cuda.launches == 2
    assert session.time_layers(graphs.images(2), 3)[0].time_ms == 1.5


def test_timed_contexts_have_no_annotations(trt: Any, graph: Path) -> None:
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    session.run(graphs.images(2))
    assert set(context.started_with) == {trt.ProfilingVerbosity.NONE}
    session.time_layers(graphs.images(2), 1)
    timing = context.engine.newest()
    assert timing is not context
    assert set(timing.started_with) == {trt.ProfilingVerbosity.LAYER_NAMES_ONLY}


def test_layer_times_are_of_the_profile_that_runs(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 1, 1), (4, 8, 8))
    assert [(x.torch_names, x.profile) for x in session.layers()] == [
        (["conv1"], 0),
        (["fc"], 0),
        (["conv1"], 1),
        (["fc"], 1),
    ]
    small = session.time_layers(graphs.images(1), 2)
    large = session.time_layers(graphs.images(8), 2)
    assert [x.name for x in small] == ["conv1", "fc_myl5_1"]
    assert [x.name for x in large] == ["conv1 [profile 1]", "fc [profile 1]_myl11_1"]
    assert [x.time_ms for x in large] == [1.5, 0.5]
    assert {x.precision for x in (*small, *large)} == {"fp16"}


def test_layer_times_are_medians_and_complete(trt: Any, graph: Path) -> None:
    """Entries that the inspector does not list (a synchronization) become layers with the profiler's name."""
    session, context, _ = open_on_host(trt, graph, (1, 2, 4))
    session.time_layers(graphs.images(2), 1)
    timing = context.engine.newest()
    execute = timing.execute_async_v3
    spent = iter([7.0, 9.0, 1.0, 1.5])  # the first run of a shape is not counted

    def slower_at_first(stream: int) -> bool:
        once = next(spent)
        timing.profiler.report_layer_time("{reshape}", once)
        timing.profiler.report_layer_time("{reshape}", once)
        return bool(execute(stream))

    timing.execute_async_v3 = slower_at_first
    conv1, _, extra = session.time_layers(graphs.images(2), 3)
    assert (conv1.torch_names, conv1.time_ms) == (["conv1"], 1.5)
    assert (extra.name, extra.torch_names, extra.time_ms) == ("{reshape}", [], 3.0)


def test_layer_times_need_a_call(trt: Any, graph: Path) -> None:
    session, _, _ = open_on_host(trt, graph, (1, 2, 4))
    with pytest.raises(UsageError, match="0 calls time no layer"):
        session.time_layers(graphs.images(2), 0)


def test_failed_capture_is_a_note(trt: Any, graph: Path) -> None:
    session, context, cuda = open_on_host(trt, graph, (1, 2, 4), cuda_graph=True)
    batch = graphs.images(2)
    bound = session.bind(batch)
    bound.upload()
    context.profiler = SimpleNamespace(report_layer_time=lambda *_: None)  # ends every capture
    for _ in range(3):
        bound.enqueue()
    bound.download()
    np.testing.assert_allclose(bound.output(), reference(graph, batch), atol=1e-5)
    (note,) = session.notes
    assert "cannot be captured as a CUDA graph" in note
    assert "not permitted when stream is capturing" in note
    assert cuda.launches == 0
    assert not cuda.graphs


def test_stand_ins_have_only_real_names(trt: Any) -> None:
    """The stand-ins for TensorRT may only have attributes that TensorRT has."""
    additional = {
        "trt",
        "cuda",
        "profiles",
        "session",
        "source",
        "target",
        "contexts",
        "engine",
        "shape",
        "addresses",
        "executed",
        "shapes_set",
        "layers",
        "refuses",
    }
    for host, real in (
        (HostEngine, trt.ICudaEngine),
        (HostContext, trt.IExecutionContext),
        (HostInspector, trt.EngineInspector),
    ):
        names = {name for name in vars(host) if not name.startswith("_")} - additional
        assert names <= set(dir(real)), names - set(dir(real))
