"""Chains of files from the reference to an engine, and the hops they are made of.

``reference -> FP32 ONNX -> precision graph -> engine``: each arrow may lose accuracy, and the first
one that does is the one to fix. Chains share the hops whose files have the same contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.artifacts import Manifest, digest, find_manifest, read_manifest
from optimizer.engines.opening import graph_of
from optimizer.errors import ArtifactError, UsageError
from optimizer.evaluation.reference import Reference
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.models.weights import CHECKPOINTS

__all__ = ["REFERENCE", "Chain", "Step", "exported_beside", "plan_steps"]

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The files on the way from the reference to one engine; any of them may be missing.

    Attributes:
        label: Name of the engine in results; unique among the chains of one validation.
        model: The FP32 ONNX file.
        graph: The precision graph.
        engine: The engine; a checkpoint runs as PyTorch eager.
        device: The GPU it is opened on, ``cuda:1``; ``None`` for the first, or the CPU.
    """

    label: str
    model: Path | None = None
    graph: Path | None = None
    engine: Path | None = None
    device: str | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        model: Path | None = None,
        label: str | None = None,
        device: str | None = None,
    ) -> Chain:
        """The chain that ends in an engine (with the graph that lies beside it) or in a graph.

        Args:
            path: An engine, an ONNX graph or a checkpoint.
            model: The FP32 ONNX file, if there is one.
            label: Name in results; by default the file's.
            device: The GPU an engine is opened on.
        """
        name = label or path.name
        if path.suffix == ".onnx":
            try:
                is_engine = read_manifest(path).kind == "engine"
            except ArtifactError:
                is_engine = False  # a graph without a manifest can still be executed as written
            if not is_engine:
                return cls(label=name, model=model, graph=path)
        return cls(label=name, model=model, graph=graph_of(path), engine=path, device=device)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One hop to be computed.

    Attributes:
        name: The hop's name, unique.
        parent: Name of the hop before it.
        kind: Who computes it: ``graph`` is executed as written, ``engine`` by its backend.
        path: The file.
        precision: What it is in, as the file says.
        fault: Why it must not be computed: it does not belong to the reference or to its parent.
        remark: What a reader should know of it, whether it loses accuracy or not.
        manifest: The engine's manifest; ``None`` for graphs and checkpoints.
        device: The GPU an engine is opened on; ``None`` for the first, or the CPU.
    """

    name: str
    parent: str
    kind: Literal["graph", "engine"]
    path: Path
    precision: str
    fault: str | None = None
    remark: str | None = None
    manifest: Manifest | None = None
    device: str | None = None


def exported_beside(path: Path) -> Path | None:
    """The FP32 file that an engine's graph was made from, if it lies in the same folder or above."""
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


def plan_steps(chains: Sequence[Chain], reference: Reference) -> dict[str, list[Step]]:
    """The hops of each chain in order; hops of equal contents are the same object.

    Returns:
        Steps by chain label.

    Raises:
        UsageError: No chain, two of one label, or one without any file.
        GraphError, ArtifactError: A file that cannot be read.
    """
    labels = [chain.label for chain in chains]
    if not chains:
        raise UsageError("nothing to validate", hint="name an engine or a graph")
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"two engines are called {twice}", hint="rename one of the files")
    known: dict[str, Step] = {}
    read: dict[str, GraphFacts] = {}
    return {chain.label: _steps_of(chain, reference, known, read) for chain in chains}


def _steps_of(
    chain: Chain, reference: Reference, known: dict[str, Step], read: dict[str, GraphFacts]
) -> list[Step]:
    """Steps of one chain; ``known`` and ``read`` remember by contents what other chains share."""
    files = [path for path in (chain.model, chain.graph) if path is not None]
    if not files and chain.engine is None:
        raise UsageError(f"{chain.label} has no file to validate")
    steps: list[Step] = []
    before: set[str] = set()
    for path in files:
        contents = digest(path)
        if contents in before or (contents == reference.sha256 and path is not files[-1]):
            continue  # the engine was built from the FP32 file itself, or that is the reference
        if contents not in read:
            read[contents] = graph_facts(path)
        facts = read[contents]
        if contents not in known:
            parent = steps[-1].name if steps else REFERENCE
            name = _graph_name(path, facts, chain.label, {step.name for step in known.values()})
            known[contents] = _graph_step(path, facts, name, parent, reference)
        before.add(contents)
        steps.append(known[contents])
    if chain.engine is not None:
        parent = steps[-1].name if steps else REFERENCE
        steps.append(_engine_step(chain, parent, reference, before))
    return steps


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
    other = None not in (checkpoint, reference.checkpoint) and checkpoint != reference.checkpoint
    return Step(
        name=name,
        parent=parent,
        kind="graph",
        path=path,
        precision=facts.precision,
        fault=_mismatch(path.name, facts.preprocessing, facts.classes, reference)
        or _frozen(path.name, facts),
        remark=f"{path.name} was exported from another checkpoint" if other else None,
    )


def _frozen(name: str, facts: GraphFacts) -> str | None:
    if facts.metadata.get("batch") != "dynamic" or facts.input_shape[0] is None:
        return None
    size = facts.input_shape[0]
    return f"the batch of {name} is frozen at {size}, though it was exported as dynamic"


def _engine_step(chain: Chain, parent: str, reference: Reference, graphs: set[str]) -> Step:
    path = chain.engine
    assert path is not None
    manifest: Manifest | None = None
    if path.suffix not in CHECKPOINTS or find_manifest(path) is not None:
        manifest = read_manifest(path)
    fault = None
    if manifest is not None:
        fault = _mismatch(path.name, manifest.preprocessing, manifest.classes, reference)
        built_from = next((i for i in manifest.inputs if i.role == "graph"), None)
        if fault is None and built_from is not None and graphs and built_from.sha256 not in graphs:
            fault = (
                f"{path.name} was built from another graph ({built_from.file}) than the one given"
            )
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
    )


def _mismatch(
    name: str,
    preprocessing: dict[str, Any] | None,
    classes: Sequence[str] | None,
    reference: Reference,
) -> str | None:
    """Why a file's outputs cannot be compared with the reference's.

    Raises:
        UsageError: They expect other images, and those of the reference were only assumed.
    """
    if preprocessing is not None:
        wanted = reference.preprocessing.to_dict()
        for field, value in wanted.items():
            found = preprocessing.get(field, value)
            found = list(found) if isinstance(found, tuple) else found
            if field != "sha256" and found != value:
                if reference.preprocessing_assumed:
                    raise UsageError(
                        f"{name} expects images with {field} {_words(found)}, and {reference.name} does "
                        f"not say what it expects ({field} {_words(value)} was assumed)",
                        hint="take the checkpoint that the graph was exported from as --reference, or "
                        f"write {reference.name}.card.json with its preprocessing",
                    )
                return (
                    f"{name} expects images with {field} {_words(found)}, "
                    f"the reference with {field} {_words(value)}"
                )
    if classes and len(classes) != reference.num_classes:
        return f"{name} has {len(classes)} classes, the reference {reference.num_classes}"
    if classes and reference.classes and tuple(classes) != reference.classes:
        if sorted(classes) == sorted(reference.classes):
            first = next(i for i, c in enumerate(classes) if c != reference.classes[i])
            return (
                f"{name} has the reference's classes in another order: output {first} is "
                f"{classes[first]!r}, not {reference.classes[first]!r}"
            )
        some = ", ".join(classes[:3])
        return f"{name} has other classes than the reference ({len(classes)}: {some} …)"
    return None


def _words(value: Any) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
