"""The recipe: one execution of the main job as a YAML file.

Keys are the command line's long flags in snake_case, one section a stage; lists where a stage may
be done several ways. ``resnet-opt run --save-recipe`` writes the one that just ran.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from optimizer.errors import UsageError
from optimizer.units import parse_bytes, parse_duration, parse_pp, parse_profile, parse_share

__all__ = [
    "BenchSection",
    "BuildSection",
    "CalibrateSection",
    "ExportSection",
    "Recipe",
    "TrainSection",
    "ValidateSection",
    "load_recipe",
    "save_recipe",
]

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "mixed"]


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, (list, tuple)) or value is None else [value]


def _checked(parse: Any) -> BeforeValidator:
    """A text with a unit: kept as written, refused if it does not parse."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        try:
            parse(str(value))
        except UsageError as error:
            raise ValueError(str(error)) from error
        return str(value)

    return BeforeValidator(check)


Many = Annotated[list[str], BeforeValidator(_as_list)]
Precisions = Annotated[list[Precision], BeforeValidator(_as_list)]
Numbers = Annotated[list[int], BeforeValidator(_as_list)]
Duration = Annotated[str, _checked(parse_duration)]
Points = Annotated[str, _checked(parse_pp)]
Share = Annotated[str, _checked(parse_share)]
Bytes = Annotated[str, _checked(parse_bytes)]
Profiles = Annotated[list[Annotated[str, _checked(parse_profile)]], BeforeValidator(_as_list)]

_TENSORRT_ONLY = (
    "target", "profile", "workspace", "opt_level", "timing_cache", "tf32", "sparsity",
    "hardware_compatibility", "version_compatible", "strip_weights", "refittable", "cuda_graph",
    "specialization", "runtime_cache",
)  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TrainSection(_Section):
    """``resnet-opt train``; present only if the model is trained by the run."""

    arch: str = "resnet50"
    data: str = "digits:train"
    image_size: int = Field(default=32, ge=8)
    epochs: int = Field(default=8, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    lr: float | None = None
    seed: int = 0
    workers: int | None = Field(default=None, ge=0)


class ExportSection(_Section):
    """``resnet-opt export``."""

    batch: int | Literal["dynamic"] = "dynamic"
    image_size: int | None = None
    input: Literal["float32-nchw", "uint8-nhwc"] = "float32-nchw"
    opset: int = 20


class CalibrateSection(_Section):
    """``resnet-opt calibrate``; without ``calib`` a part of the validation data is set apart."""

    calib: str | None = None
    calib_images: int = Field(default=256, ge=8)
    seed: int = 0
    method: Literal["auto", "mse", "minmax", "entropy"] = "auto"
    equalize: bool = True
    bias_correction: Literal["network", "statistics", "none"] = "network"
    shift: bool = True
    workers: int | None = Field(default=None, ge=0)


class BuildSection(_Section):
    """``resnet-opt build``: every precision for every engine of the section.

    ``mixed`` searches on the calibration data, for the ``max_drop`` that the run validates with.
    What only TensorRT has is given to the TensorRT engines among them, a provider to onnxruntime.
    OpenVINO is compiled for each of ``fixed_batch`` too, by default for the batches of ``bench``.
    """

    precision: Precisions = ["fp32", "int8"]
    engine: Many = ["auto"]
    provider: str | None = None
    provider_options: dict[str, str] = {}
    target: Many = []
    keep: Many = []
    high_precision: Literal["fp16", "fp32"] | None = None
    profile: Profiles | None = None
    workspace: Bytes | None = None
    opt_level: int | None = Field(default=None, ge=0, le=5)
    timing_cache: str | None = None
    tf32: bool | None = None
    sparsity: bool | None = None
    hardware_compatibility: Literal["ampere-plus", "same-compute-capability"] | None = None
    version_compatible: bool | None = None
    strip_weights: bool | None = None
    refittable: bool | None = None
    cuda_graph: bool | None = None
    specialization: Literal["eager", "lazy", "none"] | None = None
    runtime_cache: str | None = None
    memory_limit: Bytes | None = None
    build_timeout: Duration = "30min"
    fixed_batch: Numbers | None = None
    storage_only: bool = False
    min_share: Share = "95%"

    @model_validator(mode="after")
    def _somebody_takes_it(self) -> BuildSection:
        takers = [name for name in self.engine if name == "auto" or name.startswith("tensorrt")]
        unused = next(
            (name for name in _TENSORRT_ONLY if getattr(self, name) not in ([], None)), None
        )
        if unused is not None and not takers:
            raise ValueError(f"{unused} is for TensorRT, and no engine of the section is one")
        if self.fixed_batch is not None and not {"auto", "openvino"} & set(self.engine):
            raise ValueError("fixed_batch is for openvino, which is no engine of the section")
        if self.provider is not None and "onnxruntime" not in self.engine:
            raise ValueError("provider is for onnxruntime, which is no engine of the section")
        if self.provider_options and self.provider is None:
            raise ValueError("provider_options without a provider")
        return self

    def tensorrt_arguments(self) -> dict[str, Any]:
        """What TensorRT's backends alone are given, as ``verbs.build`` takes it."""
        return {
            "profile": parse_profile(self.profile[0]) if self.profile else None,
            "workspace_bytes": parse_bytes(self.workspace) if self.workspace else None,
            "opt_level": self.opt_level,
            "timing_cache": Path(self.timing_cache) if self.timing_cache else None,
            "backend_options": self.tensorrt_options(),
        }

    def tensorrt_options(self) -> dict[str, Any]:
        """The options that TensorRT's backends take by name, as far as they are given."""
        names = (
            "tf32", "sparsity", "hardware_compatibility", "version_compatible", "strip_weights",
            "refittable", "cuda_graph", "specialization", "runtime_cache",
        )  # fmt: skip
        options = {name: value for name in names if (value := getattr(self, name))}
        further = [parse_profile(text) for text in (self.profile or [])[1:]]
        return {**options, **({"profiles": further} if further else {})}


class ValidateSection(_Section):
    """``resnet-opt validate``."""

    data: str
    limit: int | None = Field(default=None, ge=1)
    max_drop: Points = "1pp"
    max_flips: Share | None = None
    batch: int = Field(default=32, ge=1)
    skip_bad_images: bool = False
    workers: int | None = Field(default=None, ge=0)


class BenchSection(_Section):
    """``resnet-opt bench``; the PyTorch model is measured beside the engines."""

    batch: Numbers = [1, 8]
    duration: Duration = "10s"
    threads: Numbers | None = None
    streams: Numbers = [1]
    starts: int = Field(default=1, ge=1)
    max_latency: Duration | None = None
    latency_percentile: Literal["p50", "p90", "p95", "p99"] = "p99"
    scenario: Many = []
    min_effect: Share = "2%"
    seed: int = 0


class Recipe(_Section):
    """One execution of the main job."""

    title: str = "resnet-opt run"
    model: str | None = None
    arch: str | None = None
    train: TrainSection | None = None
    export: ExportSection = ExportSection()
    calibrate: CalibrateSection = CalibrateSection()
    build: list[BuildSection] = [BuildSection()]
    # "validate" is a method of pydantic's models
    validation: ValidateSection | None = Field(default=None, alias="validate")
    bench: BenchSection | None = BenchSection()

    model_config = ConfigDict(extra="forbid", populate_by_name=True, serialize_by_alias=True)

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


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: No such file, no YAML, or a key or value that does not fit; the message names it.
    """
    if not path.is_file():
        raise UsageError(f"no such recipe: {path}", mend="resnet-opt run --help shows the forms")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"{path.name} is no YAML: {line}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path.name} is no mapping of sections")
    return parse_recipe(raw, path.name)


def parse_recipe(raw: dict[str, Any], name: str = "the recipe") -> Recipe:
    """Check a mapping as a recipe.

    Raises:
        UsageError: A key or value does not fit; the message names it.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UsageError(f"{name}, {where}: {first['msg']}") from error


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML."""
    from optimizer.artifacts import write_text_atomically

    raw = recipe.model_dump(mode="json", exclude_none=True)
    write_text_atomically(path, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
