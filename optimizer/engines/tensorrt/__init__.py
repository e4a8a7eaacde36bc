"""TensorRT 10.12 and later, TensorRT 11 and TensorRT-RTX through one code path.

Precision lives in the graph: every network is strongly typed, no builder flag changes what a layer
computes. TensorRT-RTX compiles without a GPU, and its layers are read from the build log there.
"""

from optimizer.engines.tensorrt.backend import TensorRt, TensorRtRtx

__all__ = ["TensorRt", "TensorRtRtx"]
