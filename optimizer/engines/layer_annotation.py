"""Layers of an engine as PyTorch's modules, with their operations from the graph."""

from __future__ import annotations

from pathlib import Path

from optimizer.graphs.facts import layer_flops
from optimizer.graphs.onnx_files import open_checked
from optimizer.results import LayerInfo

__all__ = ["Annotator", "annotate"]


class Annotator:
    """Fills in ``flops`` of engine layers, and keeps only those names that are PyTorch modules.

    Args:
        graph: The graph that the engines were built from; it is read once.
    """

    def __init__(self, graph: Path) -> None:
        self._flops = layer_flops(graph)
        # OpenVINO names a layer by its output: "logits" and not "fc" at the end of the graph.
        nodes = open_checked(graph).proto.graph.node
        self._known = {output: node.name for node in nodes for output in node.output}
        self._known |= {name: name for name in self._known.values()}

    def __call__(self, layers: list[LayerInfo]) -> list[LayerInfo]:
        """New layers; one made of several modules gets the sum of their operations.

        Args:
            layers: As an engine reports them; ``torch_names`` may hold names it made up.
        """
        filled = []
        for layer in layers:
            known = (self._known[name] for name in layer.torch_names if name in self._known)
            names = list(dict.fromkeys(known))
            total = sum(self._flops.get(name, 0) for name in names)
            filled.append(layer.model_copy(update={"torch_names": names, "flops": total or None}))
        return filled


def annotate(layers: list[LayerInfo], graph: Path) -> list[LayerInfo]:
    """`Annotator` for the layers of one engine."""
    return Annotator(graph)(layers)
