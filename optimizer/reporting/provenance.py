"""Provenance of the results: machine, conditions, builds and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.reporting.join import STATUS_WORDS, EngineRow, manifest_part
from optimizer.reporting.links import Links
from optimizer.reporting.numbers import (
    DASH,
    fixed,
    mebibytes,
    moment,
    seconds,
    short_digest,
)
from optimizer.reporting.report_model import Cell, Column, Notes, Row, Table
from optimizer.reporting.task_views import view_of
from optimizer.results import BenchResult, Conditions, RunResult, ValidateResult

__all__ = [
    "Fact",
    "build_table",
    "condition_facts",
    "digest_table",
    "environment_facts",
    "image_sizes",
    "library_table",
    "measured_on",
    "stage_table",
]


@dataclass(frozen=True)
class Fact:
    """A labelled fact."""

    label: str
    text: str


# --- what was measured on ----------------------------------------------------------------------


def measured_on(run: RunResult) -> list[Fact]:
    """Machine, image size, batch sizes, threads and data that all numbers refer to."""
    facts = []
    machine = run.bench.device if run.bench else _without_libraries(run.environment)
    if machine:
        parts = "; ".join(f"{fact.label} {fact.text}" for fact in flatten(machine))
        facts.append(Fact("Machine", parts))
    facts.append(Fact("Image size", image_sizes(run)))
    if run.bench:
        timed = run.bench.engines
        facts += [
            Fact("What the timings cover", run.bench.headline),
            Fact("Batch sizes", _values([e.batch for e in timed], "images") or DASH),
            Fact("Threads", _values([e.threads for e in timed]) or "not recorded"),
            Fact("Samples per engine", _samples(run.bench)),
        ]
    else:
        facts.append(Fact("Speed", "not measured in this run"))
    if run.validate_:
        data = run.validate_.dataset
        facts += [
            Fact(
                "Data", f"{data.name}, {_images(run.validate_)}, sha256 {short_digest(data.sha256)}"
            ),
            Fact("Reference", run.validate_.reference),
            Fact("Limits", _gates(run)),
        ]
    else:
        facts.append(Fact("Accuracy", "not measured in this run"))
    facts.append(
        Fact("Duration of the run", f"{seconds(run.seconds)} s, finished {moment(run.created)}")
    )
    return facts


def image_sizes(run: RunResult) -> str:
    """Image sizes used for timing and validation."""
    sizes = {e.image_size for e in run.bench.engines if e.image_size} if run.bench else set()
    if run.validate_:
        sizes.add(run.validate_.dataset.image_size)
    return " and ".join(f"{size} × {size} px" for size in sorted(sizes)) or "not recorded"


def _values(values: Sequence[int | None], unit: str = "") -> str:
    text = ", ".join(f"{value:,}" for value in sorted({v for v in values if v is not None}))
    return f"{text} {unit}".strip() if text else ""


def _samples(bench: BenchResult) -> str:
    timed = [e for e in bench.engines if e.status == "ok"]
    if not timed:
        return "none: no engine was timed"
    samples, rounds = [e.samples for e in timed], [e.rounds for e in timed]
    return f"{_range(samples)} in {_range(rounds)} rounds"


def _range(values: Sequence[float], places: int = 0) -> str:
    low, high = fixed(min(values), places), fixed(max(values), places)
    return low if low == high else f"{low} to {high}"


def _images(result: ValidateResult) -> str:
    images = f"n = {result.dataset.n:,} images"
    if result.early_stop is None:
        return images
    return f"{images} of {result.early_stop.available:,} in random order, until decided"


def _gates(run: RunResult) -> str:
    assert run.validate_ is not None
    return view_of(run.validate_).limits(run.validate_.gates)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Nested values as facts, with units from the key suffixes and shortened digests."""
    facts: list[Fact] = []
    for key, value in mapping.items():
        label = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            facts += flatten(value, f"{label}, ")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
            for number, item in enumerate(value, 1):
                nested = item if isinstance(item, Mapping) else {"value": item}
                facts += flatten(nested, f"{label} {number}, ")
        elif str(key).endswith("_bytes") and isinstance(value, (int, float)):
            facts.append(Fact(label.removesuffix(" bytes"), f"{mebibytes(value)} MiB"))
        elif str(key).endswith("_gib") and value is not None:
            facts.append(Fact(label.removesuffix(" gib"), f"{value} GiB"))
        else:
            facts.append(Fact(label, _text(str(key), value)))
    return facts


def _text(key: str, value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    if "sha256" in key:
        return short_digest(str(value))
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _without_libraries(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in environment.items() if not isinstance(v, Mapping) or k != "libraries"}


# --- conditions --------------------------------------------------------------------------------


def condition_facts(conditions: Conditions) -> list[Fact]:
    """State of the machine during timing."""
    facts = [
        Fact("CPU", conditions.cpu),
        Fact("Frequency governor", conditions.governor or "not readable"),
    ]
    if conditions.mhz:
        facts.append(Fact("Clock", f"{_range(conditions.mhz)} MHz"))
    if conditions.load_1min:
        facts.append(Fact("Load, 1 minute", _range(conditions.load_1min, 2)))
    if conditions.other_cpu_share:
        share = _range([s * 100 for s in conditions.other_cpu_share], 1)
        facts.append(Fact("Other processes, all cores", f"{share} % of the CPU time of a round"))
    disturbed = ", ".join(str(index + 1) for index in conditions.disturbed_rounds)
    facts.append(Fact("Disturbed rounds", disturbed or "none"))
    facts += _gpu_facts(conditions.gpu)
    if conditions.notes:
        facts.append(Fact("Remarks", "; ".join(conditions.notes)))
    return facts


def _gpu_facts(readings: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """One fact per GPU and quantity: the range of the readings over the rounds."""
    readings_of: dict[tuple[Any, str], list[Any]] = {}
    for reading in readings:
        for key, value in reading.items():
            if key not in ("round", "gpu"):
                readings_of.setdefault((reading.get("gpu", 0), key), []).append(value)
    facts = []
    for (gpu, key), values in readings_of.items():
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            text = _range(values, 0 if all(float(v).is_integer() for v in values) else 1)
        else:
            text = "; ".join(dict.fromkeys(_text(key, value) for value in values))
        facts.append(Fact(f"GPU {gpu}, {key.replace('_', ' ')}", text))
    return facts


# --- builds, stages, files ---------------------------------------------------------------------


def build_table(rows: Sequence[EngineRow], links: Links) -> Table | None:
    """How each engine was built."""
    built = [row for row in rows if row.stage or any(b.build_s is not None for b in row.benches)]
    if not built:
        return None
    notes = Notes()
    return Table(
        id="builds",
        caption="Built engines.",
        columns=[
            Column("Engine", numeric=False),
            Column("Backend", numeric=False),
            Column("Target", numeric=False),
            Column("Size", "MiB"),
            Column("Build time", "s"),
            Column("From cache", numeric=False),
            Column("Status", numeric=False),
        ],
        rows=[Row(_build_cells(row, notes, links)) for row in built],
        notes=notes.all(),
    )


def _build_cells(row: EngineRow, notes: Notes, links: Links) -> list[Cell]:
    details = manifest_part(row.stage, "details")
    times = [b.build_s for b in row.benches if b.build_s is not None]
    sizes = [b.engine_bytes for b in row.benches if b.engine_bytes is not None]
    build_s = times[0] if times else details.get("build_s")
    size = sizes[0] if sizes else row.size_when_built
    if isinstance(size, (int, float)):
        size_cell = Cell(mebibytes(size), value=size / 2**20)
    else:
        size_cell = notes.missing("The size of this engine was not recorded.")
    if isinstance(build_s, (int, float)):
        time_cell = Cell(seconds(build_s), value=build_s)
    else:
        time_cell = notes.missing("No build time was recorded.")
    status = row.stage.status if row.stage else "ok"
    badge = {"ok": "pass", "built-not-run": "inconclusive"}.get(status, "fail")
    return [
        Cell(row.name, href=links.to(f"{row.path}.json") if row.stage and row.path else None),
        Cell(row.backend or DASH),
        Cell(_target(row)),
        size_cell,
        time_cell,
        Cell(DASH if row.stage is None else "yes" if row.stage.cached else "no"),
        Cell(STATUS_WORDS[status], badge=badge),
    ]


def _target(row: EngineRow) -> str:
    targets = manifest_part(row.stage, "settings").get("targets") or []
    if isinstance(targets, (list, tuple)) and targets:
        return ", ".join(str(t) for t in targets)
    device = manifest_part(row.stage, "device")
    for key in ("name", "gpu", "cpu", "model"):
        if isinstance(device.get(key), str):
            return str(device[key])
    return DASH if row.stage and not row.stage.manifest else "this machine"


def stage_table(run: RunResult, links: Links) -> Table | None:
    """Every stage of the run."""
    if not run.stages:
        return None
    rows = []
    for stage in run.stages:
        file = Cell(DASH)
        if stage.file:
            file = Cell(links.shown(stage.file), href=links.to(stage.file), code=True)
        badge = None if stage.status == "ok" else "inconclusive"
        cells = [
            Cell(stage.name, detail=stage.label if stage.label != stage.name else None),
            file,
            Cell(seconds(stage.seconds), value=stage.seconds),
            Cell("yes" if stage.cached else "no"),
            Cell(STATUS_WORDS[stage.status], badge="fail" if stage.status == "failed" else badge),
        ]
        rows.append(Row(cells, remark=stage.note))
    return Table(
        id="stages",
        caption="Stages of the run.",
        columns=[
            Column("Stage", numeric=False),
            Column("File", numeric=False),
            Column("Time", "s"),
            Column("From cache", numeric=False),
            Column("Status", numeric=False),
        ],
        rows=rows,
    )


def digest_table(run: RunResult, links: Links) -> Table | None:
    """Digests and content keys of the run's files and data."""
    rows = []
    if run.validate_:
        data = run.validate_.dataset
        rows.append(Row([Cell(f"data: {data.name}"), Cell(data.sha256, code=True), Cell(DASH)]))
    preprocessings: dict[str, None] = {}
    for stage in run.stages:
        manifest = stage.manifest or {}
        if stage.file and (manifest.get("sha256") or manifest.get("key")):
            name = Cell(links.shown(stage.file), href=links.to(f"{stage.file}.json"))
            digests = [
                Cell(str(manifest.get(k) or DASH), code=bool(manifest.get(k)))
                for k in ("sha256", "key")
            ]
            rows.append(Row([name, *digests]))
        preprocessing = manifest_part(stage, "preprocessing").get("sha256")
        if preprocessing:
            preprocessings[str(preprocessing)] = None
    rows += [Row([Cell("preprocessing"), Cell(d, code=True), Cell(DASH)]) for d in preprocessings]
    if not rows:
        return None
    return Table(
        id="digests",
        caption="Digests: equal contents have the same sha256; equal inputs and settings have the same "
        "content key.",
        columns=[
            Column("File", numeric=False),
            Column("sha256", numeric=False),
            Column("Content key", numeric=False),
        ],
        rows=rows,
    )


def libraries(run: RunResult) -> dict[str, str]:
    """Versions of the libraries that were used, from the environment and the manifests."""
    versions: dict[str, list[str]] = {}
    for part in (
        run.environment.get("libraries"),
        *(manifest_part(s, "libraries") for s in run.stages),
    ):
        for name, version in (part or {}).items() if isinstance(part, Mapping) else ():
            if version is None:
                continue  # not installed
            if str(version) not in versions.setdefault(str(name), []):
                versions[str(name)].append(str(version))
    return {name: ", ".join(versions[name]) for name in sorted(versions, key=str.lower)}


def library_table(run: RunResult) -> Table | None:
    """Library versions; several versions of one library mean that stages used different ones."""
    versions = libraries(run)
    if not versions:
        return None
    return Table(
        id="libraries",
        caption="Library versions.",
        columns=[Column("Library", numeric=False), Column("Version", numeric=False)],
        rows=[Row([Cell(name, code=True), Cell(version)]) for name, version in versions.items()],
    )


def environment_facts(run: RunResult) -> list[Fact]:
    """The environment as recorded, without the library versions."""
    return flatten(_without_libraries(run.environment))
