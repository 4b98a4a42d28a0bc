"""Rounding rules: how a value between two neighbours of a format is taken to one of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mode(enum.IntEnum):
    """The rounding directions; the numbers are those of ``enum lpt_mode`` in csrc/grid.h.

    >>> Mode["NEAREST"].name.lower()
    'nearest'
    """

    NEAREST = 0  # IEEE 754-2019 4.3.1 roundTiesToEven
    NEAREST_AWAY = 1  # roundTiesToAway
    TOWARD_ZERO = 2  # 4.3.2 roundTowardZero
    DOWN = 3  # roundTowardNegative
    UP = 4  # roundTowardPositive
    ODD = 5  # inexact results take the odd neighbour (Boldo and Melquiond 2008)
    STOCHASTIC = 6  # up with the probability of the fraction


@dataclass(frozen=True)
class Rounding:
    """A rounding mode and, for the stochastic one, how many random bits decide.

    Representable values never move, in any mode. NaN stays NaN and the sign of a zero result is
    that of the input; what lies beyond the largest value is the format's affair (``overflow``).
    With ``bits=n`` the fraction is cut to n bits and rounds up with exactly that probability.

    Raises:
        ValueError: ``bits`` outside 1..32, or given for a mode that draws none.

    >>> Rounding(Mode.STOCHASTIC, bits=8)
    Stochastic(bits=8)
    >>> as_rounding("nearest") == Rounding()
    True
    """

    mode: Mode = Mode.NEAREST
    bits: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Mode):
            raise TypeError(f"mode must be a Mode, got {self.mode!r}; as_rounding() takes names")
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 32:
            raise ValueError(f"stochastic rounding takes 1 to 32 random bits, got {self.bits!r}")
        if self.bits != 32 and not self.stochastic:
            raise ValueError(f"{self.mode.name.lower()} rounding draws no random bits, got bits={self.bits}")

    @property
    def stochastic(self) -> bool:
        return self.mode is Mode.STOCHASTIC

    @property
    def name(self) -> str:
        return self.mode.name.lower()

    def __repr__(self) -> str:
        if self.stochastic:
            return f"Stochastic(bits={self.bits})" if self.bits != 32 else "Stochastic()"
        return f"Rounding(Mode.{self.mode.name})"


def Stochastic(bits: int = 32) -> Rounding:  # noqa: N802
    """Stochastic rounding that spends ``bits`` random bits on each element.

    >>> Stochastic() == as_rounding("stochastic")
    True
    """
    return Rounding(Mode.STOCHASTIC, bits)


_BY_NAME = {mode.name.lower(): Rounding(mode) for mode in Mode}


def as_rounding(rounding: Rounding | Mode | str) -> Rounding:
    """The frozen value that a name, an enum member or a ``Rounding`` stands for.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
        TypeError: anything else.

    >>> as_rounding("toward_zero")
    Rounding(Mode.TOWARD_ZERO)
    """
    if isinstance(rounding, Rounding):
        return rounding
    if isinstance(rounding, Mode):
        return Rounding(rounding)
    if not isinstance(rounding, str):
        raise TypeError(f"rounding must be a name, a Mode or a Rounding, got {rounding!r}")
    if rounding not in _BY_NAME:
        raise ValueError(f"unknown rounding {rounding!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[rounding]
