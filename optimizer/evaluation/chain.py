"""Chains of files from the reference to an engine, split into hops.

``reference -> FP32 ONNX -> precision graph -> engine``, with the pruned network before the first graph
if the reference is the network that it was pruned from. Each arrow may lose accuracy, and the first
one that does is the one to fix. Chains share hops whose files have the same contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optimizer.artifacts import Manifest, digest, find_manifest, read_manifest
from optimizer.engines.opening import graph_of
from optimizer.errors import ArtifactError, UsageError
from optimizer.evaluation.reference import Reference
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.metadata import metadata_of
from optimizer.models.model_sources import is_checkpoint
from optimizer.options import ForeignGraph

__all__ = [
    "REFERENCE",
    "Chain",
    "Step",
    "find_exported_model",
    "plan_steps",
    "stated_preprocessing",
]

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The files between the reference and one engine; any of them may be missing.

    Attributes:
        label: Name of the engine in results; unique within one validation.
        model: The FP32 ONNX file.
        graph: The precision graph.
        engine: The engine; a checkpoint runs in PyTorch eager mode.
        device: The GPU to open it on, e.g. ``cuda:1``; ``None`` for the first GPU or the CPU.
        source: What ONNX files of other exporters do not say themselves.
    """

    label: str
    model: Path | None = None
    graph: Path | None = None
    engine: Path | None = None
    device: str | None = None
    source: ForeignGraph | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        model: Path | None = None,
        label: str | None = None,
        device: str | None = None,
        source: ForeignGraph | None = None,
    ) -> Chain:
        """The chain that ends in an engine, with the graph stored next to it, or in a graph.

        Args:
            path: An engine, an ONNX graph or a checkpoint.
            model: The FP32 ONNX file, if there is one.
            label: Name in results; by default the file name.
            device: The GPU to open an engine on.
            source: What ONNX files of other exporters do not say themselves.
        """
        name = label or path.name
        if path.suffix == ".onnx":
            try:
                is_engine = read_manifest(path).kind == "engine"
            except ArtifactError:
                is_engine = False  # a graph needs no manifest to be executed as written
            if not is_engine:
                return cls(label=name, model=model, graph=path, source=source)
        graph = graph_of(path)
        return cls(label=name, model=model, graph=graph, engine=path, device=device, source=source)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One hop to compute.

    Attributes:
        name: The hop's name, unique.
        parent: Name of the previous hop.
        kind: ``graph`` is executed as written, ``engine`` by its backend, ``network`` by PyTorch.
        path: The file.
        precision: Its precision according to the file.
        fault: Why it must not be computed, e.g. it does not belong to the reference or its parent.
        remark: A note for the reader, whether or not the hop loses accuracy.
        manifest: The engine's manifest; ``None`` for graphs and checkpoints.
        device: The GPU to open an engine on; ``None`` for the first GPU or the CPU.
        source: What an ONNX file of another exporter does not say itself.
        place: What a loss in this hop is called, where kind and precision do not say it.
    """

    name: str
    parent: str
    kind: Literal["graph", "engine", "network"]
    path: Path
    precision: str
    fault: str | None = None
    remark: str | None = None
    manifest: Manifest | None = None
    device: str | None = None
    source: ForeignGraph | None = None
    place: str | None = None


def stated_preprocessing(chains: Sequence[Chain]) -> tuple[str, dict[str, Any]] | None:
    """The first engine or graph that states its preprocessing, by name, and what it states."""
    for chain in chains:
        for path in (chain.engine, chain.graph, chain.model):
            if path is None:
                continue
            manifest = read_manifest(path) if find_manifest(path) is not None else None
            raw = manifest.preprocessing if manifest is not None else None
            if raw is None and path.suffix == ".onnx":
                raw = metadata_of(path).preprocessing
            if raw is not None:
                return path.name, dict(raw)
    return None


def find_exported_model(path: Path) -> Path | None:
    """The FP32 file an engine's graph was made from, if it is in the same folder or the one above."""
    try:
        graph = graph_of(path)
        inputs = read_manifest(graph or path).inputs
    except ArtifactError:
        return None
    wanted = {i.sha256 for i in inputs if i.role in {"model", "graph"}}
    for folder in (path.parent, path.parent.parent):
        for candidate in sorted(folder.glob("*.onnx")):
            try:
                if candidate != path and read_manifest(candidate).sha256 in wanted:
                    return candidate
            except ArtifactError:
                continue
    return None


def _find_pruned(chain: Chain, checkpoint: str) -> Path | None:
    """The checkpoint of a pruned network, in the folder of one of the chain's files or above it."""
    files = [path for path in (chain.model, chain.graph, chain.engine) if path is not None]
    folders = dict.fromkeys(
        folder.resolve() for path in files for folder in (path.parent, path.parent.parent)
    )
    for folder in folders:
        for candidate in sorted(folder.glob("*.safetensors")):
            try:
                manifest = read_manifest(candidate)
            except ArtifactError:
                continue
            if manifest.details.get("weights_sha256") == checkpoint:
                return candidate
    return None


def plan_steps(chains: Sequence[Chain], reference: Reference) -> dict[str, list[Step]]:
    """The hops of each chain in order; hops with equal contents are the same object.

    Returns:
        Steps by chain label.

    Raises:
        UsageError: No chain, two chains with the same label, or a chain without files.
        GraphError, ArtifactError: A file cannot be read.
    """
    labels = [chain.label for chain in chains]
    if not chains:
        raise UsageError("nothing to validate", hint="name an engine or a graph")
    if duplicate := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"two engines are named {duplicate}", hint="rename one of the files")
    shared_steps: dict[str, Step] = {}
    shared_facts: dict[str, GraphFacts] = {}
    return {c.label: _steps_of(c, reference, shared_steps, shared_facts) for c in chains}


def _steps_of(
    chain: Chain,
    reference: Reference,
    shared_steps: dict[str, Step],
    shared_facts: dict[str, GraphFacts],
) -> list[Step]:
    """Steps of one chain; the two dictionaries are caches by file digest, shared by all chains."""
    files = [path for path in (chain.model, chain.graph) if path is not None]
    if not files and chain.engine is None:
        raise UsageError(f"{chain.label} has no file to validate")
    steps: list[Step] = []
    digests: set[str] = set()
    for path in files:
        sha256 = digest(path)
        if sha256 in digests or (sha256 == reference.sha256 and path is not files[-1]):
            continue  # the engine was built from the FP32 file itself, or that is the reference
        if sha256 not in shared_facts:
            shared_facts[sha256] = graph_facts(path, chain.source)
        facts = shared_facts[sha256]
        if not steps and (pruned := _pruned_step(chain, facts, reference, shared_steps)):
            steps.append(pruned)
        if sha256 not in shared_steps:
            parent = steps[-1].name if steps else REFERENCE
            taken = {step.name for step in shared_steps.values()}
            name = _graph_name(path, facts, chain.label, taken)
            step = _graph_step(path, facts, name, parent, reference)
            shared_steps[sha256] = replace(step, source=chain.source)
        digests.add(sha256)
        steps.append(shared_steps[sha256])
    if chain.engine is not None:
        parent = steps[-1].name if steps else REFERENCE
        steps.append(_engine_step(chain, parent, reference, digests))
    return steps


def _pruned_step(
    chain: Chain, facts: GraphFacts, reference: Reference, shared_steps: dict[str, Step]
) -> Step | None:
    """The pruned network that a graph was exported from, if the reference is the network before."""
    checkpoint = facts.metadata.get("checkpoint_sha256")
    if checkpoint is None or not _is_pruned(facts, reference):
        return None
    if checkpoint not in shared_steps:
        path = _find_pruned(chain, checkpoint)
        if path is None:
            return None
        taken = {step.name for step in shared_steps.values()}
        shared_steps[checkpoint] = Step(
            name="pruned" if "pruned" not in taken else f"pruned ({path.name})",
            parent=REFERENCE,
            kind="network",
            path=path,
            precision="fp32",
            place="pruning",
        )
    return shared_steps[checkpoint]


def _is_pruned(facts: GraphFacts, reference: Reference) -> bool:
    """Whether a graph is of a network that was pruned from the reference."""
    origin = facts.metadata.get("pruned_from")
    return origin is not None and origin == reference.checkpoint


def _graph_name(path: Path, facts: GraphFacts, label: str, taken: set[str]) -> str:
    plain = f"{'onnx' if facts.precision == 'fp32' else 'graph'} {facts.precision}"
    for detail in (None, facts.metadata.get("target"), path.name):
        name = f"{plain} ({detail})" if detail else plain
        if name not in taken:
            return name
    return f"{plain} ({label})"


def _graph_step(
    path: Path, facts: GraphFacts, name: str, parent: str, reference: Reference
) -> Step:
    checkpoint = facts.metadata.get("checkpoint_sha256")
    differs = None not in (checkpoint, reference.checkpoint) and checkpoint != reference.checkpoint
    pruned = _is_pruned(facts, reference)
    return Step(
        name=name,
        parent=parent,
        kind="graph",
        path=path,
        precision=facts.precision,
        fault=_other_task(path.name, facts.detector, reference)
        or _mismatch(path.name, facts.preprocessing, facts.classes, reference)
        or _frozen_batch(path.name, facts),
        remark=f"{path.name} was exported from a different checkpoint"
        if differs and not pruned
        else None,
        place="pruning or the export" if pruned and parent == REFERENCE else None,
    )


def _frozen_batch(name: str, facts: GraphFacts) -> str | None:
    if facts.metadata.get("batch") != "dynamic" or facts.input_shape[0] is None:
        return None
    size = facts.input_shape[0]
    return f"the batch size of {name} is fixed at {size}, although it was exported as dynamic"


def _engine_step(chain: Chain, parent: str, reference: Reference, graphs: set[str]) -> Step:
    path = chain.engine
    assert path is not None
    manifest: Manifest | None = None
    if not is_checkpoint(path) or find_manifest(path) is not None:
        manifest = read_manifest(path)
    fault = place = None
    if manifest is not None:
        origin = manifest.settings.get("pruned_from")
        if manifest.kind == "checkpoint" and origin and origin == reference.checkpoint:
            place = "pruning"
        detector = manifest.settings.get("detector")
        if manifest.kind == "engine":
            fault = _other_task(path.name, detector, reference)
        fault = fault or _mismatch(path.name, manifest.preprocessing, manifest.classes, reference)
        built_from = next((i for i in manifest.inputs if i.role == "graph"), None)
        if fault is None and built_from is not None and graphs and built_from.sha256 not in graphs:
            fault = f"{path.name} was built from a different graph ({built_from.file}), not the given one"
        if manifest.kind == "checkpoint":
            manifest = None
    return Step(
        name=chain.label,
        parent=parent,
        kind="engine",
        path=path,
        precision="fp32" if manifest is None else str(manifest.settings["precision"]),
        fault=fault,
        manifest=manifest,
        device=chain.device,
        place=place,
    )


def _other_task(name: str, detector: dict[str, Any] | None, reference: Reference) -> str | None:
    """Why a file's outputs mean something else than the reference's."""
    expected = reference.detector
    if detector is None:
        return None if expected is None else f"{name} is a classifier, the reference a detector"
    if expected is None:
        return f"{name} is a detector, the reference a classifier"
    wanted = expected.to_dict()
    if differing := [key for key, value in wanted.items() if detector.get(key) != value]:
        return (
            f"{name} has {differing[0]} {detector.get(differing[0])}, "
            f"the reference {wanted[differing[0]]}"
        )
    return None


def _mismatch(
    name: str,
    preprocessing: dict[str, Any] | None,
    classes: Sequence[str] | None,
    reference: Reference,
) -> str | None:
    """Why a file's outputs cannot be compared with the reference's.

    Raises:
        UsageError: The preprocessing differs, and the reference's was only assumed.
    """
    if preprocessing is not None:
        wanted = reference.preprocessing.to_dict()
        for field, value in wanted.items():
            actual = preprocessing.get(field, value)
            actual = list(actual) if isinstance(actual, tuple) else actual
            if field != "sha256" and actual != value:
                if reference.preprocessing_assumed:
                    raise UsageError(
                        f"{name} expects images with {field} {_format_value(actual)}, but "
                        f"{reference.name} does not state its preprocessing "
                        f"({field} {_format_value(value)} was assumed)",
                        hint="pass the checkpoint that the graph was exported from as --reference, "
                        f"or write {reference.name}.card.json with its preprocessing",
                    )
                return (
                    f"{name} expects images with {field} {_format_value(actual)}, "
                    f"the reference with {field} {_format_value(value)}"
                )
    if classes and len(classes) != reference.num_classes:
        return f"{name} has {len(classes)} classes, the reference {reference.num_classes}"
    if classes and reference.classes and tuple(classes) != reference.classes:
        if sorted(classes) == sorted(reference.classes):
            first = next(i for i, c in enumerate(classes) if c != reference.classes[i])
            return (
                f"{name} has the reference's classes in a different order: output {first} is "
                f"{classes[first]!r}, not {reference.classes[first]!r}"
            )
        some = ", ".join(classes[:3])
        return f"{name} has different classes than the reference ({len(classes)}: {some} …)"
    return None


def _format_value(value: Any) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
