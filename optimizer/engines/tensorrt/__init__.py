"""TensorRT 10.12 and later, TensorRT 11 and TensorRT-RTX through one code path.

The graph defines the precision: every network is strongly typed, and no builder flag changes what a
layer computes. TensorRT-RTX compiles without a GPU; its layers are then read from the build log.
"""

from optimizer.engines.tensorrt.backend import TensorRt, TensorRtRtx

__all__ = ["TensorRt", "TensorRtRtx"]
