"""Records the behaviour of a machine's GPU libraries in one file, for example for a bug report.

Builds a small residual network in each precision with each installed library. The record contains
versions, every call to TensorRT and CUDA with its result, the inspector's output, layer times, clocks, log
messages and this package's verdicts. It contains no weights, no images, and no names or paths of the user.
"""

from optimizer.gpu_record.recording import record
from optimizer.gpu_record.storage import read_record

__all__ = ["read_record", "record"]
