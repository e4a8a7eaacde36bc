"""Comparing old and new results from the stored files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.artifacts import digest
from optimizer.errors import ArtifactError, UsageError
from optimizer.evaluation.accuracy_comparison import compare, missing
from optimizer.results import DatasetInfo, Gates, Hop, ValidateResult, read_result, write_result
from optimizer.tasks.paired_statistics import drop_interval, mcnemar_p
from optimizer.tasks.predictions import Predictions

N = 600
LABELS = np.random.default_rng(0).integers(0, 10, N)


def _write(
    path: Path, wrong: dict[str, np.ndarray], *, sha256: str = "d1", engines: bool = True
) -> Path:
    """A result whose hops predict the label except on the given images."""
    path.parent.mkdir(exist_ok=True)
    hops = [Hop(name="reference", engine=None, executor="", parent=None, precision="fp32")]
    classes = {}
    for name, images in wrong.items():
        top = LABELS.copy()
        top[images] = (top[images] + 1) % 10
        classes[name] = top[:, None].astype(np.int32)
        hops.append(
            Hop(
                name=name,
                engine=name if engines else None,
                executor="",
                parent="reference",
                precision="int8",
            )
        )
    result = ValidateResult(
        created="",
        reference="r",
        dataset=DatasetInfo(name="val", n=N, sha256=sha256, image_size=32),
        hops=hops,
        finding="",
        gates=Gates(max_drop_pp=1.0),
        predictions_file=f"{path.stem}.npz",
        verdict="pass",
    )
    Predictions(
        dataset_sha256=sha256,
        image_ids=tuple(map(str, range(N))),
        labels=LABELS,
        classes=classes,
        logits={name: np.zeros((N, 1), np.float32) for name in wrong},
    ).write(path.with_suffix(".npz"))
    sha256_of_predictions = digest(path.with_suffix(".npz"))
    write_result(result.model_copy(update={"predictions_sha256": sha256_of_predictions}), path)
    return path


def test_predictions_are_paired_by_image(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"a.blob": np.arange(10)})
    new = _write(tmp_path / "new" / "v.json", {"b.blob": np.arange(6, 20)})
    (comparison,) = compare(old, new, max_drop_pp=5.0)
    assert (comparison.old, comparison.new, comparison.n) == ("a.blob", "b.blob", N)
    assert comparison.old_top1 == pytest.approx(1 - 10 / N)
    assert comparison.new_top1 == pytest.approx(1 - 14 / N)
    assert comparison.flips == 16  # ten losses, six gains
    assert comparison.drop_pp == pytest.approx(100 * 4 / N)
    low, high = drop_interval(10, 6, N)
    assert comparison.drop_ci95_pp == pytest.approx((100 * low, 100 * high))
    assert comparison.mcnemar_p == mcnemar_p(10, 6)
    assert comparison.verdict == "pass"
    assert comparison.reason.startswith(
        "b.blob stays within the limit of 5 pp relative to a.blob: drop 0.67 pp"
    )


def test_verdicts(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"e": np.arange(0)})
    worse = _write(tmp_path / "new" / "v.json", {"e": np.arange(60)})
    (comparison,) = compare(old, worse, max_drop_pp=1.0)
    assert (comparison.verdict, comparison.images_needed) == ("fail", None)
    slightly = _write(tmp_path / "mid" / "v.json", {"e": np.arange(3)})
    (comparison,) = compare(old, slightly, max_drop_pp=1.0)
    assert comparison.verdict == "inconclusive"
    assert comparison.images_needed is not None
    assert comparison.images_needed > N
    assert f"about {comparison.images_needed:,} images would decide" in comparison.reason
    assert compare(worse, old, max_drop_pp=1.0)[0].verdict == "pass"


def test_engines_are_paired_by_name(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"a": np.arange(2), "b": np.arange(4)})
    new = _write(tmp_path / "new" / "v.json", {"b": np.arange(5), "c": np.arange(1)})
    assert [(c.old, c.new) for c in compare(old, new, max_drop_pp=5.0)] == [("b", "b")]
    other = _write(tmp_path / "other" / "v.json", {"x": np.arange(5), "y": np.arange(1)})
    with pytest.raises(UsageError, match="no engine is in both results: a, b and x, y"):
        compare(old, other, max_drop_pp=5.0)


def test_graphs_are_compared_where_there_is_no_engine(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"graph int8": np.arange(2)}, engines=False)
    new = _write(tmp_path / "new" / "v.json", {"graph int8": np.arange(3)}, engines=False)
    assert compare(old, new, max_drop_pp=5.0)[0].new == "graph int8"


def test_data_with_another_digest_is_refused(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"e": np.arange(2)})
    new = _write(tmp_path / "new" / "v.json", {"e": np.arange(2)}, sha256="d2")
    with pytest.raises(UsageError, match="were validated on different images: val"):
        compare(old, new, max_drop_pp=1.0)


def test_predictions_of_another_validation_are_refused(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"e": np.arange(2)})
    new = _write(tmp_path / "new" / "v.json", {"e": np.arange(2)}, sha256="d2")
    old.with_suffix(".npz").write_bytes(new.with_suffix(".npz").read_bytes())
    with pytest.raises(ArtifactError, match="does not belong to"):
        compare(old, new, max_drop_pp=1.0)


def test_overwritten_predictions_are_refused(tmp_path: Path) -> None:
    """`mv v.json old.json` moves the result only; the next run overwrites the predictions."""
    old = _write(tmp_path / "v.json", {"e": np.arange(2)}).rename(tmp_path / "old.json")
    new = _write(tmp_path / "v.json", {"e": np.arange(60)})
    with pytest.raises(ArtifactError, match=r"v\.npz does not belong to .*another validation"):
        compare(old, new, max_drop_pp=1.0)


def test_predictions_of_results_without_a_digest_must_match_in_accuracy(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"e": np.arange(2)})
    result = read_result(old)
    assert isinstance(result, ValidateResult)
    hops = [
        hop.model_copy(update={"top1": 1 - 2 / N if hop.engine else None}) for hop in result.hops
    ]
    earlier = result.model_copy(update={"predictions_sha256": None, "hops": hops})
    write_result(earlier, old)
    assert compare(old, old, max_drop_pp=1.0)[0].flips == 0
    other = _write(tmp_path / "new" / "v.json", {"e": np.arange(60)})
    old.with_suffix(".npz").write_bytes(other.with_suffix(".npz").read_bytes())
    with pytest.raises(ArtifactError, match="its accuracy differs"):
        compare(old, other, max_drop_pp=1.0)


def test_removed_and_failed_engines_are_missing(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"int8": np.arange(2), "fp32": np.arange(1)})
    one = _write(tmp_path / "one" / "v.json", {"fp32": np.arange(1)})
    assert missing(old, old) == []
    assert missing(old, one) == ["int8"]
    renamed = _write(tmp_path / "renamed" / "v.json", {"fp32-2": np.arange(1)})
    assert missing(one, renamed) == []


def test_a_failed_engine_is_not_paired_with_another(tmp_path: Path) -> None:
    """INT8 failed in the new results: FP32 must not take its place."""
    old = _write(tmp_path / "old" / "v.json", {"int8": np.arange(2)})
    new = _write(tmp_path / "new" / "v.json", {"int8": np.arange(2), "fp32": np.arange(1)})
    result = read_result(new)
    assert isinstance(result, ValidateResult)
    hops = [
        hop.model_copy(update={"status": "failed"}) if hop.name == "int8" else hop
        for hop in result.hops
    ]
    write_result(result.model_copy(update={"hops": hops}), new)
    assert missing(old, new) == ["int8"]
    with pytest.raises(UsageError, match="no engine is in both results: int8 and fp32"):
        compare(old, new, max_drop_pp=1.0)


def test_results_without_predictions_are_refused(tmp_path: Path) -> None:
    old = _write(tmp_path / "old" / "v.json", {"e": np.arange(2)})
    old.with_suffix(".npz").unlink()
    with pytest.raises(ArtifactError, match="no predictions file at"):
        compare(old, old, max_drop_pp=1.0)
