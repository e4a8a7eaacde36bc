"""Accuracy tables: the chain of hops, the precision audit and batch consistency."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.reporting.join import STATUS_WORDS, EngineRow, file_in_run
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import DASH, fixed, significant
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table, verdict_cell
from optimizer.reporting.speed import computed, share_text
from optimizer.reporting.task_views import TaskView, view_of
from optimizer.results import Audit, Hop, LayerInfo, RunResult, ValidateResult

__all__ = [
    "audit_table",
    "block_table",
    "consistency_table",
    "hop_table",
    "layer_table",
    "tree_order",
]


def tree_order(hops: Sequence[Hop]) -> list[tuple[int, Hop]]:
    """Hops in depth-first order with their depth; a hop whose parent is missing is a root."""
    names = {hop.name for hop in hops}
    roots = [h for h in hops if h.parent is None or h.parent not in names]
    ordered: list[tuple[int, Hop]] = []
    visited: set[int] = set()

    def visit(hop: Hop, depth: int) -> None:
        if id(hop) in visited:
            return
        visited.add(id(hop))
        ordered.append((depth, hop))
        for child in hops:
            if child.parent == hop.name:
                visit(child, depth + 1)

    for hop in [*roots, *hops]:  # visiting all hops also covers cycles of parents
        visit(hop, 0)
    return ordered


def hop_table(run: RunResult, result: ValidateResult, links: Links) -> Table:
    """The chain from the reference to every engine, one row per hop."""
    notes, view = Notes(), view_of(result)
    rows = []
    for depth, hop in tree_order(result.hops):
        failing = hop.name == result.first_failing_hop
        reason = hop.error if hop.status != "ok" else None
        remark = f"{hop.name}: {STATUS_WORDS[hop.status]}: {reason}" if reason else None
        if failing:
            remark = " ".join(
                filter(None, ["First failing hop: the limit is first exceeded here.", remark])
            )
        href = links.to(file_in_run(run, hop.engine))
        cells = _hop_cells(hop, failing, notes, href, view)
        rows.append(Row(cells, remark=remark, highlight=failing, depth=depth))
    return Table(
        id="hops",
        caption="Each hop from the reference to the engines, on the same images.",
        columns=[
            Column("Hop", numeric=False, hint="computed by"),
            Column("Precision", numeric=False),
            *view.hop_columns,
            Column("Worst image", numeric=False, optional=True),
            Column("Verdict", numeric=False),
        ],
        rows=rows,
        notes=notes.all(),
    ).without_empty_columns()


def _hop_cells(
    hop: Hop, failing: bool, notes: Notes, href: str | None, view: TaskView
) -> list[Cell]:
    head = [
        Cell(hop.name, detail=hop.executor, href=href),
        Cell(hop.precision),
    ]
    if hop.status != "ok":
        missing = notes.missing(f"Not compared: {STATUS_WORDS[hop.status]}.")
        badge = "fail" if failing or hop.status == "failed" else "inconclusive"
        cells = [missing] * len(view.hop_columns)
        return [*head, *cells, Cell(DASH), Cell(STATUS_WORDS[hop.status], badge=badge)]
    if hop.parent is None:
        return [*head, *view.hop_cells(hop, notes), Cell(DASH), Cell("reference")]
    return [
        *head,
        *view.hop_cells(hop, notes),
        Cell(hop.worst_image or DASH),
        verdict_cell("fail" if failing and hop.verdict is None else hop.verdict),
    ]


def block_table(result: ValidateResult) -> Table | None:
    """Signal-to-noise ratio after each residual block, one column per measured graph."""
    if not result.layers:
        return None
    notes = Notes()
    by_hop = {hop: {b.module: b.sqnr_db for b in blocks} for hop, blocks in result.layers.items()}
    modules = list(dict.fromkeys(b.module for blocks in result.layers.values() for b in blocks))
    rows = []
    for module in modules:
        cells = [Cell(module, code=True)]
        for sqnr_by_module in by_hop.values():
            if module not in sqnr_by_module:
                cells.append(notes.missing("Not measured in this graph."))
            else:
                cells.append(_noise_cell(sqnr_by_module[module], notes))
        rows.append(Row(cells))
    return Table(
        id="blocks",
        caption="Signal-to-noise ratio after each residual block, relative to the reference.",
        columns=[
            Column("After block", numeric=False),
            *[Column(f"SQNR of {hop}", "dB") for hop in by_hop],
        ],
        rows=rows,
        notes=notes.all(),
    )


def _noise_cell(sqnr: float | None, notes: Notes) -> Cell:
    if sqnr is None:
        return notes.missing("The tensors are identical: there is no noise.")
    return Cell(fixed(sqnr, 1), value=sqnr)


def audit_table(rows: Sequence[EngineRow]) -> Table | None:
    """The requested precision of each engine and the precision it computes in."""
    audited = [(row, row.audit) for row in rows if row.audit]
    if not audited:
        return None
    return Table(
        id="audit",
        caption="Precision audit: shares of the convolution and fully-connected FLOPs.",
        columns=[
            Column("Engine", numeric=False),
            Column("Requested", numeric=False),
            Column("Computed", "% of FLOPs", numeric=False),
            Column("In the requested precision", "%"),
            Column("Minimum required", "%"),
            Column("Differing layers"),
            Column("Verdict", numeric=False),
            Column("Reason", numeric=False),
        ],
        rows=[Row(_audit_cells(row.name, audit)) for row, audit in audited],
    )


def _audit_cells(name: str, audit: Audit) -> list[Cell]:
    share = Cell("not reported") if audit.share is None else _percent_cell(audit.share)
    return [
        Cell(name),
        Cell(audit.asked),
        Cell(computed(audit)),
        share,
        _percent_cell(audit.min_share),
        Cell(str(len(audit.differing)), value=len(audit.differing)),
        verdict_cell(audit.verdict),
        Cell(audit.reason),
    ]


def _percent_cell(share: float) -> Cell:
    return Cell(share_text(share), value=share * 100)


def layer_table(number: int, row: EngineRow) -> Table | None:
    """The layers of one engine that do not compute in the requested precision."""
    layers = row.audit.differing if row.audit else []
    if not layers:
        return None
    return Table(
        id=f"layers-{number}",
        caption=f"Layers of {row.name} that do not compute in the requested precision.",
        columns=[
            Column("Engine layer", numeric=False),
            Column("PyTorch modules", numeric=False),
            Column("Type", numeric=False),
            Column("Computes in", numeric=False),
            Column("Work", "MFLOP per image"),
        ],
        rows=[Row(_layer_cells(layer)) for layer in layers],
    )


def _layer_cells(layer: LayerInfo) -> list[Cell]:
    work = None if layer.flops is None else layer.flops / 1e6
    return [
        Cell(layer.name, code=True),
        Cell(", ".join(layer.torch_names) or DASH, code=bool(layer.torch_names)),
        Cell(layer.type),
        Cell(layer.precision),
        Cell(significant(work), value=work),
    ]


def consistency_table(rows: Sequence[EngineRow]) -> Table | None:
    """Whether an image's outputs depend on the other images in the batch."""
    checks = {id(check): (row.name, check) for row in rows for check in row.consistency}
    if not checks:
        return None
    lines = []
    for name, check in checks.values():
        failing = f" Failing: {'; '.join(check.failing)}." if check.failing else ""
        cells = [
            Cell(name),
            Cell(", ".join(map(str, check.batches))),
            Cell(significant(check.max_abs_diff), value=check.max_abs_diff),
            Cell(significant(check.tolerance), value=check.tolerance),
            verdict_cell(check.verdict),
            Cell(check.reason + failing),
        ]
        lines.append(Row(cells))
    return Table(
        id="consistency",
        caption="Batch consistency: the same image alone, repeated, and together with others.",
        columns=[
            Column("Engine", numeric=False),
            Column("Batch sizes", "images", numeric=False),
            Column("Largest difference", hint="of a logit"),
            Column("Tolerance"),
            Column("Verdict", numeric=False),
            Column("Reason", numeric=False),
        ],
        rows=lines,
    )
