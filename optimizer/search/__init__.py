"""Mixed precision: which layers stay in high precision so that the accuracy stays in the budget."""

from optimizer.search.split import divided
from optimizer.search.stages import check_data, images_for, judge, mixed, search_path

__all__ = ["check_data", "divided", "images_for", "judge", "mixed", "search_path"]
