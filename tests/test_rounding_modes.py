"""The rows of Mode: every place that rounds by them does what the standard says, and none guesses at what is no row."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import lptensor
from lptensor import E4M3, FP16, FixedPoint, FloatingPoint, Posit, reference
from lptensor.cli import explain
from lptensor.fused import round_tensor
from lptensor.rounding import Mode, Rounding
from lptensor.study import exactness, rounding_bias
from lptensor.tables import Table, steps

HALF = Fraction(1, 2)


NUMBERS = itertools.count(len(Mode))  # tables are kept by the numbers of modes


def row(name: str, *ways: str) -> Mode:
    """A mode that lptensor does not have, as its row would make it."""
    mode: Mode = Mode.__new_member__(Mode, next(NUMBERS), *ways)  # type: ignore[attr-defined]
    mode._name_ = name
    return mode


# Of two neighbouring integers v a mode takes the one with the least of these, for a number x between them.
MEANING: dict[Mode, Callable[[int, Fraction], Any]] = {
    Mode.NEAREST: lambda v, x: (abs(v - x), v % 2),  # IEEE 754-2019 4.3.1
    Mode.NEAREST_AWAY: lambda v, x: (abs(v - x), -abs(v)),
    Mode.NEAREST_UP: lambda v, x: (abs(v - x), -v),  # floor(x + 1/2)
    Mode.TOWARD_ZERO: lambda v, x: abs(v),  # 4.3.2
    Mode.DOWN: lambda v, x: v,
    Mode.UP: lambda v, x: -v,
    Mode.ODD: lambda v, x: v % 2 == 0,  # Boldo and Melquiond 2008
}
INVENTED: dict[Mode, Callable[[int, Fraction], Any]] = {
    row("NEAREST_ZERO", "nearer", "zero"): lambda v, x: (abs(v - x), abs(v)),  # IEEE 754-2019 9.5
    row("NEAREST_ODD", "nearer", "odd"): lambda v, x: (abs(v - x), v % 2 == 0),
    row("NEAREST_DOWN", "nearer", "down"): lambda v, x: (abs(v - x), v),
    row("AWAY", "away"): lambda v, x: -abs(v),
    row("EVEN", "even"): lambda v, x: v % 2,
}
# What lies beyond the largest value on the negative and on the positive side, of -240 to 240 with infinities.
BEYOND = {
    Mode.NEAREST: (-math.inf, math.inf),  # IEEE 754-2019 7.4
    Mode.NEAREST_AWAY: (-math.inf, math.inf),
    Mode.NEAREST_UP: (-math.inf, math.inf),
    Mode.TOWARD_ZERO: (-240.0, 240.0),
    Mode.DOWN: (-math.inf, 240.0),
    Mode.UP: (-240.0, math.inf),
    Mode.ODD: (-240.0, 240.0),
}
INTEGERS = Table(tuple(map(float, range(-8, 9))))  # the code of v is v + 8: as even as v
LOWEST = FixedPoint(6, 140)  # of subnormal numbers of fp32


def bias_chooses(x: torch.Tensor, mode: Mode) -> torch.Tensor:
    """What the chances of ``rounding_bias`` make of x, 1/2 being the mean over an even and an odd lower neighbour."""
    chosen = []
    for v in x.tolist():
        low, part, sign = abs(v) // 1, Fraction(abs(v) % 1), math.copysign(1, v)
        (up,) = (r["up"] for r in rounding_bias(mode, 3, negative=v < 0) if r["position"] == part)
        moves = up == 1 if up != 0.5 else (low % 2 == 1) == (mode.tie == "even")
        chosen.append(sign * (low + moves))
    return torch.tensor(chosen)


ROUNDERS: dict[str, Callable[[torch.Tensor, Mode], torch.Tensor]] = {
    "reference": lambda x, mode: reference.round_grid(x, FixedPoint(6, 0).grid, Rounding(mode)),
    "reference of lists": lambda x, mode: reference.round_table(x, INTEGERS, Rounding(mode)),
    "fused, added": lambda x, mode: round_tensor(x, FixedPoint(6, 0).grid, Rounding(mode)),
    "fused, shifted": lambda x, mode: round_tensor(x * 2.0**-140, LOWEST.grid, Rounding(mode)).double() * 2.0**140,
    "rounding_bias": bias_chooses,
}


@pytest.mark.parametrize("mode", [*MEANING, *INVENTED], ids=lambda mode: mode.name)
@pytest.mark.parametrize("place", ROUNDERS)
def test_a_row_means_what_the_standard_says(place: str, mode: Mode) -> None:
    x = torch.arange(-63, 64) / 8
    chosen = []
    for v in map(Fraction, x.tolist()):
        low, high = math.floor(v), math.ceil(v)
        chosen.append(float(min((low, high), key=lambda n: (MEANING | INVENTED)[mode](n, v))))
    assert ROUNDERS[place](x, mode).tolist() == chosen


@pytest.mark.parametrize("mode", BEYOND)
@pytest.mark.parametrize("round", [reference.round_grid, round_tensor])
def test_what_lies_beyond_the_largest_value_goes_the_way_of_the_mode(round: Any, mode: Mode) -> None:
    assert (
        tuple(round(torch.tensor([-300.0, 300.0]), FloatingPoint(4, 3).grid, Rounding(mode)).tolist()) == BEYOND[mode]
    )


@pytest.mark.parametrize("mode", [*MEANING, *INVENTED], ids=lambda mode: mode.name)
def test_posits_and_grids_go_the_same_way_where_their_values_are_the_same(mode: Mode) -> None:
    x = torch.arange(-256, 257) / 1024
    x = torch.cat([1 + x.abs(), -1 - x.abs()])
    grid = FloatingPoint(5, 5).grid  # the fraction bits of Posit(8, 0) next to 1
    assert torch.equal(
        reference.round_posit(x, Posit(8, 0).lowered, Rounding(mode)), reference.round_grid(x, grid, Rounding(mode))
    )


def test_the_sentences_are_of_all_modes_that_draw_nothing() -> None:
    assert set(MEANING) == set(BEYOND) == {mode for mode in Mode if not Rounding(mode).stochastic}


def test_the_kernels_have_a_case_for_each_row() -> None:
    text = (Path(__file__).parents[1] / "csrc" / "grid.h").read_text()
    cases = re.findall(r"case LPT_(\w+):", text.split("lpt_with_mode")[1].split("\n}")[0])
    assert cases == [mode.name for mode in Mode]


# -- what is no row ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways", [("sideways",), ("nearer",), ("nearer", "sideways"), ("up", "even"), ("nearer", "drawn")]
)
def test_a_row_that_says_no_way_is_refused(ways: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="a mode goes"):
        row("WRONG", *ways)


def no_row(*ways: str) -> Mode:
    """A member that went past the check of rows, with ways that nobody knows or without any."""
    number = next(NUMBERS)
    mode = int.__new__(Mode, number)
    mode._value_, mode._name_ = number, "SIDEWAYS"
    if ways:
        mode.toward, mode.tie = ways  # type: ignore[assignment]
    return mode


def why(mode: Mode) -> str:
    return explain._why(2.5, 2.0, 3.0, None, 2.0, None, Rounding(mode), None)


X = torch.tensor([1.3, 2.5])
PLACES: dict[str, Callable[[Mode], Any]] = {
    "reference": lambda mode: reference.round_grid(X, E4M3.grid, Rounding(mode), (1, 2)),
    "reference of lists": lambda mode: reference.round_table(X, INTEGERS, Rounding(mode), (1, 2)),
    "reference of posits": lambda mode: reference.round_posit(X, Posit(8).lowered, Rounding(mode), (1, 2)),
    "tables": lambda mode: steps(INTEGERS, mode, torch.float32),
    "fused, added": lambda mode: round_tensor(X, E4M3.grid, Rounding(mode)),
    "fused, shifted": lambda mode: round_tensor(X, LOWEST.grid, Rounding(mode)),
    "rounding_bias": lambda mode: rounding_bias(mode),
    "explain": why,
}


@pytest.mark.parametrize("ways", [("sideways", "sideways"), ("nearer", "sideways")], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_no_place_guesses_at_an_unknown_way(place: str, ways: tuple[str, str]) -> None:
    with pytest.raises((KeyError, ValueError), match=r"sideways|no operations are known for <Mode.SIDEWAYS"):
        PLACES[place](no_row(*ways))


@pytest.mark.parametrize("place", [*PLACES, "exactness", "the kernels"])
def test_no_place_takes_a_mode_without_a_row(place: str) -> None:
    places = PLACES | {
        "exactness": lambda mode: exactness(FP16, "div", mode),
        "the kernels": lambda mode: lptensor.round(X, E4M3, mode),
    }
    with pytest.raises(AttributeError, match="toward|tie"):
        places[place](no_row())


@pytest.mark.parametrize("place", ["reference", "reference of posits", "reference of lists", "rounding_bias"])
def test_no_place_makes_up_the_odds_of_a_mode_that_draws(place: str) -> None:
    with pytest.raises(ValueError, match="no odds are known for <Mode.LOADED"):
        PLACES[place](row("LOADED", "drawn"))
