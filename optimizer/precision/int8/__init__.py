"""INT8 quantization in three separate steps: statistics, encodings for a target, lowering."""

from optimizer.precision.int8.carry_over import carry_over_encodings
from optimizer.precision.int8.encode import compute_encodings
from optimizer.precision.int8.encodings import Encodings, LayerEncoding, TensorEncoding
from optimizer.precision.int8.encodings_check import check_encodings
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
    "carry_over_encodings",
    "check_encodings",
    "compute_encodings",
    "lower",
    "read_quantized",
]
