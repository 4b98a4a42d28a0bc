from lptensor.study.bit_layout import bit_layout as bit_layout, plot_bit_layout as plot_bit_layout
from lptensor.study.format_table import format_table as format_table
from lptensor.study.number_line import number_line as number_line, plot_number_line as plot_number_line
