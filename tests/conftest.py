"""Fixtures that several rooms share."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import optimizer.training
from tests.sharing import Shared

# A shell that starts tests in the background has them ignore Ctrl-C, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure of the property under test. The examples are the same in each run, so
# that a change fails for what it changed; RESNET_OPT_RANDOM_EXAMPLES=1 looks for new ones.
hypothesis.settings.register_profile(
    "any-machine",
    deadline=None,
    derandomize=not os.environ.get("RESNET_OPT_RANDOM_EXAMPLES"),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long by nature does not hang after ten minutes of a busy machine."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All processes of a run share one cache, which is not the user's."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNET_OPT_CACHE", str(folder / "user-cache"))
        yield


LITTLE_EFFORT = ((128, 256), 3, 8 << 20)
"""Sizes, rounds and bytes of `optimizer.profiling.ceilings.Effort`."""


@pytest.fixture(scope="session", autouse=True)
def _quick_ceilings() -> Iterator[None]:
    """Ceilings of the machine are measured in a moment; how fast it is decides no test."""
    from optimizer.profiling.ceilings import Effort

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Effort.__init__, "__defaults__", LITTLE_EFFORT)
        assert Effort() == Effort(*LITTLE_EFFORT)
        yield


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Makes a folder once for all processes of this run."""
    return Shared(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def digits_checkpoint(shared: Shared) -> Path:
    """A ResNet-50 trained on the digits at 32 px (one to three minutes on two cores).

    It is kept between runs under a digest of the training code, so that a run that changed nothing
    of it does not train again. Use it in long tests only.
    """
    from optimizer.options import TrainOptions
    from optimizer.training import open_training_data, train_checkpoint

    code = b"".join(
        path.read_bytes() for path in sorted(Path(optimizer.training.__file__).parent.glob("*.py"))
    )

    def make(folder: Path) -> None:
        train, held_out = open_training_data("digits")
        train_checkpoint(TrainOptions(), train, folder / "resnet50.safetensors", held_out=held_out)

    name = f"digits-{hashlib.sha256(code).hexdigest()[:12]}"
    return shared(name, make, keep=True) / "resnet50.safetensors"


@pytest.fixture(scope="session")
def small_checkpoint(shared: Shared) -> Path:
    """A seeded ResNet-18 with ten classes at 32 px: for structure, not for accuracy."""

    def make(folder: Path) -> None:
        from dataclasses import replace

        from optimizer.data import Preprocessing
        from optimizer.models import load_model, save_checkpoint

        model = load_model("resnet18:random:10")
        classes = tuple(str(digit) for digit in range(10))
        small = replace(model, preprocessing=Preprocessing.digits(32), classes=classes)
        save_checkpoint(small, folder / "small.safetensors", details={})

    return shared("small-checkpoint", make) / "small.safetensors"


@pytest.fixture(scope="session")
def small_graph(shared: Shared, small_checkpoint: Path) -> Path:
    """The FP32 graph of `small_checkpoint`."""

    def make(folder: Path) -> None:
        from optimizer.exporting import export_onnx
        from optimizer.models import load_model

        export_onnx(load_model(str(small_checkpoint)), folder / "small.onnx")

    return shared("small-graph", make) / "small.onnx"


@pytest.fixture(scope="session")
def small_statistics(shared: Shared, small_graph: Path) -> Path:
    """Calibration statistics of `small_graph` on 64 real digits."""

    def make(folder: Path) -> None:
        from optimizer.data import open_dataset
        from optimizer.precision import calibrate

        digits = open_dataset("digits:train", limit=64)
        calibrate(small_graph, digits, folder / "small.stats.npz")

    return shared("small-statistics", make) / "small.stats.npz"


Quantized = Callable[[str, str], Path]
Engines = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def small_quantized(shared: Shared, small_graph: Path, small_statistics: Path) -> Quantized:
    """`small_graph` in a precision for a target, with every pass that is on by default."""

    def quantized(precision: str, target: str) -> Path:
        def make(folder: Path) -> None:
            from optimizer.precision import quantize

            statistics = small_statistics if precision == "int8" else None
            quantize(
                small_graph,
                folder / f"{precision}.onnx",
                precision=precision,
                target=target,
                stats=statistics,
            )

        return shared(f"small-graph-{precision}-{target}", make) / f"{precision}.onnx"

    return quantized


@pytest.fixture(scope="session")
def small_engines(
    shared: Shared, small_checkpoint: Path, small_graph: Path, small_quantized: Quantized
) -> Engines:
    """Engines of `small_checkpoint` by backend and precision, built as they are by default."""

    def engine(backend: str, precision: str) -> Path:
        from optimizer.engines import BuildSettings, get_backend
        from optimizer.engines.building import build_engine

        source = small_checkpoint if backend == "torch" else small_graph
        if precision == "int8":
            source = small_quantized("int8", backend)
        name = f"{backend}-{precision}{get_backend(backend).suffix}"

        def make(folder: Path) -> None:
            build_engine(source, folder / name, backend, BuildSettings(precision=precision))

        return shared(f"small-engine-{backend}-{precision}", make) / name

    return engine
