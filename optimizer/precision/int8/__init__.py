"""INT8: statistics, then encodings for a target, then lowering; three steps that stay apart."""

from optimizer.precision.int8.encode import EncodingOptions, compute_encodings
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.lowering import lower
from optimizer.precision.int8.statistics import Collector, Statistics, TensorStatistics

__all__ = [
    "Collector",
    "EncodingOptions",
    "Encodings",
    "LayerEncoding",
    "Statistics",
    "TensorEncoding",
    "TensorStatistics",
    "compute_encodings",
    "lower",
]
