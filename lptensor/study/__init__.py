from lptensor.study.bit_layout import bit_layout as bit_layout, plot_bit_layout as plot_bit_layout
from lptensor.study.errors import plot_errors as plot_errors
from lptensor.study.format_table import format_table as format_table
from lptensor.study.histogram import (
    Histogram as Histogram,
    exponent_histogram as exponent_histogram,
    plot_histogram as plot_histogram,
)
from lptensor.study.layer_map import plot_layer_map as plot_layer_map
from lptensor.study.log import Log as Log
from lptensor.study.number_line import number_line as number_line, plot_number_line as plot_number_line
from lptensor.study.record import record as record
from lptensor.study.replicas import Replicas as Replicas, replicas as replicas
from lptensor.study.rows import Rows as Rows
from lptensor.study.shadow import Shadow as Shadow, shadow as shadow
