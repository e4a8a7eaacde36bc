"""The verb ``inspect``: an artifact's manifest; of an engine also its layers and audit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.artifacts import find_manifest, load_artifact
from optimizer.errors import GraphError
from optimizer.evaluation.engine_diff import compare_layers
from optimizer.options import InspectOptions, takes_options
from optimizer.results import Audit, LayerInfo, LayerSide
from optimizer.verbs.audit import audit

__all__ = ["Inspection", "inspect"]


@dataclass
class Inspection:
    """Contents of an artifact.

    Attributes:
        path: The file.
        facts: The fields of its manifest, or properties of a graph without one.
        layers: The layers, if it is an engine.
        audit: The precision audit, if it is an engine.
        other: The artifact it is compared with, if any.
    """

    path: Path
    facts: dict[str, Any]
    layers: list[LayerInfo] = field(default_factory=list)
    audit: Audit | None = None
    other: Inspection | None = None

    def as_json(self) -> str:
        """Everything, or the difference from `other`, as JSON."""
        if self.other is not None:
            return difference(self, self.other, as_json=True)
        raw = {
            "file": str(self.path),
            **self.facts,
            "layers": [layer.model_dump(exclude_none=True) for layer in self.layers],
            "audit": self.audit.model_dump(mode="json") if self.audit else None,
        }
        return json.dumps(raw, indent=2)

    def as_text(self, *, every_layer: bool) -> str:
        """The contents as text; ``every_layer`` lists the layers instead of counting them."""
        if self.other is not None:
            return difference(self, self.other, as_json=False)
        lines = [str(self.path)]
        lines += [f"  {name:<14} {_short(value)}" for name, value in self.facts.items() if value]
        if self.layers:
            kinds = Counter((layer.type, layer.precision) for layer in self.layers)
            lines.append(f"  {'layers':<14} {len(self.layers)}")
            if every_layer:
                lines += [f"    {_layer_line(layer)}" for layer in self.layers]
            else:
                lines += [
                    f"    {count:4d}  {kind:<24} {precision}"
                    for (kind, precision), count in kinds.most_common()
                ]
        if self.audit:
            lines.append(f"  {'audit':<14} {self.audit.verdict}: {self.audit.reason}")
        return "\n".join(lines)


@takes_options(InspectOptions)
def inspect(artifact: Path | str, options: InspectOptions) -> Inspection:
    """Read an artifact's manifest; for an engine also its layers and precision audit.

    Args:
        artifact: Any file with a manifest, or an ONNX file without one.
        options: See below.

    Raises:
        ArtifactError: The file is not an artifact, or was changed.
        GraphError: An ONNX file that cannot be read.
    """
    inspection = _inspect(Path(artifact), options.min_share)
    if options.diff is not None:
        inspection.other = _inspect(options.diff, options.min_share)
    return inspection


def _inspect(path: Path, min_share: float) -> Inspection:
    if path.suffix == ".onnx" and find_manifest(path) is None:
        return _inspect_bare_graph(path)
    artifact = load_artifact(path)
    manifest = artifact.manifest.model_dump(mode="json")
    details = dict(manifest.pop("details"))
    details.pop("layers", None)
    stated = artifact.manifest.details.get("layers", []) if manifest["kind"] == "engine" else []
    layers = [LayerInfo.model_validate(raw) for raw in stated]
    classes = manifest.pop("classes")
    facts = {
        "kind": manifest["kind"],
        "created": manifest["created"],
        "sha256": manifest["sha256"],
        "key": manifest["key"],
        "settings": manifest["settings"],
        "inputs": {i["role"]: f"{i['file']} {i['sha256'][:12]}" for i in manifest["inputs"]},
        "preprocessing": manifest["preprocessing"],
        "classes": len(classes) if classes else None,
        "libraries": manifest["libraries"],
        "device": manifest["device"],
        **details,
    }
    if sparsity := _sparsity(path, manifest["kind"]):
        facts["2:4 sparsity"] = sparsity
    result = audit(artifact, min_share=min_share) if manifest["kind"] == "engine" else None
    return Inspection(path, facts, layers, result)


def _inspect_bare_graph(path: Path) -> Inspection:
    from optimizer.graphs.facts import graph_facts, layer_flops
    from optimizer.graphs.import_pass import import_graph
    from optimizer.graphs.rewriting import summary
    from optimizer.graphs.source_ends import open_source

    facts = graph_facts(path)
    foreign = "precision" not in facts.metadata and facts.precision != "int8"
    changes = summary(import_graph(open_source(path)).changes) if foreign else []
    return Inspection(
        path,
        {
            "kind": "graph without a manifest",
            "precision": facts.precision,
            "input": f"{facts.input_name} {_shape(facts.input_shape)} {facts.input_dtype}",
            "output": f"{facts.output_name} {_shape(facts.output_shape)}",
            "GFLOP an image": f"{sum(layer_flops(path).values()) / 1e9:.2f}",
            "importing": changes or None,
            "2:4 sparsity": _sparsity(path, "graph"),
            **facts.metadata,
        },
    )


def _sparsity(path: Path, kind: str) -> dict[str, Any] | None:
    """Layers whose weights have the pattern of sparse kernels, in a graph or that of an engine."""
    from optimizer.engines.opening import graph_of
    from optimizer.graphs.sparse_layers import sparse_layers

    graph = {"graph": path, "engine": graph_of(path) if kind == "engine" else None}.get(kind)
    if graph is None:
        return None
    try:
        found = sparse_layers(graph)
    except GraphError:  # a file beside an engine that says nothing about it
        return None
    if not found.names:
        return None
    return {
        "share of FLOPs": f"{found.flop_share:.1%}",
        "layers with weights": found.layers,
        "layers": list(found.names),
    }


def difference(a: Inspection, b: Inspection, *, as_json: bool) -> str:
    """Facts and layers in which two artifacts differ."""
    facts = {
        name: [a.facts.get(name), b.facts.get(name)]
        for name in dict.fromkeys([*a.facts, *b.facts])
        if a.facts.get(name) != b.facts.get(name)
    }
    both_engines = a.facts.get("kind") == b.facts.get("kind") == "engine"
    if as_json:
        raw: dict[str, Any] = {"a": str(a.path), "b": str(b.path), "facts": facts, "layers": {}}
        if both_engines:
            pairs = compare_layers(a.layers, b.layers)
            raw["layers"] = [pair.model_dump(mode="json") for pair in pairs]
        return json.dumps(raw, indent=2)
    lines = [f"a  {a.path}", f"b  {b.path}"]
    for name, (left, right) in facts.items():
        lines += [f"  {name}", f"    a  {_short(left)}", f"    b  {_short(right)}"]
    lines += _layer_lines(a, b) if both_engines else ["  0 layers differ"]
    return "\n".join(lines)


def _layer_lines(a: Inspection, b: Inspection) -> list[str]:
    differences = compare_layers(a.layers, b.layers)
    names = {name for layer in (*a.layers, *b.layers) for name in layer.torch_names}
    differing = sum(len(difference.modules) for difference in differences)
    lines = [f"  {differing} of {len(names)} PyTorch layers differ"]
    for difference in differences:
        lines.append(f"    {' + '.join(difference.modules)}")
        for name in difference.differing:
            left, right = (_property(side, name) for side in (difference.a, difference.b))
            lines.append(f"      {name:<11} {left} | {right}")
    unnamed = [sum(not layer.torch_names for layer in side.layers) for side in (a, b)]
    if any(unnamed):
        lines.append(f"  layers without a PyTorch name: {unnamed[0]} | {unnamed[1]}")
    return lines


def _property(side: LayerSide | None, name: str) -> str:
    """One property of a layer, as a cell of the comparison."""
    if side is None:
        return "no layer"
    return {
        "presence": side.layer,
        "precision": side.precision,
        "type": side.type,
        "tactic": side.tactic or "not reported",
        "fusion": " + ".join(side.fused_with) or "alone",
        "FLOP share": "none" if side.flop_share is None else f"{100 * side.flop_share:.1f} %",
        "size": "not reported" if side.bytes is None else f"{side.bytes / 1e6:.2f} MB",
    }[name]


def _layer_line(layer: LayerInfo) -> str:
    flops = f"{layer.flops / 1e6:9.1f} MFLOP" if layer.flops else " " * 15
    return f"{layer.precision:<8} {layer.type:<20} {flops}  {' + '.join(layer.torch_names) or layer.name}"


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("N" if d is None else str(d) for d in shape)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 160 else text[:157] + "…"
