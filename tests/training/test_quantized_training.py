"""Training an INT8 network: interrupted, by the labels, and what its loss is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.data import Preprocessing, open_dataset
from optimizer.errors import UsageError
from optimizer.options import EncodingOptions, TrainOptions
from optimizer.progress import Progress, Silent
from optimizer.training import (
    QuantizedJob,
    Stopped,
    quantized_settings,
    train_quantized,
    write_encodings,
    write_float_graph,
)
from optimizer.training.distillation_task import _distance
from tests.training.test_resume import SendsSignals


@pytest.fixture(scope="module")
def encodings(
    tmp_path_factory: pytest.TempPathFactory, small_graph: Path, small_statistics: Path
) -> Path:
    from optimizer.precision import encode, rules_with

    path = tmp_path_factory.mktemp("qat") / "start.encodings.json"
    options = EncodingOptions(method="minmax", bias_correction="none")
    rules = rules_with("openvino", None)
    return encode(small_graph, small_statistics, path, rules, options=options).path


def _job(graph: Path, encodings: Path, folder: Path, **changes: Any) -> QuantizedJob:
    from optimizer.precision import rules_with

    options = TrainOptions(
        qat="int8", target="openvino", init=str(graph), epochs=2, batch_size=8, lr=1e-3, **changes
    )
    return QuantizedJob(
        settings=quantized_settings(options, files=False, image_size=32),
        rules=rules_with("openvino", None),
        graph=graph,
        encodings=encodings,
        data=open_dataset("digits:train", limit=16),
        held_out=open_dataset("digits:test", limit=8),
        preprocessing=Preprocessing.digits(32),
        folder=folder,
    )


def test_an_interrupted_training_ends_with_the_same_network(
    small_graph: Path, encodings: Path, tmp_path: Path
) -> None:
    """Stopped in the second epoch and resumed; the FP32 graph and the encodings are equal too."""
    written = {}
    for name in ("whole", "part"):
        folder = tmp_path / name
        job = _job(small_graph, encodings, folder)
        progress: Progress = Silent()
        if name == "part":
            progress = SendsSignals(signal.SIGTERM, 3)
            with pytest.raises(Stopped, match="step 3 of 4"):
                train_quantized(job, folder / "learned.safetensors", progress=progress)
            job = _job(small_graph, encodings, folder, resume=True)
        learned = train_quantized(job, folder / "learned.safetensors").path
        graph = write_float_graph(job, learned, folder / "float.onnx").path
        result = write_encodings(job, learned, graph, folder / "float.encodings.json").path
        written[name] = [path.read_bytes() for path in (learned, graph, result)]
    assert written["whole"] == written["part"]


def test_other_settings_do_not_continue(small_graph: Path, encodings: Path, tmp_path: Path) -> None:
    job = _job(small_graph, encodings, tmp_path)
    with pytest.raises(Stopped):
        train_quantized(
            job, tmp_path / "learned.safetensors", progress=SendsSignals(signal.SIGTERM, 1)
        )
    job = _job(small_graph, encodings, tmp_path, resume=True, label_share=0.5)
    with pytest.raises(UsageError, match=r"label_share 0\.0 -> 0\.5"):
        train_quantized(job, tmp_path / "learned.safetensors")


def test_recipes_of_other_trainings_are_refused() -> None:
    options = TrainOptions(qat="int8", init="a.pth", recipe="finetune")
    with pytest.raises(UsageError, match="the recipe finetune uses sgd"):
        quantized_settings(options, files=True, image_size=32)
    with pytest.raises(UsageError, match="images of 32 px, not 64"):
        quantized_settings(
            TrainOptions(qat="int8", init="a.pth", image_size=64), files=True, image_size=32
        )


def test_the_distance_of_one_output_is_that_of_its_two_classes() -> None:
    """A sigmoid of x is a softmax of (-x/2, x/2)."""
    logits, expected = torch.randn(5, 1), torch.randn(5, 1)
    two = [torch.cat([-values / 2, values / 2], dim=1) for values in (logits, expected)]
    torch.testing.assert_close(_distance(logits, expected), _distance(*two))
    assert _distance(*two) > 0
    torch.testing.assert_close(_distance(two[1], two[1]), torch.zeros(()))
