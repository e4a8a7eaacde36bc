"""Encodings: scales, zero points, factors and corrected biases for one target, in a readable file.

The file (JSON, schema version 1) holds, per tensor, ``scale``, ``zero_point``, ``dtype`` and
``shifted``; per layer, ``weight_scale`` per output channel, the corrected ``bias`` and the factors by
which equalization divides its outputs and multiplies its inputs. The weight integers are computed
from these. ``keep`` lists the layers that stay in high precision; they and their tensors have
encodings too, so that layers can be added to the list or removed. The file can be edited by hand and
passed to ``--encodings``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optimizer.errors import ArtifactError, GraphError
from optimizer.precision.int8.rounding import WeightGrid, nearest
from optimizer.targets.rules import PairLayout, TargetRules

__all__ = ["LARGEST_BIAS", "Encodings", "LayerEncoding", "TensorEncoding", "stored_scale"]

SCHEMA_VERSION = 1
LARGEST_FILE = 256 << 20
"""Bytes of the largest encodings file that is read."""
_CORRECT_IT = "correct the file, or compute the encodings again from the statistics: --stats FILE"
LARGEST_BIAS = 2.0**30
"""Largest INT32 bias, in units of a layer's products: half of the 32-bit range is left for these."""


def stored_scale(scale: float, rules: TargetRules) -> float:
    """The scale as the graph will store it, so that integers are rounded with the actual value.

    Raises:
        GraphError: The scale exceeds the range of the type of the target's constants.
    """
    kind = np.float16 if rules.constant_type == "fp16" else np.float32
    with np.errstate(over="ignore"):
        stored = kind(scale)
    if not np.isfinite(stored):
        raise GraphError(
            f"a scale of {scale:g} exceeds {np.dtype(kind).name}, the target's type for scales",
            hint="weights or activations are extremely large: check the checkpoint",
        )
    if stored < np.finfo(kind).smallest_normal and float(stored) < scale:
        # Subnormals lose precision: rounding up gives a coarser grid, rounding down would clip.
        stored = np.nextafter(stored, kind(np.inf))
    return float(stored)


Positive = Annotated[float, Field(gt=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TensorEncoding(_Model):
    """How one tensor is stored as integers.

    A ``shifted`` tensor is stored around its middle: the graph computes ``x - 128 * scale`` with
    zero point 0, and the biases around it compensate for the constant.
    """

    scale: float = Field(gt=0)
    zero_point: int = Field(default=0, ge=-128, le=255)
    dtype: Literal["s8", "u8"]
    shifted: bool = False

    @property
    def offset(self) -> float:
        """The constant subtracted from a shifted tensor; 0 for others."""
        return 128.0 * self.scale if self.shifted else 0.0

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return (0, 255) if self.dtype == "u8" else (-128, 127)

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest representable value, in multiples of the scale."""
        low, high = self.bounds
        zero = self.zero_point - (128 if self.shifted else 0)
        return low - zero, high - zero


class LayerEncoding(_Model):
    """How one weighted layer is stored."""

    weight_scale: list[Positive]
    bias: list[float]
    weight_max: int = Field(default=127, ge=1, le=128)
    """128 for integers from another quantizer that include -128."""
    pairs: PairLayout = "free"
    input_factor: list[Positive] | None = None
    """Per input channel: the weights are multiplied by it (the input tensor was divided by it)."""
    output_factor: list[Positive] | None = None
    """Per output channel: weights and bias are divided by it; ``bias`` is divided already."""

    @model_validator(mode="before")
    @classmethod
    def _without_learned_integers(cls, raw: Any) -> Any:
        """Earlier versions wrote a ``rounding`` for every layer, ``null`` unless it was learned."""
        if not isinstance(raw, dict) or "rounding" not in raw:
            return raw
        if raw["rounding"] is not None:
            raise ArtifactError(
                "the file has learned weight roundings of an earlier version, which are no longer "
                "supported",
                hint="compute the encodings again from the statistics: --stats FILE",
            )
        return {name: value for name, value in raw.items() if name != "rounding"}

    def equalized(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The FP32 weight after equalization, in the shape of ``weight``: O x I x …."""
        result = weight.astype(np.float32)
        if self.input_factor is not None:
            factor = np.asarray(self.input_factor, np.float32)
            result = result * factor.reshape(1, -1, *([1] * (weight.ndim - 2)))
        if self.output_factor is not None:
            factor = np.asarray(self.output_factor, np.float32)
            result = result / factor.reshape(-1, *([1] * (weight.ndim - 1)))
        return result

    def with_bias_in_range(self, input_scale: float) -> LayerEncoding:
        """The layer with weight scales large enough for its bias to fit in 32 bits.

        The bias is stored in units of the products, input scale times weight scale. These are too
        small where a channel's weights are nearly zero and its bias is not; a coarser scale loses
        only the contribution of such weights. Half of the range is left for bias correction.
        """
        least = np.abs(self.bias) / (LARGEST_BIAS / 2 * input_scale)
        scales = np.maximum(self.weight_scale, least)
        return self.model_copy(update={"weight_scale": scales.tolist()})

    @property
    def grid(self) -> WeightGrid:
        """The allowed weight integers."""
        return WeightGrid(self.weight_max, self.pairs)

    def integers(self, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """Quantized weights, int8, in the shape of ``weight``."""
        integers = nearest(self.equalized(weight) / self._scales(weight.ndim), self.grid)
        return np.asarray(np.clip(integers, -128, 127), np.int8)

    def dequantized(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dequantized weights after equalization, float32."""
        return self.integers(weight) * self._scales(weight.ndim)

    def _scales(self, rank: int) -> NDArray[np.float32]:
        return np.asarray(self.weight_scale, np.float32).reshape(-1, *([1] * (rank - 1)))


class Encodings(_Model):
    """Encodings of one graph for one target."""

    schema_version: int = SCHEMA_VERSION
    target: str
    weight_max: int
    pairs: PairLayout = "free"
    graph_sha256: str
    options: dict[str, Any] = {}
    notes: list[str] = []
    keep: list[str] = []
    """Layers in high precision."""
    tensors: dict[str, TensorEncoding]
    layers: dict[str, LayerEncoding]

    def save(self, path: Path) -> None:
        """Write as JSON, one tensor or layer per line."""
        raw = self.model_dump(mode="json")
        names = (
            "schema_version",
            "target",
            "weight_max",
            "pairs",
            "graph_sha256",
            "options",
            "notes",
            "keep",
        )
        lines = ["{", *(f' "{name}": {json.dumps(raw[name])},' for name in names)]
        for name, last in (("tensors", False), ("layers", True)):
            entries = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in raw[name].items()]
            lines += [f' "{name}": {{', ",\n".join(entries), " }" if last else " },"]
        path.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Encodings:
        """Read a file written by `save`, possibly edited since.

        Raises:
            ArtifactError: Not an encodings file, or too large for one; the message names the
                invalid entry.
        """
        if not path.is_file():
            raise ArtifactError(f"no such file: {path}", hint="check the path")
        if path.stat().st_size > LARGEST_FILE:
            raise ArtifactError(
                f"{path.name} has {path.stat().st_size / 1e6:,.0f} MB, too many for encodings",
                hint="resnet-opt quantize writes encodings beside its output",
            )
        try:
            encodings = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its first byte"
            raise ArtifactError(
                f"{path.name} is invalid at {where}: {first['msg']}", hint=_CORRECT_IT
            ) from error
        except ArtifactError as error:
            raise ArtifactError(f"{path.name}: {error.message}", hint=error.hint) from error
        if encodings.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path.name} has schema version {encodings.schema_version}, expected {SCHEMA_VERSION}",
                hint=_CORRECT_IT,
            )
        return encodings

    def check_belongs(self, graph_sha256: str, rules: TargetRules) -> None:
        """Reject encodings of another graph or target.

        Raises:
            ArtifactError: Graph, target or the target's CPU rules differ.
        """
        if self.graph_sha256 != graph_sha256:
            raise ArtifactError(
                "the encodings were computed for another graph (its sha256 differs)",
                hint="calibrate and quantize this graph",
            )
        if self.target != rules.name:
            raise ArtifactError(
                f"the encodings are for {self.target}, not for {rules.name}",
                hint=f"--target {self.target}, or compute them again from the statistics",
            )
        if (self.weight_max, self.pairs) != (rules.weight_max, rules.pairs):
            raise ArtifactError(
                "the encodings are for another CPU: "
                f"weights up to {self.weight_max} with {self.pairs} pairs, "
                f"here up to {rules.weight_max} with {rules.pairs} pairs",
                hint=f"--target {self.target}, or compute them again from the statistics",
            )
