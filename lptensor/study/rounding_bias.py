"""Where between two neighbours a rounding goes, and by how much it is wrong on average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lptensor.base import check_bool, check_int
from lptensor.formats import FP16, ScalarFormat
from lptensor.ops import round as round_to
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.study.palette import BLACK, BLUE, VERMILLION, framed
from lptensor.study.rows import Rows, drawable

_EXACT_BITS = 32  # of the fraction that stochastic rounding looks at


class Bias(Rows):
    """Rows of a rounding by position, with the means over all of them: ``bias`` and ``variance``, in ulps."""

    bias: float
    variance: float


def rounding_bias(
    rounding: Rounding | Mode | str,
    bits: int = 4,
    format: ScalarFormat = FP16,
    trials: int = 0,
    negative: bool = False,
) -> Bias:
    """What a rounding does at each of the 2**bits positions between two neighbours, exactly.

    position (in ulps above the lower neighbour in magnitude, k / 2**bits), up (the probability of the
    upper one; of deterministic modes 0 or 1, in a tie the mean over an even and an odd lower neighbour),
    bias (the mean of the result less the value, in ulps, away from zero), variance (in ulps**2). The
    means over the positions, ``.bias`` and ``.variance``, are those of values with ``bits`` more bits
    than the format. With ``trials``, measured and deviation: the mean of so many real roundings of values
    next to 1 in ``format``, and what that mean may be off by (one standard deviation).

    Args:
        rounding: a name, a ``Mode``, or ``Stochastic(...)`` with its number of random bits and variant.
        bits: up to 20.
        negative: of negative numbers; only "up" and "down" tell them apart.

    Raises:
        TypeError: no scalar format, trials that are not an integer, a ``negative`` that is neither True nor False.
        ValueError: bits or trials out of range, or a format with fewer than 2 significant bits or without 1 among
            its normals.

    >>> from lptensor import Stochastic
    >>> rounding_bias(Stochastic(bits=2), bits=4).bias  # Fitzgibbon and Felix 2025: -(2**-2 - 2**-4) / 2
    -0.09375
    >>> rounding_bias("nearest").bias, rounding_bias("toward_zero", bits=1).bias
    (0.0, -0.25)
    """
    rule = as_rounding(rounding)
    bits = check_int("bits", bits, 1, 20)
    trials = check_int("trials", trials, 0, 2**31 - 1)
    check_bool("negative", negative)
    if not isinstance(format, ScalarFormat):
        raise TypeError(f"rounding_bias() takes a scalar format, whose neighbours are evenly spaced, got {format!r}")
    grid = format.grid
    if grid.emin == grid.emax or grid.precision < 2 or not grid.emin <= 0 < grid.emax:
        raise ValueError(f"the positions are looked at between 1 and 1 + 2 ulps, which {format!r} lacks")
    rows = []
    for k in range(2**bits):
        position = Fraction(k, 2**bits)
        up = _chance(rule, position, negative)
        row = {
            "position": float(position),
            "up": float(up),
            "bias": float(up - position),
            "variance": float(up * (1 - up)),
        }
        rows.append(row | _measured(rule, position, up, format, trials, negative) if trials else row)
    found = Bias(rows, plot_bias)
    found.bias = math.fsum(row["bias"] for row in rows) / len(rows)
    found.variance = math.fsum(row["variance"] for row in rows) / len(rows)
    return found


def _chance(rule: Rounding, position: Fraction, negative: bool) -> Fraction:
    """The probability of the neighbour of larger magnitude."""
    inexact, half = Fraction(int(position > 0)), Fraction(1, 2)
    if not rule.stochastic:
        chances: dict[str, Fraction | int] = {
            "nearer": int(position > half),
            "zero": 0,
            "away": 1,
            "even": half,
            "odd": half,
            "down": int(negative),
            "up": int(not negative),
        }
        return inexact * chances[rule.mode.tie if position == half else rule.mode.toward]
    return inexact * odds(rule, position)


def odds(rule: Rounding, fraction: Fraction) -> Fraction:
    """The probability that a mode that draws takes what is so far above a neighbour, and inexact, to the next one.

    >>> from lptensor import Stochastic
    >>> odds(Stochastic(bits=2), Fraction(5, 16))
    Fraction(1, 4)
    """
    draws = 2**rule.bits
    cut = Fraction(math.floor(fraction * 2**_EXACT_BITS), 2**_EXACT_BITS) * draws
    match rule.mode:
        case Mode.STOCHASTIC:
            up = math.floor(cut)
        case Mode.STOCHASTIC_HALF_OFFSET:
            up = math.floor(cut + Fraction(1, 2))
        case Mode.STOCHASTIC_PRE_ROUNDED:  # of a Fraction to the even neighbour in a tie
            up = round(cut if rule.bits > 30 else fraction * draws)
        case Mode.STOCHASTIC_EQUAL:
            up = draws // 2
        case unknown:
            raise ValueError(f"no odds are known for {unknown!r}")
    return Fraction(up, draws)


def _measured(
    rule: Rounding, position: Fraction, up: Fraction, format: ScalarFormat, trials: int, negative: bool
) -> dict[str, float]:
    unit = 2.0 ** (1 - format.grid.precision)
    lower = torch.tensor([1.0, 1.0 + unit], dtype=torch.float64).repeat(-(-trials // 2))  # an even one and an odd one
    sign = -1.0 if negative else 1.0
    x = sign * (lower + float(position) * unit)
    moved = (round_to(x, format, rule) - x) * sign / unit
    return {"measured": float(moved.mean()), "deviation": math.sqrt(float(up * (1 - up)) / len(x))}


def plot_bias(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the chance to go up over the position, beside the unbiased one; returns the axes.

    Args:
        rows: of ``rounding_bias``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> rounding_bias("nearest", bits=2).plot(axes).lines[1].get_ydata().tolist()
    [0.0, 0.0, 0.5, 1.0]
    """
    rows, ax = drawable(rows, ax, "position", "up")
    at = np.array([row["position"] for row in rows])
    ax.plot([0, 1], [0, 1], color=BLACK, linewidth=0.8, linestyle="--", label="unbiased")
    ax.plot(at, np.array([row["up"] for row in rows]), color=BLUE, linewidth=1.2, drawstyle="steps-mid", label="chance")
    if "measured" in rows[0]:
        seen = np.array([row["measured"] + row["position"] for row in rows])
        error = np.array([3 * row["deviation"] for row in rows])
        ax.errorbar(at, seen, error, color=VERMILLION, marker="o", markersize=3, linestyle="", label="measured, 3 s.d.")
    ax.set_xlabel("position between neighbours (ulps)")
    ax.set_ylabel("chance of the upper one")
    return framed(ax)
