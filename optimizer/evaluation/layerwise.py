"""Where inside the network the signal degrades: reference and graph compared block by block.

Equalization rescales the channels of an INT8 graph, and shifted tensors are stored around their
middle; neither changes the output, but both change every tensor in between. For INT8 graphs the
noise of a block is therefore the difference that remains after fitting a scale and offset per
channel (least squares over all images). The logits are compared directly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.data import Dataset
from optimizer.errors import GraphError
from optimizer.evaluation.reference import Reference, open_reference
from optimizer.graphs.onnx_files import open_onnx
from optimizer.models import Model
from optimizer.progress import Progress, Silent
from optimizer.results import BlockNoise
from optimizer.tasks.paired_statistics import sqnr_db

__all__ = ["block_outputs", "layerwise"]

Array = NDArray[Any]
Tap = Callable[[Array], Mapping[str, Array]]
_BLOCK = re.compile(r"(layer\d+\.\d+)\.")
_STEM = "maxpool"
LOGITS = "logits"


def layerwise(
    reference: Model | Path | Reference,
    graph: Path,
    dataset: Dataset,
    *,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[BlockNoise]:
    """Signal-to-noise ratio after every residual block of a graph executed as written.

    Args:
        reference: The model in PyTorch, or its FP32 ONNX file; opened or not.
        graph: The precision graph, with nodes named by PyTorch module.
        dataset: Images; a few hundred are enough.
        batch: Images per call.
        progress: Receives progress updates per batch.

    Returns:
        One entry for the stem, each residual block by module name, and ``logits``, in order.

    Raises:
        GraphError: The graph has no residual blocks with these names, or cannot be executed.
    """
    from optimizer.graphs.facts import graph_facts

    progress = progress or Silent()
    opened = reference if isinstance(reference, Reference) else open_reference(reference)
    facts = graph_facts(graph)
    tap_graph, tap_reference = _tap_graph(graph), _tap_reference(opened)
    pixels = facts.input_dtype == "uint8"
    sums: dict[str, _ChannelSums] = {}
    progress.start("layers", total=len(dataset))
    preprocessing = opened.preprocessing
    as_uint8 = pixels or opened.takes_uint8
    for images, labels, _ in dataset.batches(batch, preprocessing, as_uint8=as_uint8):
        tensors = preprocessing.normalize(images) if as_uint8 else images
        expected = tap_reference(images if opened.takes_uint8 else tensors)
        actual = tap_graph(images if pixels else tensors)
        for name, tensor in expected.items():
            if name in actual:
                sums.setdefault(name, _ChannelSums(tensor.shape[1])).add(tensor, actual[name])
        progress.advance(len(labels))
    progress.finish(f"{len(sums)} tensors")
    aligned = facts.precision in {"int8", "mixed"}
    return [
        BlockNoise(module=name, sqnr_db=s.aligned_db if aligned and name != LOGITS else s.plain_db)
        for name, s in sums.items()
    ]


def block_outputs(tensors: list[str]) -> dict[str, str]:
    """The output tensor of the stem and of each block, by module name.

    Args:
        tensors: Names of all tensors of a graph in order. If a block's output is quantized, the
            dequantized tensor is taken, since that is the input of the next block.
    """
    last: dict[str, str] = {}
    stem = [t for t in tensors if t in {_STEM, f"{_STEM}.dequantized"}]
    if stem:
        last[_STEM] = stem[-1]
    for name in tensors:
        match = _BLOCK.match(name)
        if match and re.fullmatch(r"(relu|act)\w*(\.dequantized)?", name[match.end() :]):
            last[match[1]] = name
    return last


def _tap_graph(graph: Path) -> Tap:
    from optimizer.graphs.half_rounding import computed_as_written
    from optimizer.graphs.taps import tapped

    proto = open_onnx(graph, weights=False).proto
    outputs = block_outputs([name for node in proto.graph.node for name in node.output])
    if not any(_BLOCK.match(f"{module}.") for module in outputs):
        raise GraphError(
            f"{graph.name} has no residual blocks named layer1.0, layer1.1, …",
            hint="export it with resnet-opt export, which names nodes by PyTorch module",
        )
    output = proto.graph.output[0].name
    run = tapped(computed_as_written(graph) or graph, [*outputs.values(), output])

    def tap(batch: Array) -> dict[str, Array]:
        values = run(batch)
        blocks = {module: values[tensor] for module, tensor in outputs.items()}
        return {**blocks, LOGITS: values[output]}

    return tap


def _tap_reference(reference: Reference) -> Tap:
    if isinstance(reference.source, Path):
        return _tap_graph(reference.source)
    module = reference.source.module

    def tap(batch: Array) -> dict[str, Array]:
        blocks: dict[str, Array] = {}
        hooks = [
            child.register_forward_hook(_store_output(blocks, name))
            for name, child in module.named_modules()
            if name == _STEM or _BLOCK.fullmatch(f"{name}.")
        ]
        try:
            logits = reference.run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {**blocks, LOGITS: logits}

    return tap


def _store_output(blocks: dict[str, Array], name: str) -> Callable[[Any, Any, Any], None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        blocks[name] = output.detach().numpy()

    return hook


class _ChannelSums:
    """Per-channel sums that give the noise with and without a fitted scale and offset."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.reference, self.other = np.zeros(channels), np.zeros(channels)
        self.squares, self.other_squares = np.zeros(channels), np.zeros(channels)
        self.products = np.zeros(channels)

    def add(self, reference: Array, other: Array) -> None:
        axes = (0, *range(2, reference.ndim))
        expected, actual = reference.astype(np.float64), other.astype(np.float64)
        self.count += expected.size // expected.shape[1]
        self.reference += expected.sum(axis=axes)
        self.other += actual.sum(axis=axes)
        self.squares += (expected**2).sum(axis=axes)
        self.other_squares += (actual**2).sum(axis=axes)
        self.products += (expected * actual).sum(axis=axes)

    @property
    def plain_db(self) -> float | None:
        noise = self.squares - 2 * self.products + self.other_squares
        return sqnr_db(float(self.squares.sum()), max(float(noise.sum()), 0.0))

    @property
    def aligned_db(self) -> float | None:
        variance = self.squares - self.reference**2 / self.count
        other_variance = self.other_squares - self.other**2 / self.count
        covariance = self.products - self.reference * self.other / self.count
        alive = other_variance > 1e-12 * np.maximum(self.other_squares, 1e-300)
        explained = np.zeros_like(variance)
        explained[alive] = covariance[alive] ** 2 / other_variance[alive]
        noise = np.maximum(variance - explained, 0.0)
        return sqnr_db(float(self.squares.sum()), float(noise.sum()))
