"""The GPU suite: ``make test-gpu``. Each case skips with the reason of whoever refuses it.

What ran is written to ``reports/gpu/<device>/`` after every step, with what was skipped and why. After
ten minutes the rest is skipped; ``GPU_SUITE_SECONDS=7200 make test-gpu`` runs all of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import gpu
import gpu_report
import pytest
from materials import Material, digits_resnet50, random_resnet50

from optimizer.engines.cuda import cuda_status

pytestmark = pytest.mark.gpu

STARTED = time.monotonic()
SECONDS = float(os.environ.get("GPU_SUITE_SECONDS", "600"))
REPORTS = Path(__file__).parent.parent.parent / "reports" / "gpu"
CASES = gpu.cases()
PLANS = [case for case in CASES if case.provider is None]
"""Those with an engine file of TensorRT's, which its own tool and the raw calls can run."""


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gpu.Suite:
    folder = tmp_path_factory.mktemp("gpu")
    made: dict[str, Material] = {}

    def material(name: str) -> Material:
        """Made when the first case that can run asks for it."""
        if name not in made:
            own = folder / f"{name}-model"
            own.mkdir()
            if name == "random":
                made[name] = random_resnet50(own)
            else:  # trained when it is needed: that takes minutes
                made[name] = digits_resnet50(request.getfixturevalue("digits_checkpoint"), own)
        return made[name]

    return gpu.Suite(folder, material)


@pytest.fixture(autouse=True)
def step(suite: gpu.Suite) -> Iterator[None]:
    """One step: skipped when the time is over, and in the report as soon as it has ended."""
    if time.monotonic() - STARTED > SECONDS:
        pytest.skip(f"the {SECONDS:.0f} s of the suite are over (GPU_SUITE_SECONDS)")
    yield
    if any(outcome["status"] != "skipped" for outcome in suite.outcomes.values()):
        print(f"\nwritten to {gpu_report.write(suite.results(), REPORTS)}")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.model}-{c.label}-{c.precision}")
def test_it_is_built_audited_and_validated(suite: gpu.Suite, case: gpu.Case) -> None:
    reason = gpu.reason_to_skip(case)
    if reason is not None:
        suite.skip(case, reason)
        pytest.skip(f"{case.label}: {reason}")
    outcome = suite.run(case)
    # A provider that compiles does not tell everything: see its notes.
    told = case.provider in {None, "cuda"}
    assert outcome["audit"]["verdict"] == "pass" or not told


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", gpu.MODELS)
def test_speed_side_by_side(suite: gpu.Suite, model: str) -> None:
    if not suite.built(model):
        pytest.skip("no engine was built on this machine, see the reasons above")
    suite.bench(model, seconds=2.0)
    failed = [e for e in suite.benches[-1]["engines"] if e["status"] != "ok"]
    assert not failed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", gpu.BATCHES)
@pytest.mark.parametrize("case", PLANS, ids=lambda c: f"{c.model}-{c.label}-{c.precision}")
def test_beside_trtexec(suite: gpu.Suite, case: gpu.Case, batch: int) -> None:
    if case not in suite.engines:
        pytest.skip(f"{case.label} {case.precision} was not built on this machine")
    run = suite.beside_the_tool(case, batch)
    if run["tool"] is None:
        pytest.skip(run["error"])
    # The tool's GPU time is that of the same kernels; more than this means another setting.
    assert run["ours"]["gpu_ms"] == pytest.approx(run["tool"]["gpu_compute_ms"]["median"], rel=0.15)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", PLANS, ids=lambda c: f"{c.model}-{c.label}-{c.precision}")
def test_the_session_costs_at_most_one_percent(suite: gpu.Suite, case: gpu.Case) -> None:
    if case not in suite.engines:
        pytest.skip(f"{case.label} {case.precision} was not built on this machine")
    if not str(cuda_status().package).startswith("cuda-python"):
        pytest.skip("raw calls are made through cuda-python, which is not installed")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    found = suite.measure_overhead(case, runtime)
    assert found.verdict != "fail", f"{found.share:+.2%}, {found.ci95}"
