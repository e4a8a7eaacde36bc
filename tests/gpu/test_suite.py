"""The GPU suite: ``make test-gpu``. A case that cannot run is skipped with the reason.

Results and skipped cases are written to ``reports/gpu/<device>/`` after every step. The engines of one model
are built and measured before those of the next. After ten minutes the rest is skipped;
``GPU_SUITE_SECONDS=7200 make test-gpu`` runs everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gpu
import gpu_report
import pytest
from materials import Material, digits_resnet50, random_resnet50

from optimizer.engines.cuda import cuda_status
from optimizer.errors import BuildError

from .time_limit import FULL_SIZE_BUILDS, seconds_left, skip_after

pytestmark = pytest.mark.gpu

REPORTS = Path(__file__).parent.parent.parent / "reports" / "gpu"
KINDS = [case for case in gpu.cases() if case.model == gpu.MODELS[0]]
PLANS = [case for case in KINDS if case.provider is None]
"""Cases with a TensorRT engine file, which trtexec and the raw calls can run."""


def kind_name(case: gpu.Case) -> str:
    return f"{case.label}-{case.precision}"


@pytest.fixture(scope="module", params=gpu.MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """A fixture of the module, so that pytest finishes one model before it begins the next."""
    return str(request.param)


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gpu.Suite:
    folder = tmp_path_factory.mktemp("gpu")
    materials: dict[str, Material] = {}

    def material(name: str) -> Material:
        """Created when the first case that can run needs it."""
        if name not in materials:
            model_folder = folder / f"{name}-model"
            model_folder.mkdir()
            if name == "random":
                materials[name] = random_resnet50(model_folder)
            else:  # trained on demand, because it takes minutes
                checkpoint = request.getfixturevalue("digits_checkpoint")
                materials[name] = digits_resnet50(checkpoint, model_folder)
        return materials[name]

    return gpu.Suite(folder, material, seconds_left)


@pytest.fixture(autouse=True)
def step(suite: gpu.Suite) -> Iterator[None]:
    """One step: skipped if the time is up, and reported as soon as it ends."""
    skip_after()
    yield
    if any(outcome["status"] != "skipped" for outcome in suite.outcomes.values()):
        print(f"\nwritten to {gpu_report.write(suite.results(), REPORTS)}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_build_audit_and_validate(suite: gpu.Suite, model: str, kind: gpu.Case) -> None:
    case = replace(kind, model=model)
    reason = gpu.reason_to_skip(case)
    if reason is None and model == gpu.MODELS[0] and seconds_left(FULL_SIZE_BUILDS) < 0:
        reason = "the time for builds is over (GPU_SUITE_SECONDS)"
    if reason is not None:
        suite.skip(case, reason)
        pytest.skip(f"{case.label}: {reason}")
    try:
        outcome = suite.run(case)
    except BuildError as error:
        if seconds_left() > 0:
            raise
        pytest.skip(f"{case.label}: {error.message}")
    # A provider that compiles does not report every layer: see its notes.
    is_auditable = case.provider in {None, "cuda"}
    assert outcome["audit"]["verdict"] == "pass" or not is_auditable


@pytest.mark.timeout(3600)
def test_speed_side_by_side(suite: gpu.Suite, model: str) -> None:
    if not suite.built(model):
        pytest.skip("no engine was built on this machine, see the reasons above")
    suite.bench(model, seconds=2.0)
    failed = [e for e in suite.benches[-1]["engines"] if e["status"] != "ok"]
    assert not failed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", gpu.BATCHES)
@pytest.mark.parametrize("kind", PLANS, ids=kind_name)
def test_against_trtexec(suite: gpu.Suite, model: str, kind: gpu.Case, batch: int) -> None:
    case = replace(kind, model=model)
    if case not in suite.engines:
        pytest.skip(f"{case.label} {case.precision} was not built on this machine")
    run = suite.run_against_tool(case, batch)
    if run["tool"] is None:
        pytest.skip(run["error"])
    # The tool runs the same kernels; a larger difference in GPU time means different settings.
    assert run["ours"]["gpu_ms"] == pytest.approx(run["tool"]["gpu_compute_ms"]["median"], rel=0.15)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", PLANS, ids=kind_name)
def test_session_overhead(suite: gpu.Suite, model: str, kind: gpu.Case) -> None:
    case = replace(kind, model=model)
    if case not in suite.engines:
        pytest.skip(f"{case.label} {case.precision} was not built on this machine")
    if not str(cuda_status().package).startswith("cuda-python"):
        pytest.skip("raw calls need cuda-python, which is not installed")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    measured = suite.measure_overhead(case, runtime)
    assert measured.verdict != "fail", f"{measured.share:+.2%}, {measured.ci95}"
