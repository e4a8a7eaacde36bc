"""The sentence a user needs: what was lost, in which step, and whether it is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optimizer.evaluation.chain import REFERENCE, Step
from optimizer.evaluation.evidence import Evidence
from optimizer.evaluation.parity import Outcome
from optimizer.results import Gates, Hop

__all__ = ["LABELS_TELL_NOTHING", "finding"]

LABELS_TELL_NOTHING = "the labels tell nothing"
"""How a finding begins where more images would not help."""
_MOST = 0.8


def finding(evidence: Evidence) -> str:
    """Say what came out, in one sentence: accuracy first, then what else is wrong."""
    parts = [_accuracy(evidence)]
    parts += [
        f"rows of {found.engine} depend on the batch they are in ({found.failing[0]})"
        for found in evidence.consistency
        if found.verdict == "fail"
    ]
    parts += [
        f"{name} does not compute what was asked: {found.reason}"
        for name, found in evidence.audits.items()
        if found.verdict == "fail"
    ]
    parts += [remark for remark in _remarks(evidence) if remark not in parts[0]]
    idle = [hop for hop in evidence.hops if hop.status == "built-not-run"]
    if len(idle) == 1:
        parts.append(_not_run(idle[0], evidence.hops))
    elif idle:
        parts.append(_none_run(idle, evidence.hops))
    return "; ".join(parts) + "."


def _remarks(evidence: Evidence) -> list[str]:
    """What a reader should know of the files whether anything was lost or not."""
    steps = (step for chain in evidence.chains.values() for step in chain)
    return list(dict.fromkeys(step.remark for step in steps if step.remark is not None))


def _accuracy(evidence: Evidence) -> str:
    failing = evidence.first_failing
    if failing is not None and failing.status == "failed":
        return f"{failing.name} cannot be compared with the reference: {failing.error}"
    if failing is not None:
        return _blame(failing, evidence)
    limits = _limits(evidence.gates)
    judged = [hop for hop in evidence.ends if hop is not None]
    for hop in judged:
        if hop.verdict == "inconclusive" and not evidence.labels_tell:
            reference = evidence.hops[0]
            return (
                f"{LABELS_TELL_NOTHING} about {hop.name}: the reference itself has "
                f"{100 * (reference.top1 or 0):.2f} % top-1, which may be chance (are classes, order and "
                f"preprocessing right?), and {_drop(hop)}"
            )
        if hop.verdict == "inconclusive":
            needed = evidence.images_needed
            more = f"about {needed:,} would" if needed else "no number decides at this limit"
            return (
                f"{hop.n:,} images cannot tell whether {hop.name} keeps within {limits} of the "
                f"reference ({more}): {_drop(hop)}{_leaning(hop, evidence)}"
            )
    if not judged:
        return "no engine could be compared on this machine"
    worst = max(judged, key=lambda hop: (hop.drop_ci95_pp or (0.0, 0.0))[1])
    name = (
        worst.name
        if len(judged) == 1
        else f"the worst of {len(judged)} graphs and engines ({worst.name})"
    )
    return f"{name} keeps within {limits} of the reference: {_drop(worst)}"


def _limits(gates: Gates) -> str:
    flips = "" if gates.max_flips is None else f" and {100 * gates.max_flips:g} % flips"
    return f"{gates.max_drop_pp:g} pp{flips}"


def _drop(hop: Hop) -> str:
    low, high = hop.drop_ci95_pp or (0.0, 0.0)
    flips = "1 flip" if hop.flips == 1 else f"{hop.flips} flips"
    return (
        f"drop {hop.drop_pp:.2f} pp (95 % interval {low:.2f} to {high:.2f}), "
        f"{flips} in {hop.n:,} images"
    )


def _leaning(hop: Hop, evidence: Evidence) -> str:
    """Where an undecided loss comes from, if anything was lost at all."""
    return f"; {_where(hop, evidence, _net_losses)}" if (hop.drop_pp or 0) > 0 else ""


def _blame(failing: Hop, evidence: Evidence) -> str:
    low, _ = failing.drop_ci95_pp or (0.0, 0.0)
    lost = _net_losses if low > evidence.gates.max_drop_pp else _flips
    return (
        f"{failing.name} breaks the limit of {_limits(evidence.gates)}: "
        f"{_where(failing, evidence, lost)}; {_drop(failing)}, p = {failing.mcnemar_p:.1g}"
    )


def _where(hop: Hop, evidence: Evidence, lost: Callable[[Outcome], int]) -> str:
    """Which step on the way to a hop loses most, by images and not by the limit it breaks."""
    chain = next(c for c in evidence.chains.values() if hop.name in {s.name for s in c})
    upto = chain[: [step.name for step in chain].index(hop.name) + 1]
    losses = {step.name: max(lost(evidence.outcomes[step.name]), 0) for step in upto}
    culprit = max(upto, key=lambda step: losses[step.name])
    where = f"in {_place(culprit)} ({culprit.name})"
    total = sum(losses.values())
    if total and losses[culprit.name] < _MOST * total:
        verb = f"{100 * losses[culprit.name] / total:.0f} % of the loss is {where}"
    else:
        others = dict.fromkeys(_place(step) for step in chain)
        others.pop(_place(culprit))
        verb = f"the loss is {where}" + (f", not in {' or '.join(others)}" if others else "")
    return f"{verb}; {culprit.remark}" if culprit.remark else verb


def _net_losses(outcome: Outcome) -> int:
    tally = outcome.tally
    if outcome.step is not None and outcome.step.parent == REFERENCE:
        return tally.losses - tally.gains
    return tally.parent_losses - tally.parent_gains


def _flips(outcome: Outcome) -> int:
    if outcome.step is not None and outcome.step.parent == REFERENCE:
        return outcome.tally.flips
    return outcome.tally.flips_vs_parent


def _place(step: Step) -> str:
    if step.kind == "engine":
        return "the engine"
    if step.precision == "fp32":
        return "the export"
    if step.precision in {"int8", "fp8", "mixed"}:
        return "quantization"
    return f"the conversion to {step.precision.upper()}"


def _not_run(hop: Hop, hops: Sequence[Hop]) -> str:
    graph = next((h for h in hops if h.name == hop.parent), None)
    if graph is None or graph.top1 is None or graph.parent is None:
        return f"{hop.name} was built but cannot run here ({hop.error})"
    return (
        f"{hop.name} was built but cannot run here; its graph as written has "
        f"{100 * graph.top1:.2f} % top-1"
    )


def _none_run(idle: Sequence[Hop], hops: Sequence[Hop]) -> str:
    graphs = {hop.name: hop for hop in hops if hop.parent is not None}
    parents = dict.fromkeys(hop.parent for hop in idle if hop.parent in graphs)
    known = [graphs[name] for name in parents if name is not None]
    told = ", ".join(f"{g.name} {100 * g.top1:.2f} %" for g in known if g.top1 is not None)
    said = f"{len(idle)} engines were built but cannot run here"
    return f"{said}; top-1 of their graphs as written: {told}" if told else said
