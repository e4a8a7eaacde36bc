"""Speed, measured so that it holds when someone else measures it; see ``docs/measuring.md``."""

from optimizer.profiling.bench import bench
from optimizer.profiling.compare import BenchComparison, compare_bench
from optimizer.profiling.layers import profile

__all__ = ["BenchComparison", "bench", "compare_bench", "profile"]
