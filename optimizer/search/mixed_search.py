"""The room's stages: `search` finds the encodings of a mixed graph, `judge` has the last word.

Three sets of images that share none: one calibrates and ranks the layers, one is walked on, and one
judges what comes out. The result is written as ``<output stem>.search.json`` after the search and
again with the verdict in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.data import ImageDataset, Preprocessing, check_fits, open_dataset, shared_images
from optimizer.engines.registry import get_backend
from optimizer.errors import GraphError, UsageError
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.importing import load_graph
from optimizer.options import Conversion, EncodingOptions, QuantizeOptions
from optimizer.precision import calibrate, quantize
from optimizer.precision.conversion import rules_with
from optimizer.precision.int8 import Statistics
from optimizer.precision.int8.encode import REVISION
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
from optimizer.search.layer_timing import costs_of, timed_wholes
from optimizer.search.sensitivity import Sensitivity, rank
from optimizer.search.split import Budget, Split, divided
from optimizer.search.variants import Variants
from optimizer.search.walk import Point, Walk
from optimizer.targets.rules import TargetRules

__all__ = ["check_data", "images_for", "judge", "mixed", "search", "search_path"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy", "torch", "openvino")
_BATCH = 32


def images_for(options: Conversion) -> ImageDataset:
    """Open the images that calibrate and are searched on, after a look at the options.

    Args:
        options: ``calib`` to calibrate with and to search on; ``data`` only to make sure that the
            images that will judge are others; ``stats`` and ``encodings``, which a search cannot use.

    Raises:
        UsageError: Images are missing or not apart from each other.
    """
    calib, data, ready = options.calib, options.data, options.encodings or options.stats
    if ready is not None:
        raise UsageError(
            f"a search calibrates on a part of --calib and walks on the rest, not on {ready}",
            hint="leave it out; --precision int8 takes statistics and encodings, kept layers too",
        )
    if calib is None:
        raise UsageError("a search needs images", hint="--calib digits:train, a folder or file.npz")
    if data is None:
        raise UsageError(
            "a search needs other images to judge what it finds",
            hint="--data digits:test, a folder or file.npz",
        )
    skip = options.skip_bad_images
    dataset = open_dataset(calib, skip_bad_images=skip, workers=options.workers)
    if skip:
        dataset = dataset.verify()
    judging = open_dataset(data)
    for seen in divided(dataset, options.calib_images):
        check_data(seen, judging)
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
    """Search, and write the graph that was found; its encodings lie beside it.

    Args:
        graph: The FP32 graph.
        output: Where the graph goes (``.onnx``).
        dataset: Labelled images to calibrate with and to search on, from `images_for`.
        options: The target, the budget (``max_drop``), how many images calibrate, and the passes
            that compute the encodings; layers that they keep are kept in any case.
        result: Where the `SearchResult` goes.
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

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
    """Where the result lies beside an engine or a graph."""
    return output.with_name(f"{output.stem}.search.json")


def check_data(calib: ImageDataset, data: ImageDataset) -> None:
    """Refuse to judge on images that calibrated, or that a search has seen.

    Raises:
        UsageError: The two have images in common.
    """
    shared = shared_images(calib, data)
    if shared:
        raise UsageError(
            f"{shared} of the {len(data)} images of {data.name} are in {calib.name} too",
            hint="leave out --calib, then a part of the data calibrates and the rest judges; or give "
            "--data images that neither calibration nor the search has seen",
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
    """Find the fastest graph whose accuracy stays inside a budget, and write its encodings.

    Args:
        graph: The FP32 graph.
        output: Where the encodings go (``.encodings.json``).
        dataset: Labelled images to calibrate with and to search on; they are divided.
        options: As for `mixed`.
        result: Where the `SearchResult` goes (``.search.json``).
        cache: Where artifacts are kept by key.
        progress: Where steps are reported.

    Raises:
        DataError: Too few images.
        GraphError: The graph cannot be quantized or simulated.
        UsageError: Labels that do not fit the graph, or options a search cannot use.
    """
    facts = graph_facts(graph)
    preprocessing = _preprocessing(graph, facts)
    calibration, walked = (
        check_fits(part, int(facts.output_shape[1] or 0), facts.classes)
        for part in divided(dataset, options.calib_images)
    )
    statistics = calibrate(
        graph,
        calibration,
        result.with_name(f"{graph.stem}.stats.npz"),
        cache=cache,
        progress=progress,
    )
    job = _Search(
        graph=graph,
        facts=facts,
        rules=rules_with(options.target, options.high_precision),
        passes=options.of_kind(EncodingOptions),
        max_drop_pp=options.max_drop,
        statistics=statistics.path,
        calibration_images=len(calibration),
        walked=walked,
        preprocessing=preprocessing,
        cache=cache,
        progress=progress or Silent(),
    )
    made = produce(job.plan(), output, job.write, cache=cache)
    write_result(SearchResult.model_validate(made.manifest.details["search"]), result)
    return made


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One search: everything that decides what it finds."""

    graph: Path
    facts: GraphFacts
    rules: TargetRules
    passes: EncodingOptions
    max_drop_pp: float
    statistics: Path
    calibration_images: int
    walked: ImageDataset
    preprocessing: Preprocessing
    cache: Cache | None
    progress: Progress

    def plan(self) -> Plan:
        on_cpu = self.rules.name == "openvino"  # its layers are timed on this machine
        return Plan(
            kind="encodings",
            settings={
                "target": self.rules.name,
                "rules": asdict(self.rules),
                "options": self.passes.model_dump(mode="json"),
                "passes": REVISION,
                "search": {"max_drop_pp": self.max_drop_pp},
            },
            inputs=[
                Input.of("model", self.graph),
                Input.of("statistics", self.statistics),
                Input(role="search", file=self.walked.name, sha256=self.walked.sha256),
            ],
            libraries=library_versions(*_LIBRARIES),
            device=get_backend("openvino").device() if on_cpu else None,
        )

    def write(self, path: Path) -> dict[str, Any]:
        """Search, and write the encodings of the graph that was chosen."""
        variants, split, costs = self._prepared()
        walk = Walk(variants, split, Budget(self.max_drop_pp), costs)
        ranked, chosen = _found(walk, variants, self.progress)
        chosen.encodings.save(path)
        timed_ms = timed_wholes(self.graph, self.facts, variants, costs, chosen)
        found = SearchResult(
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
            search_images=len(self.walked),
            sensitivity=[_sensitivity(one, costs, variants) for one in ranked],
            front=[_front_point(point, walk.front, variants) for point in walk.front],
            chosen=walk.front.index(chosen),
            finding=_finding(chosen, walk.front[0], variants, costs, timed_ms),
        )
        return {"search": found.model_dump(mode="json")}

    def _prepared(self) -> tuple[Variants, Split, Costs]:
        """The variants of the graph, the FP32 answers on the images, and what layers cost."""
        self.progress.start(f"prepare the search for {self.rules.name}", total=3)
        variants = Variants(
            load_graph(self.graph),
            Statistics.load(self.statistics),
            self.rules,
            Input.of("model", self.graph).sha256,
            self.passes,
        )
        self.progress.advance(note="FP32 answers")
        pixels = self.facts.input_dtype == "uint8"
        batches = self.walked.batches(_BATCH, self.preprocessing, as_uint8=pixels)
        images = [batch.images for batch in batches]
        split = Split(variants.simulation, variants.base, images, self.walked.labels)
        self.progress.advance(note="times of the layers")
        costs = costs_of(self.graph, self.facts, variants, self.cache, self.progress)
        self.progress.advance()
        self.progress.finish(f"{costs.source} {costs.predict(()):.3g} ms an image in INT8")
        return variants, split, costs


def judge(
    file: Path,
    graph: Path,
    result: Path,
    options: Conversion,
    *,
    progress: Progress | None = None,
) -> ValidateResult:
    """Compare what was found with the FP32 graph on images that the search never saw.

    Args:
        file: The engine, or the graph where none is built.
        graph: The FP32 graph.
        result: The `SearchResult`; the verdict is added to it.
        options: ``data`` is the name of the labelled images.
        progress: Where every batch is reported.
    """
    from optimizer.evaluation import Chain, validate

    said = read_result(result)
    assert isinstance(said, SearchResult)
    verdict = validate(
        [Chain.of(file, model=graph)],
        graph,
        open_dataset(
            str(options.data), skip_bad_images=options.skip_bad_images, workers=options.workers
        ),
        Gates(max_drop_pp=said.max_drop_pp),
        progress=progress,
    )
    write_result(said.model_copy(update={"validation": verdict}), result)
    return verdict


def _preprocessing(graph: Path, facts: GraphFacts) -> Preprocessing:
    if facts.preprocessing is None:
        raise GraphError(
            f"{graph.name} does not say which preprocessing it expects",
            hint="export it with resnet-opt export",
        )
    return Preprocessing.from_dict(facts.preprocessing)


def _found(walk: Walk, variants: Variants, progress: Progress) -> tuple[list[Sensitivity], Point]:
    """Walk if there is a need to."""
    first = walk.start()
    if first.inside:
        return [], first
    progress.start("rank layers", total=len(variants.layers) - len(variants.start))
    ranked = rank(variants, progress.advance)
    progress.finish(f"{ranked[0].layer} is the most sensitive" if ranked else None)
    progress.start("search")

    def advance(point: Point) -> None:
        progress.advance(note=f"{len(point.kept)} kept, {point.measured.tally.flips} flips")

    chosen = walk.run(ranked, advance)
    progress.finish(f"{len(chosen.kept)} of {len(variants.layers)} layers kept")
    return ranked, chosen


def _sensitivity(one: Sensitivity, costs: Costs, variants: Variants) -> LayerSensitivity:
    kept = variants.start | {one.layer}
    gain = one.sqnr - one.without
    return LayerSensitivity(
        layer=one.layer,
        sqnr_db=_finite(one.sqnr),
        gain_db=_finite(gain),
        cost_ms=costs.predict(kept) - costs.predict(variants.start),
    )


def _finite(db: float) -> float | None:
    return db if abs(db) != float("inf") else None


def _front_point(point: Point, front: Sequence[Point], variants: Variants) -> FrontPoint:
    tally = point.measured.tally
    return FrontPoint(
        kept=variants.in_order(point.kept),
        sqnr_db=tally.noise.db,
        flips=tally.flips,
        losses=tally.losses,
        gains=tally.gains,
        expected_flips=point.measured.flips,
        drop_upper_pp=point.measured.drop_upper_pp,
        predicted_ms=point.predicted_ms,
        inside=point.inside,
        dominated=any(_dominates(other, point) for other in front if other is not point),
    )


def _dominates(one: Point, other: Point) -> bool:
    """At least as fast and as clean, and better in one of the two."""
    mine, theirs = ((-point.predicted_ms, point.measured.db) for point in (one, other))
    return all(a >= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def _finding(
    chosen: Point,
    first: Point,
    variants: Variants,
    costs: Costs,
    timed_ms: tuple[float, float, float] | None,
) -> str:
    tally, total = chosen.measured.tally, len(variants.layers)
    answers = f"{tally.flips} of {tally.n} images of the search change class"
    if chosen is first:
        whole = f"{len(first.kept)} of {total} layers kept as asked" if first.kept else "all-INT8"
        return f"the {whole} graph is inside the budget already: {answers}"
    names = variants.in_order(chosen.kept)
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    told = "timed" if timed_ms else "by the model"
    low, mix, high = timed_ms or (
        costs.predict(()),
        chosen.predicted_ms,
        costs.predict(variants.layers),
    )
    return (
        f"{len(names)} of {total} layers kept ({some}): {answers} instead of "
        f"{first.measured.tally.flips}; {told} {mix:.3g} ms an image, all-INT8 {low:.3g}, "
        f"all-{variants.rules.high_precision.upper()} {high:.3g}"
    )
