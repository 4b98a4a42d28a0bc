"""Rows of plain values that print as a table and can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any, SupportsIndex, overload

from lptensor.extra import need
from lptensor.study.text import cell

Row = dict[str, Any]


class Rows(list[Row]):
    """What a study found: a list of dicts with the same keys, so that JSON and pandas take it as it is.

    ``print`` shows a table, of many columns the main ones, and names the others that hold something; ``plot`` draws
    the picture that belongs to it.

    >>> rows = Rows([{"bits": 8, "sqnr": 31.5}, {"bits": 4, "sqnr": None}])
    >>> print(rows)
    bits  sqnr
    8     31.5
    4     -
    >>> print(rows.only("bits"))
    bits
    8
    4
    """

    def __init__(
        self, rows: Iterable[Row] = (), draw: Callable[..., Any] | None = None, main: Sequence[str] = ()
    ) -> None:
        super().__init__(rows)
        self._draw, self._main = draw, main

    @overload
    def __getitem__(self, at: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> Rows: ...

    def __getitem__(self, at: SupportsIndex | slice) -> Row | Rows:
        """A row, or some of them, which print and can be drawn as all do."""
        if isinstance(at, slice):
            return Rows(super().__getitem__(at), self._draw, self._main)
        return super().__getitem__(at)

    def only(self, *columns: str) -> Rows:
        """The rows with these columns alone, in this order.

        Raises:
            ValueError: a column that the rows do not have.
        """
        known = [*self[0]] if self else []
        unknown = [column for column in columns if column not in known]
        if self and unknown:
            raise ValueError(f"no column {unknown[0]!r}; the rows have {', '.join(known)}")
        return Rows(({column: row[column] for column in columns} for row in self), self._draw)

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the rows on matplotlib axes (pyplot's current ones by default), and return these.

        Raises:
            MissingExtra: matplotlib is not installed.
            TypeError: rows without a picture, or without the columns that it shows; no axes.
            ValueError: no rows.
        """
        if self._draw is None:
            raise TypeError("these rows have no picture of their own; plot a column of them")
        return self._draw(self, ax, **options)

    def frame(self) -> Any:
        """The rows as a pandas.DataFrame.

        Raises:
            MissingExtra: pandas is not installed.
        """
        return need("pandas").DataFrame(list(self))

    def __str__(self) -> str:
        if not self:
            return "(no rows)"
        plain = [key for key in self[0] if not isinstance(self[0][key], (dict, list))]
        keys = [key for key in plain if key in self._main] or plain
        others = [key for key in plain if key not in keys and any(row[key] is not None for row in self)]
        table = [keys, *([cell(row[key]) for key in keys] for row in self)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(text.ljust(n) for text, n in zip(line, widths, strict=True)).rstrip() for line in table]
        if others:
            lines += wrap(f"Not shown: {', '.join(others)}; Rows.only(...) chooses columns.", 80)
        return "\n".join(lines)


def drawable(rows: Iterable[Row], ax: Any, *columns: str, empty: bool = False) -> tuple[list[Row], Any]:
    """The rows of a picture in a list, a study's own as they are, and the axes to draw them on.

    Args:
        rows: dicts with these columns.
        empty: none of them make a picture too.

    Raises:
        TypeError: something else than such rows, no axes.
        ValueError: no rows.

    >>> axes = need("matplotlib.figure").Figure().subplots()
    >>> drawable(({"bits": n} for n in (4, 8)), axes, "bits")[0]
    [{'bits': 4}, {'bits': 8}]
    """
    found: list[Any] = rows if isinstance(rows, list) else list(rows) if isinstance(rows, Iterable) else [rows]
    for row in found:
        if not isinstance(row, dict) or not row.keys() >= set(columns):
            given = f"a row of {', '.join(map(str, row))}" if isinstance(row, dict) and row else repr(row)
            raise TypeError(f"this picture is of rows, dicts with {', '.join(columns)}, got {given}")
    if not found and not empty:
        raise ValueError("there are no rows to draw: nothing ran, or they come from a generator that is spent")
    return found, axes_of(ax)


def axes_of(ax: Any) -> Any:
    """The matplotlib axes that an argument means: for None pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: something else, or several.
    """
    ax = need("matplotlib.pyplot").gca() if ax is None else ax
    if not hasattr(ax, "add_line"):
        raise TypeError(f"ax must be one matplotlib axes, such as that of fig, ax = plt.subplots(), got {ax!r}")
    return ax
