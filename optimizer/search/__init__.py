"""Mixed precision: find the layers to keep in high precision to meet an accuracy budget."""

from optimizer.search.mixed_search import (
    check_disjoint,
    judge,
    mixed,
    open_search_images,
    search_path,
)
from optimizer.search.split import split_images

__all__ = ["check_disjoint", "judge", "mixed", "open_search_images", "search_path", "split_images"]
