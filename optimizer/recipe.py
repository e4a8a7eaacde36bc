"""The recipe: one execution of the main job as a YAML file.

Each section holds the options of one stage (`optimizer.options`) under the names of their flags, as
lists where a stage can run in several ways. ``resnet-opt run --save-recipe`` writes the recipe that
corresponds to its flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    create_model,
    model_validator,
)

from optimizer.errors import UsageError
from optimizer.options import (
    AccuracyOptions,
    BuildLimits,
    BuildOptions,
    CalibrationImages,
    EncodingPasses,
    EngineOptions,
    GraphOptions,
    HighPrecision,
    KeptLayers,
    Options,
    PruneOptions,
    PruningSteps,
    SpeedOptions,
    TensorRtOptions,
    TrainOptions,
    check_engine,
    option,
    options_of,
)
from optimizer.options.declaration import OptionInfo, ReadableError, value_type
from optimizer.options.values import Names, Numbers, Precision, Source, split

__all__ = [
    "BuildSection",
    "CalibrateSection",
    "DemoOptions",
    "MeasureSection",
    "PruneSection",
    "Recipe",
    "RunOptions",
    "load_recipe",
    "parse_recipe",
    "save_recipe",
    "with_flags",
]

_INT8 = {"int8", "mixed"}
_LOW = {*_INT8, "fp8"}

_LARGEST_FILE = 1 << 20
_MOST_VALUES = 10_000
_DEEPEST = 20
_LONGEST_NUMBER = 128
"""Bits of a whole number; Python refuses to print longer ones at some point."""
_EXAMPLE = "resnet-opt run MODEL --save-recipe FILE writes one to start from"
# What PyYAML raises for tags whose text does not fit them, beside its own errors.
_NOT_YAML = (
    yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError,
)  # fmt: skip

Precisions = Annotated[
    tuple[Precision, ...], BeforeValidator(split), PlainSerializer(list, when_used="json")
]


class CalibrateSection(EncodingPasses, CalibrationImages):
    """Calibration; without ``calib``, part of the validation data is reserved for it."""

    panel: ClassVar[str] = "Calibration"

    seed: int = option(0, "Seed for choosing calibration images.")


class BuildSection(EngineOptions, KeptLayers, HighPrecision, BuildLimits, TensorRtOptions):
    """Engines: every precision of the section is built for every engine of it.

    ``mixed`` searches on the calibration data, within the ``max_drop`` of the ``validate`` section.
    Engine-specific options apply to the engines that take them. OpenVINO also compiles each
    ``fixed_batch``, by default the batches of ``bench``.
    """

    panel: ClassVar[str] = "Engine"

    precision: Precisions = option("fp32,int8", "Precisions: fp32,fp16,bf16,int8,fp8,mixed.")
    engine: Names = option(
        "auto", "Engines: auto, or of openvino,onnxruntime,tensorrt,tensorrt-rtx,torch."
    )

    @model_validator(mode="after")
    def _every_option_has_an_engine(self) -> BuildSection:
        for name, values in (("engine", self.engine), ("precision", self.precision)):
            if not values:
                raise ReadableError(f"no {name} is given", f"leave out {name}, or name one")
        try:
            check_engine(self, self.engine)
        except UsageError as error:
            raise ValueError(error.message) from error
        if self.provider_options and self.provider is None:
            raise ValueError("provider_options without a provider")
        return self

    def for_engine(
        self, engine: str, precision: str, passes: EncodingPasses, **more: Any
    ) -> BuildOptions:
        """The options of one build of this section.

        Args:
            engine: Name of the engine.
            precision: Precision of the engine.
            passes: How encodings are computed, for precisions that use them.
            **more: Further options, as a user would write them.
        """
        options = options_of(self, engine)
        if precision not in _INT8:
            options.pop("keep", None)
        if precision not in _LOW:
            options.pop("high_precision", None)
        encodings = passes.of_kind(EncodingPasses).as_given() if precision in _INT8 else {}
        return BuildOptions.parse(
            {**encodings, **options, **more, "engine": engine, "precision": precision}
        )


class PruneSection(PruningSteps):
    """A second, faster network, which is pruned from the first and judged against it.

    Everything that is built of the network is built of the pruned one as well. The ``validate`` section
    has the images that judge both, and the limits.
    """

    panel: ClassVar[str] = "Pruning"

    data: Source | None = option(None, "Training images; default: those of train, or of calibrate.")
    engine: str | None = option(
        None, "Engine that the latency counts for; default: the first of build in that precision."
    )
    precision: Precision | None = option(
        None, "Precision of that engine; default: int8 if it is built, or the first of build."
    )

    def options(self, recipe: Recipe) -> PruneOptions:
        """The options of the verb, with what the other sections say."""
        built = [precision for section in recipe.build for precision in section.precision]
        precision = self.precision or ("int8" if _INT8 & {*built} else built[0])
        alike = _INT8 if precision in _INT8 else {precision}
        engines = [
            engine
            for section in recipe.build
            for engine in section.engine
            if engine != "torch" and section.provider is None and alike & {*section.precision}
        ]
        return self.of_kind(
            PruneOptions,
            data=self.data or _training_images(recipe),
            engine=self.engine or next(iter(engines), "auto"),
            precision=precision,
        )


def _training_images(recipe: Recipe) -> str | None:
    return recipe.train.data if recipe.train is not None else recipe.calibrate.calib


class MeasureSection(SpeedOptions):
    """The benchmark; the PyTorch model is measured beside the engines."""

    batch: Numbers = option("1,8", "Batch sizes, such as 1,8.")


class Recipe(Options):
    """One execution of the main job."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    title: str = option("resnet-opt run", "Heading of the report.")
    model: str | None = option(
        None, "A checkpoint, or a model name as for resnet-opt export; either this or train."
    )
    arch: str | None = option(None, "Architecture of a checkpoint that does not state it.")
    weights: str | None = option(
        None, "Which weights of a checkpoint that has several: ema, or the name of a copy."
    )
    train: TrainOptions | None = None
    prune: PruneSection | None = None
    export: GraphOptions = GraphOptions()
    calibrate: CalibrateSection = CalibrateSection()
    build: tuple[BuildSection, ...] = (BuildSection(),)
    # "validate" is a method of pydantic's models.
    validation: AccuracyOptions | None = Field(default=None, alias="validate")
    bench: MeasureSection | None = MeasureSection()

    @model_validator(mode="before")
    @classmethod
    def _one_build_section(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("build"), dict):
            return {**raw, "build": [raw["build"]]}
        return raw

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if (self.model is None) == (self.train is None):
            raise ValueError("give either a model or a train section")
        return self

    @model_validator(mode="after")
    def _images_for_pruning(self) -> Recipe:
        if self.prune is None:
            return self
        if self.validation is None:
            raise ReadableError(
                "prune needs images that judge the pruned network",
                "--data with labelled images that are not trained on, or a validate section",
            )
        if self.prune.data is None and _training_images(self) is None:
            raise ReadableError(
                "prune.data: there are no training images",
                "name them in the prune section, or with --calib",
            )
        return self


# --- flags of run and demo, which override the recipe ---------------------------------------------


class _DemoTask(Options):
    """Which of the demos."""

    task: Literal["classification", "detection"] = option(
        "classification", "What is shown: classification of digits, or detection of them."
    )


def _flags(
    name: str,
    doc: str,
    keys: Mapping[str, tuple[str, type[Options]]],
    base: type[Options] = Options,
) -> type[Options]:
    """A model with an optional field for each of some recipe keys, of the key's type."""
    fields: dict[str, Any] = {}
    for field_name, (key, section) in keys.items():
        source = section.model_fields[key.rpartition(".")[2]]
        info = OptionInfo.of(source)
        fields[field_name] = (
            value_type(source) | None,
            option(None, source.description or "", metavar=info.metavar, flags=info.flags),
        )
    return create_model(name, __base__=base, __doc__=doc, **fields)


_RUN_KEYS: dict[str, tuple[str, type[Options]]] = {
    "data": ("validate.data", AccuracyOptions),
    "calib": ("calibrate.calib", CalibrateSection),
    "calib_images": ("calibrate.calib_images", CalibrateSection),
    "arch": ("arch", Recipe),
    "weights": ("weights", Recipe),
    "image_size": ("export.image_size", GraphOptions),
    "speedup": ("prune.speedup", PruneSection),
    "precision": ("build.precision", BuildSection),
    "engine": ("build.engine", BuildSection),
    "target": ("build.target", BuildSection),
    "batch": ("bench.batch", MeasureSection),
    "duration": ("bench.duration", MeasureSection),
    "threads": ("bench.threads", MeasureSection),
    "labels_from": ("validate.labels_from", AccuracyOptions),
    "limit": ("validate.limit", AccuracyOptions),
    "max_drop": ("validate.max_drop", AccuracyOptions),
    "max_flips": ("validate.max_flips", AccuracyOptions),
    "max_lost": ("validate.max_lost", AccuracyOptions),
    "score_threshold": ("validate.score_threshold", AccuracyOptions),
    "image_folder": ("validate.image_folder", AccuracyOptions),
    "skip_bad_images": ("validate.skip_bad_images", AccuracyOptions),
    "workers": ("validate.workers", AccuracyOptions),
}
RunOptions = _flags("RunOptions", "Options of ``run``, which override the recipe.", _RUN_KEYS)
DemoOptions = _flags(
    "DemoOptions",
    "Options of ``demo``.",
    {"arch": ("train.arch", TrainOptions), "duration": ("bench.duration", MeasureSection)},
    base=_DemoTask,
)
_ALSO_CALIBRATION = {"skip_bad_images", "workers"}
"""Flags that also apply to calibration images."""
_ALSO_PRUNING = {*_ALSO_CALIBRATION, "labels_from"}
"""Flags that also apply to the training images of pruning."""
_OTHER_AIMS = {"speedup": ("max_latency", "keep_flops")}
"""Keys of a section that a flag takes the place of."""


def with_flags(raw: Mapping[str, Any], flags: Options) -> dict[str, Any]:
    """A recipe overridden by flags; a flag that is not given changes nothing.

    A precision or an engine replaces the recipe's builds; a target is set in the builds that take
    one. A speedup replaces the recipe's aim of pruning.

    Raises:
        UsageError: A target is given, but no build takes one.
    """
    recipe = {key: _copied(value) for key, value in raw.items()}
    given = flags.as_given()
    _set_builds(recipe, {k: given.pop(k) for k in ("precision", "engine", "target") if k in given})
    for name, value in given.items():
        key = _RUN_KEYS[name][0]
        if not (name in _ALSO_CALIBRATION and "validate" not in recipe and "data" not in given):
            _set(recipe, key, value)
            section = recipe[key.partition(".")[0]]
            for other in _OTHER_AIMS.get(name, ()):
                section.pop(other, None)
        if name in _ALSO_CALIBRATION:
            _set(recipe, f"calibrate.{name}", value)
        if name in _ALSO_PRUNING and recipe.get("prune") is not None:
            _set(recipe, f"prune.{name}", value)
    return recipe


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _set(recipe: dict[str, Any], key: str, value: object) -> None:
    """Set a value at a dotted key; missing or empty sections are created."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(recipe.get(section), dict):
            recipe[section] = {}
        recipe = recipe[section]
    recipe[last] = value


def _set_builds(recipe: dict[str, Any], given: dict[str, Any]) -> None:
    if not given:
        return
    if "precision" in given or "engine" in given:
        recipe["build"] = [given]
        return
    builds = recipe.setdefault("build", [{}])
    if isinstance(builds, dict):
        builds = recipe["build"] = [builds]
    sections = [section for section in builds if _takes_target(section)]
    if not sections:
        raise UsageError(
            "--target is for TensorRT-RTX, which is not built", hint="--engine tensorrt-rtx"
        )
    for section in sections:
        section.update(given)


def _takes_target(section: Mapping[str, Any]) -> bool:
    return bool({"auto", "tensorrt-rtx"} & set(split(section.get("engine", "auto"))))


# --- files ----------------------------------------------------------------------------------------


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: The file is missing or not YAML, or a key or value is invalid; the message names
            it.
    """
    return parse_recipe(read_yaml(path), path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: The file is missing, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise UsageError(f"no such recipe: {path}", hint="check the path")
    if path.stat().st_size > _LARGEST_FILE:
        raise UsageError(
            f"{path.name} has {path.stat().st_size:,} bytes, too many for a recipe",
            hint=_EXAMPLE,
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path.name} is not valid YAML: {line[:200]}", hint=_EXAMPLE) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path.name} is not a mapping of sections", hint=_EXAMPLE)
    _check_extent(raw, path.name)
    return raw


def _check_extent(raw: Any, name: str) -> None:
    """Refuse what is nested deeply, or written out grows without end: an alias stands for its value."""
    values, left = [(raw, 0)], _MOST_VALUES
    while values:
        value, depth = values.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            problem = "more values" if left < 0 else "values nested more deeply"
            raise UsageError(f"{name} has {problem} than a recipe can have", hint=_EXAMPLE)
        if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
            raise UsageError(f"{name} has a number of {value.bit_length()} bits", hint=_EXAMPLE)
        if isinstance(value, Mapping):
            values += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple, set)):
            values += [(item, depth + 1) for item in value]


def parse_recipe(raw: Mapping[str, Any], name: str = "the recipe") -> Recipe:
    """Validate a mapping as a recipe.

    Raises:
        UsageError: A key or value is invalid; the message names it.
    """
    return Recipe.parse(raw, name)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML."""
    from optimizer.artifacts import write_marked_text

    raw = recipe.written()
    if recipe.bench is None:
        raw["bench"] = None  # means no benchmark; without the key, the default applies
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    write_marked_text(path, text, "recipe")
