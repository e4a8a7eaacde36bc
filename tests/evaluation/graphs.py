"""Small real ONNX classifiers with the metadata that the exporter writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.data import Preprocessing

PREPROCESSING = Preprocessing(resize=8, crop=8)
CLASSES = tuple("abcdef")


def classifier(
    path: Path,
    *,
    seed: int = 0,
    batch: int | None = None,
    precision: str = "fp32",
    preprocessing: Preprocessing = PREPROCESSING,
    classes: tuple[str, ...] = CLASSES,
    declared_batch: str | None = None,
    checkpoint: str = "c0",
    middle: list[Any] | None = None,
    constants: dict[str, Any] | None = None,
    **metadata: str,
) -> Path:
    """Conv, ReLU, pooling, Gemm: 3 x 8 x 8 to six logits, random weights.

    Args:
        middle: Nodes from ``features`` to ``seen`` between pooling and the last layer.
        constants: Additional initializers.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "conv1.weight": rng.normal(size=(5, 3, 3, 3)).astype(np.float32),
        "conv1.bias": rng.normal(size=5).astype(np.float32),
        "fc.weight": rng.normal(size=(len(classes), 5)).astype(np.float32),
        "fc.bias": rng.normal(size=len(classes)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "conv1.weight", "conv1.bias"], ["conv1"], "conv1"),
        helper.make_node("Relu", ["conv1"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["avgpool"], "avgpool"),
        helper.make_node("Flatten", ["avgpool"], ["features"], "flatten", axis=1),
        *(middle or []),
        helper.make_node(
            "Gemm", ["seen" if middle else "features", "fc.weight", "fc.bias"], ["logits"], "fc",
            transB=1,
        ),
    ]  # fmt: skip
    size: Any = "batch" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [size, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, len(classes)])],
        [
            numpy_helper.from_array(array, name)
            for name, array in {**weights, **(constants or {})}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    props = {
        "precision": precision,
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "classes": json.dumps(list(classes)),
        "checkpoint_sha256": checkpoint,
        "batch": declared_batch or ("dynamic" if batch is None else str(batch)),
        **metadata,
    }
    helper.set_model_props(model, {f"resnet_opt.{key}": value for key, value in props.items()})
    onnx.checker.check_model(model, full_check=batch is None)
    onnx.save(model, path)
    return path
