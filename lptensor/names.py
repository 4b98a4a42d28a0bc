"""The named formats: each is a row, made where the format is made."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

F = TypeVar("F")  # of a Format, whose repr() asks here


class Row(NamedTuple):
    """A format that has a name."""

    format: Any
    source: str | None = None  # the standard or the paper that defines it
    words: str = ""  # what it is for, on the page of formats


ROWS: dict[str, Row] = {}


def row(name: str, format: F, source: str | None = None, words: str = "") -> F:
    """The format, which has a name from now on: repr(), pages, tests and the command line find it in ``ROWS``."""
    ROWS[name] = Row(format, source, words)
    return format


def named_formats() -> dict[str, Any]:
    """Every format that the package has a name for, in the order in which they are written down.

    >>> named_formats()["FP16"].spelled()
    'FloatingPoint(exp=5, man=10)'
    """
    return {name: row.format for name, row in ROWS.items()}


def name_of(format: object) -> str | None:
    """The name of the row that equals the format, if there is one.

    >>> from lptensor import FloatingPoint, Posit
    >>> name_of(FloatingPoint(8)), name_of(Posit(8))
    ('E5M2', None)
    """
    return next((name for name, row in ROWS.items() if row.format == format), None)
