"""The stages of the main job: each reads artifacts of earlier stages and writes its own."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.artifacts import (
    Artifact,
    Cache,
    Input,
    OutputFile,
    Plan,
    find_manifest,
    library_versions,
    produce,
    read_manifest,
)
from optimizer.errors import BuildError, EnvironmentFault, UnsupportedPrecision, UsageError
from optimizer.options import (
    AccuracyOptions,
    BenchOptions,
    BuildOptions,
    EncodingOptions,
    QuantizeOptions,
    ValidateOptions,
)
from optimizer.progress import Progress
from optimizer.recipe import BuildSection, CalibrateSection, Recipe
from optimizer.results import (
    Audit,
    BenchResult,
    Gates,
    StageRecord,
    ValidateResult,
    read_result,
    write_result,
)
from optimizer.verbs.bench import bench
from optimizer.verbs.build import build
from optimizer.verbs.calibrate import calibrate
from optimizer.verbs.export import export
from optimizer.verbs.planned_files import sample_files
from optimizer.verbs.pruned_network import PRUNED, NetworkPruning
from optimizer.verbs.quantize import quantize
from optimizer.verbs.train import train
from optimizer.verbs.validate import validate

if TYPE_CHECKING:
    from optimizer.data import ImageDataset
    from optimizer.engines import Backend

__all__ = ["Images", "Job", "Network"]

_LIBRARIES = (
    "torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy", "scipy",
)  # fmt: skip
ArtifactT = TypeVar("ArtifactT", bound=Artifact)


@dataclass(frozen=True)
class Images:
    """The images of a run.

    Attributes:
        calibration: Images for statistics; ``None`` if no engine needs them.
        pool: The images that ``calibration`` was drawn from; a search splits them again.
        held_out: Images for validation; disjoint from ``pool`` and ``training``.
        training: Images that a pruned network is tuned on; ``None`` if none is pruned.
    """

    calibration: ImageDataset | None
    pool: ImageDataset | None
    held_out: ImageDataset | None
    training: ImageDataset | None


@dataclass(frozen=True)
class Network:
    """A network that engines are built of.

    Attributes:
        name: First word of its engines' labels; empty for the network that the run starts from.
        checkpoint: Its weights.
        graph: Its FP32 graph.
        statistics: Its calibration statistics; ``None`` if no engine needs them.
    """

    name: str
    checkpoint: Artifact
    graph: Artifact
    statistics: Artifact | None


@dataclass
class Job:
    """One execution of a recipe, and its results so far.

    Attributes:
        recipe: The recipe.
        folder: The run folder.
        cache: Artifact cache; ``None`` for no cache.
        progress: Receives progress updates.
        force: Whether files that this package did not write, or that were edited, are replaced.
        stages: One record per stage.
        audits: Precision audits by engine file name.
        networks: What engines are built of; the first is the reference of the validation.
        engines: The engines that were built.
        runnable: The engines that run on this machine.
        exported: By engine: the FP32 graph of its network.
    """

    recipe: Recipe
    folder: Path
    cache: Cache | None
    progress: Progress
    force: bool = False
    stages: list[StageRecord] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)
    networks: list[Network] = field(default_factory=list)
    engines: list[Artifact] = field(default_factory=list)
    runnable: list[Artifact] = field(default_factory=list)
    exported: dict[Path, Path] = field(default_factory=dict)

    @property
    def pruning(self) -> NetworkPruning | None:
        """How the run prunes; ``None`` if it does not."""
        return NetworkPruning.of(self.recipe, self.folder)

    def file(self, network: str, suffix: str) -> Path:
        """A file of a network: ``model.onnx``, ``pruned.onnx``."""
        return self.folder / f"{network or 'model'}{suffix}"

    @contextmanager
    def stage(self, name: str, label: str) -> Iterator[Callable[[ArtifactT], ArtifactT]]:
        """Record one stage; the block passes its artifact to the yielded function."""
        started = time.perf_counter()
        artifacts: list[Artifact] = []

        def record(artifact: ArtifactT) -> ArtifactT:
            artifacts.append(artifact)
            return artifact

        yield record
        artifact = artifacts[0] if artifacts else None
        self.stages.append(
            StageRecord(
                name=name,
                label=label,
                file=str(artifact.path.relative_to(self.folder)) if artifact else None,
                cached=artifact.cached if artifact else False,
                seconds=time.perf_counter() - started,
                manifest=_manifest_for_report(artifact) if artifact else None,
            )
        )

    def files(self) -> list[OutputFile]:
        """Everything that the run may write, except its recipe."""
        named = {
            "model.safetensors": "checkpoint", "model.onnx": "graph", "statistics.npz": "statistics",
            "validate.json": "validate", "bench.json": "bench",
        }  # fmt: skip
        marked = {
            "predictions.npz": "predictions", "results.json": "run", "report.html": "report",
            "report.md": "report",
        }  # fmt: skip
        files = [OutputFile(self.folder / name, kind) for name, kind in named.items()]
        files += [
            OutputFile(self.folder / n, kind, has_manifest=False) for n, kind in marked.items()
        ]
        files += sample_files(self.folder / "raw")
        networks = [""]
        if (pruning := self.pruning) is not None:
            networks.append(PRUNED)
            files += pruning.files()
            files.append(OutputFile(self.file(PRUNED, ".onnx"), "graph"))
            files.append(OutputFile(self._statistics_file(PRUNED), "statistics"))
        for network, section in itertools.product(networks, self.recipe.build):
            for requested, precision in itertools.product(section.engine, section.precision):
                with contextlib.suppress(
                    UsageError, EnvironmentFault
                ):  # `build_section` records it
                    files += self._engine_files(network, section, requested, precision)
        return list(dict.fromkeys(files))

    def _statistics_file(self, network: str) -> Path:
        return self.folder / (f"{network}.statistics.npz" if network else "statistics.npz")

    def _engine_files(
        self, network: str, section: BuildSection, requested: str, precision: str
    ) -> list[OutputFile]:
        from optimizer.engines.registry import get_backend
        from optimizer.verbs.planned_files import conversion_files, engine_files, kernel_files

        options, label = self._options(section, requested, precision, None)
        label = f"{network} {label}".strip()
        output = self._engine_path(label, get_backend(options.engine).suffix)
        graph = self.file(network, ".onnx")
        if options.engine == "torch":
            return engine_files(graph, output, options, precision=None)
        kernels = kernel_files(output, options)
        if options.precision != "mixed":
            return [*engine_files(graph, output, options, precision="fp32"), *kernels]
        mixed = self._engine_path(label, ".onnx")
        return [
            *kernels,
            *conversion_files(graph, mixed, options),
            *engine_files(mixed, output, options, precision="mixed"),
        ]

    def _engine_path(self, label: str, suffix: str) -> Path:
        return self.folder / "engines" / f"{label.replace(' ', '-')}{suffix}"

    # --- checkpoint, graph and statistics ---------------------------------------------------------

    def make_checkpoint(self) -> Artifact:
        """Train or load the model and write ``model.safetensors``, the reference for validation."""
        recipe, output = self.recipe, self.file("", ".safetensors")
        if recipe.train is not None:
            with self.stage(
                "train", f"train {recipe.train.arch or 'a network'} on {recipe.train.data}"
            ) as record:
                return record(train(output, recipe.train, **self._common()))
        with self.stage("load", f"load {recipe.model}") as record:
            return record(self._load(output))

    def _load(self, output: Path) -> Artifact:
        from optimizer.models import load_model, write_weights

        recipe = self.recipe
        assert recipe.model is not None
        model = load_model(
            recipe.model,
            arch=recipe.arch,
            image_size=recipe.export.image_size,
            weights=recipe.weights,
        )
        plan = Plan(
            kind="checkpoint",
            settings={
                "arch": model.arch,
                "num_classes": model.num_classes,
                "source": model.source,
                "preprocessing_assumed": model.preprocessing_assumed,
            },
            inputs=[Input(role="weights", file=model.source, sha256=model.sha256)],
            preprocessing=model.preprocessing.to_dict(),
            classes=model.classes,
        )

        def write(path: Path) -> dict[str, Any]:
            write_weights(model, path)
            details: dict[str, Any] = {
                "expected_top1": model.expected_top1,
                "history": _history_of(recipe.model),
            }
            return details | ({"notes": list(model.remarks)} if model.remarks else {})

        return produce(plan, output, write)

    def check_images(self, checkpoint: Artifact, images: Images) -> None:
        """Refuse images and limits that do not fit the network's task, before engines are built.

        Raises:
            DataError: The labels are of another task, or do not match the network's classes.
            UsageError: A limit is set that the task has no measure for.
        """
        from optimizer.models import load_model
        from optimizer.tasks import task_of

        if self.recipe.validation is None or images.held_out is None:
            return
        model = load_model(str(checkpoint.path))
        task = task_of(model.detector, model.preprocessing)
        task = task.for_gates(_gates(self.recipe.validation))
        for part in (images.held_out, images.training):
            if part is not None:
                task.match(part, model.num_classes, model.classes)

    def prune(self, checkpoint: Artifact, images: Images) -> dict[str, Artifact]:
        """Prune the network, if the recipe does: the checkpoint by the network's name."""
        from optimizer.models import load_model

        pruning = self.pruning
        if pruning is None:
            return {}
        assert images.training is not None
        model = load_model(str(checkpoint.path))
        options = pruning.options
        if options.table is None:
            label = f"time layers in {options.engine} {options.precision}"
            with self.stage("latency-table", label) as timed:
                timed(pruning.table(model, cache=self.cache, progress=self.progress))
        with self.stage("prune", f"prune for {options.engine} {options.precision}") as record:
            artifact = record(pruning.prune(model, images.training, self.cache, self.progress))
        return {PRUNED: artifact}

    def add_network(self, name: str, checkpoint: Artifact, images: Images) -> None:
        """Export and calibrate a network, of which engines are then built."""
        graph = self._export(name, checkpoint)
        statistics = self._calibrate(name, graph, images)
        self.networks.append(Network(name, checkpoint, graph, statistics))

    def _export(self, network: str, checkpoint: Artifact) -> Artifact:
        """Export a checkpoint, checked against PyTorch."""
        options = {k: v for k, v in self.recipe.export.as_given().items() if k != "image_size"}
        with self.stage("export", _labelled(network, "export to ONNX")) as record:
            return record(
                export(checkpoint.path, self.file(network, ".onnx"), **options, **self._common())
            )

    def _calibrate(self, network: str, graph: Artifact, images: Images) -> Artifact | None:
        """Calibrate on the calibration images; ``None`` if no engine needs statistics."""
        if images.calibration is None:
            return None
        label = _labelled(network, f"calibrate on {len(images.calibration)} images")
        with self.stage("calibrate", label) as record:
            return record(
                calibrate(
                    graph.path,
                    self._statistics_file(network),
                    images=images.calibration,
                    **self._common(),
                )
            )

    def open_images(self) -> Images:
        """Open the images; without calibration images, reserve part of the validation data."""
        from optimizer.data import stratified_subset

        section, validation = self.recipe.calibrate, self.recipe.validation
        precisions: set[str] = {
            precision for built in self.recipe.build for precision in built.precision
        }
        mixed = "mixed" in precisions
        held_out = self._held_out()
        pool, held_out = self._pool(held_out, precisions)
        if mixed and (pool is None or held_out is None):
            raise UsageError(
                "mixed precision needs images for the search and others to validate its result",
                hint="--data with labelled images, and --calib with images for the search",
            )
        if pool is not None and mixed and pool.skip_bad_images:
            pool = pool.verify()  # a search reads its images several times
        calibration = None
        if pool is not None and precisions & {"int8", "fp8"}:
            count = min(section.calib_images, len(pool))
            calibration = pool.select(stratified_subset(pool.labels, count, section.seed))
        if section.calib is not None and held_out is not None:
            _check_disjoint(calibration, pool if mixed else None, held_out, section)
        if validation and held_out is not None and validation.limit is not None:
            held_out = held_out.select(
                stratified_subset(held_out.labels, validation.limit, section.seed)
            )
        training = None
        if (pruning := self.pruning) is not None:
            assert held_out is not None  # or the recipe is refused
            training = pruning.images(held_out)
        return Images(calibration, pool, held_out, training)

    def _held_out(self) -> ImageDataset | None:
        from optimizer.data import open_dataset

        section = self.recipe.validation
        if section is None:
            return None
        return open_dataset(
            section.data,
            skip_bad_images=section.skip_bad_images,
            workers=section.workers,
            labels_from=section.labels_from,
            image_folder=section.image_folder,
        )

    def _pool(
        self, held_out: ImageDataset | None, precisions: set[str]
    ) -> tuple[ImageDataset | None, ImageDataset | None]:
        """The images for calibration and search, and those that remain for validation."""
        import numpy as np

        from optimizer.data import open_dataset, stratified_subset

        section, validation = self.recipe.calibrate, self.recipe.validation
        if not precisions & {"int8", "fp8", "mixed"}:
            return None, held_out
        if section.calib is not None:
            skip = section.skip_bad_images or bool(validation and validation.skip_bad_images)
            pool = open_dataset(
                section.calib,
                skip_bad_images=skip,
                workers=section.workers,
                labelled="mixed" in precisions,  # the search counts wrong predictions
                labels_from=validation.labels_from if validation and "mixed" in precisions else 0,
            )
            return pool, held_out
        if held_out is None:
            return None, None
        # One dataset for both: part of it is used for calibration and left out of validation.
        count = len(held_out) // 2
        if "mixed" not in precisions:
            count = min(section.calib_images, count)
        chosen = stratified_subset(held_out.labels, count, section.seed)
        rest = np.setdiff1d(np.arange(len(held_out)), chosen)
        return replace(held_out.select(chosen), workers=section.workers), held_out.select(rest)

    # --- engines ----------------------------------------------------------------------------------

    def build_section(self, section: BuildSection, network: Network, images: Images) -> None:
        """Build and audit a network's engines; failures are recorded, not raised."""
        for requested, precision in itertools.product(section.engine, section.precision):
            started = time.perf_counter()
            label = f"{network.name} {requested} {precision}".strip()
            try:
                options, named = self._options(section, requested, precision, network.statistics)
                label = f"{network.name} {named}".strip()
                self._build(options, label, network, images)
            except (UnsupportedPrecision, EnvironmentFault, BuildError) as error:
                self.stages.append(
                    StageRecord(
                        name="build",
                        label=label,
                        seconds=time.perf_counter() - started,
                        status="failed" if isinstance(error, BuildError) else "unavailable",
                        note=error.message,
                        manifest={"settings": {"backend": requested, "precision": precision}},
                    )
                )

    def _options(
        self, section: BuildSection, requested: str, precision: str, statistics: Artifact | None
    ) -> tuple[BuildOptions, str]:
        """The options of one build, and its label."""
        from optimizer.engines.choice import choose_engine

        engine, more = requested, dict[str, Any]()
        if requested == "auto" and section.provider is not None:
            engine = "onnxruntime"
        elif requested == "auto":
            engine, provider = choose_engine(precision)
            more |= {"provider": provider} if provider is not None else {}
        if statistics is not None and precision in {"int8", "fp8", "fp16", "bf16"}:
            more["stats"] = str(statistics.path)
        measured = self.recipe.bench.batch if self.recipe.bench is not None else None
        if engine == "openvino":
            if self.recipe.export.batch is not None:
                section = section.model_copy(update={"fixed_batch": None})
            elif section.fixed_batch is None and measured is not None:
                more["fixed_batch"] = list(measured)
        options = section.for_engine(engine, precision, self.recipe.calibrate, **more)
        stem = f"{engine}-{options.provider}" if options.provider else engine
        return options, f"{stem} {precision}"

    def _build(self, options: BuildOptions, label: str, network: Network, images: Images) -> None:
        from optimizer.engines.registry import get_backend

        backend = get_backend(options.engine)
        source = network.checkpoint if options.engine == "torch" else network.graph
        output = self._engine_path(label, backend.suffix)
        if options.precision == "mixed":
            source = self._search(options, self._engine_path(label, ".onnx"), network, images)
            options = _options_after_search(options, source)
        with self.stage("build", label) as record:
            engine = record(build(source.path, output, options, **self._common()))
        self.audits[engine.path.name] = engine.audit
        self.engines.append(engine)
        self.exported[engine.path] = network.graph.path
        reason = _reason_not_runnable(backend, options)
        if reason is None:
            self.runnable.append(engine)
        else:
            self.stages[-1].status = "built-not-run"
            self.stages[-1].note = f"built, not run: {reason}"

    def _search(
        self, options: BuildOptions, output: Path, network: Network, images: Images
    ) -> Artifact:
        """The mixed graph for an engine; the search result is written beside it."""
        from optimizer.verbs.build import check_options_buildable

        target = check_options_buildable(options)
        assert self.recipe.validation is not None
        explicit = options.of_kind(
            QuantizeOptions,
            target=target,
            calib_images=self.recipe.calibrate.calib_images,
        ).model_copy(
            update={
                "max_drop": self.recipe.validation.max_drop,
                "max_lost": self.recipe.validation.max_lost,
                "score_threshold": self.recipe.validation.score_threshold,
            }
        )
        label = _labelled(network.name, f"search layers to keep for {options.engine}")
        with self.stage("search", label) as record:
            artifact = record(
                quantize(
                    network.graph.path,
                    output,
                    explicit,
                    images=images.pool,
                    **self._common(),
                )
            )
        assert artifact.search is not None
        self.stages[-1].note = artifact.search.finding
        return artifact

    # --- accuracy and speed ------------------------------------------------------------------------

    def validate(self, images: Images) -> ValidateResult | None:
        """Compare every engine with the first network: ``validate.json`` and ``predictions.npz``."""
        section, held_out = self.recipe.validation, images.held_out
        checkpoint = self.networks[0].checkpoint
        if section is None or held_out is None:
            return None
        gates = _gates(section)
        options = section.of_kind(ValidateOptions, reference=str(checkpoint.path))
        if self.cache is None or self.cache.rebuild_all:
            options = options.model_copy(update={"cache_limit": 0})
        plan = self._plan(
            "validate",
            {
                "gates": gates.model_dump(),
                "batch": section.batch,
                "images": [section.hops, section.until_decided, section.seed],
            },
            [
                checkpoint.as_input("reference"),
                *(network.graph.as_input("model") for network in self.networks),
                *(engine.as_input("engine") for engine in self.engines),
                Input(role="data", file=held_out.name, sha256=held_out.sha256),
            ],
        )

        def write(path: Path) -> dict[str, Any]:
            result = validate(
                [engine.path for engine in self.engines],
                options,
                graphs=self.exported,
                images=held_out,
                predictions=self.folder / "predictions.npz",
                force=self.force,
                progress=self.progress,
            )
            result = result.model_copy(update={"audits": {**result.audits, **self.audits}})
            write_result(result, path)
            return {"verdict": result.verdict}

        with self.stage("validate", f"validate on {len(held_out)} images") as record:
            artifact = record(produce(plan, self.folder / "validate.json", write))
        result = read_result(artifact.path)
        assert isinstance(result, ValidateResult)
        return result

    def bench(self) -> BenchResult | None:
        """Benchmark PyTorch and every engine that runs here: ``bench.json`` and ``raw/``."""
        section, checkpoint = self.recipe.bench, self.networks[0].checkpoint
        if section is None or not self.runnable:
            return None
        plan = self._plan(
            "bench",
            section.model_dump(mode="json"),
            [checkpoint.as_input("baseline"), *(e.as_input("engine") for e in self.runnable)],
        )

        def write(path: Path) -> dict[str, Any]:
            result = bench(
                [checkpoint.path, *(engine.path for engine in self.runnable)],
                BenchOptions.parse(section.model_dump(mode="json")),
                raw_dir=self.folder / "raw",
                force=self.force,
                progress=self.progress,
            )
            write_result(result, path)
            return {"verdict": result.verdict}

        with self.stage("bench", f"measure {len(self.runnable) + 1} engines") as record:
            artifact = record(produce(plan, self.folder / "bench.json", write))
        result = read_result(artifact.path)
        assert isinstance(result, BenchResult)
        return result

    def _plan(self, kind: str, settings: dict[str, Any], inputs: list[Input]) -> Plan:
        from optimizer.environment import fingerprint

        return Plan(
            kind=kind,
            settings=settings,
            inputs=inputs,
            libraries=library_versions(*_LIBRARIES),
            device=fingerprint(),
        )

    def _common(self) -> dict[str, Any]:
        return {"cache": self.cache, "progress": self.progress, "force": self.force}


def _labelled(network: str, what: str) -> str:
    """What a stage does, and for which network if it is not the first."""
    return f"{network}: {what}" if network else what


def _gates(section: AccuracyOptions) -> Gates:
    return Gates(
        max_drop_pp=section.max_drop,
        max_flips=section.max_flips,
        max_lost=section.max_lost,
        score_threshold=section.score_threshold,
    )


def _check_disjoint(
    calibration: ImageDataset | None,
    searched: ImageDataset | None,
    held_out: ImageDataset,
    section: CalibrateSection,
) -> None:
    """Refuse to validate on images that are used for calibration or search."""
    from optimizer.search import check_disjoint, split_images

    used = [] if calibration is None else [calibration]
    if searched is not None:
        used += split_images(searched, section.calib_images)
    for images in used:
        check_disjoint(images, held_out)


def _options_after_search(options: BuildOptions, graph: Artifact) -> BuildOptions:
    """The options to build a search's graph with, less those that the search has applied to it."""
    from optimizer.graphs.facts import graph_facts

    # A search may keep no layer; the graph is then INT8.
    precision = graph_facts(graph.path).precision
    applied = {*EncodingOptions.model_fields, "high_precision"}
    given = {k: v for k, v in options.as_given().items() if k not in applied}
    return BuildOptions.parse({**given, "precision": precision})


def _reason_not_runnable(backend: Backend, options: BuildOptions) -> str | None:
    """Why an engine that was built cannot run here; ``None`` if it can."""
    if options.strip_weights:
        return "built without weights (strip_weights); resnet-opt refit puts them in"
    availability = backend.availability()
    return None if availability.can_run else availability.reason


def _history_of(model: str | None) -> list[Any]:
    """The epochs of the training that wrote a checkpoint; empty if it is unknown."""
    path = Path(str(model)).expanduser()
    if not path.is_file() or find_manifest(path) is None:
        return []
    history: list[Any] = read_manifest(path).details.get("history", [])
    return history


def _manifest_for_report(artifact: Artifact) -> dict[str, Any]:
    """The manifest without layers and class names, which the report does not need."""
    manifest = artifact.manifest.model_dump(mode="json")
    manifest["details"] = {k: v for k, v in manifest["details"].items() if k != "layers"}
    manifest["classes"] = len(manifest["classes"] or ()) or None
    manifest["engine_bytes"] = artifact.path.stat().st_size
    return manifest
