"""Layers of an ONNX Runtime engine: from its file, and timed from a profile."""

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
    """Layers of an optimized model; INT8 is recognized by operator name or output type."""
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
    """Candidate PyTorch modules of a fused node, from the names of its parameters.

    Other quantizers rename weights; a fused convolution is then identified by its own name, to which
    ONNX Runtime appends ``_token_42``. `annotate` drops names that are not modules.
    """
    suffixes = (".weight", ".bias")
    stems = [name.split(suffix)[0] for name in node.input for suffix in suffixes if suffix in name]
    node_name = re.sub(r"_token_\d+$|_nchwc$", "", node.name)
    use_node_name = node.op_type in _FUSED or not stems
    return list(dict.fromkeys([*stems[:1], *([node_name] if use_node_name else [])]))


Event = Mapping[str, Any]


def timed_by_profile(engine: Path, events: Sequence[Event], calls: int) -> list[LayerInfo]:
    """Layers with their times, from the events of a session's profile.

    A node's event covers the time in its kernel; profiling overhead falls between events. Names
    invented by the optimizer (``relu_nchwc`` for a convolution with its ReLU) are mapped to modules
    by the node's parameters, or by the name without the optimizer's suffix.

    Args:
        engine: The optimized model that was run.
        events: The profile, as written by `end_profiling`.
        calls: Number of runs to use, counted from the end.

    Returns:
        One layer per node that ran, in execution order, with the median time over the runs and the
        bytes of its inputs, outputs and parameters. Parameters are counted as stored in the file,
        because the session prepacks weights.

    Raises:
        EnvironmentFault: The profile has fewer runs than that.
    """
    runs = sorted((e for e in events if e["name"] == "model_run"), key=lambda e: int(e["ts"]))
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    if len(runs) < calls:
        raise EnvironmentFault(
            f"ONNX Runtime's profile is truncated: it has {len(runs)} of {calls} runs",
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
    file_nodes = dict(enumerate(zip(layers_of(engine), _parameter_bytes(engine), strict=True)))
    layers = []
    for index, spent in times.items():
        node, parameters = file_nodes.get(index, (None, 0))
        arguments, name = last[index]["args"], last[index]["name"].removesuffix("_kernel_time")
        if node is None or not name.startswith(node.name):  # inserted by the session
            node, parameters = _unknown(name, arguments), int(arguments["parameter_size"])
        moved = int(arguments["activation_size"]) + int(arguments["output_size"]) + parameters
        layers.append(node.model_copy(update={"time_ms": median(spent.values()), "bytes": moved}))
    return layers


def _unknown(name: str, arguments: Mapping[str, Any]) -> LayerInfo:
    return LayerInfo(name=name, type=str(arguments["op_name"]), precision="unknown")


def _parameter_bytes(engine: Path) -> list[int]:
    """Bytes of the parameters that each node reads, in file order."""
    from onnx import helper

    graph = open_onnx(engine).proto.graph
    sizes = {
        tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        * math.prod(tensor.dims)
        for tensor in graph.initializer
    }
    return [sum(sizes.get(name, 0) for name in node.input) for node in graph.node]
