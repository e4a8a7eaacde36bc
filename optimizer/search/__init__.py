"""Mixed precision: which layers stay in high precision so that the accuracy stays in the budget."""

from optimizer.search.stages import judge, mixed, search_path

__all__ = ["judge", "mixed", "search_path"]
