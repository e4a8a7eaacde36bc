"""A pytest fixture for repositories that ship engines: ``assert_accuracy``.

::

    def test_engine_is_accurate(assert_accuracy):
        assert_accuracy("model.int8.blob", "data/val", reference="model.safetensors", max_drop="0.5pp")

pytest loads this module in every session where resnet-opt is installed, so it imports nothing else
until the fixture is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from optimizer.results import ValidateResult

__all__ = ["AssertAccuracy", "assert_accuracy"]


class AssertAccuracy(Protocol):
    """What the fixture gives."""

    def __call__(
        self,
        engine: str | Path,
        data: str | Path,
        *,
        reference: str | Path,
        max_drop: str = "1pp",
        max_flips: str | None = None,
        limit: int | None = None,
        batch: int = 32,
    ) -> ValidateResult:
        """Fail the test unless the engine is shown to lose less than ``max_drop``.

        Args:
            engine: An engine, or an ONNX graph executed as written.
            data: Labelled images: a folder, ``file.npz`` or ``digits:test``.
            reference: Checkpoint, model name or FP32 ONNX file.
            max_drop: Largest loss of top-1, ``0.5pp``. Too few images to tell is a failure too;
                the message says how many would do.
            max_flips: Largest share of images that may change class, ``1%``.
            limit: Take a stratified subset of this many images.
            batch: Images at a time.

        Returns:
            The whole result. The test is skipped, with the reason, where the engine cannot run.
        """


@pytest.fixture(scope="session")
def assert_accuracy() -> AssertAccuracy:
    """Hold an engine against its reference on labelled images; see `AssertAccuracy`."""
    return _assert_accuracy


def _assert_accuracy(
    engine: str | Path,
    data: str | Path,
    *,
    reference: str | Path,
    max_drop: str = "1pp",
    max_flips: str | None = None,
    limit: int | None = None,
    batch: int = 32,
) -> ValidateResult:
    __tracebackhide__ = True
    from optimizer.data import open_dataset
    from optimizer.evaluation import Chain, validate
    from optimizer.models import load_model
    from optimizer.results import Gates
    from optimizer.units import parse_pp, parse_share

    gates = Gates(
        max_drop_pp=parse_pp(max_drop),
        max_flips=None if max_flips is None else parse_share(max_flips),
    )
    name = str(reference)
    result = validate(
        [Chain.of(Path(engine))],
        Path(name) if name.endswith(".onnx") else load_model(name),
        open_dataset(data, limit=limit),
        gates,
        batch=batch,
    )
    if result.verdict == "fail":
        pytest.fail(result.finding, pytrace=False)
    for hop in result.hops:
        if hop.status == "built-not-run":
            pytest.skip(f"{hop.name} cannot run here: {hop.error}")
    if result.verdict == "inconclusive":
        pytest.fail(result.finding, pytrace=False)
    return result
