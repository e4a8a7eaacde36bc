"""Layers of an ONNX Runtime engine: what its file says of them, and what a profile adds."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from optimizer.errors import EnvironmentFault
from optimizer.graphs.onnx_files import open_onnx
from optimizer.results import LayerInfo

__all__ = ["layers_of", "timed_by_profile"]

_INT8_OPS = {
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "ConvInteger",
    "QLinearAdd",
    "MatMulIntegerToFloat",
    "QLinearGlobalAveragePool",
    "QLinearAveragePool",
    "DynamicQuantizeMatMul",
}
_FUSED = {"QLinearConv", "QGemm"}
_CASTS = {"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "ReorderInput", "ReorderOutput"}


def layers_of(engine: Path) -> list[LayerInfo]:
    """Layers of an optimized model: an operation that ends in INT8 kernels carries their name."""
    proto = open_onnx(engine).proto
    types = {v.name: v.type.tensor_type.elem_type for v in proto.graph.value_info}
    layers = []
    for node in proto.graph.node:
        int8 = node.op_type in _INT8_OPS or types.get(node.output[0]) in {2, 3}
        layers.append(
            LayerInfo(
                name=node.name or node.output[0],
                torch_names=[] if node.op_type in _CASTS else _modules(node),
                type=node.op_type,
                precision="int8" if int8 else "fp32",
            )
        )
    return layers


def _modules(node: Any) -> list[str]:
    """Names that may be the PyTorch module of a fused node: its weight still carries it.

    Other quantizers rename weights; a fused convolution is then told by its own name, to which ONNX
    Runtime adds ``_token_42``. `annotate` drops what is no module.
    """
    marks = (".weight", ".bias")
    stems = [name.split(mark)[0] for name in node.input for mark in marks if mark in name]
    own = re.sub(r"_token_\d+$|_nchwc$", "", node.name)
    named_itself = node.op_type in _FUSED or not stems
    return list(dict.fromkeys([*stems[:1], *([own] if named_itself else [])]))


Event = Mapping[str, Any]


def timed_by_profile(engine: Path, events: Sequence[Event], calls: int) -> list[LayerInfo]:
    """Layers with their times, from the events of a session's profile.

    A node's event is the time in its kernel; what the profile itself costs falls between events. A
    name that the optimizer made up (``relu_nchwc`` for a convolution with its ReLU) is mapped to
    modules by the parameters the node reads, else by what is left without the optimizer's endings.

    Args:
        engine: The optimized model that was run.
        events: The profile, as `end_profiling` wrote it.
        calls: How many of the last runs count.

    Returns:
        One layer a node that ran, in the order of running: the median time over the runs, and the
        bytes of its inputs, outputs and parameters. The session packs weights away, so parameters
        are counted as the file has them.

    Raises:
        EnvironmentFault: The profile does not hold as many runs.
    """
    runs = sorted((e for e in events if e["name"] == "model_run"), key=lambda e: int(e["ts"]))
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    if len(runs) < calls:
        raise EnvironmentFault(
            f"ONNX Runtime's profile holds {len(runs)} of {calls} runs: it ended too early",
            hint="profile for a shorter --duration",
        )
    starts = [int(run["ts"]) for run in runs]
    times: dict[int, dict[int, float]] = {}
    for kernel in kernels:
        run = bisect.bisect_right(starts, int(kernel["ts"])) - 1 - (len(runs) - calls)
        if run >= 0:
            spent = times.setdefault(int(kernel["args"]["node_index"]), {})
            spent[run] = spent.get(run, 0.0) + kernel["dur"] / 1e3
    last = {int(kernel["args"]["node_index"]): kernel for kernel in kernels}
    known = dict(enumerate(zip(layers_of(engine), _parameter_bytes(engine), strict=True)))
    layers = []
    for index, spent in times.items():
        node, parameters = known.get(index, (None, 0))
        arguments, ran = last[index]["args"], last[index]["name"].removesuffix("_kernel_time")
        if node is None or not ran.startswith(node.name):  # put in by the session, not in the file
            node, parameters = _unknown(ran, arguments), int(arguments["parameter_size"])
        moved = int(arguments["activation_size"]) + int(arguments["output_size"]) + parameters
        layers.append(node.model_copy(update={"time_ms": median(spent.values()), "bytes": moved}))
    return layers


def _unknown(name: str, arguments: Mapping[str, Any]) -> LayerInfo:
    return LayerInfo(name=name, type=str(arguments["op_name"]), precision="unknown")


def _parameter_bytes(engine: Path) -> list[int]:
    """Bytes of the parameters that each node reads, in the order of the file."""
    from onnx import helper

    graph = open_onnx(engine).proto.graph
    sizes = {
        tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        * math.prod(tensor.dims)
        for tensor in graph.initializer
    }
    return [sum(sizes.get(name, 0) for name in node.input) for node in graph.node]
