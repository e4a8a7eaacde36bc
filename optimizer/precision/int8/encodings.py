"""Encodings: scales, zero points, factors and corrected biases for one target; a readable file.

The file (JSON, schema version 1) holds, by tensor, ``scale``, ``zero_point``, ``dtype`` and
``shifted``; by layer, ``weight_scale`` per output channel, the corrected ``bias`` and the factors by
which equalization divides its outputs and multiplies its inputs. Integers of the weights follow
from these. ``keep`` names the layers that stay in high precision; they and their tensors have
encodings all the same, so that a layer can be added to the list or taken from it. The file can be
edited by hand and given back with ``--encodings``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optimizer.errors import ArtifactError, GraphError
from optimizer.precision.int8.rounding import WeightGrid, nearest
from optimizer.targets.rules import PairLayout, TargetRules

__all__ = ["LARGEST_BIAS", "Encodings", "LayerEncoding", "TensorEncoding", "stored_scale"]

SCHEMA_VERSION = 1
LARGEST_BIAS = 2.0**30
"""In units of a layer's products, where they are added in 32 bits: half of it is left for them."""


def stored_scale(scale: float, rules: TargetRules) -> float:
    """The scale as the graph will hold it, so that integers are rounded with the real one."""
    kind = np.float16 if rules.constant_type == "fp16" else np.float32
    with np.errstate(over="ignore"):
        stored = kind(scale)
    if not np.isfinite(stored):
        raise GraphError(
            f"a scale of {scale:g} is beyond {np.dtype(kind).name}, which the target holds it in",
            hint="the weights or activations are out of proportion: check the checkpoint",
        )
    if stored < np.finfo(kind).smallest_normal and float(stored) < scale:
        # A whole part of it is rounded away down there: rather a coarser grid than a clipped one.
        stored = np.nextafter(stored, kind(np.inf))
    return float(stored)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TensorEncoding(_Model):
    """How one tensor is stored as integers.

    ``shifted`` says that the tensor is stored around its middle: the graph carries
    ``x - 128 * scale`` with zero point 0, and the constant sits in the biases around it.
    """

    scale: float = Field(gt=0)
    zero_point: int = 0
    dtype: Literal["s8", "u8"]
    shifted: bool = False

    @property
    def offset(self) -> float:
        """The constant that a shifted tensor lacks."""
        return 128.0 * self.scale if self.shifted else 0.0

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return (0, 255) if self.dtype == "u8" else (-128, 127)

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest multiple of the scale that is represented."""
        low, high = self.bounds
        zero = self.zero_point - (128 if self.shifted else 0)
        return low - zero, high - zero


class LayerEncoding(_Model):
    """How one weighted layer is stored."""

    weight_scale: list[float]
    bias: list[float]
    weight_max: int = Field(default=127, ge=1, le=128)
    """128 for integers that were read and use -128, which has no positive counterpart."""
    pairs: PairLayout = "free"
    input_factor: list[float] | None = None
    """Each input channel's weights are multiplied by it (its tensor was divided by it)."""
    output_factor: list[float] | None = None
    """Each output channel, bias included, is divided by it; ``bias`` has that done already."""

    @model_validator(mode="before")
    @classmethod
    def _without_learned_integers(cls, raw: Any) -> Any:
        """Earlier versions wrote a ``rounding`` for every layer, ``null`` unless it was learned."""
        if not isinstance(raw, dict) or "rounding" not in raw:
            return raw
        if raw["rounding"] is not None:
            raise ArtifactError(
                "the weights have integers that an earlier version learned (rounding); this version "
                "does not read them",
                hint="compute the encodings again from the statistics: --stats FILE",
            )
        return {name: value for name, value in raw.items() if name != "rounding"}

    def equalized(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The FP32 weight after equalization: O x I x …."""
        result = weight.astype(np.float32)
        if self.input_factor is not None:
            factor = np.asarray(self.input_factor, np.float32)
            result = result * factor.reshape(1, -1, *([1] * (weight.ndim - 2)))
        if self.output_factor is not None:
            factor = np.asarray(self.output_factor, np.float32)
            result = result / factor.reshape(-1, *([1] * (weight.ndim - 1)))
        return result

    def holding_bias(self, input_scale: float) -> LayerEncoding:
        """The layer with products that are not too small for 32 bits to hold its bias.

        They are where a channel's weights are next to nothing and its bias is not; a coarser scale
        loses only what such weights add. Half of the room is left for a correction of the bias.
        """
        least = np.abs(self.bias) / (LARGEST_BIAS / 2 * input_scale)
        scales = np.maximum(self.weight_scale, least)
        return self.model_copy(update={"weight_scale": scales.tolist()})

    @property
    def grid(self) -> WeightGrid:
        """The integers that the weights may take."""
        return WeightGrid(self.weight_max, self.pairs)

    def integers(self, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """Rounded weights, int8, in the shape of ``weight``."""
        integers = nearest(self.equalized(weight) / self._scales(weight.ndim), self.grid)
        return np.asarray(np.clip(integers, -128, 127), np.int8)

    def represented(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The weights that the integers stand for, after equalization."""
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
        """Write as JSON, one tensor or layer a line."""
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
        """Read what `save` wrote, maybe edited since.

        Raises:
            ArtifactError: Not such a file; the message names the entry that does not fit.
        """
        if not path.is_file():
            raise ArtifactError(f"no such file: {path}", hint="check the path")
        try:
            encodings = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"{path.name} does not fit its schema at {where}: {first['msg']}"
            ) from error
        except ArtifactError as error:
            raise ArtifactError(f"{path.name}: {error.message}", hint=error.hint) from error
        if encodings.schema_version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path.name} has schema version {encodings.schema_version}, this is version {SCHEMA_VERSION}"
            )
        return encodings

    def check_belongs(self, graph_sha256: str, rules: TargetRules) -> None:
        """Refuse encodings of another graph or target.

        Raises:
            ArtifactError: They belong elsewhere.
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
