"""Questions about formats and models in low precision, one file each, answered in rows that print and plot."""

from lptensor.study.accumulation import (
    Accumulation as Accumulation,
    accumulation_error as accumulation_error,
    plot_accumulation as plot_accumulation,
)
from lptensor.study.bisect_ import Culprits as Culprits, bisect as bisect, plot_bisect as plot_bisect
from lptensor.study.bit_layout import bit_layout as bit_layout, plot_bit_layout as plot_bit_layout
from lptensor.study.census import Census as Census
from lptensor.study.errors import plot_errors as plot_errors
from lptensor.study.exactness import Exactness as Exactness, exactness as exactness
from lptensor.study.faults import faults as faults, flip_bits as flip_bits
from lptensor.study.format_search import Front as Front, format_search as format_search, plot_front as plot_front
from lptensor.study.format_table import format_table as format_table
from lptensor.study.histogram import (
    Histogram as Histogram,
    exponent_histogram as exponent_histogram,
    plot_histogram as plot_histogram,
)
from lptensor.study.layer_map import plot_layer_map as plot_layer_map
from lptensor.study.layers import layers as layers
from lptensor.study.log import Log as Log
from lptensor.study.number_line import number_line as number_line, plot_number_line as plot_number_line
from lptensor.study.ranges import plot_ranges as plot_ranges
from lptensor.study.record import record as record
from lptensor.study.relative_error import (
    plot_relative_error as plot_relative_error,
    relative_error as relative_error,
)
from lptensor.study.replicas import Replicas as Replicas, replicas as replicas
from lptensor.study.rounding_bias import Bias as Bias, plot_bias as plot_bias, rounding_bias as rounding_bias
from lptensor.study.rows import Rows as Rows
from lptensor.study.sensitivity import sensitivity as sensitivity
from lptensor.study.shadow import Shadow as Shadow, shadow as shadow
from lptensor.study.sqnr import bits_per_value as bits_per_value, plot_sqnr as plot_sqnr, sqnr as sqnr
from lptensor.study.stagnation import plot_stagnation as plot_stagnation, update_stagnation as update_stagnation
from lptensor.study.training_curves import plot_training as plot_training
from lptensor.study.updates import Updates as Updates

__all__ = [
    "Accumulation",
    "Bias",
    "Census",
    "Culprits",
    "Exactness",
    "Front",
    "Histogram",
    "Log",
    "Replicas",
    "Rows",
    "Shadow",
    "Updates",
    "accumulation_error",
    "bisect",
    "bit_layout",
    "bits_per_value",
    "exactness",
    "exponent_histogram",
    "faults",
    "flip_bits",
    "format_search",
    "format_table",
    "layers",
    "number_line",
    "plot_accumulation",
    "plot_bias",
    "plot_bisect",
    "plot_bit_layout",
    "plot_errors",
    "plot_front",
    "plot_histogram",
    "plot_layer_map",
    "plot_number_line",
    "plot_ranges",
    "plot_relative_error",
    "plot_sqnr",
    "plot_stagnation",
    "plot_training",
    "record",
    "relative_error",
    "replicas",
    "rounding_bias",
    "sensitivity",
    "shadow",
    "sqnr",
    "update_stagnation",
]


def __dir__() -> list[str]:
    return __all__
