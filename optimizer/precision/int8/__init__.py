"""INT8: statistics, then encodings for a target, then lowering; three steps that stay apart."""

from optimizer.precision.int8.carrying import encodings_from
from optimizer.precision.int8.encode import compute_encodings
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.lowering import lower
from optimizer.precision.int8.reading import ReadModel, read_quantized
from optimizer.precision.int8.statistics import Collector, Statistics, TensorStatistics

__all__ = [
    "Collector",
    "Encodings",
    "LayerEncoding",
    "ReadModel",
    "Statistics",
    "TensorEncoding",
    "TensorStatistics",
    "compute_encodings",
    "encodings_from",
    "lower",
    "read_quantized",
]
