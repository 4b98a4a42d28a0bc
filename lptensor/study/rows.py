"""Rows of plain values that print as a table and can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any

from lptensor.extra import need
from lptensor.study.text import cell

Row = dict[str, Any]


class Rows(list[Row]):
    """What a study found: a list of dicts with the same keys, so that JSON and pandas take it as it is.

    ``print`` shows a table, of many columns the main ones, and names the others; ``plot`` draws the picture
    that belongs to it.

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
            TypeError: rows without a picture.
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
        others = [key for key in plain if key not in keys]
        table = [keys, *([cell(row[key]) for key in keys] for row in self)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(text.ljust(n) for text, n in zip(line, widths, strict=True)).rstrip() for line in table]
        if others:
            lines += wrap(f"Not shown: {', '.join(others)}; Rows.only(...) chooses columns.", 80)
        return "\n".join(lines)
