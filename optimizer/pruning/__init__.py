"""Pruning by measured latency: which channels and blocks a network can do without."""

from optimizer.pruning.prunable import Prunable, check_prunable
from optimizer.pruning.prune_job import PruneJob, pruning_folder, step_files
from optimizer.pruning.table_files import check_fits, latency_table, read_table, table_engine

__all__ = [
    "Prunable",
    "PruneJob",
    "check_fits",
    "check_prunable",
    "latency_table",
    "pruning_folder",
    "read_table",
    "step_files",
    "table_engine",
]
