"""``lptensor formats``: a table of the formats that have a name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lptensor.blocks import BlockFormat, Blocks
from lptensor.cli.names import named_formats
from lptensor.cli.output import stdout
from lptensor.formats import FixedPoint, Format
from lptensor.grid import Grid

_KINDS = {"FloatingPoint": "float", "FixedPoint": "fixed", "BlockFloatingPoint": "block"}

# The keys of a row that the table shows, and what stands above them.
_COLUMNS = {
    "name": "format",
    "kind": "kind",
    "bits": "bits",
    "precision": "p",
    "emin": "emin",
    "emax": "emax",
    "max": "max",
    "min_normal": "min\nnormal",
    "smallest": "smallest",
    "specials": "specials",
    "overflow": "overflow",
}


def formats(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead, with exact numbers.")] = False,
) -> None:
    """List the known formats and their limits."""
    rows = [limits(name, format) for name, format in named_formats().items()]
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    console = stdout()
    notes = "p: significant bits, the hidden one included. smallest: least positive value."
    if any(isinstance(format, BlockFormat) for format in named_formats().values()):
        notes += "\nA block format shows its elements before they are scaled."
    table = Table(title="Number formats", caption=notes, header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, int(console.width >= 100), 0, 0)  # on a narrow terminal, space for the numbers
    for key, title in _COLUMNS.items():
        left = key in ("name", "kind", "specials", "overflow")
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(row[key]) for key in _COLUMNS))
    console.print(table)


def limits(name: str, format: Format) -> dict[str, Any]:
    """What a format's row says, as plain values; None where the format has no such thing.

    >>> from lptensor import FP16
    >>> row = limits("FP16", FP16)
    >>> row["precision"], row["max"], row["smallest"] == 2.0**-24
    (11, 65504.0, True)
    """
    kind = type(format).__name__
    row: dict[str, Any] = dict.fromkeys([*_COLUMNS, "min"])
    row |= {"name": name, "kind": _KINDS.get(kind, kind.lower()), "repr": repr(format)}
    row |= {key: getattr(format, key, None) for key in ("bits", "max", "min")}
    lowered = format.lowered
    grid = lowered.element if isinstance(lowered, Blocks) else lowered
    if isinstance(grid, Grid):
        even = isinstance(format, FixedPoint | BlockFormat)
        row |= {
            "precision": grid.precision,
            "emin": grid.emin,
            "emax": grid.emax,
            "max": grid.max,
            "min": grid.min,
            "min_normal": None if even else 2.0**grid.emin,
            "smallest": grid.smallest,
            "specials": _specials(format, grid),
            "overflow": grid.overflow.name.lower(),
        }
    return row


def _specials(format: Format, grid: Grid) -> str:
    """What has a code beyond plain numbers, and which numbers have none."""
    codes = {"ieee": ["inf", "NaN"], "fn": ["NaN"], "fnuz": ["NaN"]}.get(getattr(format, "specials", "none"), [])
    if not grid.signed:
        return " ".join([*codes, ">=0" if grid.zero else ">0"])
    return " ".join(codes if grid.negative_zero else [*codes, "no -0"])


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and value < 1e6 else f"{value:.3g}"
    return str(value)
