"""TensorFlow in a process of its own: converts a SavedModel with tf2onnx, and computes a few images.

Nothing of the file is executed except its graph. Operations that reach outside of the graph are
refused before TensorFlow loads it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FORBIDDEN", "convert"]

FORBIDDEN = frozenset(
    {
        "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc",
        "WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2",
        "TFRecordReader", "TFRecordReaderV2", "CreateSummaryFileWriter", "CreateSummaryDbWriter",
        "DebugIdentity", "DebugIdentityV2", "DebugNanCount", "DebugNumericSummary", "RpcCall",
        "RpcClient", "RpcServer", "DataServiceDataset", "TcpSocketDataset",
    }
)  # fmt: skip
"""Operations that read or write files, open connections or call Python."""
_SIGNATURE = "serving_default"
_TAG = "serve"


def convert(folder: str, output: str, opset: int, size: int, images: int) -> dict[str, Any]:
    """Convert a SavedModel to ONNX and compute its outputs for seeded noise.

    Args:
        folder: The SavedModel.
        output: The ONNX file to write.
        opset: Operator set.
        size: Height and width of the images where the model takes any, in pixels.
        images: How many images.

    Returns:
        ``versions`` of the libraries; ``shape`` of the input; ``outputs``, nested lists by name. Or
        ``missing``, a library that is not installed; or ``refused``, what is wrong with the model.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
        import tf2onnx
    except ImportError as error:
        return {"missing": str(error)}
    refused = _reason_to_refuse(Path(folder))
    if refused is not None:
        return {"refused": refused}
    try:
        facts = _outputs(tensorflow, folder, size, images)
        _run_tf2onnx(folder, output, opset)
    except Exception as error:  # noqa: BLE001 - TensorFlow raises of any kind
        text = " ".join(str(error).split())[:300]
        return {"refused": f"TensorFlow or tf2onnx failed: {type(error).__name__}: {text}"}
    versions = {"tensorflow": tensorflow.__version__, "tf2onnx": tf2onnx.__version__}
    return {**facts, "versions": versions}


def _reason_to_refuse(folder: Path) -> str | None:
    """Why a SavedModel is not loaded, from its description alone."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except DecodeError:
        return "saved_model.pb is damaged"
    graphs = [graph for graph in saved.meta_graphs if _TAG in graph.meta_info_def.tags]
    if not graphs:
        return f"it has no graph with the tag {_TAG!r}"
    if not graphs[0].HasField("object_graph_def"):
        return "TensorFlow 1 wrote it"
    for graph in graphs:
        definition = graph.graph_def
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        found = next((node for node in nodes if node.op in FORBIDDEN), None)
        if found is not None:
            return f"its graph has the operation {found.op} ({found.name}), which reaches outside of it"
    return _reason_in_signature(graphs[0].signature_def)


def _reason_in_signature(signatures: Any) -> str | None:
    if _SIGNATURE not in signatures:
        names = ", ".join(sorted(set(signatures) - {"__saved_model_init_op"})) or "none"
        return f"it has no signature {_SIGNATURE} (its signatures: {names})"
    inputs = list(signatures[_SIGNATURE].inputs.values())
    if len(inputs) != 1:
        return f"it has {len(inputs)} inputs; a classifier of images has one"
    from tensorflow.dtypes import as_dtype

    dtype, rank = as_dtype(inputs[0].dtype), len(inputs[0].tensor_shape.dim)
    if rank != 4 or not (dtype.is_floating or dtype.name == "uint8"):
        return f"its input is {dtype.name} of {rank} dimensions; a classifier of images takes N x H x W x 3"
    return None


def _outputs(tensorflow: Any, folder: str, size: int, images: int) -> dict[str, Any]:
    import numpy as np

    loaded = tensorflow.saved_model.load(folder, tags=[_TAG])
    function = loaded.signatures[_SIGNATURE]
    (name, spec), *_ = function.structured_input_signature[1].items()
    shape = [None if side is None else int(side) for side in spec.shape]
    fixed = [images, *(size if side is None else side for side in shape[1:])]
    batch = np.random.default_rng(0).uniform(-1, 1, fixed).astype(spec.dtype.as_numpy_dtype)
    outputs = function(**{name: tensorflow.constant(batch)})
    return {"shape": shape, "outputs": {k: np.asarray(v).tolist() for k, v in outputs.items()}}


def _run_tf2onnx(folder: str, output: str, opset: int) -> None:
    from tf2onnx import convert as command

    arguments = [
        "tf2onnx", "--saved-model", folder, "--tag", _TAG, "--signature_def", _SIGNATURE,
        "--opset", str(opset), "--output", output,
    ]  # fmt: skip
    with _arguments(arguments), contextlib.redirect_stdout(io.StringIO()):
        command.main()


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
