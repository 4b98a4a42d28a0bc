"""``lptensor round``: values, their neighbours in a format, and which of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Annotated, Any

import torch
import typer
from rich.measure import Measurement
from rich.table import Table

import lptensor
from lptensor.cli.edge import edge, whole
from lptensor.cli.explain import Choice, explain
from lptensor.cli.names import parse_format, short
from lptensor.cli.output import stdout
from lptensor.formats import Format
from lptensor.rounding import Rounding, as_rounding


def parse_value(text: str) -> float:
    """A float64 from decimal or hexadecimal digits, or nan, inf, -0.

    >>> parse_value("0x1.8p-3"), parse_value("-inf")
    (0.1875, -inf)
    """
    beyond = f"{text!r} is beyond the largest float64"
    try:
        value = float.fromhex(text) if "0x" in text.lower() else float(text)
    except OverflowError:
        raise ValueError(beyond) from None
    except ValueError:
        what = "an option" if text.startswith("--") else "a number"
        raise ValueError(f"{text!r} is not {what}; values are like 0.1, 1e-3, 0x1.8p-3, nan, inf, -0") from None
    if math.isinf(value) and any(map(str.isdigit, text)):  # decimal digits overflow without an error
        raise ValueError(beyond)
    return value


def round(
    values: Annotated[
        list[float], typer.Argument(parser=edge(parse_value), metavar="VALUE...", help="0.1, 0x1.8p-3, nan, -inf, -0")
    ],
    format: Annotated[
        Format,
        typer.Option(parser=edge(parse_format), metavar="FORMAT", help='e4m3, bf16, e5m10, "fixed(8,4)" ...'),
    ],
    rounding: Annotated[
        Rounding,
        typer.Option(parser=edge(as_rounding), metavar="MODE", help="nearest, stochastic, toward_zero, up ..."),
    ] = "nearest",  # type: ignore[assignment]  # typer parses a default that is text
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**63 - 1), metavar="INT", help="Seed of stochastic rounding.")
    ] = 0,
    as_hex: Annotated[bool, typer.Option("--hex", help="Print numbers in hexadecimal.")] = False,
) -> None:
    """Show the neighbours of each value in a format, which is chosen, and why.

    Several values are one tensor: in a block format they share their exponent.
    """
    torch.manual_seed(seed)
    try:
        choices = explain(values, format, rounding)
    except (TypeError, ValueError) as error:  # a format may not know the mode
        raise typer.BadParameter(str(error)) from None
    write: Callable[[float], str] = float.hex if as_hex else repr
    titles = ["value", "lower", "upper", "to lower", "to upper", "result", "why"]
    if rounding.stochastic:
        titles[3:5] = ["P(lower)", "P(upper)"]
    rows = []
    for choice in choices:
        lower, upper = (_neighbour(choice, n, write) for n in (choice.lower, choice.upper))
        weights = (
            _chances(choice) if rounding.stochastic else [_distance(choice, n) for n in (choice.lower, choice.upper)]
        )
        rows.append([write(choice.value), lower, upper, *weights, f"[bold]{write(choice.result)}[/bold]", choice.why])
    look: dict[str, Any] = {
        "title": f"{short(format)}, {rounding.name}",
        "caption": _notes(choices, format, rounding),
        "header_style": "bold",
    }
    console = stdout()
    tables = [_side_by_side(titles, rows, look)]
    if not rounding.stochastic:  # distances can be told from the numbers, chances not
        tables.append(_side_by_side(_leave_out(titles), map(_leave_out, rows), look))
    for table in tables:
        if Measurement.get(console, console.options.update(width=1000), table).minimum <= console.width:
            console.print(table)
            return
    console.print(_one_by_one(titles, rows, look))


def _leave_out(row: list[str]) -> list[str]:
    """A row without the distances of the neighbours."""
    return row[:3] + row[5:]


def _side_by_side(titles: list[str], rows: Iterable[list[str]], look: dict[str, Any]) -> Table:
    """A row for each value, whose numbers are whole; the reasons fold."""
    table = Table(**look)
    for title in titles:
        table.add_column(title, justify="left" if title == "why" else "right", no_wrap=title != "why")
    for row in rows:
        table.add_row(*row)
    return table


def _one_by_one(titles: list[str], rows: list[list[str]], look: dict[str, Any]) -> Table:
    """A section for each value, for terminals too narrow to have its numbers side by side."""
    table = Table(**look, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        for title, text in zip(titles, row, strict=True):
            table.add_row(title, text)
        table.add_section()
    return table


def _neighbour(choice: Choice, value: float | None, write: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    text = write(value)
    return f"({text})" if value == choice.beyond else text


def _distance(choice: Choice, neighbour: float | None) -> str:
    distance = choice.distance(neighbour)
    return "-" if distance is None else f"{float(distance):.4g}"


def _chances(choice: Choice) -> list[str]:
    if choice.chance is None:
        return ["-", "-"]
    return [_percent(1 - choice.chance), _percent(choice.chance)]


def _percent(chance: Fraction) -> str:
    return f"{float(100 * chance):.4g} %"


def _notes(choices: list[Choice], format: Format, rounding: Rounding) -> str:
    """What a reader of the table has to know, and only that."""
    notes = ["Values are float64 and are rounded once, not through float32."]
    if any(choice.beyond is not None for choice in choices):
        notes.append("(in brackets): the first step beyond the format's largest value; it decides what overflows.")
    if not rounding.stochastic:
        values = torch.tensor([choice.value for choice in choices], dtype=torch.float32).double()
        for choice, single in zip(choices, lptensor.round(values, format, rounding).tolist(), strict=True):
            if single != choice.result and not (math.isnan(single) and math.isnan(choice.result)):
                notes.append(f"As float32, {choice.value!r} would become {single!r}.")
    return "\n".join(notes)
