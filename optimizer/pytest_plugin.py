"""A pytest fixture for repositories that ship engines, ``assert_accuracy``.

::

    def test_engine_is_accurate(assert_accuracy):
        assert_accuracy("model.int8.blob", "data/val", reference="model.safetensors", max_drop="0.5pp")

pytest loads this module in every session if resnet-opt is installed, so it imports the rest of the
package only when the fixture is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from optimizer.results import ValidateResult

__all__ = ["AssertAccuracy", "assert_accuracy"]


class AssertAccuracy(Protocol):
    """The function that the fixture returns."""

    def __call__(
        self,
        engine: str | Path,
        data: str | Path,
        *,
        reference: str | Path,
        max_drop: str = "1pp",
        max_flips: str | None = None,
        max_lost: str | None = None,
        limit: int | None = None,
        batch: int = 32,
    ) -> ValidateResult:
        """Fail the test unless the engine provably loses less than ``max_drop``.

        Skips the test, with the reason, if the engine cannot run on this machine.

        Args:
            engine: An engine, or an ONNX graph, which is executed as written.
            data: Labelled images: a folder, ``file.npz`` or ``digits:test``; for detectors a COCO
                file beside its images, a YOLO folder or ``digits-scenes:test``.
            reference: Checkpoint, model name or FP32 ONNX file.
            max_drop: Largest loss of top-1, or of a detector's AP, ``0.5pp``. The test also fails if
                there are too few
                images to decide; the message says how many are needed.
            max_flips: Largest share of images whose predicted class may change, ``1%``.
            max_lost: For detectors, largest share of detections that may be lost, ``3%``.
            limit: Use a stratified subset of this many images.
            batch: Images per call.

        Returns:
            The validation result.
        """


@pytest.fixture(scope="session")
def assert_accuracy() -> AssertAccuracy:
    """Compare an engine with its reference on labelled images; see `AssertAccuracy`."""
    return _assert_accuracy


def _assert_accuracy(
    engine: str | Path,
    data: str | Path,
    *,
    reference: str | Path,
    max_drop: str = "1pp",
    max_flips: str | None = None,
    max_lost: str | None = None,
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
        max_lost=None if max_lost is None else parse_share(max_lost),
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
