"""``train --qat``: what is refused before any work, which graph is kept, and the whole job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optimizer
from optimizer.errors import CheckpointError, DataError, UsageError
from optimizer.evaluation.quantized_choice import Difference, decide
from optimizer.results import read_result
from optimizer.tasks.paired_statistics import Paired

QAT: dict[str, Any] = {"qat": "int8", "target": "tensorrt", "init": "model.safetensors"}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"target": "tensorrt"}, "--target: only for training an INT8 network", "--qat int8"),
        ({"keep": "fc"}, "--keep: only for training an INT8 network", "--qat int8"),
        ({"qat": "int8"}, "from a trained one", "--init model.safetensors"),
        ({**QAT, "init": "random"}, "from a trained one", "--init model.safetensors"),
        ({**QAT, "mixup": 0.2}, "--mixup: not used with --qat", "leave out --mixup"),
        ({**QAT, "amp": "bf16"}, "--amp: not used with --qat", "leave out --amp"),
        ({**QAT, "sparsity": "2:4"}, "--sparsity: not used with --qat", "leave out --sparsity"),
        ({**QAT, "optimizer": "sgd"}, "trains with AdamW, not with sgd", "--optimizer adamw"),
        ({**QAT, "data": "a/"}, "--qat needs held-out images", "--val DATA"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], message: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        optimizer.train(tmp_path / "model.onnx", **options)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_the_output_is_a_graph(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"written as \.onnx") as caught:
        optimizer.train(tmp_path / "model.safetensors", **QAT)
    assert caught.value.hint == "-o model.onnx"


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process"):
        optimizer.train(tmp_path / "model.onnx", **QAT)


def test_models_that_cannot_be_trained(
    tmp_path: Path, small_quantized: Any, small_engines: Any
) -> None:
    """A quantized graph, an engine, a detector; each names what to pass instead."""
    output = tmp_path / "model.onnx"
    for init, error, message in (
        (small_quantized("int8", "openvino"), UsageError, "already quantized"),
        (small_engines("onnxruntime", "fp32"), UsageError, "is an engine"),
        (small_engines("openvino", "fp32"), CheckpointError, "is not a checkpoint"),
        ("retinanet_resnet18_fpn:random:3", CheckpointError, "is a detector"),
    ):
        with pytest.raises(error, match=message) as caught:
            optimizer.train(output, **QAT | {"init": str(init)})
        assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_too_few_images_to_judge(tmp_path: Path, small_graph: Path) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, images=np.zeros((5, 32, 32, 3), np.uint8), labels=np.arange(5))
    with pytest.raises(DataError, match="too few for any difference to count"):
        optimizer.train(
            tmp_path / "model.onnx", **QAT | {"init": str(small_graph), "val": str(few)}
        )


def test_images_that_were_trained_on_do_not_judge(tmp_path: Path, small_graph: Path) -> None:
    with pytest.raises(DataError, match="540 of 540 images of digits:test are also in digits:test"):
        optimizer.train(
            tmp_path / "model.onnx",
            **QAT | {"init": str(small_graph), "data": "digits:test", "val": "digits:test"},
        )


@pytest.mark.parametrize(
    ("losses", "gains", "added", "avoided", "kept", "reason"),
    [
        (0, 6, 0, 0, "qat", "QAT is better than PTQ"),
        (0, 5, 0, 0, "ptq", "QAT is not better than PTQ on 500 images"),
        (6, 0, 0, 20, "ptq", "QAT is worse than PTQ"),
        (1, 2, 0, 6, "qat", "QAT is closer to FP32 than PTQ"),
        (1, 2, 6, 0, "ptq", "QAT is not better than PTQ"),
        (0, 0, 0, 0, "ptq", "QAT is not better than PTQ"),
    ],
)
def test_which_graph_is_kept(
    losses: int, gains: int, added: int, avoided: int, kept: str, reason: str
) -> None:
    """Top-1 decides first, then flips; p of 6 to 0 is 0.03, of 5 to 0 it is 0.06."""
    decision, text = decide(Difference(Paired(500, losses, gains), added, avoided))
    assert decision == kept
    assert text.startswith(reason)


@pytest.mark.long
def test_a_network_that_was_calibrated_on_few_images(tmp_path: Path) -> None:
    """With min-max ranges of eight images, training on the others brings it closer to FP32.

    The graph that is written validates like any INT8 graph, and is the one that the result names.
    """
    checkpoint, output = tmp_path / "model.safetensors", tmp_path / "model.int8.onnx"
    optimizer.train(checkpoint, arch="resnet18", image_size=32, epochs=3)
    trained = optimizer.train(
        output,
        **QAT | {"init": str(checkpoint)},
        method="minmax", bias_correction="none", equalize=False, shift=False,
        calib_images=8, epochs=2, batch_size=32,
    )  # fmt: skip
    result = trained.quantized
    assert result is not None
    assert result == read_result(tmp_path / "model.int8.qat.json")
    assert result.dataset.n == 540
    assert result.qat.sqnr_db is not None
    assert result.ptq.sqnr_db is not None
    assert result.qat.sqnr_db > result.ptq.sqnr_db + 0.5
    encodings = json.loads((tmp_path / "model.int8.encodings.json").read_text())
    assert encodings["notes"][-1] == result.reason
    validated = optimizer.validate(output, reference=str(checkpoint), data="digits:test")
    hop = validated.hops[-1]
    kept = result.qat if result.kept == "qat" else result.ptq
    assert (hop.precision, hop.flips) == ("int8", kept.flips)
    history = (tmp_path / "model.int8.training" / "history.csv").read_text().splitlines()
    assert len(history) == 3
