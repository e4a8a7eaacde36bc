"""Layers of engines are named by PyTorch modules only."""

from __future__ import annotations

from pathlib import Path

from optimizer.engines.layer_annotation import annotate
from optimizer.graphs.facts import layer_flops
from optimizer.results import LayerInfo


def test_annotate_keeps_modules_only(small_graph: Path) -> None:
    layer = LayerInfo(
        name="x",
        torch_names=["layer1.0.conv1", "Multiply_77"],
        type="Convolution",
        precision="int8",
    )
    (annotated,) = annotate([layer], small_graph)
    assert annotated.torch_names == ["layer1.0.conv1"]
    assert annotated.flops == layer_flops(small_graph)["layer1.0.conv1"]
