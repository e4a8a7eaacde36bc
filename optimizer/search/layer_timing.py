"""What a search knows of time: costs of the layers before it, the chosen graph as a whole after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from optimizer.artifacts import Cache
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

__all__ = ["costs_of", "timed_wholes"]


def costs_of(
    graph: Path, facts: GraphFacts, variants: Variants, cache: Cache | None, progress: Progress
) -> Costs:
    """Measured where the target's engine runs here and tells the times of its layers, else modelled.

    Args:
        graph: The FP32 graph's file.
        facts: What is known of it.
        variants: The same graph, with the rules and encodings of the target.
        cache: Where this machine's ceilings are kept, for a model of its CPU.
        progress: Told if they are measured.

    Raises:
        BuildError: Measuring crashed.
    """
    runs = variants.rules.name == "openvino" and get_backend("openvino").availability().can_run
    if runs and facts.image_size is not None:
        with tempfile.TemporaryDirectory() as folder:
            int8 = _lowered(graph, _all_int8(variants), variants, Path(folder) / "int8.onnx")
            return measured_costs(int8, graph, variants.layers, facts.image_size)
    if variants.rules.name == "tensorrt":
        return modelled_costs(graph, variants.topology, variants.rules, GPU)
    threads = cpu_features().physical_cores
    here = Machine.of(ceilings(threads, cache=cache, progress=progress))
    return modelled_costs(graph, variants.topology, variants.rules, here)


def timed_wholes(
    graph: Path, facts: GraphFacts, variants: Variants, costs: Costs, chosen: Point
) -> tuple[float, float, float] | None:
    """The all-INT8, the chosen and the FP32 graph, milliseconds an image.

    ``None`` if the costs are a model's, or nothing is kept.
    """
    if costs.source == "model" or facts.image_size is None or not chosen.kept:
        return None
    with tempfile.TemporaryDirectory() as folder:
        int8 = _lowered(graph, _all_int8(variants), variants, Path(folder) / "int8.onnx")
        mix = _lowered(graph, chosen.encodings, variants, Path(folder) / "mixed.onnx")
        low, middle, high = timed((int8, mix, graph), facts.image_size)
    return low.total_ms, middle.total_ms, high.total_ms


def _lowered(graph: Path, encodings: Encodings, variants: Variants, path: Path) -> Path:
    model = load_graph(graph)
    lower(model, encodings, variants.rules)
    write_graph(model, path)
    return path


def _all_int8(variants: Variants) -> Encodings:
    return variants.base.model_copy(update={"keep": []})
