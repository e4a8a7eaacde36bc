"""Compares placements of Q/DQ by how TensorRT-RTX fuses the operations around INT8 convolutions.

    python benchmarks/placements.py [--arch resnet50] [--image-size 224] [--write-only]

Uses one FP32 graph, one calibration, and the same network with Q/DQ in several places. Each variant is
compiled ahead of time, without a GPU and in a separate process, and its layers are counted as listed by
the builder. No time is measured: kernels, bytes and types show what was fused, not how fast it is.
Writes ``reports/tensorrt/placements.json`` and ``placements.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from readme import ROOT

import optimizer
from optimizer.artifacts import library_versions, write_text_atomically
from optimizer.environment import fingerprint
from optimizer.graphs.facts import layer_flops
from optimizer.graphs.topology import analyse
from optimizer.options import EncodingOptions
from optimizer.precision.int8 import Statistics, compute_encodings, lower
from optimizer.targets.rules import TARGETS, TargetRules

REPORTS = ROOT / "reports" / "tensorrt"
TARGET = "sm86"
PROFILE = (1, 8, 32)
RULES = TARGETS["tensorrt"]
PLAIN = EncodingOptions(method="minmax", equalize=False, bias_correction="none")


@dataclass(frozen=True)
class Placement:
    """One placement of Q/DQ.

    Attributes:
        name: A short description.
        precision: ``int8``, or the precision of a reference.
        rules: Rules of the lowering.
        options: Options of the encodings.
        keep: Layers that are not quantized: ``none``, or ``before adds``.
        edit: A change to the lowered graph.
    """

    name: str
    precision: str = "int8"
    rules: TargetRules = RULES
    options: EncodingOptions = PLAIN
    keep: str = "none"
    edit: Callable[[onnx.ModelProto], None] | None = None


# --- edits of a lowered graph ----------------------------------------------------------------------


def quantize_outputs(model: onnx.ModelProto) -> None:
    """Add Q and DQ to the output of every convolution, as training tools do."""
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv":
            continue
        scale = next((x for x in model.graph.initializer if x.name.endswith(".scale")), None)
        assert scale is not None, "a lowered graph has scales"
        kind = numpy_helper.to_array(scale).dtype
        stem, output = node.output[0], node.output[0]
        node.output[0] = f"{stem}.bare"
        model.graph.initializer.append(
            numpy_helper.from_array(np.array(0.05, kind), f"{stem}.out.scale")
        )
        zero = numpy_helper.from_array(np.array(0, np.int8), f"{stem}.out.zero")
        model.graph.initializer.append(zero)
        parts = [f"{stem}.out.scale", f"{stem}.out.zero"]
        nodes += [
            helper.make_node(
                "QuantizeLinear",
                [f"{stem}.bare", *parts],
                [f"{stem}.out.q"],
                f"{stem}.out.quantize",
            ),
            helper.make_node(
                "DequantizeLinear", [f"{stem}.out.q", *parts], [output], f"{stem}.out.dequantize"
            ),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def scales_of_tensors(model: onnx.ModelProto) -> None:
    """One scale for all channels of a layer's weights: a control, not a proposal."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in {"DequantizeLinear", "QuantizeLinear"}:
            continue
        scale = initializers.get(node.input[1])
        if scale is None or not list(scale.dims):
            continue
        for name in node.input[1:]:
            values = numpy_helper.to_array(initializers[name])
            initializers[name].CopyFrom(
                numpy_helper.from_array(values.reshape(-1)[:1].reshape(()), name)
            )
        attributes = [a for a in node.attribute if a.name != "axis"]
        del node.attribute[:]
        node.attribute.extend(attributes)


def factors_apart(model: onnx.ModelProto) -> None:
    """One scale for a layer's weights, and factors per channel as a Mul after the convolution.

    The integer weights and the results stay those of scales per channel.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        weights = producers.get(node.input[1]) if node.op_type == "Conv" else None
        if weights is None or weights.op_type != "DequantizeLinear":
            continue
        scales = numpy_helper.to_array(initializers[weights.input[1]])
        largest = scales.max()
        stem, output = node.name, node.output[0]
        shape = (1, -1, 1, 1)
        parts = {f"{stem}.factor": (scales / largest).astype(scales.dtype).reshape(shape)}
        node.output[0] = f"{output}.product"
        steps = [helper.make_node("Mul", [node.output[0], f"{stem}.factor"], [f"{output}.scaled"])]
        if len(node.input) > 2:
            parts[f"{stem}.bias.apart"] = numpy_helper.to_array(
                initializers[node.input[2]]
            ).reshape(shape)
            del node.input[2]
            steps.append(
                helper.make_node("Add", [f"{output}.scaled", f"{stem}.bias.apart"], [output])
            )
        steps[-1].output[0] = output
        for step in steps:
            step.name = f"{stem}.{step.op_type.lower()}"
        nodes += steps
        for name, values in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    scales_of_tensors(model)


def several(*edits: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
    """Combine edits in sequence."""

    def edit(model: onnx.ModelProto) -> None:
        for step in edits:
            step(model)

    return edit


def biases_apart(model: onnx.ModelProto) -> None:
    """The bias of every convolution as an Add after it."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        bias = numpy_helper.to_array(initializers[node.input[2]])
        name, output = f"{node.name}.bias.apart", node.output[0]
        model.graph.initializer.append(numpy_helper.from_array(bias.reshape(1, -1, 1, 1), name))
        del node.input[2]
        node.output[0] = f"{output}.bare"
        nodes.append(
            helper.make_node("Add", [f"{output}.bare", name], [output], f"{node.name}.add_bias")
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def no_biases(model: onnx.ModelProto) -> None:
    """Convolutions without a bias: a control."""
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            del node.input[2]


def weights_unfolded(model: onnx.ModelProto) -> None:
    """Weights as floats with a QuantizeLinear, which the library has to fold."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        stored = initializers.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and stored is not None:
            integers = numpy_helper.to_array(stored)
            scale = numpy_helper.to_array(initializers[node.input[1]])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
            floats = (integers * scale.reshape(shape if scale.ndim else ())).astype(scale.dtype)
            name = f"{stored.name}.float"
            model.graph.initializer.append(numpy_helper.from_array(floats, name))
            quantize = helper.make_node(
                "QuantizeLinear", [name, *node.input[1:]], [f"{name}.q"], f"{stored.name}.quantize"
            )
            quantize.attribute.extend(node.attribute)
            node.input[0] = f"{name}.q"
            nodes.append(quantize)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


SHIFT = PLAIN.model_copy(update={"shift": True})
STILL = PLAIN.model_copy(update={"shift": False})
PLACEMENTS = (
    Placement("FP16, nothing quantized", precision="fp16"),
    Placement("FP32, nothing quantized", precision="fp32"),
    Placement("as quantize writes it: inputs and residual, shifted, FP16 around", options=SHIFT),
    Placement("no shift: a ReLU before each Q", options=STILL),
    Placement("no shift, FP32 around", options=STILL, rules=replace(RULES, high_precision="fp32")),
    Placement("no shift, both inputs of an Add", options=STILL, rules=replace(RULES, add_inputs="both")),
    Placement("no shift, Q on the output of each convolution", options=STILL, edit=quantize_outputs),
    Placement("no shift, one scale for a layer's weights", options=STILL, edit=scales_of_tensors),
    Placement("the same, shifted", options=SHIFT, edit=scales_of_tensors),
    Placement("the same, FP32 around", options=STILL, edit=scales_of_tensors,
              rules=replace(RULES, high_precision="fp32")),
    Placement("the same, Q on the output of each convolution", options=STILL,
              edit=several(scales_of_tensors, quantize_outputs)),
    Placement("the same, both inputs of an Add", options=STILL, edit=scales_of_tensors,
              rules=replace(RULES, add_inputs="both")),
    Placement("the same, ReLU left to the saturation", options=STILL, edit=scales_of_tensors,
              rules=replace(RULES, absorb_relu=True)),
    Placement("the same, ReLU left to the saturation, no bias", options=STILL,
              edit=several(scales_of_tensors, no_biases), rules=replace(RULES, absorb_relu=True)),
    Placement("no shift, one scale for a layer's weights and a factor by channel after it", options=STILL,
              edit=factors_apart),
    Placement("no shift, bias as an Add after the convolution", options=STILL, edit=biases_apart),
    Placement("no shift, no bias", options=STILL, edit=no_biases),
    Placement("no shift, weights as floats with Q", options=STILL, edit=weights_unfolded),
    Placement("no shift, ReLU left to the saturation", options=STILL, rules=replace(RULES, absorb_relu=True)),
    Placement("no shift, nothing between a product and its Q: no bias, no ReLU", options=STILL,
              rules=replace(RULES, absorb_relu=True), edit=no_biases),
    Placement("no shift, INT8 for Conv + ReLU only", options=STILL, keep="before adds"),
)  # fmt: skip


# --- creating and compiling graphs ------------------------------------------------------------------------


def make_graph(placement: Placement, source: Path, statistics: Path, output: Path) -> Path:
    """Write the network with a placement."""
    if placement.precision != "int8":
        if placement.precision == "fp32":
            return source
        return optimizer.quantize(source, output, precision="fp16", target="tensorrt-rtx").path
    model = ir.load(source)
    options = placement.options
    if placement.keep == "before adds":
        options = options.model_copy(update={"keep": tuple(before_adds(model))})
    encodings = compute_encodings(
        ir.load(source), Statistics.load(statistics), placement.rules, "0", options
    )
    lower(model, encodings, placement.rules)
    proto = ir.to_proto(model)
    if placement.edit is not None:
        placement.edit(proto)
        del proto.graph.value_info[:]  # shapes from before the edit
    onnx.save(proto, output)
    return output


def before_adds(model: ir.Model) -> tuple[str, ...]:
    """The layers whose output is the input of an Add, and the classifier."""
    topology = analyse(model)
    kept = []
    for node in topology.layers():
        uses = topology.consumers(str(node.outputs[0].name))
        if any(topology.is_add(topology.nodes[edge.node]) for edge in uses) or not uses:
            kept.append(str(node.name))
    return tuple(kept)


def compile_and_count(graph: Path, target: str) -> dict[str, Any]:
    """Compile a graph and count its layers; run in a separate process."""
    from optimizer.engines.tensorrt import rtx
    from optimizer.engines.tensorrt.build_log import layers_in_log
    from optimizer.engines.tensorrt.layers import describe
    from optimizer.engines.tensorrt.library import TENSORRT_RTX, load
    from optimizer.engines.tensorrt.log import BuildLog, make_logger, start
    from optimizer.engines.tensorrt.names import module_path
    from optimizer.engines.tensorrt.parsing import create_network

    trt = load(TENSORRT_RTX)
    log = BuildLog(ignore_missing_driver=True)
    logger = make_logger(trt, log)
    builder = start(TENSORRT_RTX, trt.Builder, logger, log)
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        return {"refused": parser.get_error(0).desc()}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    rtx.set_targets(trt, config, [int(target.removeprefix("sm"))])
    source = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, *((batch, *tuple(source.shape)[1:]) for batch in PROFILE))
    config.add_optimization_profile(profile)
    started = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        return {"refused": log.reason("no reason given")}
    raw = [
        layer for layer in layers_in_log(log.of("VERBOSE", "INFO")) if layer.inputs or layer.outputs
    ]
    flops = {module_path(name) or name: count for name, count in layer_flops(graph).items()}
    layers = describe(raw, weighted=set(flops))
    constants = [sum(_size(t) for t in layer.constants) for layer in raw]
    products = [
        (listed, layer) for listed, layer in zip(raw, layers, strict=True)
        if any(name in flops for name in layer.torch_names)
    ]  # fmt: skip
    return {
        "kernels": len(layers),
        "products": Counter(
            f"{listed.inputs[0].type} → {listed.outputs[0].type}" for listed, _ in products
        ).most_common(),
        # A kernel with a second activation input includes the residual addition.
        "adds_in_products": sum(len(listed.inputs) > 1 for listed, _ in products),
        "others": len(layers) - len(products),
        "activation_bytes": sum((x.bytes or 0) - round(c) for x, c in zip(layers, constants, strict=True)),
        "weight_bytes": round(sum(constants)),
        "engine_bytes": serialized.nbytes,
        "build_s": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def _size(tensor: Any) -> float:
    widths = {"fp32": 4, "fp16": 2, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "uint8": 1}
    return float(tensor.elements * widths.get(tensor.type, 0))


def run(arch: str, image_size: int, folder: Path, target: str, only: str) -> dict[str, Any]:
    """Compile all placements of one network, or those whose name contains ``only``."""
    source = optimizer.export(f"{arch}:random", folder / "fp32.onnx", image_size=image_size).path
    statistics = optimizer.calibrate(
        source, folder / "fp32.stats.npz", calib="digits:train", calib_images=10
    ).path
    rows = []
    for number, placement in enumerate(PLACEMENTS):
        if only not in placement.name:
            continue
        row: dict[str, Any] = {"placement": placement.name}
        graph = make_graph(placement, source, statistics, folder / f"{number}.onnx")
        command = [sys.executable, __file__, "--compile", str(graph), "--target", target]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if outcome.returncode != 0:
            row["refused"] = outcome.stderr.strip().splitlines()[-1][:200]
        else:
            row |= json.loads(outcome.stdout.splitlines()[-1])
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {
        "model": f"{arch}:random, {image_size} px",
        "profile": list(PROFILE),
        "target": target,
        "libraries": library_versions("tensorrt-rtx", "onnx"),
        "machine": fingerprint(),
        "placements": rows,
    }


def table(result: dict[str, Any]) -> str:
    """A table with one row per placement."""
    lines = [
        (
            "| placement | kernels | products | Add in the product | other kernels | activations of an image "
            "| engine |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["placements"]:
        if "refused" in row:
            lines.append(f"| {row['placement']} | refused: {row['refused']} | | | | | |")
            continue
        products = ", ".join(f"{count} × {kind}" for kind, count in row["products"])
        lines.append(
            f"| {row['placement']} | {row['kernels']} | {products} | {row['adds_in_products']} | "
            f"{row['others']} | {row['activation_bytes'] / 1e6:.1f} MB | "
            f"{row['engine_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    return (
        "# Where Q/DQ stands, and what TensorRT-RTX makes of it\n\n"
        f"TensorRT-RTX {result['libraries']['tensorrt-rtx']}, {result['model']}, {result['target']}, "
        f"profile {':'.join(map(str, result['profile']))}, compiled ahead of time without a GPU "
        "(`python benchmarks/placements.py`). *Products* are the kernels that multiply by weights, with "
        "the types of their first input and their output; *activations* are the bytes that all kernels "
        "read and write for one image, weights not included.\n\n"
        f"{table(result)}\n"
    )


def main() -> int:
    """Compile all placements and write the report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--only", default="", help="only placements whose name contains this")
    parser.add_argument("--keep", type=Path, help="keep graphs in this folder")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder for the report")
    parser.add_argument("--write-only", action="store_true", help="only render the report again")
    parser.add_argument("--compile", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile is not None:
        print(json.dumps(compile_and_count(options.compile, options.target)))
        sys.stdout.flush()
        os._exit(0)
    if not options.write_only:
        with tempfile.TemporaryDirectory(prefix="placements.") as temporary:
            folder = options.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result = run(options.arch, options.image_size, folder, options.target, options.only)
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1) + "\n"
        write_text_atomically(options.output / "placements.json", text)
    result = json.loads((options.output / "placements.json").read_text(encoding="utf-8"))
    write_text_atomically(options.output / "placements.md", markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
