"""Validation of small graphs in one pass: sums, failures, and the hop at fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.artifacts import Input, Plan, produce
from optimizer.data import ImageDataset, Preprocessing, open_dataset
from optimizer.engines import get_backend
from optimizer.engines.onnxruntime import as_written
from optimizer.errors import (
    AccuracyGateFailed,
    BuildError,
    DataError,
    GraphError,
    Inconclusive,
    PrecisionAuditFailed,
    UsageError,
)
from optimizer.evaluation import Chain, raise_for_verdict, validate
from optimizer.results import Gates, LayerInfo, ValidateResult, read_result, write_result
from optimizer.tasks.predictions import read_predictions
from tests.evaluation.graphs import CLASSES, PREPROCESSING, classifier

GATES = Gates(max_drop_pp=2.0)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("reference") / "reference.onnx")


@pytest.fixture(scope="module")
def data(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Digits at 8 x 8, labelled with the reference's predictions, so that its top-1 is 100 %."""
    digits = open_dataset("digits:test", limit=300)
    plain = Preprocessing(resize=None, crop=8)
    (pixels,) = digits.batches(300, plain, as_uint8=True)
    labels = as_written(reference).run(PREPROCESSING.normalize(pixels.images)).argmax(axis=1)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=pixels.images, labels=labels)
    return open_dataset(path)


def _noisy(path: Path, share: float, *, seed: int = 0, **metadata: str) -> Path:
    """The reference with slightly wrong feature scales, like a lossy precision pass."""
    gain = 1 + np.random.default_rng(1).normal(scale=share, size=(1, 5)).astype(np.float32)
    nodes = [helper.make_node("Mul", ["features", "gain"], ["seen"], "gain")]
    return classifier(path, seed=seed, middle=nodes, constants={"gain": gain}, **metadata)


def test_a_file_compared_with_itself_has_no_flips(reference: Path, data: ImageDataset) -> None:
    result = validate([Chain.of(reference)], reference, data, GATES)
    (own, hop) = result.hops
    assert (own.name, own.parent, own.top1, own.verdict) == ("reference", None, 1.0, None)
    assert (hop.flips, hop.flips_vs_parent, hop.drop_pp, hop.mcnemar_p) == (0, 0, 0.0, 1.0)
    assert hop.drop_ci95_pp is not None
    assert hop.drop_ci95_pp[0] < 0 < hop.drop_ci95_pp[1] < 2
    assert (hop.sqnr_db, hop.max_abs_diff, hop.worst_image) == (None, 0.0, None)
    assert (result.verdict, result.first_failing_hop) == ("pass", None)
    assert result.finding.startswith("reference.onnx stays within the limit of 2 pp") or (
        result.finding.startswith("onnx fp32 stays within the limit of 2 pp")
    )
    raise_for_verdict(result)


@pytest.mark.parametrize("batch", [1, 7, 300])
def test_sums_do_not_depend_on_the_batch(
    tmp_path: Path, reference: Path, data: ImageDataset, batch: int
) -> None:
    graph = _noisy(tmp_path / "g.onnx", 0.3, precision="int8")
    hop = validate([Chain.of(graph)], reference, data, GATES, batch=batch).hops[-1]
    (whole,) = data.batches(300, PREPROCESSING)
    logits = as_written(graph).run(whole.images)
    exact = as_written(reference).run(whole.images)
    assert hop.n == 300
    assert hop.top1 == pytest.approx((logits.argmax(1) == data.labels).mean())
    assert hop.flips == (logits.argmax(1) != exact.argmax(1)).sum()
    noise = ((logits.astype(np.float64) - exact) ** 2).sum()
    expected = 10 * np.log10((exact.astype(np.float64) ** 2).sum() / noise)
    assert hop.sqnr_db == pytest.approx(expected, abs=1e-3)
    worst = int(np.abs(logits - exact).max(axis=1).argmax())
    assert hop.worst_image == data.image_id(worst)


def test_the_loss_is_attributed_to_the_hop_that_causes_it(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    model = _noisy(tmp_path / "m.onnx", 1e-4)
    graph = _noisy(tmp_path / "g.onnx", 2.0, precision="int8")
    result = validate([Chain(label="g", model=model, graph=graph)], reference, data, GATES)
    assert result.verdict == "fail"
    assert result.first_failing_hop == "graph int8"
    assert [hop.verdict for hop in result.hops] == [None, "pass", "fail"]
    assert "the loss comes from quantization (graph int8), not from the export" in result.finding
    with pytest.raises(AccuracyGateFailed, match="the loss comes from quantization"):
        raise_for_verdict(result)


def test_the_loss_is_attributed_to_the_export_if_later_hops_only_inherit_it(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    model = _noisy(tmp_path / "m.onnx", 2.0, checkpoint="c9")
    graph = _noisy(tmp_path / "g.onnx", 2.0, precision="int8")
    result = validate([Chain(label="g", model=model, graph=graph)], reference, data, GATES)
    assert result.first_failing_hop == "onnx fp32"
    assert "the loss comes from the export (onnx fp32), not from quantization" in result.finding
    assert "m.onnx was exported from a different checkpoint" in result.finding
    assert result.hops[2].flips_vs_parent == 0


def test_too_few_images_are_inconclusive_and_the_number_needed_is_stated(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    graph = _noisy(tmp_path / "g.onnx", 0.01, precision="int8")
    few = data.select(np.arange(40, dtype=np.int64))
    result = validate([Chain.of(graph)], reference, few, GATES)
    assert result.verdict == "inconclusive"
    assert result.images_needed is not None
    assert result.images_needed > 40
    assert f"about {result.images_needed:,} would" in result.finding
    with pytest.raises(Inconclusive) as caught:
        raise_for_verdict(result)
    assert str(result.images_needed) in str(caught.value.hint).replace(",", "")


def test_labels_at_chance_give_no_hint_to_use_more_images(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    """With shifted classes the reference, and so any engine, is wrong on nearly all images."""
    shifted = data.relabel((data.labels + 1) % 6, data.classes)
    graph = _noisy(tmp_path / "g.onnx", 0.3, precision="int8")
    result = validate([Chain.of(graph)], reference, shifted, GATES)
    assert result.hops[-1].flips
    assert result.finding.startswith("the labels are uninformative for graph int8")
    with pytest.raises(Inconclusive) as caught:
        raise_for_verdict(result)
    assert "more images will not help" in str(caught.value.hint)


def test_flips_have_their_own_limit(tmp_path: Path, reference: Path, data: ImageDataset) -> None:
    graph = _noisy(tmp_path / "g.onnx", 2.0, precision="int8")
    lenient = Gates(max_drop_pp=100.0)
    assert validate([Chain.of(graph)], reference, data, lenient).verdict == "pass"
    strict = Gates(max_drop_pp=100.0, max_flips=0.01)
    result = validate([Chain.of(graph)], reference, data, strict)
    assert result.verdict == "fail"
    assert "100 pp and 1 % changed predictions" in result.finding


def test_one_image_is_a_result(reference: Path, data: ImageDataset) -> None:
    one = data.select(np.array([3], dtype=np.int64))
    result = validate([Chain.of(reference)], reference, one, GATES)
    assert (result.dataset.n, result.verdict) == (1, "inconclusive")


# --- executors that fail ---------------------------------------------------------------------------


def test_nan_fails_only_its_own_hop(tmp_path: Path, reference: Path, data: ImageDataset) -> None:
    log = [helper.make_node("Log", ["negative"], ["seen"], "log"),]  # fmt: skip
    nodes = [helper.make_node("Neg", ["features"], ["negative"], "neg"), *log]
    broken = classifier(tmp_path / "broken.onnx", middle=nodes, precision="fp16")
    good = _noisy(tmp_path / "good.onnx", 1e-3, precision="int8")
    result = validate(
        [Chain(label="a", model=reference, graph=broken), Chain.of(good)], reference, data, GATES,
        predictions=tmp_path / "p.npz",
    )  # fmt: skip
    by_name = {hop.name: hop for hop in result.hops}
    failed = by_name["graph fp16"]
    assert (failed.status, failed.verdict, failed.top1) == ("failed", "fail", None)
    assert failed.error is not None
    assert failed.error.startswith("returns NaN or infinite logits for")
    assert by_name["graph int8"].verdict == "pass"
    assert (result.verdict, result.first_failing_hop) == ("fail", "graph fp16")
    assert "graph fp16 cannot be compared with the reference" in result.finding
    assert set(read_predictions(tmp_path / "p.npz").classes) == {"reference", "graph int8"}


def test_a_graph_that_cannot_run_fails_only_its_own_hop(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    """A batch baked into a Reshape: the dimension is symbolic and only one batch works."""
    reshape = [helper.make_node("Reshape", ["features", "two"], ["seen"], "reshape")]
    frozen = classifier(
        tmp_path / "frozen.onnx", middle=reshape, constants={"two": np.array([2, 5])}
    )
    good = _noisy(tmp_path / "good.onnx", 1e-3, precision="int8")
    result = validate([Chain.of(frozen), Chain.of(good)], reference, data, GATES)
    by_name = {hop.name: hop for hop in result.hops}
    assert by_name["onnx fp32"].status == "failed"
    assert "reshape" in str(by_name["onnx fp32"].error).lower()
    assert by_name["graph int8"].verdict == "pass"
    assert result.first_failing_hop == "onnx fp32"


def test_a_mismatch_fails_its_hop_without_running_it(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    other = Preprocessing(resize=8, crop=8, mean=(0.1, 0.2, 0.3))
    graph = classifier(tmp_path / "g.onnx", preprocessing=other, precision="int8")
    result = validate([Chain.of(graph)], reference, data, GATES)
    assert result.first_failing_hop == "graph int8"
    assert "g.onnx expects images with mean 0.1, 0.2, 0.3" in result.finding


def test_a_broken_reference_is_an_error(tmp_path: Path, data: ImageDataset) -> None:
    nodes = [
        helper.make_node("Neg", ["features"], ["negative"], "neg"),
        helper.make_node("Log", ["negative"], ["seen"], "log"),
    ]
    broken = classifier(tmp_path / "broken.onnx", middle=nodes)
    with pytest.raises(DataError, match="returns NaN or infinite logits"):
        validate([Chain.of(broken)], broken, data, GATES)


def test_an_engine_that_cannot_run_is_judged_by_its_graph(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    backend = get_backend("tensorrt-rtx")
    if backend.availability().can_run:
        pytest.skip("this machine runs TensorRT-RTX engines")
    graph = _noisy(tmp_path / "g.onnx", 1e-3, precision="int8")
    plan = Plan(
        kind="engine",
        settings={"backend": "tensorrt-rtx", "precision": "int8"},
        inputs=[Input.of("graph", graph)],
        classes=CLASSES,
    )
    layer = LayerInfo(name="conv1", type="Conv", precision="fp16", flops=10)

    def write(path: Path) -> dict[str, object]:
        path.write_bytes(b"compiled elsewhere")
        return {"layers": [layer.model_dump()]}

    engine = produce(plan, tmp_path / "e.rtx", write).path
    result = validate([Chain(label="rtx", graph=graph, engine=engine)], reference, data, GATES)
    hop = result.hops[-1]
    assert (hop.name, hop.status, hop.verdict, hop.n) == ("rtx", "built-not-run", None, 0)
    assert hop.error is not None
    assert (
        "rtx was built but cannot run on this machine; its graph, executed as written, has"
        in result.finding
    )
    # The graph decides for the chain; the audit needs no device.
    assert result.hops[1].verdict == "pass"
    assert result.audits["rtx"].verdict == "fail"
    assert result.verdict == "fail"
    with pytest.raises(
        PrecisionAuditFailed, match="rtx does not compute in the requested precision"
    ):
        raise_for_verdict(result)
    alone = validate([Chain(label="rtx", engine=engine)], reference, data, GATES)
    assert alone.finding.startswith("no engine could be compared on this machine")


def test_a_chain_without_any_runnable_hop_is_inconclusive(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    if get_backend("tensorrt-rtx").availability().can_run:
        pytest.skip("this machine runs TensorRT-RTX engines")
    plan = Plan(kind="engine", settings={"backend": "tensorrt-rtx", "precision": "fp16"})

    def write(path: Path) -> dict[str, object]:
        path.write_bytes(b"compiled elsewhere")
        return {}

    engine = produce(plan, tmp_path / "e.rtx", write).path
    result = validate([Chain.of(engine)], reference, data, GATES)
    assert (result.verdict, result.images_needed) == ("inconclusive", None)
    with pytest.raises(Inconclusive, match="was built but cannot run on this machine"):
        raise_for_verdict(result)


@pytest.mark.parametrize("fault", ["types", "values"])
def test_a_graph_that_cannot_be_executed_is_no_loss_of_accuracy(
    fault: str, tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    """Its types do not fit, or an operation fails on the first image: exit code 2, not 4."""
    path = tmp_path / "g.onnx"
    if fault == "types":
        graph = _noisy(path, 0.0, precision="int8")
        proto = onnx.load(graph)
        gain = next(tensor for tensor in proto.graph.initializer if tensor.name == "gain")
        gain.CopyFrom(numpy_helper.from_array(np.ones((1, 5), np.float64), "gain"))
        onnx.save(proto, graph)
    else:
        nodes = [helper.make_node("Gather", ["features", "places"], ["seen"], "gather", axis=1)]
        places = {"places": np.array([0, 1, 2, 3, 9], np.int64)}
        graph = classifier(path, middle=nodes, constants=places, precision="int8")
    with pytest.raises(GraphError, match=r"g\.onnx|graph int8") as caught:
        raise_for_verdict(validate([Chain.of(graph)], reference, data, GATES))
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None


def test_an_engine_that_crashes_is_a_build_error(reference: Path, data: ImageDataset) -> None:
    result = validate([Chain.of(reference)], reference, data, GATES)
    hop = result.hops[-1].model_copy(
        update={
            "engine": "e.blob",
            "status": "failed",
            "error": "x",
            "crashed": True,
            "verdict": "fail",
        }
    )
    crashed = result.model_copy(update={"hops": [result.hops[0], hop], "verdict": "fail"})
    with pytest.raises(BuildError):
        raise_for_verdict(crashed)
    other = hop.model_copy(update={"crashed": False})
    both = result.model_copy(update={"hops": [result.hops[0], hop, other], "verdict": "fail"})
    with pytest.raises(AccuracyGateFailed):
        raise_for_verdict(both)


def test_bad_input_is_refused(tmp_path: Path, reference: Path, data: ImageDataset) -> None:
    chain = [Chain.of(reference)]
    with pytest.raises(UsageError, match=r"batch: 0 is too small \(at least 1\)"):
        validate(chain, reference, data, GATES, batch=0)
    with pytest.raises(DataError, match="contains no images"):
        validate(chain, reference, data.select(np.array([], dtype=np.int64)), GATES)
    wrong = data.relabel(np.full(len(data), 9), None)
    with pytest.raises(DataError, match="label 9, but the model's 6 classes end at 5"):
        validate(chain, reference, wrong, GATES)
    with pytest.raises(UsageError, match=r"predictions are written as \.npz"):
        validate(chain, reference, data, GATES, predictions=tmp_path / "p.csv")


def test_a_result_is_read_back_unchanged(
    tmp_path: Path, reference: Path, data: ImageDataset
) -> None:
    graph = _noisy(tmp_path / "g.onnx", 0.3, precision="int8")
    result = validate([Chain.of(graph)], reference, data, GATES)
    write_result(result, tmp_path / "validate.json")
    again = read_result(tmp_path / "validate.json")
    assert isinstance(again, ValidateResult)
    assert again == result
    assert again.dataset.sha256 == data.sha256
