"""ONNX Runtime's execution providers: their options, requirements, status and sessions."""

from optimizer.engines.providers.settings import Choice, lowering_target, read_choice
from optimizer.engines.providers.table import PROVIDERS, Provider

__all__ = ["PROVIDERS", "Choice", "Provider", "lowering_target", "read_choice"]
