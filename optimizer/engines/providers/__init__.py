"""ONNX Runtime's execution providers: what each is, needs, takes, and whether it works here."""

from optimizer.engines.providers.settings import Choice, lowering_target, read_choice
from optimizer.engines.providers.table import PROVIDERS, Provider

__all__ = ["PROVIDERS", "Choice", "Provider", "lowering_target", "read_choice"]
