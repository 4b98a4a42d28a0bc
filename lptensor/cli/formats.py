"""``lptensor formats``: a table of the formats that have a name."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lptensor.cli.output import stdout
from lptensor.study import format_table

# The keys of a row that the table shows, and what stands above them.
_COLUMNS = {
    "name": "format",
    "kind": "kind",
    "bits": "bits",
    "precision": "p",
    "emin": "emin",
    "emax": "emax",
    "max": "max",
    "smallest_normal": "min\nnormal",
    "smallest_subnormal": "smallest",
    "specials": "specials",
    "overflow": "overflow",
}

_ROOM = 100  # columns of a terminal that holds them


def formats(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead, with exact numbers.")] = False,
) -> None:
    """List the known formats and their limits."""
    rows = format_table()
    if as_json:
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    console = stdout()
    notes = "p: significant bits, the hidden one included. smallest: least positive value."
    if any(row["kind"] == "block" for row in rows):
        notes += "\nA block format shows its elements before they are scaled. +0: there is no -0."
    # A narrow terminal has no room for all; what kind a format is, its name mostly says.
    narrow = console.width < _ROOM
    columns = {key: title for key, title in _COLUMNS.items() if not (narrow and key == "kind")}
    table = Table(title="Number formats", caption=notes, header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, int(not narrow), 0, 0)
    for key, title in columns.items():
        left = key in ("name", "kind", "specials", "overflow")
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(row[key]) for key in columns))
    console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and value < 1e6 else f"{value:.3g}"
    return str(value).replace("no -0", "+0")  # 80 columns have no room for all of "inf, NaN, no -0"
