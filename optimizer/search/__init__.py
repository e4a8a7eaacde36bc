"""Mixed precision: which layers stay in high precision so that the accuracy stays in the budget."""

from optimizer.search.mixed_search import check_data, images_for, judge, mixed, search_path
from optimizer.search.split import divided

__all__ = ["check_data", "divided", "images_for", "judge", "mixed", "search_path"]
