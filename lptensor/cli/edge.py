"""From a command's text to a value, or to a usage error that names it (exit status 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import typer

T = TypeVar("T")


def edge(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` for an option or argument: what it refuses, with its own words, is wrong usage."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parsed


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of integers from ``low`` to ``high``."""

    def parsed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}, got {text}")
        return value

    return edge(parsed)


def positive(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"expected a positive number, got {text}")
    return value
