"""Maps the layers of an engine to PyTorch modules and adds their FLOPs."""

from __future__ import annotations

from pathlib import Path

from optimizer.graphs.facts import layer_flops
from optimizer.graphs.onnx_files import open_checked
from optimizer.results import LayerInfo

__all__ = ["Annotator", "annotate"]


class Annotator:
    """Fills in the ``flops`` of engine layers and keeps only names of PyTorch modules.

    Args:
        graph: The graph that the engines were built from. It is read once.
    """

    def __init__(self, graph: Path) -> None:
        self._flops = layer_flops(graph)
        # OpenVINO names a layer by its output: the last one is "logits", not "fc".
        nodes = open_checked(graph).proto.graph.node
        self._modules = {output: node.name for node in nodes for output in node.output}
        self._modules |= {name: name for name in self._modules.values()}

    def __call__(self, layers: list[LayerInfo]) -> list[LayerInfo]:
        """Return annotated copies; a layer fused from several modules gets the sum of their FLOPs.

        Args:
            layers: As the engine reports them; ``torch_names`` may contain names that it invented.
        """
        annotated = []
        for layer in layers:
            modules = (self._modules[name] for name in layer.torch_names if name in self._modules)
            names = list(dict.fromkeys(modules))
            total = sum(self._flops.get(name, 0) for name in names)
            annotated.append(
                layer.model_copy(update={"torch_names": names, "flops": total or None})
            )
        return annotated


def annotate(layers: list[LayerInfo], graph: Path) -> list[LayerInfo]:
    """Annotate the layers of one engine; see `Annotator`."""
    return Annotator(graph)(layers)
