"""Times for a search: costs of the layers before it, whole graphs after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optimizer.artifacts import Cache, scratch_folder
from optimizer.engines import get_backend
from optimizer.graphs.facts import GraphFacts
from optimizer.graphs.importing import load_graph
from optimizer.graphs.onnx_files import write_graph
from optimizer.precision.int8 import Encodings, lower
from optimizer.profiling.ceilings import ceilings
from optimizer.progress import Progress
from optimizer.search.cost import GPU, Costs, Machine, measured_costs, modelled_costs, timed
from optimizer.search.variants import Variants
from optimizer.search.walk import Point
from optimizer.targets.hardware import cpu_features

__all__ = ["costs_of", "timed_graphs"]


def costs_of(
    graph: Path, facts: GraphFacts, variants: Variants, cache: Cache | None, progress: Progress
) -> Costs:
    """Layer costs: measured if the target's engine runs here and reports layer times, else modelled.

    Args:
        graph: The FP32 graph's file.
        facts: Facts about the graph.
        variants: The same graph, with the rules and encodings of the target.
        cache: Cache of this machine's measured ceilings, for a model of its CPU.
        progress: Receives progress updates if the ceilings are measured.

    Raises:
        BuildError: Timing crashed.
    """
    runs = variants.rules.name == "openvino" and get_backend("openvino").availability().can_run
    if runs and facts.image_size is not None:
        return _measured(graph, facts.image_size, variants)
    if variants.rules.name == "tensorrt":
        return modelled_costs(graph, variants.topology, variants.rules, GPU)
    threads = cpu_features().physical_cores
    this_cpu = Machine.of(ceilings(threads, cache=cache, progress=progress))
    return modelled_costs(graph, variants.topology, variants.rules, this_cpu)


def _measured(graph: Path, image_size: int, variants: Variants) -> Costs:
    """Measure once for a search: it would go another way with other times."""

    def measure() -> tuple[dict[str, Any], str]:
        with scratch_folder("timing") as folder:
            int8 = _lowered(graph, _all_int8(variants), variants, folder / "int8.onnx")
            costs = measured_costs(int8, graph, variants.layers, image_size)
        return {}, json.dumps([costs.reason, costs.int8_ms, costs.high_ms, costs.rest_ms])

    _, text = variants.work.part("layer times", [], measure)
    return Costs("measured", *json.loads(text))


def timed_graphs(
    graph: Path, facts: GraphFacts, variants: Variants, costs: Costs, chosen: Point
) -> tuple[float, float, float] | None:
    """Time the all-INT8, the chosen and the FP32 graph: milliseconds per image.

    ``None`` if the costs are modelled, or no layer is kept.
    """
    if costs.source == "model" or facts.image_size is None or not chosen.kept:
        return None
    with scratch_folder("timing") as folder:
        int8 = _lowered(graph, _all_int8(variants), variants, folder / "int8.onnx")
        mix = _lowered(graph, chosen.encodings, variants, folder / "mixed.onnx")
        low, middle, high = timed((int8, mix, graph), facts.image_size)
    return low.total_ms, middle.total_ms, high.total_ms


def _lowered(graph: Path, encodings: Encodings, variants: Variants, path: Path) -> Path:
    model = load_graph(graph)
    lower(model, encodings, variants.rules)
    write_graph(model, path)
    return path


def _all_int8(variants: Variants) -> Encodings:
    return variants.base.model_copy(update={"keep": []})
