"""The verbs that judge: validate, bench, audits, and comparisons of what goes in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifacts import Artifact, Cache
from optimizer.progress import Progress

if TYPE_CHECKING:
    from optimizer.engines import Session
    from optimizer.evaluation.decoders import Difference
    from optimizer.precision.int8.halves import Moved
    from optimizer.results import Audit, BenchResult, LatencyBound, ProfileResult, ValidateResult

__all__ = [
    "audit_engine",
    "bench",
    "compare_decoders",
    "compare_halves",
    "load",
    "profile",
    "validate",
]


def audit_engine(engine: Artifact, *, min_share: float = 0.95) -> Audit:
    """Compare what was asked of an engine with what it computes, by the layers it told."""
    from optimizer.evaluation import audit_manifest

    return audit_manifest(engine.manifest, min_share)


def load(engine: Path | str, *, threads: int | None = None, device: str | None = None) -> Session:
    """Open an engine or a checkpoint; see `optimizer.engines.open_engine`."""
    from optimizer.engines import open_engine

    return open_engine(Path(engine), threads=threads, device=device)


def validate(
    engines: Sequence[Path | str],
    *,
    reference: str,
    data: str,
    max_drop_pp: float = 1.0,
    max_flips: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    layers: bool = False,
    arch: str | None = None,
    image_size: int | None = None,
    device: str | None = None,
    skip_bad_images: bool = False,
    workers: int | None = None,
    exported: Path | None = None,
    predictions: Path | None = None,
    min_share: float = 0.95,
    progress: Progress | None = None,
) -> ValidateResult:
    """Hold engines against the PyTorch reference, hop by hop, on the same images.

    Args:
        engines: Engines, graphs or checkpoints.
        reference: A model name or checkpoint, or the user's own FP32 ONNX file.
        data: Labelled images.
        max_drop_pp: Largest loss of top-1, percentage points.
        max_flips: Largest share of images whose class changes.
        limit: Take a stratified subset of this many images.
        seed: Decides the subset.
        batch: Images at a time.
        layers: Also look into the graphs, block by block.
        arch: Architecture of a checkpoint that does not say.
        image_size: Side of the reference's images, if it is not its own: what the engines were
            exported for.
        device: The GPU, ``cuda:1``, of those engines that run on one; ``None`` for the first.
        skip_bad_images: Leave out images that cannot be decoded instead of stopping.
        workers: Processes that decode image files; by default one a core, 0 decodes in this one.
        exported: The FP32 ONNX file between reference and graphs; found beside the engines if it
            is there.
        predictions: Where the per-image predictions go (``.npz``).
        min_share: For the precision audit of each engine.
        progress: Told of the steps.
    """
    from optimizer.data import open_dataset
    from optimizer.engines.placement import check_device, device_of
    from optimizer.evaluation import Chain
    from optimizer.evaluation import validate as room
    from optimizer.evaluation.chain import exported_beside
    from optimizer.models import load_model
    from optimizer.results import Gates

    source: Any = (
        Path(reference)
        if reference.endswith(".onnx")
        else load_model(reference, arch=arch, image_size=image_size)
    )
    paths = [Path(engine) for engine in engines]
    check_device(paths, device)
    chains = [
        Chain.of(path, model=exported or exported_beside(path), device=device_of(path, device))
        for path in paths
    ]
    return room(
        chains,
        source,
        open_dataset(
            data, limit=limit, seed=seed, skip_bad_images=skip_bad_images, workers=workers
        ),
        Gates(max_drop_pp=max_drop_pp, max_flips=max_flips),
        batch=batch,
        layers=layers,
        predictions=predictions,
        min_share=min_share,
        progress=progress,
    )


def bench(
    engines: Sequence[Path | str],
    *,
    batch: Sequence[int] = (1,),
    image_size: int | None = None,
    threads: int | Sequence[int] | None = None,
    device: str | None = None,
    streams: Sequence[int] = (1,),
    starts: int = 1,
    max_latency: LatencyBound | None = None,
    scenario: Sequence[str] = (),
    duration_s: float = 10.0,
    min_effect: float = 0.02,
    against: Path | str | None = None,
    seed: int = 0,
    raw_dir: Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure latency and throughput, interleaved and each engine in a process of its own.

    See `optimizer.profiling.bench.bench`.
    """
    from optimizer.profiling import bench as room

    return room(
        [Path(engine) for engine in engines],
        batches=tuple(batch),
        image_size=image_size,
        threads=threads,
        device=device,
        streams=tuple(streams),
        starts=starts,
        max_latency=max_latency,
        scenarios=tuple(scenario),
        duration_s=duration_s,
        min_effect=min_effect,
        against=Path(against) if against else None,
        seed=seed,
        raw_dir=raw_dir,
        progress=progress,
    )


def profile(
    engines: Sequence[Path | str],
    *,
    batch: int = 1,
    image_size: int | None = None,
    threads: int | None = None,
    duration_s: float = 5.0,
    device: str | None = None,
    roofs: bool = True,
    remeasure: bool = False,
    cache: Cache | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProfileResult:
    """Time engines layer by layer and hold them against this machine's measured ceilings.

    See `optimizer.profiling.profile`; ``cache`` is where the ceilings are kept, ``None`` for the
    user's own.
    """
    from optimizer.profiling import profile as room

    return room(
        [Path(engine) for engine in engines],
        batch=batch,
        image_size=image_size,
        threads=threads,
        duration_s=duration_s,
        device=device,
        roofs=roofs,
        remeasure=remeasure,
        cache=cache or Cache.default(),
        seed=seed,
        progress=progress,
    )


def compare_halves(
    graph: Path | str,
    *,
    calib: str,
    calib_images: int = 256,
    seed: int = 0,
    batch: int = 32,
    skip_bad_images: bool = False,
    workers: int | None = None,
    preprocessing_from: str | None = None,
    progress: Progress | None = None,
) -> list[Moved]:
    """Calibrate on two disjoint halves and compare; see `optimizer.precision.halves`."""
    from optimizer import precision
    from optimizer.data import open_dataset

    dataset = open_dataset(
        calib, limit=calib_images, seed=seed, skip_bad_images=skip_bad_images, workers=workers,
        labelled=False,
    )  # fmt: skip
    return precision.halves(
        Path(graph), dataset, batch=batch,
        preprocessing_from=preprocessing_from, progress=progress,
    )  # fmt: skip


def compare_decoders(
    data: str,
    *,
    model: str | None = None,
    arch: str | None = None,
    limit: int | None = 200,
    seed: int = 0,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
) -> list[Difference]:
    """Hold decoders and resizers against each other; see `optimizer.evaluation.decoders`.

    Without a model, the images go through ImageNet's usual preprocessing.
    """
    from optimizer.data import Preprocessing, open_dataset
    from optimizer.evaluation.decoders import compare_decoders as compare
    from optimizer.models import load_model

    dataset = open_dataset(
        data, limit=limit, seed=seed, skip_bad_images=skip_bad_images, labelled=False
    )
    if skip_bad_images:
        dataset = dataset.verify()
    loaded = None if model is None else load_model(model, arch=arch)
    preprocessing = Preprocessing.imagenet() if loaded is None else loaded.preprocessing
    return compare(dataset, preprocessing, model=loaded, progress=progress)
