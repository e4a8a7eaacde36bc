"""The room's stages: `search` finds the encodings of a mixed graph, `judge` has the last word.

Three sets of images that share none: one calibrates and ranks the layers, one is walked on, and one
judges what comes out. The result is written as ``<output stem>.search.json`` after the search and
again with the verdict in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.artifacts import Artifact, Cache, Input, Plan, library_versions, produce
from optimizer.data import ImageDataset, Preprocessing, check_fits, open_dataset, shared_images
from optimizer.engines.registry import get_backend
from optimizer.errors import GraphError, UsageError
from optimizer.graphs.facts import GraphFacts, graph_facts
from optimizer.graphs.importing import load_graph
from optimizer.precision import calibrate, quantize
from optimizer.precision.int8 import EncodingOptions, Statistics
from optimizer.precision.int8.encode import REVISION
from optimizer.precision.stages import rules_with
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
from optimizer.search.sensitivity import Sensitivity, rank
from optimizer.search.split import Budget, Split, divided
from optimizer.search.timing import costs_of, timed_wholes
from optimizer.search.variants import Variants
from optimizer.search.walk import Point, Walk
from optimizer.targets.rules import TargetRules

__all__ = ["check_data", "images_for", "judge", "mixed", "search", "search_path"]

_LIBRARIES = ("onnx", "onnx-ir", "numpy", "torch", "openvino")
_BATCH = 32


def images_for(
    calib: str | None,
    data: str | None,
    ready: Path | str | None,
    *,
    calib_images: int = 256,
    skip_bad_images: bool = False,
    workers: int | None = None,
) -> ImageDataset:
    """Open the images that calibrate and are searched on, after a look at what was asked.

    Args:
        calib: Images to calibrate with and to search on.
        data: Images that will judge; here only to make sure that they are others.
        ready: Statistics or encodings, which a search cannot use.
        calib_images: How many of ``calib`` calibrate.
        skip_bad_images: Leave out calibration images that cannot be decoded.
        workers: Processes that decode image files; by default one a core.

    Raises:
        UsageError: Images are missing or not apart from each other.
    """
    if ready is not None:
        raise UsageError(
            f"a search calibrates on a part of --calib and walks on the rest, not on {ready}",
            mend="leave it out; --precision int8 takes statistics and encodings, kept layers too",
        )
    if calib is None:
        raise UsageError("a search needs images", mend="--calib digits:train, a folder or file.npz")
    if data is None:
        raise UsageError(
            "a search needs other images to judge what it finds",
            mend="--data digits:test, a folder or file.npz",
        )
    dataset = open_dataset(calib, skip_bad_images=skip_bad_images, workers=workers)
    if skip_bad_images:
        dataset = dataset.verify()
    judging = open_dataset(data)
    for seen in divided(dataset, calib_images):
        check_data(seen, judging)
    return dataset


def mixed(
    graph: Path,
    output: Path,
    dataset: ImageDataset,
    *,
    target: str,
    result: Path,
    max_drop_pp: float = 1.0,
    calib_images: int = 256,
    options: EncodingOptions | None = None,
    high_precision: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Search, and write the graph that was found; its encodings lie beside it.

    Args:
        graph: The FP32 graph.
        output: Where the graph goes (``.onnx``).
        dataset: Labelled images to calibrate with and to search on, from `images_for`.
        target: Whose rules the graph follows.
        result: Where the `SearchResult` goes.
        max_drop_pp: Largest loss of top-1, percentage points.
        calib_images: How many images calibrate.
        options: Passes that compute the encodings; layers that they keep are kept in any case.
        high_precision: ``fp16`` or ``fp32`` around INT8; ``None`` for the target's own.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        DataError, GraphError, UsageError: As `search`.
    """
    encodings = search(
        graph,
        output.with_name(f"{output.stem}.encodings.json"),
        rules_with(target, high_precision),
        dataset,
        max_drop_pp=max_drop_pp,
        result=result,
        calib_images=calib_images,
        options=options,
        cache=cache,
        progress=progress,
    )
    return quantize(
        graph,
        output,
        precision="int8",
        target=target,
        encodings=encodings.path,
        high_precision=high_precision,
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
            mend="leave out --calib, then a part of the data calibrates and the rest judges; or give "
            "--data images that neither calibration nor the search has seen",
        )


def search(
    graph: Path,
    output: Path,
    rules: TargetRules,
    dataset: ImageDataset,
    *,
    max_drop_pp: float,
    result: Path,
    calib_images: int = 256,
    options: EncodingOptions | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Find the fastest graph whose accuracy stays inside a budget, and write its encodings.

    Args:
        graph: The FP32 graph.
        output: Where the encodings go (``.encodings.json``).
        rules: The target's rules.
        dataset: Labelled images to calibrate with and to search on; they are divided.
        max_drop_pp: Largest loss of top-1, percentage points.
        result: Where the `SearchResult` goes (``.search.json``).
        calib_images: How many of the images calibrate.
        options: Passes that compute the encodings; layers that they keep are kept in any case.
        cache: Where artifacts are kept by key.
        progress: Told of the steps.

    Raises:
        DataError: Too few images.
        GraphError: The graph cannot be quantized or simulated.
        UsageError: Labels that do not fit the graph, or options a search cannot use.
    """
    facts = graph_facts(graph)
    preprocessing = _preprocessing(graph, facts)
    calibration, walked = (
        check_fits(part, int(facts.output_shape[1] or 0), facts.classes)
        for part in divided(dataset, calib_images)
    )
    progress = progress or Silent()
    options = options or EncodingOptions()
    statistics = calibrate(
        graph,
        calibration,
        result.with_name(f"{graph.stem}.stats.npz"),
        cache=cache,
        progress=progress,
    )
    plan = Plan(
        kind="encodings",
        settings={
            "target": rules.name,
            "rules": asdict(rules),
            "options": asdict(options),
            "passes": REVISION,
            "search": {"max_drop_pp": max_drop_pp},
        },
        inputs=[
            Input.of("model", graph),
            Input.of("statistics", statistics.path),
            Input(role="search", file=dataset.name, sha256=walked.sha256),
        ],
        libraries=library_versions(*_LIBRARIES),
        device=get_backend("openvino").device() if rules.name == "openvino" else None,
    )

    def write(path: Path) -> dict[str, Any]:
        progress.start(f"prepare the search for {rules.name}", total=3)
        variants = Variants(
            load_graph(graph),
            Statistics.load(statistics.path),
            rules,
            plan.inputs[0].sha256,
            options,
        )
        progress.advance(note="FP32 answers")
        images = [
            batch.images
            for batch in walked.batches(
                _BATCH, preprocessing, as_uint8=facts.input_dtype == "uint8"
            )
        ]
        split = Split(variants.simulation, variants.base, images, walked.labels)
        progress.advance(note="times of the layers")
        costs = costs_of(graph, facts, variants, cache, progress)
        progress.advance()
        progress.finish(f"{costs.source} {costs.predict(()):.3g} ms an image in INT8")
        walk = Walk(variants, split, Budget(max_drop_pp), costs)
        ranked, chosen = _found(walk, variants, progress)
        chosen.encodings.save(path)
        timed_ms = timed_wholes(graph, facts, variants, costs, chosen)
        said = SearchResult(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            graph=graph.name,
            target=rules.name,
            max_drop_pp=max_drop_pp,
            cost_source=costs.source,
            cost_reason=costs.reason,
            int8_ms=costs.predict(()),
            high_ms=costs.predict(variants.layers),
            timed_ms=timed_ms,
            calibration_images=len(calibration),
            search_images=len(walked),
            sensitivity=[_sensitivity(one, costs, variants) for one in ranked],
            front=[_front_point(point, walk.front, variants) for point in walk.front],
            chosen=walk.front.index(chosen),
            finding=_finding(chosen, walk.front[0], variants, costs, timed_ms),
        )
        return {"search": said.model_dump(mode="json")}

    made = produce(plan, output, write, cache=cache)
    write_result(SearchResult.model_validate(made.manifest.details["search"]), result)
    return made


def judge(
    file: Path,
    graph: Path,
    result: Path,
    data: str,
    *,
    skip_bad_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ValidateResult:
    """Hold what was found against the FP32 graph on images that the search never saw.

    Args:
        file: The engine, or the graph where none is built.
        graph: The FP32 graph.
        result: The `SearchResult`; the verdict is added to it.
        data: Name of the labelled images.
        skip_bad_images: Leave out images that cannot be decoded instead of stopping.
        workers: Processes that decode image files; by default one a core.
        progress: Told of every batch.
    """
    from optimizer.evaluation import Chain, validate

    said = read_result(result)
    assert isinstance(said, SearchResult)
    verdict = validate(
        [Chain.of(file, model=graph)],
        graph,
        open_dataset(data, skip_bad_images=skip_bad_images, workers=workers),
        Gates(max_drop_pp=said.max_drop_pp),
        progress=progress,
    )
    write_result(said.model_copy(update={"validation": verdict}), result)
    return verdict


def _preprocessing(graph: Path, facts: GraphFacts) -> Preprocessing:
    if facts.preprocessing is None:
        raise GraphError(
            f"{graph.name} does not say which preprocessing it expects",
            mend="export it with resnet-opt export",
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
