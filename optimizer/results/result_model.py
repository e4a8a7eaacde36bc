"""Base class, schema version and common types of all results."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from optimizer.tables import Table, facts_table

__all__ = ["SCHEMA_VERSION", "EngineStatus", "Interval", "IntervalKind", "Model", "VerdictName"]

SCHEMA_VERSION = 1
Interval = tuple[float, float]
VerdictName = Literal["pass", "fail", "inconclusive"]
IntervalKind = Literal["fixed", "anytime"]
"""Valid for one number of images that was chosen beforehand, or at every number at once."""
EngineStatus = Literal["ok", "failed", "built-not-run", "unavailable", "skipped"]
"""``skipped``: a hop that nothing depended on, because every engine passes."""


class Model(BaseModel):
    """A result or a part of one; unknown fields are refused."""

    def _repr_html_(self) -> str:
        """Notebook display."""
        return self.as_table().to_html()

    def as_table(self) -> Table:
        """The result as a table: its text and number fields, unless a subclass overrides this."""
        plain = (str, int, float, bool)
        facts = [(name, value) for name, value in self if isinstance(value, plain)]
        return facts_table(facts, type(self).__name__)

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
