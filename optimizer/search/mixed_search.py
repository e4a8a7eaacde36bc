"""Mixed-precision search: `search` finds the encodings, `judge` validates the resulting graph.

It uses three disjoint sets of images: one to calibrate and rank the layers, one to search on, and one
to validate the result. The result is written to ``<output stem>.search.json`` after the search, and
again with the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    Plan,
    UnfinishedWork,
    library_versions,
    produce,
)
from optimizer.data import ImageDataset, Preprocessing, open_dataset, shared_images
from optimizer.engines.registry import get_backend
from optimizer.errors import GraphError, UsageError
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.importing import load_graph
from optimizer.options import Conversion, EncodingOptions, QuantizeOptions
from optimizer.precision import calibrate, quantize
from optimizer.precision.conversion import rules_with
from optimizer.precision.int8 import Statistics
from optimizer.precision.int8.encode import REVISION
from optimizer.precision.int8.encodings import SCHEMA_VERSION
from optimizer.progress import Progress, Silent
from optimizer.results import (
    FrontPoint,
    Gates,
    LayerSensitivity,
    SearchResult,
    ValidateResult,
    read_result,
    write_result,
)
from optimizer.search.cost import Costs
from optimizer.search.layer_timing import costs_of, timed_graphs
from optimizer.search.search_tasks import SearchTask, search_task
from optimizer.search.sensitivity import Sensitivity, rank
from optimizer.search.split import split_images
from optimizer.search.variants import Variants
from optimizer.search.walk import Point, SearchImages, Walk
from optimizer.targets.rules import TargetRules

__all__ = ["check_disjoint", "judge", "mixed", "open_search_images", "search", "search_path"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy", "torch", "openvino")
_BATCH = 32
_REVISION = 1
"""Raised when the same search would go another way than one that was interrupted."""


def open_search_images(options: Conversion) -> ImageDataset:
    """Check the options and open the images for calibration and search.

    Args:
        options: ``calib`` has the images for calibration and search; ``data`` is only checked to
            have no images in common with them; ``stats`` and ``encodings`` are rejected.

    Raises:
        UsageError: Images are missing, the two sets overlap, or an option does not apply.
    """
    calib, data, unusable = options.calib, options.data, options.encodings or options.stats
    if unusable is not None:
        raise UsageError(
            f"a search calibrates and searches on --calib and cannot use {unusable}",
            hint="leave it out, or use --precision int8, which accepts statistics, encodings and --keep",
        )
    if calib is None:
        raise UsageError(
            "a search needs images", hint="use --calib digits:train, a folder or file.npz"
        )
    if data is None:
        raise UsageError(
            "a search needs other images to validate its result",
            hint="use --data digits:test, a folder or file.npz",
        )
    skip = options.skip_bad_images
    labels_from = options.labels_from
    dataset = open_dataset(
        calib, skip_bad_images=skip, workers=options.workers, labels_from=labels_from
    )
    if skip:
        dataset = dataset.verify()
    validation = open_dataset(data, labels_from=labels_from)
    for part in split_images(dataset, options.calib_images):
        check_disjoint(part, validation)
    return dataset


def mixed(
    graph: Path,
    output: Path,
    dataset: ImageDataset,
    options: QuantizeOptions,
    *,
    result: Path,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Search, and write the resulting graph and its encodings next to it.

    Args:
        graph: The FP32 graph.
        output: Path of the graph (``.onnx``).
        dataset: Labelled images for calibration and search, from `open_search_images`.
        options: The target, the budget (``max_drop``), the number of calibration images, and the
            passes that compute the encodings; layers in ``keep`` are always kept.
        result: Path of the `SearchResult`.
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        DataError, GraphError, UsageError: As `search`.
    """
    encodings = search(
        graph,
        output.with_name(f"{output.stem}.encodings.json"),
        dataset,
        options,
        result=result,
        cache=cache,
        progress=progress,
    )
    return quantize(
        graph,
        output,
        precision="int8",
        target=options.target,
        encodings=str(encodings.path),
        high_precision=options.high_precision,
        cache=cache,
        progress=progress,
    )


def search_path(output: Path) -> Path:
    """Path of the search result next to an engine or graph."""
    return output.with_name(f"{output.stem}.search.json")


def check_disjoint(calib: ImageDataset, data: ImageDataset) -> None:
    """Reject validation images that calibration or the search uses.

    Raises:
        UsageError: The two have images in common.
    """
    shared = shared_images(calib, data)
    if shared:
        raise UsageError(
            f"{shared} of the {len(data)} images of {data.name} are also in {calib.name}",
            hint="leave out --calib to calibrate on one part of the data and validate on the rest, or use "
            "--data with images that neither calibration nor the search uses",
        )


def search(
    graph: Path,
    output: Path,
    dataset: ImageDataset,
    options: QuantizeOptions,
    *,
    result: Path,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Find the fastest graph within an accuracy budget, and write its encodings.

    Args:
        graph: The FP32 graph.
        output: Path of the encodings (``.encodings.json``).
        dataset: Labelled images, which are split for calibration and search.
        options: As in `mixed`.
        result: Path of the `SearchResult` (``.search.json``).
        cache: Artifact cache.
        progress: Receives progress updates.

    Raises:
        DataError: Too few images.
        GraphError: The graph cannot be quantized or simulated.
        UsageError: The labels do not fit the graph, or an option does not apply to a search.
    """
    facts = graph_facts(graph)
    preprocessing = _preprocessing(graph, facts)
    task = search_task(facts, preprocessing, _gates(options))
    calibration, search_images = map(task.matched, split_images(dataset, options.calib_images))
    statistics = calibrate(
        graph,
        calibration,
        output.with_name(f"{graph.stem}.stats.npz"),
        cache=cache,
        progress=progress,
    )
    job = _Search(
        graph=graph,
        facts=facts,
        rules=rules_with(options.target, options.high_precision),
        passes=options.of_kind(EncodingOptions),
        task=task,
        max_drop_pp=options.max_drop,
        statistics=statistics.path,
        calibration_images=len(calibration),
        search_images=search_images,
        preprocessing=preprocessing,
        cache=cache,
        progress=progress or Silent(),
    )
    artifact = produce(job.plan(), output, job.write, cache=cache)
    write_result(SearchResult.model_validate(artifact.manifest.details["search"]), result)
    job.work.clear()
    return artifact


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One search: everything that its result depends on."""

    graph: Path
    facts: GraphFacts
    rules: TargetRules
    passes: EncodingOptions
    task: SearchTask
    max_drop_pp: float
    statistics: Path
    calibration_images: int
    search_images: ImageDataset
    preprocessing: Preprocessing
    cache: Cache | None
    progress: Progress

    @cached_property
    def work(self) -> UnfinishedWork:
        """What this search has stored, if it was interrupted."""
        root = None if self.cache is None else self.cache.lasting_folder("searches")
        return UnfinishedWork(root, [self.plan().key, SCHEMA_VERSION, _REVISION])

    def plan(self) -> Plan:
        on_cpu = self.rules.name == "openvino"  # its layers are timed on this machine
        return Plan(
            kind="encodings",
            settings={
                "target": self.rules.name,
                "rules": asdict(self.rules),
                "options": self.passes.model_dump(mode="json"),
                "passes": REVISION,
                "search": self.task.settings,
            },
            inputs=[
                Input.of("model", self.graph),
                Input.of("statistics", self.statistics),
                Input(
                    role="search", file=self.search_images.name, sha256=self.search_images.sha256
                ),
            ],
            libraries=library_versions(*_LIBRARIES),
            device=get_backend("openvino").device() if on_cpu else None,
        )

    def write(self, path: Path) -> dict[str, Any]:
        """Search, and write the encodings of the chosen graph."""
        variants, split, costs = self._prepared()
        walk = Walk(variants, split, self.task.budget, costs)
        ranked, chosen = _run(walk, variants, self.progress)
        chosen.encodings.save(path)
        timed_ms = timed_graphs(self.graph, self.facts, variants, costs, chosen)
        result = SearchResult(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            graph=self.graph.name,
            target=self.rules.name,
            max_drop_pp=self.max_drop_pp,
            cost_source=costs.source,
            cost_reason=costs.reason,
            int8_ms=costs.predict(()),
            high_ms=costs.predict(variants.layers),
            timed_ms=timed_ms,
            calibration_images=self.calibration_images,
            search_images=len(self.search_images),
            sensitivity=[_layer_sensitivity(entry, costs, variants) for entry in ranked],
            front=[_front_point(point, walk.front, variants) for point in walk.front],
            chosen=walk.front.index(chosen),
            finding=_finding(chosen, walk.front[0], variants, costs, timed_ms),
        )
        return {"search": result.model_dump(mode="json")}

    def _prepared(self) -> tuple[Variants, SearchImages, Costs]:
        """The variants of the graph, the FP32 outputs on the search images, and the layer costs."""
        self.progress.start(f"prepare the search for {self.rules.name}", total=3)
        variants = Variants(
            load_graph(self.graph),
            Statistics.load(self.statistics),
            self.rules,
            Input.of("model", self.graph).sha256,
            self.passes,
            self.work,
        )
        self.progress.advance(note="FP32 outputs")
        as_uint8 = self.facts.input_dtype == "uint8"
        batches = self.search_images.batches(_BATCH, self.preprocessing, as_uint8=as_uint8)
        images = [batch.images for batch in batches]
        split = self.task.images(variants, images, self.search_images)
        self.progress.advance(note="layer times")
        costs = costs_of(self.graph, self.facts, variants, self.cache, self.progress)
        self.progress.advance()
        self.progress.finish(f"{costs.source} {costs.predict(()):.3g} ms per image in INT8")
        return variants, split, costs


def judge(
    file: Path,
    graph: Path,
    result: Path,
    options: Conversion,
    *,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> ValidateResult:
    """Compare the resulting graph with the FP32 graph on images that the search did not use.

    Args:
        file: The engine, or the graph if no engine is built.
        graph: The FP32 graph.
        result: Path of the `SearchResult`; the verdict is added to it.
        options: ``data`` names the labelled images.
        cache: Where predictions are stored; ``None`` for the user's cache.
        progress: Receives progress updates.
    """
    from optimizer.evaluation import Chain, validate
    from optimizer.evaluation.stored_predictions import open_stores

    search_result = read_result(result)
    assert isinstance(search_result, SearchResult)
    dataset = open_dataset(
        str(options.data),
        skip_bad_images=options.skip_bad_images,
        workers=options.workers,
        labels_from=options.labels_from,
    )
    with open_stores(cache or Cache.default(), options.cache_limit) as stores:
        verdict = validate(
            [Chain.of(file, model=graph)],
            graph,
            dataset,
            _gates(options).model_copy(update={"max_drop_pp": search_result.max_drop_pp}),
            stores=stores,
            progress=progress,
        )
    write_result(search_result.model_copy(update={"validation": verdict}), result)
    return verdict


def _gates(options: Conversion) -> Gates:
    return Gates(
        max_drop_pp=options.max_drop,
        max_lost=options.max_lost,
        score_threshold=options.score_threshold,
    )


def _preprocessing(graph: Path, facts: GraphFacts) -> Preprocessing:
    if facts.preprocessing is None:
        raise GraphError(
            f"{graph.name} does not state its preprocessing",
            hint="export it with resnet-opt export",
        )
    return Preprocessing.from_dict(facts.preprocessing)


def _run(walk: Walk, variants: Variants, progress: Progress) -> tuple[list[Sensitivity], Point]:
    """Rank the layers and search, unless the first graph is already within the budget."""
    first = walk.start()
    if first.inside:
        return [], first
    progress.start("rank layers", total=len(variants.layers) - len(variants.start))
    ranked = rank(variants, progress.advance)
    notes = [f"{ranked[0].layer} is the most sensitive"] if ranked else []
    if measured := variants.work.found["sqnr"]:
        notes.append(f"measurements stored before: {measured}")
    progress.finish("; ".join(notes))
    progress.start("search")

    def advance(point: Point) -> None:
        progress.advance(note=f"{len(point.kept)} kept, {point.measured.counts.changed} changes")

    chosen = walk.run(ranked, advance)
    notes = [f"{len(chosen.kept)} of {len(variants.layers)} layers kept"]
    if evaluated := variants.work.found["outputs"]:
        notes.append(f"graphs evaluated before: {evaluated}")
    if variants.work.error is not None:
        notes.append(f"what is complete cannot be stored: {variants.work.error}")
    progress.finish("; ".join(notes))
    return ranked, chosen


def _layer_sensitivity(measured: Sensitivity, costs: Costs, variants: Variants) -> LayerSensitivity:
    kept = variants.start | {measured.layer}
    gain = measured.sqnr - measured.baseline
    return LayerSensitivity(
        layer=measured.layer,
        sqnr_db=_finite(measured.sqnr),
        gain_db=_finite(gain),
        cost_ms=costs.predict(kept) - costs.predict(variants.start),
    )


def _finite(db: float) -> float | None:
    return db if abs(db) != float("inf") else None


def _front_point(point: Point, front: Sequence[Point], variants: Variants) -> FrontPoint:
    counts = point.measured.counts
    return FrontPoint(
        kept=variants.in_order(point.kept),
        sqnr_db=_finite(point.measured.db),
        flips=counts.changed,
        losses=counts.losses,
        gains=counts.gains,
        expected_flips=point.measured.expected_changes,
        drop_upper_pp=point.measured.drop_upper_pp,
        predicted_ms=point.predicted_ms,
        inside=point.inside,
        dominated=any(_dominates(other, point) for other in front if other is not point),
    )


def _dominates(a: Point, b: Point) -> bool:
    """Whether ``a`` is at least as good as ``b`` in time and SQNR, and better in one of them."""
    ours, theirs = ((-point.predicted_ms, point.measured.db) for point in (a, b))
    return all(x >= y for x, y in zip(ours, theirs, strict=True)) and ours != theirs


def _finding(
    chosen: Point,
    first: Point,
    variants: Variants,
    costs: Costs,
    timed_ms: tuple[float, float, float] | None,
) -> str:
    total, changes = len(variants.layers), chosen.measured.words
    if chosen is first:
        kind = (
            f"{len(first.kept)} of {total} layers kept as requested" if first.kept else "all-INT8"
        )
        return f"the graph is already within the budget ({kind}): {changes}"
    names = variants.in_order(chosen.kept)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    how = "timed" if timed_ms else "predicted by the model"
    low, mix, high = timed_ms or (
        costs.predict(()),
        chosen.predicted_ms,
        costs.predict(variants.layers),
    )
    return (
        f"{len(names)} of {total} layers kept ({listed}): {changes} instead of "
        f"{first.measured.counts.changed}; {how} {mix:.3g} ms per image, all-INT8 {low:.3g}, "
        f"all-{variants.rules.high_precision.upper()} {high:.3g}"
    )
