"""What all results share: the schema version, the base class and the common names."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["SCHEMA_VERSION", "EngineStatus", "Interval", "Model", "VerdictName"]

SCHEMA_VERSION = 1
Interval = tuple[float, float]
VerdictName = Literal["pass", "fail", "inconclusive"]
EngineStatus = Literal["ok", "failed", "built-not-run", "unavailable"]


class Model(BaseModel):
    """A result or a part of one; unknown fields are refused."""

    # "model_" is pydantic's own prefix; nothing here uses it.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
