"""Rows of plain values that print as a table and can be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lptensor.extra import need
from lptensor.study.text import cell

Row = dict[str, Any]


class Rows(list[Row]):
    """What a study found: a list of dicts with the same keys, so that JSON and pandas take it as it is.

    ``print`` shows a table; ``plot`` draws the picture that belongs to it.

    >>> print(Rows([{"bits": 8, "sqnr": 31.5}, {"bits": 4, "sqnr": None}]))
    bits  sqnr
    8     31.5
    4     -
    """

    def __init__(self, rows: Iterable[Row] = (), draw: Callable[..., Any] | None = None) -> None:
        super().__init__(rows)
        self._draw = draw

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
        keys = [key for key in self[0] if not isinstance(self[0][key], (dict, list))]
        table = [keys, *([cell(row[key], key) for key in keys] for row in self)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table
        )
