"""Planning hops: shared hops and mismatched files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.artifacts import Input, Plan, produce
from optimizer.data import Preprocessing
from optimizer.engines.opening import GRAPH_SUFFIX
from optimizer.errors import ArtifactError, GraphError, UsageError
from optimizer.evaluation.chain import REFERENCE, Chain, Step, plan_steps
from optimizer.evaluation.reference import Reference, open_reference
from tests.evaluation.graphs import CLASSES, PREPROCESSING, classifier


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    return open_reference(classifier(tmp_path / "reference.onnx", seed=0))


def _engine(
    path: Path,
    graph: Path,
    *,
    preprocessing: Preprocessing = PREPROCESSING,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    plan = Plan(
        kind="engine",
        settings={"backend": "onnxruntime", "precision": "int8", "batch": None},
        inputs=[Input.of("graph", graph)],
        preprocessing=preprocessing.to_dict(),
        classes=classes,
    )

    def write(temporary: Path) -> dict[str, str]:
        temporary.write_bytes(b"compiled " + graph.read_bytes())
        return {}

    return produce(plan, path, write).path


def _only(chains: list[Chain], reference: Reference) -> list[Step]:
    (steps,) = plan_steps(chains, reference).values()
    return steps


def test_a_whole_chain_in_order(tmp_path: Path, reference: Reference) -> None:
    model = classifier(tmp_path / "m.onnx", seed=1)
    graph = classifier(tmp_path / "g.onnx", seed=2, precision="int8")
    engine = _engine(tmp_path / "e.bin", graph)
    steps = _only([Chain(label="e", model=model, graph=graph, engine=engine)], reference)
    assert [(s.name, s.parent, s.kind, s.precision) for s in steps] == [
        ("onnx fp32", REFERENCE, "graph", "fp32"),
        ("graph int8", "onnx fp32", "graph", "int8"),
        ("e", "graph int8", "engine", "int8"),
    ]
    assert [s.fault for s in steps] == [None, None, None]


def test_files_of_equal_contents_are_one_hop(tmp_path: Path, reference: Reference) -> None:
    model = classifier(tmp_path / "m.onnx", seed=1)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    first = classifier(tmp_path / "a.onnx", seed=2, precision="int8", target="openvino")
    second = classifier(tmp_path / "b.onnx", seed=3, precision="int8", target="tensorrt")
    planned = plan_steps(
        [Chain(label="a", model=model, graph=first), Chain(label="b", model=copy, graph=second)],
        reference,
    )
    assert planned["a"][0] is planned["b"][0]
    assert [s.name for s in planned["b"]] == ["onnx fp32", "graph int8 (tensorrt)"]


def test_an_engine_of_the_fp32_file_itself_has_no_hop_between(
    tmp_path: Path, reference: Reference
) -> None:
    model = classifier(tmp_path / "m.onnx", seed=1)
    engine = _engine(tmp_path / "e.bin", model)
    steps = _only([Chain(label="e", model=model, graph=model, engine=engine)], reference)
    assert [(s.name, s.parent) for s in steps] == [("onnx fp32", REFERENCE), ("e", "onnx fp32")]


def test_a_chain_finds_the_graph_beside_its_engine(tmp_path: Path) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=2)
    engine = _engine(tmp_path / "e.bin", graph)
    beside = tmp_path / f"e.bin{GRAPH_SUFFIX}"
    beside.write_bytes(graph.read_bytes())
    assert Chain.of(engine) == Chain(label="e.bin", graph=beside, engine=engine)
    assert Chain.of(graph) == Chain(label="g.onnx", graph=graph)
    assert Chain.of(tmp_path / "m.safetensors").engine == tmp_path / "m.safetensors"


def test_an_engine_that_is_an_onnx_file_is_an_engine(tmp_path: Path) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=2)
    engine = _engine(tmp_path / "e.ort.onnx", graph)
    assert Chain.of(engine).engine == engine


def test_an_engine_built_from_another_graph_is_reported(
    tmp_path: Path, reference: Reference
) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=2)
    other = classifier(tmp_path / "other.onnx", seed=3)
    engine = _engine(tmp_path / "e.bin", other)
    steps = _only([Chain(label="e", graph=graph, engine=engine)], reference)
    assert steps[0].fault is None
    assert steps[1].fault == (
        "e.bin was built from a different graph (other.onnx), not the given one"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean 0.5, 0.5, 0.5, the reference with mean 0.485"),
        ({"color": "BGR"}, "color BGR, the reference with color RGB"),
        ({"interpolation": "bicubic"}, "interpolation bicubic"),
    ],
)
def test_another_preprocessing_is_named(
    tmp_path: Path, reference: Reference, change: dict, message: str
) -> None:
    other = Preprocessing(resize=8, crop=8, **change)
    graph = classifier(tmp_path / "g.onnx", seed=1, preprocessing=other)
    (step,) = _only([Chain(label="g", graph=graph)], reference)
    assert step.fault is not None
    assert message in step.fault
    engine = _engine(tmp_path / "e.bin", graph, preprocessing=other)
    (step,) = _only([Chain(label="e", engine=engine)], reference)
    assert step.fault is not None
    assert message in step.fault


def test_a_shuffled_class_list_is_named(tmp_path: Path, reference: Reference) -> None:
    shuffled = ("a", "c", "b", *CLASSES[3:])
    graph = classifier(tmp_path / "g.onnx", seed=1, classes=shuffled)
    (step,) = _only([Chain(label="g", graph=graph)], reference)
    assert step.fault is not None
    assert "in a different order: output 1 is 'c', not 'b'" in step.fault


def test_other_classes_are_named(tmp_path: Path, reference: Reference) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=1, classes=("x", "y", "z", "u", "v", "w"))
    (step,) = _only([Chain(label="g", graph=graph)], reference)
    assert step.fault is not None
    assert "different classes than the reference (6: x, y, z …)" in step.fault
    fewer = classifier(tmp_path / "f.onnx", seed=1, classes=("a", "b"))
    (step,) = _only([Chain(label="f", graph=fewer)], reference)
    assert step.fault == "f.onnx has 2 classes, the reference 6"


def test_a_mismatch_with_assumed_preprocessing_is_an_error(
    tmp_path: Path, reference: Reference
) -> None:
    other = Preprocessing(resize=8, crop=8, mean=(0.5, 0.5, 0.5))
    graph = classifier(tmp_path / "g.onnx", seed=1, preprocessing=other)
    assumed = replace(reference, name="w.pth", preprocessing_assumed=True)
    with pytest.raises(
        UsageError, match=r"w\.pth does not state its preprocessing.*w\.pth\.card\.json"
    ):
        plan_steps([Chain(label="g", graph=graph)], assumed)


def test_a_frozen_batch_is_named(tmp_path: Path, reference: Reference) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=1, batch=2, declared_batch="dynamic")
    (step,) = _only([Chain(label="g", graph=graph)], reference)
    assert step.fault == (
        "the batch size of g.onnx is fixed at 2, although it was exported as dynamic"
    )
    intended = classifier(tmp_path / "fixed.onnx", seed=1, batch=2)
    (step,) = _only([Chain(label="g", graph=intended)], reference)
    assert step.fault is None


def test_another_checkpoint_gets_a_remark_but_is_compared(
    tmp_path: Path, reference: Reference
) -> None:
    graph = classifier(tmp_path / "tuned.onnx", seed=1, checkpoint="c1")
    (step,) = _only([Chain(label="g", graph=graph)], reference)
    assert step.fault is None
    assert step.remark == "tuned.onnx was exported from a different checkpoint"


def test_bad_chains_are_refused(tmp_path: Path, reference: Reference) -> None:
    graph = classifier(tmp_path / "g.onnx", seed=1)
    with pytest.raises(UsageError, match="nothing to validate"):
        plan_steps([], reference)
    with pytest.raises(UsageError, match="two engines are named g"):
        plan_steps([Chain(label="g", graph=graph), Chain(label="g", graph=graph)], reference)
    with pytest.raises(UsageError, match="has no file"):
        plan_steps([Chain(label="g")], reference)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(GraphError):
        plan_steps([Chain(label="g", graph=tmp_path / "text.onnx")], reference)
    with pytest.raises(ArtifactError, match="no such file"):
        plan_steps([Chain(label="g", engine=tmp_path / "missing.blob")], reference)


def test_a_reference_file_must_be_fp32_and_state_its_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="a reference must be FP32"):
        open_reference(classifier(tmp_path / "int8.onnx", precision="int8"))
    bare = classifier(tmp_path / "bare.onnx", preprocessing=PREPROCESSING)
    import onnx

    proto = onnx.load(bare)
    del proto.metadata_props[:]
    onnx.save(proto, bare)
    with pytest.raises(GraphError, match="does not state its preprocessing"):
        open_reference(bare)
