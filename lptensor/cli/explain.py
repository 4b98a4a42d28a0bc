"""Why a value rounds as it does: its neighbours on the grid, the choice between them, and the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

import lptensor
from lptensor.blocks import BlockFormat
from lptensor.formats import Format
from lptensor.grid import Grid, Subnormals
from lptensor.rounding import Beyond, Mode, Rounding, as_rounding
from lptensor.study.rounding_bias import odds
from lptensor.tables import Table


@dataclass(frozen=True)
class Choice:
    """One value, where it lies, and what it rounds to.

    ``lower <= value <= upper`` are neighbours; None where there is none. Next to the end of a scalar
    format, or of a list with infinities, one of them is the first step ``beyond`` it: not a value of the
    format, but what decides whether the value overflows. ``chance`` is the probability of ``upper`` under
    stochastic rounding.
    """

    value: float
    lower: float | None
    upper: float | None
    result: float
    why: str
    chance: Fraction | None = None
    beyond: float | None = None

    def distance(self, neighbour: float | None) -> Fraction | None:
        """How far a neighbour is, exactly."""
        return None if neighbour is None else abs(Fraction(self.value) - Fraction(neighbour))


def explain(values: Sequence[float], format: Format, rounding: Rounding | Mode | str = "nearest") -> list[Choice]:
    """What ``lptensor.round`` does to each value and why; the values are one float64 tensor.

    NaN and infinities are explained too. Stochastic rounding draws from torch's generator.

    >>> from lptensor import E4M3
    >>> [(c.lower, c.upper, c.result, c.why) for c in explain([17.0], E4M3)]
    [(16.0, 18.0, 16.0, 'tie: to even')]
    """
    rule = as_rounding(rounding)
    x = torch.tensor(values, dtype=torch.float64)
    results, lowers, uppers = (lptensor.round(x, format, mode).tolist() for mode in (rule, Mode.DOWN, Mode.UP))
    return [_choice(*four, format, rule) for four in zip(values, lowers, uppers, results, strict=True)]


def _choice(x: float, low: float, high: float, result: float, format: Format, rule: Rounding) -> Choice:
    grid = format.lowered if isinstance(format.lowered, Grid) else None
    table = format.lowered if isinstance(format.lowered, Table) and format.lowered.ends is not None else None
    if math.isnan(x):
        return Choice(x, None, None, result, "NaN stays NaN")
    if math.isinf(x):
        ends = {math.isnan(result): "no infinity: NaN", result == x: "infinity stays"}
        return Choice(x, None, None, result, ends.get(True, "infinity saturates"))
    if x == result:
        lost = math.copysign(1, x) != math.copysign(1, result)
        return Choice(x, x, x, result, "the format has no -0" if lost else "on the grid")
    if math.isnan(result) and isinstance(format, BlockFormat):
        return Choice(x, None, None, result, "its block holds NaN or infinity")
    if grid and x < 0 and not grid.signed:
        return Choice(x, None, None, result, f"no negative numbers: {result}")
    if x == 0:
        return Choice(x, None, None, result, "the format has no zero")
    lower, upper, beyond = _neighbours(x, low, high, grid, table)
    chance = _chance(x, lower, upper, beyond, grid, rule) if rule.stochastic else None
    return Choice(x, lower, upper, result, _why(x, lower, upper, beyond, result, grid, rule, table), chance, beyond)


def _neighbours(
    x: float, low: float, high: float, grid: Grid | None, table: Table | None
) -> tuple[float | None, float | None, float | None]:
    """Lower, upper, and which of them is the first step beyond the format's end, if one is."""
    negative = x < 0
    if grid and _flushed(x, grid):  # the directed modes flush as well
        normal = math.copysign(2.0**grid.emin, x)
        return (normal, 0.0, None) if negative else (0.0, normal, None)
    if low < x < high and math.isfinite(low) and math.isfinite(high):
        return low, high, None
    near = high if negative else low  # towards zero lies the end of the format
    if abs(near) > abs(x):  # or x is below the smallest value of a format without zero
        return None, near, None
    beyond = None
    if grid:
        step = math.copysign(2.0 ** grid.quantum(grid.emax), x)
        beyond = near + step if abs(x) < abs(near + step) else None
    if table and table.ends:
        beyond = math.copysign(table.ends.place, x) if abs(x) < table.ends.place else None
    return (beyond, near, beyond) if negative else (near, beyond, beyond)


def _chance(
    x: float, lower: float | None, upper: float | None, beyond: float | None, grid: Grid | None, rule: Rounding
) -> Fraction | None:
    """The probability of ``upper``: the fraction of the gap, counted from zero, in units of the random bits."""
    if lower is None or upper is None or _flushed(x, grid):
        return None
    gap, negative = Fraction(upper) - Fraction(lower), x < 0
    away = (Fraction(upper) - Fraction(x) if negative else Fraction(x) - Fraction(lower)) / gap
    if beyond is not None and rule.beyond is Beyond.PROBABILITY:
        away = min(2 * away, Fraction(1))
    if 0 < away < 1:
        away = odds(rule, away)
    if beyond is not None and rule.beyond is Beyond.SATURATE:
        away = Fraction(0)
    return 1 - away if negative else away


def _flushed(x: float, grid: Grid | None) -> bool:
    return grid is not None and grid.subnormals is Subnormals.FLUSH and abs(x) < 2.0**grid.emin


def _why(
    x: float,
    lower: float | None,
    upper: float | None,
    beyond: float | None,
    result: float,
    grid: Grid | None,
    rule: Rounding,
    table: Table | None,
) -> str:
    if _flushed(x, grid):
        return "below the normals: flushed to zero"
    if not math.isfinite(result):
        return "overflow: NaN" if math.isnan(result) else "overflow: infinity"
    if abs(result) > abs(x) and (lower is None or upper is None):
        return "below the smallest value"
    past = beyond is not None or lower is None or upper is None
    if past and not _prefers_end(x, beyond, result, grid or table, rule):
        return f"overflow: saturates at {result!r}"
    if rule.mode.toward == "nearer":
        assert lower is not None and upper is not None
        down, up = Fraction(x) - Fraction(lower), Fraction(upper) - Fraction(x)
        if down != up:  # posits round their codes, logarithmic numbers their exponents
            return "nearer" if result == (lower if down < up else upper) else "nearer as the format measures"
        return "tie: " + _WAYS["away" if rule.mode.tie == "even" and _ties_up(x, grid) else rule.mode.tie]
    return "inexact: " * (rule.mode.toward in ("even", "odd")) + _WAYS[rule.mode.toward]


_WAYS = {
    "zero": "toward zero",
    "away": "away from zero",
    "even": "to even",
    "odd": "to odd",
    "down": "down",
    "up": "up",
    "drawn": "drawn",
}


def _ties_up(x: float, grid: Grid | None) -> bool:
    """Whether no even neighbour settles a tie: between powers of two, and between zero and the normals."""
    if grid is None or grid.ties_to_even_code:
        return False
    return grid.precision == 1 or grid.subnormals is Subnormals.NONE and abs(x) < 2.0**grid.emin


def _prefers_end(x: float, beyond: float | None, end: float, lowered: Grid | Table | None, rule: Rounding) -> bool:
    """Whether a value past the format's end rounds back to the end by its mode, whatever overflow does."""
    if rule.mode.leads_back(x < 0):
        return True
    if beyond is None or lowered is None:
        return False
    if rule.stochastic:
        return not lowered.saturates and rule.beyond is not Beyond.SATURATE
    if rule.mode.toward != "nearer":
        return False
    inside, outside = abs(Fraction(x) - Fraction(end)), abs(Fraction(beyond) - Fraction(x))
    if isinstance(lowered, Table):
        even = lowered.codes[-1] % 2 == 0
    else:
        even = abs(Fraction(end) / (Fraction(beyond) - Fraction(end))) % 2 == 0
    ties = {"zero": True, "away": False, "even": even, "odd": not even, "down": x > 0, "up": x < 0}
    return inside < outside or inside == outside and ties[rule.mode.tie]
