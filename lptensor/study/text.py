"""How a value looks in a table."""

from __future__ import annotations

import math
from typing import Any


def cell(value: Any) -> str:
    """A value as a table shows it: four digits of a number, a dash for None.

    >>> cell(0.123456), cell(2.0**-149), cell(None), cell("E4M3"), cell(float("inf"))
    ('0.1235', '1.401e-45', '-', 'E4M3', 'inf')
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"
