"""finfo, values and contains, against other libraries and enumeration."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lptensor.blocks import BlockFloatingPoint
from lptensor.codebooks import NF4, Codebook, LogNumber
from lptensor.finfo import finfo
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    FP32,
    INT8,
    TF32,
    FixedPoint,
    FloatingPoint,
    ScalarFormat,
)
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from oracles import posit

TORCH = {FP32: torch.float32, FP16: torch.float16, BF16: torch.bfloat16, E5M2: torch.float8_e5m2}
TORCH |= {E4M3: torch.float8_e4m3fn, E4M3FNUZ: torch.float8_e4m3fnuz, E5M2FNUZ: torch.float8_e5m2fnuz}
ML_DTYPES = {E3M2: "float6_e3m2fn", E2M3: "float6_e2m3fn", E2M1: "float4_e2m1fn", E3M4: "float8_e3m4"}
ML_DTYPES |= {E5M2FNUZ: "float8_e5m2fnuz", E4M3B11FNUZ: "float8_e4m3b11fnuz", E4M3: "float8_e4m3fn", BF16: "bfloat16"}


@pytest.mark.parametrize(("format", "dtype"), TORCH.items(), ids=str)
def test_limits_are_those_of_torchs_types(format: ScalarFormat, dtype: torch.dtype) -> None:
    ours, theirs = finfo(format), torch.finfo(dtype)
    for name in ("bits", "max", "min", "eps", "tiny", "smallest_normal"):
        if (name, dtype) != ("eps", torch.float8_e5m2fnuz):  # torch says 0.125, but 1.25 follows 1
            assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize(("format", "name"), ML_DTYPES.items(), ids=str)
def test_limits_are_those_of_ml_dtypes(format: ScalarFormat, name: str) -> None:
    ours, theirs = finfo(format), ml_dtypes.finfo(getattr(ml_dtypes, name))
    for field in ("bits", "max", "min", "eps", "tiny", "smallest_normal", "smallest_subnormal"):
        assert getattr(ours, field) == float(getattr(theirs, field)), field
    assert ours.precision == theirs.nmant + 1


EVERY_KIND = [
    E4M3,
    E5M2,
    E8M0,
    E2M1,
    FP16,
    INT8,
    FixedPoint(6, 9),
    FixedPoint(6, 2, signed=False),
    FixedPoint(6, 2, symmetric=True),
    FloatingPoint(4, 3, subnormals=False),
    FloatingPoint(4, 3, subnormals="flush", specials="fn"),
    FloatingPoint(4, 3, signed=False),
    FloatingPoint(1, 3, specials="none"),
    P3109(8, 1),
    P3109(8, 3),
    P3109(7, 7),
    P3109(8, 4, signed=False, extended=False),
]


@pytest.mark.parametrize("format", EVERY_KIND, ids=repr)
def test_limits_are_those_of_the_list_of_values(format: ScalarFormat) -> None:
    info, values = finfo(format), format.values().tolist()
    positive = [v for v in values if v > 0]
    assert (info.max, info.min) == (format.max, format.min) == (values[-1], values[0])
    assert info.smallest_subnormal == positive[0]
    assert info.codes == 2**info.bits
    assert info.binades == pytest.approx(math.log2(positive[-1] / positive[0]), rel=1e-12)
    assert info.decibels == pytest.approx(20 * math.log10(2) * info.binades, rel=1e-12)
    assert info.emax == math.frexp(values[-1])[1] - 1 or info.u is None
    gaps = {b - a for a, b in zip(values[:-1], values[1:], strict=True)}
    assert (info.u is None) == (len(gaps) == 1)
    if info.u is None:
        assert gaps == {info.eps}
    else:  # the relative error over the normals comes near u, and never passes it
        normal = [v for v in values if v >= info.smallest_normal]
        worst = max((b - a) / 2 / ((a + b) / 2) for a, b in zip(normal[:-1], normal[1:], strict=True))
        assert info.u / 2 < worst < info.u == info.eps / 2


LISTS = [
    *(NF4, Codebook([-1.0, 0.0, 1.0, 1.75]), Codebook([-2.0, -1.0]), LogNumber(6), Posit(2), Posit(8), Posit(6, es=0)),
    Posit(16, es=1),
]


@pytest.mark.parametrize("format", LISTS, ids=repr)
def test_limits_of_posits_and_lists_are_those_of_their_values(format: Any) -> None:
    info, values = finfo(format), list(map(Fraction, format.values().tolist()))
    positive, above = [v for v in values if v > 0], [v for v in values if v > 1]
    assert (info.max, info.min, info.bits, info.codes) == (values[-1], values[0], format.bits, 2**format.bits)
    assert info.smallest_subnormal == info.smallest_normal == info.tiny == min(positive, default=None)
    assert info.eps == (above[0] - 1 if above and 1 in values else None)
    if positive:
        assert info.binades == pytest.approx(math.log2(positive[-1] / positive[0]))
        assert info.decibels == pytest.approx(20 * math.log10(positive[-1] / positive[0]))
    assert (info.precision, info.emin, info.emax, info.u) == (None,) * 4


def test_limits_of_posits_that_are_too_many_to_list() -> None:
    assert finfo(Posit(32)).eps == posit.value(2**30 + 1, 32, 2) - 1 == 2.0**-27  # type: ignore[operator]
    assert finfo(Posit(32)).max == posit.value(2**31 - 1, 32, 2) == 1 / finfo(Posit(32)).tiny  # type: ignore[operator]


def test_one_bit_of_fixed_point_has_limits_too() -> None:
    assert (finfo(FixedPoint(1, 3)).max, finfo(FixedPoint(1, 3)).min) == (0.0, -0.125)
    assert finfo(FixedPoint(1, 3)).binades == 0 and finfo(FixedPoint(8, 4, clamp=False)).binades == math.inf


@pytest.mark.parametrize("options", [{}, {"clamp": False}, {"signed": False}], ids=str)
@pytest.mark.parametrize(("wl", "fl"), [(8, 4), (4, 6), (8, -2), (1, 3)])
def test_evenly_spaced_values_have_one_exponent_and_one_spacing(wl: int, fl: int, options: dict[str, bool]) -> None:
    limits = finfo(FixedPoint(wl, fl, **options))
    assert limits.emin == limits.emax == wl - fl - 1 - options.get("signed", True)
    assert limits.tiny == limits.smallest_subnormal == limits.eps == 2.0**-fl and limits.u is None


def test_finfo_of_a_block_format_is_its_elements_affair() -> None:
    with pytest.raises(TypeError, match="takes a format of single numbers, got BlockFloatingPoint"):
        finfo(BlockFloatingPoint(8))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(E4M3, ml_dtypes.float8_e4m3fn), (E8M0, ml_dtypes.float8_e8m0fnu), (FP16, np.float16), (BF16, ml_dtypes.bfloat16)],
    ids=str,
)
def test_values_are_all_of_a_type_once_and_ascending(format: ScalarFormat, dtype: type) -> None:
    codes = np.arange(2**format.bits, dtype=np.uint8 if format.bits == 8 else np.uint16)
    with np.errstate(invalid="ignore"):  # some NaNs signal
        every = codes.view(dtype).astype(np.float32).astype(np.float64)
    assert format.values().tolist() == sorted(set(every[np.isfinite(every)].tolist()))
    assert format.values().dtype == torch.float64


def test_e2m2_has_the_values_that_qpytorch_users_asked_for() -> None:
    positive = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7]
    values = FloatingPoint(2, 2, specials="none").values().tolist()
    assert values == sorted({v for v in positive} | {-v for v in positive})


@pytest.mark.parametrize(
    ("format", "words"),
    [
        (FP32, r"has 2\*\*32 = 4294967296 codes, values\(\) lists up to 2\*\*20"),
        (FixedPoint(24, 0), r"2\*\*24 = 16777216 codes"),
        (FixedPoint(8, 0, clamp=False), "has no largest value; clamp=True"),
    ],
)
def test_values_of_huge_formats_are_refused(format: ScalarFormat, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        format.values()


def floats() -> st.SearchStrategy[FloatingPoint | None]:
    def make(exp: int, man: int, bias: int, specials: str, subnormals: object, signed: bool) -> FloatingPoint | None:
        try:
            return FloatingPoint(
                exp,
                man,
                bias=bias,
                specials=specials,
                subnormals=subnormals,
                signed=signed,  # type: ignore[arg-type]
            )
        except ValueError:
            return None

    kinds = st.sampled_from(["ieee", "fn", "fnuz", "none"])
    return st.builds(
        make,
        st.integers(1, 5),
        st.integers(0, 5),
        st.integers(-4, 12),
        kinds,
        st.sampled_from([True, False, "flush"]),
        st.booleans(),
    )


def fixed() -> st.SearchStrategy[FixedPoint]:
    return st.builds(
        lambda wl, fl, symmetric, signed: FixedPoint(wl, fl, symmetric=symmetric and wl > 1, signed=signed),
        *(st.integers(1, 10), st.integers(-4, 12), st.booleans(), st.booleans()),
    )


def p3109() -> st.SearchStrategy[P3109]:
    sizes = st.integers(3, 8).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k)))
    return st.builds(lambda s, signed, extended: P3109(*s, signed, extended), sizes, st.booleans(), st.booleans())


formats = st.one_of(floats().filter(lambda f: f is not None), fixed(), p3109(), st.just(E8M0))


@settings(max_examples=1500, deadline=None)
@given(formats, formats)
def test_contains_is_inclusion_of_values(a: ScalarFormat, b: ScalarFormat) -> None:
    assert a.contains(b) == set(a.values().tolist()).issuperset(b.values().tolist())


@settings(max_examples=200, deadline=None)
@given(formats)
def test_a_format_contains_itself_and_is_carried_by_fp32(format: ScalarFormat) -> None:
    assert format.contains(format) and FP32.contains(format)


def test_known_inclusions() -> None:
    assert FP32.contains(TF32) and TF32.contains(BF16) and TF32.contains(FP16)
    assert not FP16.contains(BF16) and not BF16.contains(FP16)
    assert FixedPoint(8, 4, clamp=False).contains(FixedPoint(20, 3)) and FixedPoint(8, 4, clamp=False).contains(INT8)
    assert FixedPoint(8, 4, clamp=False).contains(FixedPoint(8, 3, clamp=False))
    assert not FixedPoint(8, 3, clamp=False).contains(FixedPoint(8, 4, clamp=False))
    assert not FP32.contains(FixedPoint(8, 4, clamp=False))
    with pytest.raises(TypeError, match="formats of single numbers, got BlockFloatingPoint"):
        FP32.contains(BlockFloatingPoint(8))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", [P3109(4, 4), P3109(2, 2, signed=False), P3109(8, 3), E4M3, E8M0, E2M1], ids=str)
def test_emax_is_the_exponent_of_the_largest_value(format: ScalarFormat) -> None:
    """Also where there are no normal numbers."""
    assert finfo(format).emax == math.floor(math.log2(format.max))


@pytest.mark.parametrize("format", [FloatingPoint(4, 3, bias=0), FloatingPoint(4, 3), E5M2, FixedPoint(8, 4), E2M1])
def test_eps_is_the_distance_from_one_to_the_next_value(format: ScalarFormat) -> None:
    values = format.values().tolist()
    assert finfo(format).eps == values[values.index(1.0) + 1] - 1


@pytest.mark.parametrize(
    "format",
    [
        *(E4M3, E8M0, E2M1, FixedPoint(6, 2), FixedPoint(5, 0, symmetric=True), P3109(6, 3)),
        *(FixedPoint(4, -100), FloatingPoint(4, 3, bias=-113)),  # over whose spacing small numbers vanish
    ],
    ids=repr,
)
def test_has_is_membership_in_the_list_of_values(format: ScalarFormat) -> None:
    values = format.values()
    numbers = torch.cat([values, values / 3, (values[1:] + values[:-1]) / 2]).tolist() + [5e-324, 1e-300, -5e-324]
    assert [format.has(x) for x in numbers] == [x in {*values.tolist()} for x in numbers]


def test_specials_are_had_where_they_have_a_code() -> None:
    inf, nan = math.inf, math.nan
    had = {f: (f.has(inf), f.has(-inf), f.has(nan)) for f in (E5M2, E4M3, E2M1, FixedPoint(8, 4), E8M0)}
    assert had[E5M2] == (True, True, True) and had[E4M3] == had[E8M0] == (False, False, True)
    assert had[E2M1] == had[FixedPoint(8, 4)] == (False, False, False)
    assert not NF4.has(nan) and not NF4.has(inf) and NF4.has(0.0) and not NF4.has(0.5)
    assert BF16.contains(Posit(8)) and not E4M3.contains(Posit(8)) and not BF16.contains(NF4)
