"""The frame of the importing pass: rewriting rules, whole-graph steps, and what they changed.

A `Rule` has three parts: a pattern and its conditions (`Rule.match`), and a rewrite (`Rule.rewrite`).
`rewriting` turns a list of rules into a `Step`, which applies them until none matches any more. Work
that does not start at a single node (constant folding, layouts) is a `Step` of its own. Every change
is recorded as a `Change`, so that users can be told what differs from their file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import GraphError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Change",
    "Rule",
    "Step",
    "as_float64",
    "constant_of",
    "only_reader",
    "producer_of",
    "replace_node",
    "rewriting",
    "sizes_of",
    "summary",
]

_MOST_ROUNDS = 200


@dataclass(frozen=True)
class Change:
    """One place in which an imported graph differs from its file.

    Attributes:
        rule: What was done, e.g. ``BatchNorm folded into its convolution``.
        node: The node concerned, by the name it has in the imported graph or in the file.
    """

    rule: str
    node: str


@dataclass(frozen=True)
class Rule:
    """A local rewrite that does not change what a graph computes.

    Attributes:
        name: What it does, for users; a past participle, e.g. ``Dropout removed``.
        match: The pattern and its conditions. Returns what `rewrite` needs (anything true), or
            ``None`` where the rule does not apply.
        rewrite: Changes the graph in place at a node, given what `match` returned. Afterwards
            `match` must not apply to the result again.
    """

    name: str
    match: Callable[[ir.Node], Any]
    rewrite: Callable[[ir.Graph, ir.Node, Any], None]


@dataclass(frozen=True)
class Step:
    """One step of the importing pass; changes a model in place and returns what it changed."""

    name: str
    run: Callable[[ir.Model], list[Change]]


def rewriting(name: str, rules: Sequence[Rule]) -> Step:
    """A step that applies rules, in this order at every node, until none matches any more."""

    def run(model: ir.Model) -> list[Change]:
        changes: list[Change] = []
        for _ in range(_MOST_ROUNDS):
            found = _one_round(model.graph, rules)
            if not found:
                return changes
            changes += found
        raise GraphError(f"{name}: {changes[-1].rule!r} does not come to an end")

    return Step(name, run)


def _one_round(graph: ir.Graph, rules: Sequence[Rule]) -> list[Change]:
    changes = []
    for node in list(graph):
        if node.graph is not graph:
            continue  # an earlier rewrite of this round removed it
        for rule in rules:
            match = rule.match(node)
            if match is not None:
                changes.append(Change(rule.name, _label(node)))
                rule.rewrite(graph, node, match)
                break
    return changes


def _label(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def summary(changes: Iterable[Change]) -> list[str]:
    """The changes as one line per rule, in order: ``20 x BatchNorm folded …: bn1, bn2, …``."""
    nodes: dict[str, list[str]] = {}
    for change in changes:
        nodes.setdefault(change.rule, []).append(change.node)
    lines = []
    for rule, names in nodes.items():
        distinct = list(Counter(names))
        shown = ", ".join(distinct[:3]) + (", …" if len(distinct) > 3 else "")
        count = f"{len(names)} x " if len(names) > 1 else ""
        lines.append(f"{count}{rule}" + (f": {shown}" if any(distinct) else ""))
    return lines


# --- what rules ask and do ------------------------------------------------------------------------


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a constant; ``None`` for a computed or missing input."""
    if value is None or value.const_value is None:
        return None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def producer_of(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that computes a tensor, if it is of one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in kinds and node.domain == "" else None


def sizes_of(value: ir.Value | None) -> list[int] | None:
    """All dimensions of a tensor but the first; ``None`` if one of them is not a known number."""
    if value is None or value.shape is None:
        return None
    sizes = [int(d) for d in list(value.shape)[1:] if isinstance(d, int)]
    return sizes if len(sizes) == len(value.shape) - 1 else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The single node that reads a tensor; ``None`` with several, or for an output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def replace_node(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node with one output in the place of another; the tensor keeps name, type and shape."""
    import onnx_ir as ir

    before, after = old.outputs[0], new.outputs[0]
    after.shape, after.type = before.shape, before.type
    name = before.name
    graph.insert_before(old, new)
    if before.is_graph_output():
        index = next(i for i, output in enumerate(graph.outputs) if output is before)
        graph.outputs[index] = after
    ir.convenience.replace_all_uses_with(before, after)
    graph.remove(old, safe=True)
    after.name = name


def as_float64(value: ir.Value | None) -> NDArray[np.float64]:
    """A constant in double precision; the caller has checked that it is one."""
    array = constant_of(value)
    assert array is not None
    return array.astype(np.float64)
