"""Rounding rules: how a value between two neighbours of a format is taken to one of them."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from lptensor import _compat
from lptensor.text import constant, learn

# Which of two neighbours: the one toward zero or away from it, that of the even or the odd code, the lower, the upper.
Way = Literal["zero", "away", "even", "odd", "down", "up"]


class _Named(enum.IntEnum):
    """Members that are found by their names in lower case too, as arguments have them."""

    @classmethod
    def _missing_(cls, value: object) -> enum.IntEnum | None:
        return next((member for member in cls if member.name.lower() == value), None)


@learn
class Mode(_Named):
    """How a value between two neighbours of a format is rounded; each mode's name in lower case stands for it too.

    - NEAREST: to the nearer one, ties to the even code (IEEE 754-2019 4.3.1, roundTiesToEven).
    - NEAREST_AWAY, NEAREST_UP: to the nearer one, ties away from zero (roundTiesToAway), or toward plus infinity, as
      floor(x + 1/2) has it.
    - TOWARD_ZERO, DOWN, UP: toward zero, minus infinity, plus infinity (4.3.2).
    - ODD: to the one whose code is odd (Boldo and Melquiond 2008).
    - STOCHASTIC: up with the probability of the fraction; STOCHASTIC_HALF_OFFSET and STOCHASTIC_PRE_ROUNDED are
      its variants for few random bits (``Stochastic``).
    - STOCHASTIC_EQUAL: up or down with probability 1/2.

    A row is the number in ``enum lpt_mode`` of csrc/grid.h, the neighbour that a value goes ``toward`` ("drawn": as
    random words say), and beside "nearer" the way of a ``tie``. Python rounds by that alone where nothing is drawn.

    >>> import torch, lptensor
    >>> lptensor.round(torch.tensor([0.1]), lptensor.FloatingPoint(8), Mode.UP)
    tensor([0.1094])
    >>> Mode.NEAREST.toward, Mode.NEAREST.tie, Mode.UP.tie
    ('nearer', 'even', 'up')
    >>> Mode("toward_zero") is Mode.TOWARD_ZERO
    True
    """

    toward: Way | Literal["nearer", "drawn"]
    tie: Way | Literal["drawn"]

    def __new__(cls, number: int, *ways: Any) -> Mode:
        """The member of a row: "nearer" and the way of ties, or one way for all, or "drawn"."""
        nearer = ways[0] == "nearer"
        if len(ways) != 1 + nearer or ways[-1] not in get_args(Way) and ways != ("drawn",):
            raise ValueError(
                f'a mode goes "nearer" and a way in ties, or a way ({", ".join(get_args(Way))}), got {ways}'
            )
        mode = int.__new__(cls, number)
        mode._value_, mode.toward, mode.tie = number, ways[0], ways[-1]
        return mode

    NEAREST = 0, "nearer", "even"
    NEAREST_AWAY = 1, "nearer", "away"
    NEAREST_UP = -1, "nearer", "up"  # files name modes by their numbers, and those from STOCHASTIC on draw
    TOWARD_ZERO = 2, "zero"
    DOWN = 3, "down"
    UP = 4, "up"
    ODD = 5, "odd"
    STOCHASTIC = 6, "drawn"
    STOCHASTIC_HALF_OFFSET = 7, "drawn"  # half a unit of the last random bit is added first
    STOCHASTIC_PRE_ROUNDED = 8, "drawn"  # the fraction is first rounded to the random bits, ties to even
    STOCHASTIC_EQUAL = 9, "drawn"  # what is inexact goes up with probability 1/2

    def leads_back(self, negative: bool) -> bool:
        """Whether what lies beyond the largest value of its sign becomes that value (IEEE 754-2019 7.4)."""
        return self.toward in ("zero", "even", "odd", "up" if negative else "down")


@learn
class Beyond(_Named):
    """What stochastic rounding does with finite values past the largest one, M; ``Stochastic`` takes the names.

    - OVERFLOW: rounds as if the exponent had no bound, then the format's overflow takes what is larger than M.
    - SATURATE: M.
    - PROBABILITY: from M to half a spacing above it, overflow grows from never to certain.

    The numbers are those of csrc/grid.h.

    >>> Stochastic(beyond=Beyond.SATURATE)
    Stochastic(beyond='saturate')
    """

    OVERFLOW = 0
    SATURATE = 1
    PROBABILITY = 2


_VARIANTS = {
    "plain": Mode.STOCHASTIC,
    "half_offset": Mode.STOCHASTIC_HALF_OFFSET,
    "pre_rounded": Mode.STOCHASTIC_PRE_ROUNDED,
}


@constant
@dataclass(frozen=True)
class Rounding:
    """A rounding mode and, for the stochastic ones, how many random bits decide.

    Representable values never move, in any mode, except where scales are computed anew (see
    ``lptensor.round``). NaN stays NaN, and a zero result has the sign
    of the input. What becomes of numbers beyond the largest value depends on the format (``overflow``);
    ``beyond`` says when stochastic rounding overflows. Infinities depend on the format alone.

    Args:
        mode: the direction.
        bits: random bits per element, 1 to 32; see ``Stochastic``.
        beyond: what a stochastic mode does with finite values past the largest.

    Raises:
        TypeError: no ``Mode``, no ``Beyond``.
        ValueError: ``bits`` out of range, or ``bits`` or ``beyond`` given for a mode that draws none.

    >>> Rounding(Mode.STOCHASTIC, bits=8)
    Stochastic(bits=8)
    >>> as_rounding("nearest") == Rounding()
    True
    """

    mode: Mode = Mode.NEAREST
    bits: int = 32
    beyond: Beyond = Beyond.OVERFLOW

    def __post_init__(self) -> None:
        if _compat.ENUMS_TURN_INTO_NUMBERS:
            kinds: dict[str, type[enum.IntEnum]] = {"mode": Mode, "beyond": Beyond}
            for name, kind in kinds.items():
                if type(value := getattr(self, name)) is int:
                    object.__setattr__(self, name, kind(value))
        if not isinstance(self.mode, Mode):
            raise TypeError(f"mode must be a Mode such as Mode.NEAREST, got {self.mode!r}; rounding= takes names")
        if not isinstance(self.beyond, Beyond):
            raise TypeError(f"beyond must be a Beyond, got {self.beyond!r}; Stochastic() takes names")
        try:
            bits = 0 if isinstance(self.bits, bool) else operator.index(self.bits)
        except TypeError:  # of a class too, or of many numbers
            bits = 0
        if not 1 <= bits <= 32:
            raise ValueError(f"stochastic rounding takes 1 to 32 random bits, got {self.bits!r}")
        object.__setattr__(self, "bits", bits)
        if self.bits != 32 and not self.stochastic:
            raise ValueError(f"{self.name} rounding draws no random bits, got bits={self.bits}")
        if self.bits != 32 and self.mode is Mode.STOCHASTIC_EQUAL:
            raise ValueError(f"{self.name} rounding draws one bit, got bits={self.bits}; leave bits out")
        if self.beyond is not Beyond.OVERFLOW and not self.stochastic:
            raise ValueError(
                f"beyond={self.beyond.name.lower()!r} is for stochastic rounding, got {self.name}; "
                "the format's overflow decides for the others"
            )

    @property
    def stochastic(self) -> bool:
        """Whether the mode draws random words."""
        return self.mode.toward == "drawn"

    @property
    def name(self) -> str:
        """The mode's name in lower case, as ``lptensor.round`` takes it."""
        return self.mode.name.lower()

    def __repr__(self) -> str:
        variant = next((name for name, mode in _VARIANTS.items() if mode is self.mode), None)
        beyond = f"beyond={self.beyond.name.lower()!r}" if self.beyond is not Beyond.OVERFLOW else ""
        if variant is None:
            given = [f"Mode.{self.mode.name}", f"beyond=Beyond.{self.beyond.name}" if beyond else ""]
            return f"Rounding({', '.join(filter(None, given))})"
        given = [f"bits={self.bits}" if self.bits != 32 else "", f"variant={variant!r}" if variant != "plain" else ""]
        return f"Stochastic({', '.join(filter(None, [*given, beyond]))})"


def Stochastic(bits: int = 32, variant: str = "plain", beyond: str | Beyond = "overflow") -> Rounding:
    """Stochastic rounding that spends ``bits`` random bits on each element.

    A value lies the fraction f of a spacing above its lower neighbour (in magnitude), and k is
    uniform on 0 .. 2**bits - 1. The variants are those of Fitzgibbon and Felix, "On Stochastic
    Rounding with Few Random Bits" (2025): SRFF, SRF and SRC. With 31 bits or more, f is cut to 32
    bits before all else.

    Args:
        bits: 1 to 32; with all 32 the variants give the same bits.
        variant: "plain" goes up if f + k / 2**bits >= 1: f is cut to ``bits`` bits and the result
            is too small on average; "half_offset" if f + (k + 1/2) / 2**bits >= 1; "pre_rounded"
            rounds f to ``bits`` bits first, ties to even, which leaves no bias on average.
        beyond: for finite values past the largest, M: "overflow" rounds as if the exponent had no
            bound and lets the format's overflow take what is larger than M; "saturate" always gives
            M (as QPyTorch); "probability" lets overflow begin at M and be certain half a spacing
            above it, where rounding to nearest overflows (as CPFloat).

    Raises:
        ValueError: bits outside 1 to 32, an unknown variant or beyond.

    >>> Stochastic() == as_rounding("stochastic")
    True
    >>> Stochastic(4, "pre_rounded", beyond="saturate")
    Stochastic(bits=4, variant='pre_rounded', beyond='saturate')
    """
    if not isinstance(variant, str) or variant not in _VARIANTS:
        raise ValueError(
            f"unknown variant {variant!r}; known: {', '.join(_VARIANTS)}; "
            'odds of one half are the rounding "stochastic_equal"'
        )
    names = {member.name.lower(): member for member in Beyond}
    if not isinstance(beyond, Beyond) and not (isinstance(beyond, str) and beyond in names):
        raise ValueError(f"unknown beyond {beyond!r}; known: {', '.join(names)}")
    return Rounding(_VARIANTS[variant], bits, beyond if isinstance(beyond, Beyond) else names[beyond])


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
    if isinstance(rounding, int) and _compat.traced_by_mode():  # which is what Dynamo makes of a Mode
        return Rounding(Mode(rounding))
    if not isinstance(rounding, str):
        raise TypeError(f"rounding must be a name ({', '.join(_BY_NAME)}), a Mode or a Rounding, got {rounding!r}")
    if rounding not in _BY_NAME:
        close = get_close_matches(rounding.lower(), _BY_NAME, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        known = f"known: {', '.join(_BY_NAME)}; or Stochastic(bits, variant)"
        raise ValueError(f"unknown rounding {rounding!r}{hint}; {known}")
    return _BY_NAME[rounding]


def show_rounding(rounding: Rounding) -> str:
    """A rounding as a user would write it.

    >>> show_rounding(as_rounding("up"))
    "'up'"
    """
    return repr(rounding.name) if rounding == as_rounding(rounding.mode) else repr(rounding)
