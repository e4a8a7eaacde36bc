"""Reproducible speed measurements; see ``docs/measuring.md``."""

from optimizer.profiling.benchmark import bench
from optimizer.profiling.layer_profile import profile
from optimizer.profiling.speed_comparison import BenchComparison, compare_bench

__all__ = ["BenchComparison", "bench", "compare_bench", "profile"]
