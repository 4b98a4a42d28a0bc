"""Lists in whatever order of codes, with NaN and infinities: those of a scalar format's codes round as it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import lptensor
from backends import BACKENDS, DTYPES, random_bits, run, same_bits, with_neighbours
from lptensor import E4M3FNUZ, P3109, FloatingPoint
from lptensor.cli.explain import explain
from lptensor.codebooks import TableFormat
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic
from lptensor.study import format_table
from lptensor.tables import Ends, Table


@dataclass(frozen=True)
class Listed(TableFormat):
    """A list of one's own."""

    given: Table
    bits: int = 8

    @property
    def table(self) -> Table:
        return self.given


def listed(format: Any) -> Listed:
    """The values of a format's codes, and its overflow."""
    values, overflow = tuple(lptensor.decode(torch.arange(2**format.bits), format).tolist()), format.grid.overflow
    following = format.max + 2.0 ** format.grid.quantum(format.grid.emax)
    ends = {
        "INF": Ends(following, math.inf),
        "PROPAGATE": Ends(following, math.inf, saturates=True),
        "NAN": Ends(following, math.nan),
        "SATURATE": None,
    }
    return Listed(Table(values, ends=ends[overflow.name]), format.bits)


# Formats with one zero, so that their codes are a list; of the last the codes of both infinities are NaN's, too.
FORMATS = [
    *(P3109(8, 3, overflow=overflow) for overflow in ("inf", "saturate", "propagate", "nan")),
    *(P3109(6, 2, overflow=overflow) for overflow in ("inf", "propagate")),
    *(E4M3FNUZ, FloatingPoint(4, 3, specials="fnuz", overflow="saturate")),
    P3109(8, 4, extended=False),
]
RULES = [
    *map(Rounding, Mode),
    *(Rounding(Mode.STOCHASTIC_EQUAL, beyond=beyond) for beyond in Beyond),
    *(Stochastic(bits, name, beyond) for name in ("plain", "half_offset") for bits in (1, 5) for beyond in Beyond),
]


def points(format: Any, dtype: torch.dtype) -> torch.Tensor:
    values = format.values()
    step = 2.0 ** format.grid.quantum(format.grid.emax)
    beyond = [format.max + step * f for f in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 1e9)]
    marks = with_neighbours([*values.tolist(), *((values[1:] + values[:-1]) / 2).tolist(), *beyond], dtype)
    return torch.cat([marks, random_bits(300, dtype), torch.randn(500, dtype=dtype) * format.max])


def test_all_of_these_have_one_zero() -> None:
    for format in FORMATS:
        assert not format.grid.negative_zero


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_a_list_of_a_formats_codes_rounds_as_the_format(format: Any, dtype: torch.dtype) -> None:
    x, ours = points(format, dtype), listed(format)
    for rule in RULES:
        wanted = run("reference", x, format, rule, seed=2)
        for backend in BACKENDS:
            got = run(backend, x, ours, rule, seed=2)
            wrong = ~((got == wanted) | got.isnan() & wanted.isnan())
            assert not wrong.any(), (backend, rule, x[wrong][:3].tolist(), got[wrong][:3], wanted[wrong][:3])


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_its_codes_limits_and_neighbours_are_those_of_the_format(format: Any) -> None:
    ours, x = listed(format), points(format, torch.float64)
    codes = torch.arange(2**format.bits)
    assert same_bits(lptensor.decode(codes, ours), lptensor.decode(codes, format))
    assert torch.equal(lptensor.encode(x, ours), lptensor.encode(x, format))
    many = x.float().repeat(80)
    assert torch.equal(lptensor.encode(many, ours), lptensor.encode(many, format))
    assert torch.equal(ours.values(), format.values()) and (ours.max, ours.min) == (format.max, format.min)
    for special in (math.nan, math.inf, -math.inf, 0.0, format.max, 2 * format.max):
        assert ours.has(special) == format.has(special)
    for up in (True, False):
        got, wanted = lptensor.next(x, ours, up), lptensor.next(x, format, up)
        assert ((got == wanted) | got.isnan() & wanted.isnan()).all()
    rows = format_table({"ours": ours, "theirs": format})
    for key in ("max", "min", "smallest_subnormal", "values", "codes", "specials", "overflow"):
        assert rows[0][key] == rows[1][key], key


@pytest.mark.parametrize(
    "rule", ["nearest", "nearest_away", "up", "odd", Stochastic(2), Stochastic(4, beyond="saturate")]
)
@pytest.mark.parametrize("format", [f for f in FORMATS if f.overflow != "saturate"], ids=repr)
def test_it_is_explained_alike(format: Any, rule: Any) -> None:
    x = [format.max * f for f in (0.97, 1.0, 1.01, 1.0625, 1.125, 1.25, 1.5, math.inf)]
    x = [v for a in x for v in (a, -a)]
    for ours, theirs in zip(explain(x, listed(format), rule), explain(x, format, rule), strict=True):
        assert (ours.lower, ours.upper, ours.beyond, ours.chance) == (
            theirs.lower,
            theirs.upper,
            theirs.beyond,
            theirs.chance,
        )
        if not isinstance(rule, Rounding):
            assert ours.why == theirs.why


def test_of_two_even_or_odd_codes_that_nearer_to_zero_counts_as_even() -> None:
    format = Listed(Table((0.0, -2.0, 1.0, 3.0, 2.0, -4.0)), 3)  # 0 and 1 and 2 have even codes, -4 and -2 odd ones
    x = torch.tensor([-3.0, -1.0, 0.5, 1.5, 2.5])
    for backend in BACKENDS:
        assert run(backend, x, format, "nearest").tolist() == [-2.0, 0.0, 0.0, 1.0, 2.0]
        assert run(backend, x, format, "odd").tolist() == [-4.0, -2.0, 1.0, 2.0, 3.0]
    assert lptensor.encode(torch.tensor([3.0, -4.0]), format).tolist() == [3, 5]
    assert format.values().tolist() == [-4.0, -2.0, 0.0, 1.0, 2.0, 3.0]


def test_lists_that_are_none_are_refused() -> None:
    for values, ends, message in [
        ((), None, "distinct values"),
        ((1.0, 0.0, 1.0), None, "distinct values"),
        ((-0.0, 0.0), None, "distinct values"),
        ((0.0, math.inf), None, "both infinities or none"),
        ((-1.0, 0.0, 2.0), Ends(3.0, math.inf), "as far below zero as above, got -1.0 to 2.0"),
        ((-1.0, 0.0, 1.0), Ends(1.0, math.inf), "as far below zero as above"),
        ((-1.0, 1.0), Ends(1.1, math.inf), "fp32 numbers, got 1.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Table(values, ends=ends)
    several = replace(listed(E4M3FNUZ), given=Table((-1.0, math.nan, 0.0, 1.0, math.nan)))
    assert lptensor.encode(torch.tensor([math.nan, 1.0]), several).tolist() == [1, 3]
