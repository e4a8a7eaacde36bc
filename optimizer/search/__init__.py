"""Mixed precision: find the layers to keep in high precision to meet an accuracy budget."""

from optimizer.search.mixed_search import check_data, images_for, judge, mixed, search_path
from optimizer.search.split import divided

__all__ = ["check_data", "divided", "images_for", "judge", "mixed", "search_path"]
