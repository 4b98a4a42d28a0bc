"""Scalar formats: what they accept, hold, contain and say of themselves."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import lptensor
from lptensor import formats
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.blocks import MX, TwoLevel
from lptensor.codebooks import Codebook, LogNumber
from lptensor.formats import E2M1, E4M3, E5M2, E8M0, FP16, FP32, INT4, INT8, FixedPoint, FloatingPoint, Format
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from lptensor.rounding import Stochastic
from lptensor.scaling import Tile
from oracles import exact
from rounders import NATIVE_BUILDS, judge, run
from strategies import fixed_parameters, float_parameters, small_floats

NAMED = {name: row for name, row in vars(formats).items() if isinstance(row, Format)}


@pytest.mark.parametrize(
    ("bit", "row"),
    [(4, formats.E2M1), (6, formats.E3M2), (8, formats.E5M2), (16, formats.FP16), (32, formats.FP32)],
)
def test_a_width_alone_names_a_format(bit: int, row: FloatingPoint) -> None:
    assert FloatingPoint(bit) == FloatingPoint(bit=bit) == row
    assert row.bits == bit


def test_exponent_and_mantissa_mean_ieee_754_however_they_are_said() -> None:
    made = FloatingPoint(3, 2)
    assert made == FloatingPoint(exp=3, man=2) == FloatingPoint(3, man=2) == FloatingPoint(3, 2, specials="ieee")
    assert (made.exp, made.man, made.bias) == (3, 2, 3)
    assert FloatingPoint(6, specials="ieee") == made != FloatingPoint(6)


@pytest.mark.parametrize(
    ("arguments", "keywords", "named"),
    [
        ((), {}, "needs a width, or both"),
        ((), dict(exp=4), "needs a width, or both"),
        ((4, 3, 7), {}, r"got \(4, 3, 7\)"),
        ((8,), dict(bit=16), "twice"),
        ((8,), dict(exp=4), "twice"),
        ((4, 3), dict(bit=8), "twice"),
        ((4, 3), dict(man=5), "twice"),
        ((), dict(bit=8, exp=4), "either bit or exp and man"),
        ((4.0, 3), {}, "exp must be an integer from 1 to 8, got 4.0"),
        ((4, 3.5), {}, "man must be an integer from 0 to 23, got 3.5"),
        ((4, 3), dict(bias=7.5), "bias must be an integer"),
        ((True, 3), {}, "exp must be an integer"),
        ((8.0,), {}, r"a width must be an integer, one of \[4, 6, 8, 16, 32\], got 8.0"),
        ((), dict(bit="8"), "a width must be an integer"),
        (([8],), {}, "a width must be an integer"),
    ],
    ids=str,
)
def test_a_size_said_wrongly_is_refused(arguments: tuple[Any, ...], keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        FloatingPoint(*arguments, **keywords)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        (dict(exp=0, man=3), "exp must be from 1 to 8, as float32 carries the values, got 0"),
        (dict(exp=9, man=3), "exp must be from 1 to 8, as float32 carries the values, got 9"),
        (dict(exp=4, man=-1), "man must be from 0 to 23, as float32 carries the values, got -1"),
        (dict(exp=4, man=24), "man must be from 0 to 23, as float32 carries the values, got 24"),
        (dict(exp=4, man=3, bias=-128), "bias must be from -127 to 255, got -128"),
        (dict(exp=4, man=3, bias=256), "got 256"),
        (dict(bit=7), r"width of 7 .*known: \[4, 6, 8, 16, 32\]; give exp= \(to 8\) and man= \(to 23\)"),
        (dict(exp=4, man=3, specials="ocp"), "ieee, fn, fnuz, none, got 'ocp'"),
        (dict(exp=4, man=3, overflow="clip"), "inf or saturate or propagate or nan, got 'clip'"),
        (dict(exp=4, man=3, specials="fn", overflow="inf"), "nan or saturate, got 'inf'"),
        (dict(exp=4, man=3, specials="fn", overflow="propagate"), "nan or saturate, got 'propagate'"),
        (dict(exp=4, man=3, specials="none", overflow="nan"), "saturate, got 'nan'"),
        (dict(exp=4, man=3, subnormals="none"), "True, False or \"flush\", got 'none'"),
        (dict(exp=4, man=3, subnormals=0), 'True, False or "flush", got 0'),
        (dict(exp=1, man=3), "exp=1 leaves no normal"),
        (dict(exp=4, man=0), "man=0 leaves no NaN"),
        (dict(exp=1, man=0, specials="fn"), "leaves only zero and NaN"),
        (dict(exp=4, man=3, specials="fnuz", signed=False), 'unsigned format lacks; use "fn"'),
        (dict(exp=4, man=3, specials="fnuz", zero=False, subnormals=False), "without zero lacks"),
        (dict(exp=4, man=3, zero=False), "say subnormals=False"),
        (dict(exp=8, man=23, bias=128), "fp32 reaches 2\\*\\*-149"),
        (dict(exp=8, man=20, bias=140, subnormals=False), "fp32 reaches 2\\*\\*-149"),
        (dict(exp=8, man=7, bias=126), "beyond the largest fp32"),
        (dict(exp=8, man=23, specials="none"), "beyond the largest fp32"),
    ],
    ids=str,
)
def test_parameters_out_of_range_are_named(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FloatingPoint(**keywords)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        (dict(wl=0, fl=0), "wl must be from 1 to 53"),
        (dict(wl=54, fl=0), "got 54"),
        (dict(wl=8, fl=150), "fl must be from -126 to 149"),
        (dict(wl=8, fl=-127), "got -127"),
        (dict(wl=1, fl=0, symmetric=True), "nothing but zero"),
        (dict(wl=24, fl=-105), "beyond the largest fp32"),
    ],
    ids=str,
)
def test_fixed_point_out_of_range_is_named(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FixedPoint(**keywords)


@pytest.mark.parametrize(
    "keywords", [dict(wl=8.0, fl=0), dict(wl=8, fl=1.5), dict(wl=True, fl=0), dict(wl="8", fl=0)], ids=str
)
def test_fixed_point_of_no_integers_is_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        FixedPoint(**keywords)


@pytest.mark.parametrize("name", ["signed", "zero", "clamp", "symmetric"])
def test_a_flag_that_is_no_bool_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
        FloatingPoint(4, 3, **{name: "no"}) if name in ("signed", "zero") else FixedPoint(8, 4, **{name: "no"})
    with pytest.raises(TypeError, match="signed must be True or False, got None"):
        FixedPoint(8, 4, signed=None)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(
    st.integers(1, 8),
    st.integers(0, 23),
    st.integers(-127, 255),
    st.sampled_from((True, False, "flush")),
    st.sampled_from(("fn", "fnuz", "none")),
)
def test_what_fp32_carries_is_accepted_and_nothing_else(
    exp: int, man: int, bias: int, subnormals: bool | str, specials: str
) -> None:
    values = exact.Float(exp, man, bias, subnormals, specials, "saturate")
    if (exp, man, specials) == (1, 0, "fn"):
        return
    if values.fits_fp32():
        made = FloatingPoint(**vars(values))
        assert Fraction(made.max) == values.magnitude(values.top)
    else:
        with pytest.raises(ValueError, match="fp32"):
            FloatingPoint(**vars(values))


def test_a_grid_holds_exactly_the_values_of_the_codes() -> None:
    for values in small_floats():
        if values.exp == 4:  # too wide a range to list
            continue
        grid = FloatingPoint(**vars(values)).grid
        assert enumerated(grid) == signed_values(values), values


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_a_grid_holds_exactly_the_integers_of_a_fixed_point(signed: bool, symmetric: bool) -> None:
    for wl, fl in itertools.product(range(2, 6), (-3, 0, 2, 9)):
        format = FixedPoint(wl, fl, symmetric=symmetric, signed=signed)
        expected = {Fraction(k) / Fraction(2) ** fl for k in judge(format).integers()}
        assert enumerated(format.grid) == expected
        assert (format.max, format.min) == (float(max(expected)), float(min(expected)))


def signed_values(values: exact.Float) -> set[Fraction]:
    magnitudes = values.magnitudes()
    return {*magnitudes, *(-m for m in magnitudes if values.signed)}


def enumerated(grid: Any) -> set[Fraction]:
    """The fixed points of rounding to the grid, among all multiples of a finer spacing."""
    step = 2.0 ** (min(grid.quantum(grid.emin), grid.emin) - 1)
    top = 2 * max(grid.max, -grid.min)
    x = torch.arange(-top, top + step, step, dtype=torch.float64)
    y = run((*NATIVE_BUILDS, "reference")[0], x, Lowered(grid), "nearest")  # type: ignore[arg-type]
    return {Fraction(v) for v in x[x == y].tolist()}


class Lowered:
    """A grid without a format around it."""

    def __init__(self, grid: Any) -> None:
        self.lowered = grid


def random_small_format() -> st.SearchStrategy[FloatingPoint | FixedPoint]:
    floats = st.sampled_from(small_floats()).map(lambda values: FloatingPoint(**vars(values)))
    fixed = st.builds(
        lambda wl, fl, symmetric, signed: FixedPoint(wl, fl, symmetric=symmetric and wl > 1, signed=signed),
        st.integers(1, 6),
        st.integers(-4, 6),
        st.booleans(),
        st.booleans(),
    )
    return st.one_of(floats, fixed)


def values_of(format: FloatingPoint | FixedPoint) -> set[Fraction]:
    values = judge(format)
    if isinstance(values, exact.Fixed):
        return {Fraction(k) / Fraction(2) ** values.fl for k in values.integers()}
    return signed_values(values)


@settings(max_examples=500)
@given(random_small_format(), random_small_format())
def test_one_format_contains_another_if_it_has_all_its_finite_values(a: Any, b: Any) -> None:
    assert a.grid.contains(b.grid) == (values_of(a) >= values_of(b)), (a, b)
    assert a.grid.contains(a.grid)


def test_containment_among_the_named_rows_follows_their_values() -> None:
    narrow = {name: row for name, row in NAMED.items() if row.bits <= 16}
    sets = {name: values_of(row) for name, row in narrow.items()}
    for a, b in itertools.product(narrow, repeat=2):
        assert narrow[a].grid.contains(narrow[b].grid) == (sets[a] >= sets[b]), (a, b)
    assert all(FP32.grid.contains(row.grid) for row in NAMED.values())


def test_containment_of_unclamped_fixed_point_compares_the_spacing() -> None:
    coarse, fine = (FixedPoint(8, fl, clamp=False).grid for fl in (2, 5))
    assert fine.contains(coarse) and not coarse.contains(fine)
    assert fine.contains(FixedPoint(20, 5).grid) and not FixedPoint(20, 5).grid.contains(fine)
    assert not FP32.grid.contains(fine)


@pytest.mark.parametrize("name", NAMED)
def test_named_rows_are_values(name: str) -> None:
    check_value(NAMED[name])


@settings(max_examples=80)
@given(float_parameters())
def test_float_formats_are_values(given_: dict[str, Any]) -> None:
    format = FloatingPoint(**given_)
    check_value(format)
    assert {name: getattr(format, name) for name in given_} == given_


@settings(max_examples=60)
@given(fixed_parameters(53))
def test_fixed_formats_are_values(given_: dict[str, Any]) -> None:
    check_value(FixedPoint(**given_))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_format_is_shown_by_its_name(name: str) -> None:
    format = NAMED[name]
    assert repr(format) == str(format) == name and repr(copy.deepcopy(format)) == name
    assert f"format={name}," in repr(torch.ones(2).to_lp(Arithmetic(format, backward=E5M2)))
    if not isinstance(format, Codebook):  # whose values are many
        assert eval(format.spelled(), vars(lptensor)) == format and name != format.spelled()


def check_value(format: Any) -> None:
    """It prints as what makes it again, and travels as itself."""
    for other in (
        eval(repr(format), vars(lptensor)),
        pickle.loads(pickle.dumps(format)),
        copy.deepcopy(format),
        copy.copy(format),
    ):
        assert type(other) is type(format) and other == format and hash(other) == hash(format)
        assert other.lowered == format.lowered and repr(other) == repr(format)
    with pytest.raises(dataclasses.FrozenInstanceError):
        format.exp = 3


def test_formats_that_differ_in_one_parameter_differ() -> None:
    base = FloatingPoint(4, 3, specials="fn")
    others = [
        FloatingPoint(4, 4, specials="fn"),
        FloatingPoint(3, 3, specials="fn"),
        FloatingPoint(4, 3, specials="fn", bias=8),
        FloatingPoint(4, 3, specials="fn", overflow="saturate"),
        FloatingPoint(4, 3, specials="fn", subnormals=False),
        FloatingPoint(4, 3, specials="fn", subnormals="flush"),
        FloatingPoint(4, 3, specials="fn", signed=False),
        FloatingPoint(4, 3),
        FixedPoint(8, 3),
    ]
    assert len({base, *others}) == len(others) + 1
    assert len({repr(f) for f in (base, *others)}) == len(others) + 1
    assert base == FloatingPoint(4, 3, specials="fn", bias=7, overflow="nan")


@pytest.mark.parametrize(
    ("format", "largest", "smallest_normal", "smallest"),
    [
        (formats.E4M3, 448, -6, -9),  # OCP OFP8 table 1
        (formats.E5M2, 57344, -14, -16),
        (formats.E2M1, 6, 0, -1),  # OCP MX v1.0 table 4 and 5
        (formats.E2M3, 7.5, 0, -3),
        (formats.E3M2, 28, -2, -4),
        (formats.E4M3FNUZ, 240, -7, -10),  # arXiv 2206.02915
        (formats.E5M2FNUZ, 57344, -15, -17),
        (formats.E4M3B11FNUZ, 30, -10, -13),
        (formats.E8M0, 2.0**127, -127, -127),
        (formats.FP16, 65504, -14, -24),
        (formats.BF16, torch.finfo(torch.bfloat16).max, -126, -133),
        (formats.FP32, torch.finfo(torch.float32).max, -126, -149),
        (formats.TF32, (2 - 2.0**-10) * 2.0**127, -126, -136),  # the exponents of FP32, the digits of FP16
    ],
    ids=repr,
)
def test_the_ends_of_the_named_rows_are_those_of_their_standards(
    format: FloatingPoint, largest: float, smallest_normal: int, smallest: int
) -> None:
    assert format.max == largest
    assert format.grid.emin == smallest_normal
    assert format.grid.smallest == 2.0**smallest


def test_integers_are_rows_of_fixed_point() -> None:
    assert (INT8.min, INT8.max, INT8.bits) == (-128, 127, 8)
    assert (INT4.min, INT4.max, INT4.bits) == (-8, 7, 4)


@pytest.mark.parametrize("name", NAMED)
def test_a_width_counts_sign_exponent_and_mantissa(name: str) -> None:
    format = NAMED[name]
    if isinstance(format, FloatingPoint):
        assert format.bits == format.signed + format.exp + format.man
    digits = "".join(c if c.isdigit() else " " for c in name.replace("TF32", "19").removesuffix("FNUZ")).split()
    named = 1 + sum(map(int, digits[:2])) - (name == "E8M0") if name.startswith("E") else int(digits[0])
    assert format.bits == named


def test_e8m0_has_neither_sign_nor_zero() -> None:
    assert not E8M0.grid.signed and not E8M0.grid.zero and E8M0.grid.smallest == 2.0**-127


def test_quantum_is_the_distance_to_the_next_value() -> None:
    for format in (E4M3, FP16, FixedPoint(8, 3)):
        values = judge(format)
        for exponent in range(-30, 4):
            gap = values.gap(Fraction(2) ** exponent)
            assert Fraction(2) ** format.grid.quantum(exponent) == gap.high - gap.low
    assert math.isinf(FixedPoint(8, 3, clamp=False).max)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: P3109(8, 3, signed="no"), "signed must be True or False, got 'no'"),  # type: ignore[arg-type]
        (lambda: P3109(8, 3, extended=0), "extended must be True or False, got 0"),  # type: ignore[arg-type]
        (lambda: LogNumber(8, zero="no"), "zero must be True or False, got 'no'"),  # type: ignore[arg-type]
        (lambda: LogNumber(8, base="2"), "base must be a number, got '2'"),  # type: ignore[arg-type]
        (lambda: TwoLevel(E2M1, tensor_scale=1), "tensor_scale must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: TwoLevel(E2M1, reciprocal="no"), "reciprocal must be True or False"),  # type: ignore[arg-type]
        (lambda: TwoLevel(E2M1, floor="0"), "floor must be a number, got '0'"),  # type: ignore[arg-type]
        (lambda: Codebook([0.0, 1.0], name=5), "the name of a codebook is text, got 5"),  # type: ignore[arg-type]
    ],
)
def test_parameters_of_another_kind_are_refused_by_every_format(make: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        make()


def test_floats_of_numpy_are_held_as_floats() -> None:
    level, logs = TwoLevel(E2M1, floor=np.float64(0.5)), LogNumber(8, base=np.float64(2))
    assert type(level.floor) is type(logs.base) is float and level == TwoLevel(E2M1, floor=0.5)


def test_numpy_integers_are_integers() -> None:
    """A sweep over np.arange() makes the formats that one over range() makes, and they say so."""
    eight: Any = np.int64(8)
    for make in (FloatingPoint, lambda n: FloatingPoint(4, n - 5), lambda n: FloatingPoint(4, 3, bias=n)):
        assert repr(make(eight)) == repr(make(8)) and make(eight) == make(8)
    assert repr(FixedPoint(eight, np.int32(4))) == "FixedPoint(wl=8, fl=4)"  # type: ignore[arg-type]
    assert repr(MX(E4M3, eight)) == repr(MX(E4M3, 8)) and repr(Posit(eight)) == "Posit(nbits=8)"
    assert repr(Stochastic(eight)) == "Stochastic(bits=8)"
    assert repr(Accumulator(FP16, chunk=eight)) == repr(Accumulator(FP16, chunk=8))
    assert repr(Tile((eight,), (np.int64(0),))) == repr(Tile((8,), (0,)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wl must be an integer"):
        FixedPoint(np.float32(8), 4)  # type: ignore[arg-type]
