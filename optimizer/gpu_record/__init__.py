"""A record of what the GPU libraries of a machine do: one file that can go into a bug report.

A small residual network is built in each precision with each library there is; the record holds versions,
every call to TensorRT and CUDA with what it returned, what the inspector lists, layer times, clocks, log
lines and this package's verdicts. It holds no weights, no images, and no names or paths of the user.
"""

from optimizer.gpu_record.recording import record
from optimizer.gpu_record.storage import read_record

__all__ = ["read_record", "record"]
