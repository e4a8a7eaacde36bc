"""The summary sentence of a validation: how much accuracy is lost, and in which step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from optimizer.evaluation.chain import REFERENCE, Step
from optimizer.evaluation.evidence import Evidence
from optimizer.results import Hop
from optimizer.tasks import Task

__all__ = ["LABELS_UNINFORMATIVE", "finding"]

LABELS_UNINFORMATIVE = "the labels are uninformative"
"""Start of a finding for which more images would not help."""
_MOST = 0.8
"""Share of the loss from which one step is named as its only source."""


class _Loss(Protocol):
    def __call__(self, tally: Any, *, to_parent: bool) -> float: ...


def finding(evidence: Evidence) -> str:
    """Summarize a validation in one sentence: accuracy first, then any other problem."""
    parts = [_accuracy(evidence)]
    parts += [
        f"outputs of {check.engine} depend on the other images in the batch ({check.failing[0]})"
        for check in evidence.consistency
        if check.verdict == "fail"
    ]
    parts += [
        f"{name} does not compute in the requested precision: {audit.reason}"
        for name, audit in evidence.audits.items()
        if audit.verdict == "fail"
    ]
    parts += [remark for remark in _remarks(evidence) if remark not in parts[0]]
    not_run = [hop for hop in evidence.hops if hop.status == "built-not-run"]
    if len(not_run) == 1:
        parts.append(_engine_not_run(not_run[0], evidence.hops, evidence.task))
    elif not_run:
        parts.append(_engines_not_run(not_run, evidence.hops, evidence.task))
    return "; ".join(parts) + "."


def _remarks(evidence: Evidence) -> list[str]:
    """Remarks on the files, each once; they matter whether or not accuracy is lost."""
    steps = (step for chain in evidence.chains.values() for step in chain)
    return list(dict.fromkeys(step.remark for step in steps if step.remark is not None))


def _accuracy(evidence: Evidence) -> str:
    failing = evidence.first_failing
    if failing is not None and failing.status == "failed":
        return f"{failing.name} cannot be compared with the reference: {failing.error}"
    if failing is not None:
        return _failed_gate(failing, evidence)
    task, limits = evidence.task, evidence.task.limits(evidence.gates)
    judged = [hop for hop in evidence.ends if hop is not None]
    for hop in judged:
        if hop.verdict == "inconclusive" and not evidence.labels_informative:
            reference = evidence.hops[0]
            return (
                f"{LABELS_UNINFORMATIVE} for {hop.name}: the reference itself has "
                f"{task.accuracy(reference)} {task.metric}, not significantly better than chance "
                f"(check classes, class order and preprocessing); {task.drop(hop)}"
            )
        if hop.verdict == "inconclusive":
            needed = evidence.images_needed
            more = f"about {needed:,} would" if needed else "no number of images would"
            return (
                f"{hop.n:,} images cannot decide whether {hop.name} stays within {limits} "
                f"({more}): {task.drop(hop)}{_tentative_source(hop, evidence)}"
            )
    if not judged:
        return "no engine could be compared on this machine"
    worst = max(judged, key=lambda hop: (hop.drop_ci95_pp or (0.0, 0.0))[1])
    if len(judged) == 1:
        return f"{worst.name} stays within {limits}: {task.drop(worst)}"
    return (
        f"all {len(judged)} compared graphs and engines stay within {limits}; "
        f"the worst is {worst.name}: {task.drop(worst)}"
    )


def _tentative_source(hop: Hop, evidence: Evidence) -> str:
    """Where an undecided loss comes from; empty without a measured loss."""
    return f"; {_source(hop, evidence, evidence.task.net_loss)}" if (hop.drop_pp or 0) > 0 else ""


def _failed_gate(failing: Hop, evidence: Evidence) -> str:
    task = evidence.task
    lost: _Loss = task.changes
    if task.exceeds_by_drop(failing, evidence.gates):
        lost = task.net_loss
    sentence = (
        f"{failing.name} exceeds {task.limits(evidence.gates)}: "
        f"{_source(failing, evidence, lost)}; {task.drop(failing)}"
    )
    test = task.significance(failing)
    return f"{sentence}, {test}" if test else sentence


def _source(hop: Hop, evidence: Evidence, lost: _Loss) -> str:
    """The step up to a hop that loses most, measured by ``lost``."""
    chain = next(c for c in evidence.chains.values() if hop.name in {s.name for s in c})
    upto = chain[: [step.name for step in chain].index(hop.name) + 1]
    losses = {
        step.name: max(
            lost(evidence.outcomes[step.name].tally, to_parent=step.parent != REFERENCE), 0
        )
        for step in upto
    }
    culprit = max(upto, key=lambda step: losses[step.name])
    source = f"{_place(culprit)} ({culprit.name})"
    total = sum(losses.values())
    if total and losses[culprit.name] < _MOST * total:
        sentence = f"{100 * losses[culprit.name] / total:.0f} % of the loss comes from {source}"
    else:
        others = dict.fromkeys(_place(step) for step in chain)
        others.pop(_place(culprit))
        sentence = f"the loss comes from {source}"
        if others:
            sentence += f", not from {' or '.join(others)}"
    return f"{sentence}; {culprit.remark}" if culprit.remark else sentence


def _place(step: Step) -> str:
    if step.place is not None:
        return step.place
    if step.kind == "engine":
        return "the engine"
    if step.precision == "fp32":
        return "the export"
    if step.precision in {"int8", "fp8", "mixed"}:
        return "quantization"
    return f"the conversion to {step.precision.upper()}"


def _engine_not_run(hop: Hop, hops: Sequence[Hop], task: Task) -> str:
    graph = next((h for h in hops if h.name == hop.parent), None)
    accuracy = None if graph is None else task.accuracy(graph)
    if graph is None or accuracy is None or graph.parent is None:
        return f"{hop.name} was built but cannot run on this machine ({hop.error})"
    return (
        f"{hop.name} was built but cannot run on this machine; its graph, executed as written, has "
        f"{accuracy} {task.metric}"
    )


def _engines_not_run(not_run: Sequence[Hop], hops: Sequence[Hop], task: Task) -> str:
    by_name = {hop.name: hop for hop in hops if hop.parent is not None}
    parents = dict.fromkeys(hop.parent for hop in not_run if hop.parent in by_name)
    graphs = [by_name[name] for name in parents if name is not None]
    measured = ", ".join(f"{g.name} {text}" for g in graphs if (text := task.accuracy(g)))
    sentence = f"{len(not_run)} engines were built but cannot run on this machine"
    if not measured:
        return sentence
    return f"{sentence}; {task.metric} of their graphs, executed as written: {measured}"
