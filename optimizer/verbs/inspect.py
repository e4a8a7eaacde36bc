"""The verb ``inspect``: an artifact's manifest, an engine's layers, its audit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.artifacts import find_manifest, load_artifact
from optimizer.evaluation.engine_diff import compare_layers
from optimizer.options import InspectOptions, takes_options
from optimizer.results import Audit, LayerInfo, LayerSide
from optimizer.verbs.audit import audit

__all__ = ["Inspection", "inspect"]


@dataclass
class Inspection:
    """What an artifact is.

    Attributes:
        path: The file.
        facts: What its manifest says, or its graph where there is no manifest.
        layers: The layers of an engine.
        audit: Of an engine, whether it computes what was requested.
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
        """For people; ``every_layer`` lists each layer instead of their count by precision."""
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
                    f"    {n:4d}  {kind:<24} {what}" for (kind, what), n in kinds.most_common()
                ]
        if self.audit:
            lines.append(f"  {'audit':<14} {self.audit.verdict}: {self.audit.reason}")
        return "\n".join(lines)


@takes_options(InspectOptions)
def inspect(artifact: Path | str, options: InspectOptions) -> Inspection:
    """Read what an artifact is, what an engine computes, and whether that was requested.

    Args:
        artifact: Any file with a manifest, or an ONNX file without one.
        options: See below.

    Raises:
        ArtifactError: A file that is no artifact, or was changed.
        GraphError: An ONNX file that cannot be read.
    """
    shown = _inspected(Path(artifact), options.min_share)
    if options.diff is not None:
        shown.other = _inspected(options.diff, options.min_share)
    return shown


def _inspected(path: Path, min_share: float) -> Inspection:
    if path.suffix == ".onnx" and find_manifest(path) is None:
        return _bare_graph(path)
    artifact = load_artifact(path)
    manifest = artifact.manifest.model_dump(mode="json")
    details = dict(manifest.pop("details"))
    layers = [LayerInfo.model_validate(raw) for raw in details.pop("layers", [])]
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
    checked = audit(artifact, min_share=min_share) if manifest["kind"] == "engine" else None
    return Inspection(path, facts, layers, checked)


def _bare_graph(path: Path) -> Inspection:
    from optimizer.graphs.facts import graph_facts, layer_flops

    facts = graph_facts(path)
    return Inspection(
        path,
        {
            "kind": "graph without a manifest",
            "precision": facts.precision,
            "input": f"{facts.input_name} {_shape(facts.input_shape)} {facts.input_dtype}",
            "output": f"{facts.output_name} {_shape(facts.output_shape)}",
            "GFLOP an image": f"{sum(layer_flops(path).values()) / 1e9:.2f}",
            **facts.metadata,
        },
    )


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
    found = compare_layers(a.layers, b.layers)
    named = {name for layer in (*a.layers, *b.layers) for name in layer.torch_names}
    lines = [f"  {sum(len(one.modules) for one in found)} of {len(named)} PyTorch layers differ"]
    for one in found:
        lines.append(f"    {' + '.join(one.modules)}")
        for what in one.differing:
            left, right = (_told(side, what) for side in (one.a, one.b))
            lines.append(f"      {what:<11} {left} | {right}")
    nameless = [sum(not layer.torch_names for layer in side.layers) for side in (a, b)]
    if any(nameless):
        lines.append(f"  layers without a PyTorch name: {nameless[0]} | {nameless[1]}")
    return lines


def _told(side: LayerSide | None, what: str) -> str:
    """One property of a layer, as a cell of the comparison."""
    if side is None:
        return "no layer"
    return {
        "presence": side.layer,
        "precision": side.precision,
        "type": side.type,
        "tactic": side.tactic or "not told",
        "fusion": " + ".join(side.fused_with) or "alone",
        "FLOP share": "none" if side.flop_share is None else f"{100 * side.flop_share:.1f} %",
        "size": "not told" if side.bytes is None else f"{side.bytes / 1e6:.2f} MB",
    }[what]


def _layer_line(layer: LayerInfo) -> str:
    flops = f"{layer.flops / 1e6:9.1f} MFLOP" if layer.flops else " " * 15
    return f"{layer.precision:<8} {layer.type:<20} {flops}  {' + '.join(layer.torch_names) or layer.name}"


def _shape(shape: tuple[int | None, ...]) -> str:
    return " x ".join("N" if d is None else str(d) for d in shape)


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 160 else text[:157] + "…"
