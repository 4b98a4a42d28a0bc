"""Stochastic rounding with few bits, with even odds, and beyond the largest value."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction

import gfloat
import gfloat.formats as gf
import pytest
import torch
from gfloat import RoundMode
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lptensor import _native, reference
from lptensor.formats import BF16, E2M1, E2M3, E4M3, E5M2, E8M0, FP16, FixedPoint, FloatingPoint, Format, ScalarFormat
from lptensor.ops import round as round_to
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic, as_rounding
from oracles import exact
from oracles.draws import goes_up
from oracles.philox import word_of_element
from rounders import NATIVE_BUILDS, VARIANTS, assert_same, choose_build, judge, rule_of, run
from strategies import fixed_parameters, float_parameters, numbers_near

KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
GFLOAT_MODE = {
    "plain": RoundMode.StochasticFastest,
    "half_offset": RoundMode.StochasticFast,
    "pre_rounded": RoundMode.Stochastic,
}
GFLOAT_FORMAT = {
    E4M3: gf.format_info_ocp_e4m3,
    E5M2: gf.format_info_ocp_e5m2,
    E2M3: gf.format_info_ocp_e2m3,
    E2M1: gf.format_info_ocp_e2m1,
    FixedPoint(8, 6): gf.format_info_ocp_int8,
}
ODD_FORMATS = (
    BF16,
    E4M3,
    E8M0,
    FloatingPoint(4, 3, subnormals=False),
    FloatingPoint(5, 2, subnormals="flush"),
    FloatingPoint(4, 3, specials="fnuz"),
    FloatingPoint(4, 3, signed=False),
    FloatingPoint(8, 1),
    FixedPoint(8, 4),
    FixedPoint(8, 4, clamp=False),
)
every_variant = pytest.mark.parametrize("variant", GFLOAT_MODE)

WORDS = torch.tensor([word_of_element(i, *KEY) for i in range(4096)])


def both(x: Tensor, format: ScalarFormat, rounding: Rounding) -> Tensor:
    """``x`` rounded by kernel and reference, which agree to the bit."""
    expected = reference.round_grid(x, format.grid, rounding, KEY)
    if _native.library() is not None:
        got = torch.empty_like(x)
        _native.round_grid(x, got, format.grid, rounding, KEY)
        bits = torch.int32 if x.dtype == torch.float32 else torch.int64
        same = (got.view(bits) == expected.view(bits)) | got.isnan() & expected.isnan()
        assert same.all(), (x[~same][:3], got[~same][:3], expected[~same][:3])
    return expected


def spread(format: ScalarFormat) -> Tensor:
    """Values on, and a few 64ths of a spacing off, the grid: subnormals, binade edges, the largest value."""
    grid = format.grid
    starts = [0.0, grid.smallest, 2.0**grid.emin, 1.0, grid.max / 2, grid.max, -grid.max]
    parts = [j / 64 for j in (0, 1, 2, 7, 8, 16, 24, 31, 32, 33, 40, 48, 56, 62, 63)]
    out = []
    for start, part in itertools.product(starts, parts):
        spacing = 2.0 ** grid.quantum(math.frexp(start)[1] - 1 if start else grid.emin)
        out.append(start + math.copysign(part * spacing, start))
    return torch.tensor(out + [-v for v in out])


def test_the_layout_of_words_is_the_documented_one() -> None:
    assert reference.random_words(len(WORDS), KEY).tolist() == WORDS.tolist()


@every_variant
@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize("format", GFLOAT_FORMAT, ids=repr)
def test_few_bits_equal_gfloat_for_every_value_and_draw(format: ScalarFormat, bits: int, variant: str) -> None:
    x = spread(format).repeat_interleave(2 ** (bits + 2))[: len(WORDS)]
    got = both(x, format, Stochastic(bits, variant))
    draws = WORDS[: len(x)] >> 32 - bits
    assert len(set(draws.tolist())) == 2**bits
    saturates = format.grid.overflow == 1
    for value, draw, result in zip(x.tolist(), draws.tolist(), got.tolist(), strict=True):
        expected = gfloat.round_float(
            GFLOAT_FORMAT[format], value, GFLOAT_MODE[variant], saturates, srbits=draw, srnumbits=bits
        )
        assert result == expected, (value, draw)
        assert math.copysign(1, result) == math.copysign(1, expected), (value, draw)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 9), (torch.float64, 4), (torch.float64, 9)])
def test_pre_rounding_sees_every_bit_below_a_tie(dtype: torch.dtype, bits: int) -> None:
    ulp = 2.0**-23 if dtype == torch.float32 else 2.0**-40
    for tie in (Fraction(1, 2 ** (bits + 1)), Fraction(1, 2 ** (bits + 2))):
        part = tie * (1 + Fraction(ulp))
        x = torch.full((len(WORDS),), float(part * Fraction(2.0**-9)), dtype=dtype)
        up = both(x, E4M3, Stochastic(bits, "pre_rounded")) != 0
        expected = [round(part * 2**bits) + (word >> 32 - bits) >= 2**bits for word in WORDS.tolist()]
        assert up.tolist() == expected
        assert any(expected) == (tie * 2 ** (bits + 1) == 1)


@every_variant
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_bias_is_that_of_theory(bits: int, variant: str) -> None:
    """Fitzgibbon and Felix 2025, for fractions of four bits, over every fraction and every draw."""
    steps = 16
    fractions = torch.arange(steps).repeat_interleave(len(WORDS) // steps)
    up = both(8 + fractions / steps, FixedPoint(8, 0), Stochastic(bits, variant)) - 8
    draws = WORDS >> 32 - bits
    outcome = {(f, d): u for f, d, u in zip(fractions.tolist(), draws.tolist(), up.tolist(), strict=True)}
    assert len(outcome) == steps * 2**bits
    bias = sum(Fraction(u) - Fraction(f, steps) for (f, _), u in outcome.items()) / len(outcome)
    theory = {
        "plain": -(Fraction(1, 2**bits) - Fraction(1, steps)) / 2,
        "half_offset": Fraction(1, 2 * steps),
        "pre_rounded": Fraction(0),
    }
    assert bias == theory[variant]


@settings(max_examples=150)
@given(
    st.data(), st.integers(1, 32), st.sampled_from(VARIANTS), st.sampled_from(["overflow", "saturate", "probability"])
)
def test_each_word_decides_as_exact_rationals_say(data: st.DataObject, bits: int, variant: str, beyond: str) -> None:
    floats = float_parameters().map(lambda given: FloatingPoint(**given))
    format = data.draw(st.one_of(floats, fixed_parameters().map(lambda given: FixedPoint(**given))))
    values, bits = judge(format), 32 if variant == "equal" else bits
    numbers = st.one_of(numbers_near(values), st.floats(0, 2).map(lambda part: part * min(format.max, 1e38)))
    x = torch.tensor(data.draw(st.lists(numbers, min_size=20, max_size=20)), dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        here = x.to(dtype)
        wanted = [
            exact.drawn(values, v, lambda chance, w=w: goes_up(chance, w, bits, variant), beyond)
            for v, w in zip(here.tolist(), WORDS.tolist(), strict=False)
        ]
        for rounder in ("reference", *NATIVE_BUILDS):
            got = run(rounder, here, format, rule_of(bits, variant, beyond), KEY)
            assert_same(got, torch.tensor(wanted, dtype=torch.float64).to(dtype), here, (rounder, format, bits))


@every_variant
@pytest.mark.parametrize("beyond", ["overflow", "saturate", "probability"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_equals_reference_on_any_bits(variant: str, beyond: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (1000,), generator=generator).to(torch.int32).view(torch.float32)
    for format, bits in itertools.product(ODD_FORMATS, (4, 31, 32)):
        near = torch.rand(2, 500, generator=generator, dtype=torch.float64) * 3 - 1.5
        ends = near * torch.tensor([[min(format.grid.max, 1e30)], [format.grid.smallest * 2.0**-9]])
        x = torch.cat([patterns.to(dtype), ends.reshape(-1).to(dtype)])
        both(x, format, Stochastic(bits, variant, beyond))


@pytest.mark.parametrize("beyond", Beyond)
def test_kernel_equals_reference_at_even_odds(beyond: Beyond) -> None:
    patterns = torch.randint(-(2**31), 2**31, (2000,), generator=torch.Generator().manual_seed(4))
    for format in ODD_FORMATS:
        both(patterns.to(torch.int32).view(torch.float32), format, Rounding(Mode.STOCHASTIC_EQUAL, beyond=beyond))


@pytest.mark.parametrize("build", NATIVE_BUILDS)
def test_every_build_has_the_variants(build: str) -> None:
    assert choose_build(build)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2)) * 30
    for mode in Mode:
        for beyond in Beyond if mode >= Mode.STOCHASTIC else [Beyond.OVERFLOW]:
            both(x, E4M3, Rounding(mode, beyond=beyond))


@pytest.mark.parametrize("format", [E4M3, E5M2, E2M1, E8M0, FixedPoint(8, 4), ODD_FORMATS[3]], ids=repr)
def test_representable_values_never_move(format: ScalarFormat) -> None:
    every = torch.arange(2**16).to(torch.int32).bitwise_left_shift(16).view(torch.float32)
    values = both(every, format, Rounding()).unique()
    values = values[values.isfinite()].repeat_interleave(16)
    for mode, bits, beyond in itertools.product([m for m in Mode if Rounding(m).stochastic], (1, 32), Beyond):
        if mode is not Mode.STOCHASTIC_EQUAL or bits == 32:
            assert both(values, format, Rounding(mode, bits, beyond)).tolist() == values.tolist()


def share(x: float, format: Format, rounding: Rounding, result: float, n: int = 40000) -> float:
    torch.manual_seed(3)
    return float((round_to(torch.full((n,), x), format, rounding) == result).double().mean())


def within(measured: float, probability: float, n: int = 40000) -> bool:
    """Four standard deviations of a binomial; certain events are exact."""
    return abs(measured - probability) <= 4 * math.sqrt(probability * (1 - probability) / n)


@pytest.mark.parametrize(
    ("x", "low", "high"),
    [
        (1.001, 1.0, 1.125),
        (1.12, 1.0, 1.125),
        (2.0**-12, 0.0, 2.0**-9),
        (-3.3, -3.25, -3.5),
        (0.0149, 0.013671875, 0.015625),
    ],
)
def test_equal_odds_are_one_half_wherever_inexact(x: float, low: float, high: float) -> None:
    rounding = as_rounding("stochastic_equal")
    assert within(share(x, E4M3, rounding, high), 0.5)
    assert share(x, E4M3, rounding, low) + share(x, E4M3, rounding, high) == 1


INFINITE = FloatingPoint(4, 3)  # largest value 240, spacing 16: rounding to nearest overflows from 248


@pytest.mark.parametrize("x", [240.0, 241.0, 244.0, 247.0, 248.0, 250.0, 255.0, 256.0, 1e6])
def test_beyond_the_largest_value(x: float) -> None:
    above = min((x - 240) / 16, 1.0)
    assert within(share(x, INFINITE, Stochastic(), math.inf), above)
    assert share(x, INFINITE, Stochastic(beyond="saturate"), 240.0) == 1
    to_bound = min((x - 240) / (248 - 240), 1.0)
    assert within(share(x, INFINITE, Stochastic(beyond="probability"), math.inf), to_bound)
    assert share(-x, INFINITE, Stochastic(beyond="saturate"), -240.0) == 1


@pytest.mark.parametrize("x", [-8.0, -8.01, -8.02, -8.03125, -8.05, -9.0])
def test_the_bound_of_twos_complement_lies_on_its_own_side(x: float) -> None:
    format = FixedPoint(8, 4, clamp=True)
    grid = format.grid._replace(overflow=0)
    rounded = reference.round_grid(torch.full((4096,), x), grid, Stochastic(beyond="probability"), KEY)
    expected = min((-8.0 - x) / 0.03125, 1.0)
    assert within(float((rounded == -math.inf).double().mean()), expected, 4096)


def test_infinities_overflow_whatever_stochastic_rounding_does_beyond() -> None:
    for beyond in Beyond:
        both_ends = torch.tensor([math.inf, -math.inf])
        assert both(both_ends, INFINITE, Stochastic(beyond=beyond)).tolist() == [math.inf, -math.inf]
        assert both(both_ends, E4M3, Stochastic(beyond=beyond)).tolist() == [448.0, -448.0]


def test_few_bits_in_fp16_range_of_subnormals_keep_their_odds() -> None:
    for part in (0.0625, 0.3, 0.5, 0.9):
        measured = share(part * 2.0**-24, FP16, Stochastic(8, "half_offset"), 2.0**-24)
        assert within(measured, math.floor(part * 256 + 0.5) / 256)


@pytest.mark.parametrize(
    "rounding",
    [
        Stochastic(),
        Stochastic(7),
        Stochastic(7, "half_offset"),
        Stochastic(32, "pre_rounded", "saturate"),
        Rounding(Mode.STOCHASTIC_EQUAL, beyond=Beyond.PROBABILITY),
        Rounding(Mode.ODD),
    ],
)
def test_a_rounding_is_a_value(rounding: Rounding) -> None:
    assert eval(repr(rounding)) == rounding
    assert pickle.loads(pickle.dumps(rounding)) == rounding
    assert hash(pickle.loads(pickle.dumps(rounding))) == hash(rounding)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stochastic(0), "1 to 32 random bits, got 0"),
        (lambda: Stochastic(33, "half_offset"), "1 to 32 random bits, got 33"),
        (lambda: Stochastic(4, "fast"), "unknown variant 'fast'; known: plain, half_offset, pre_rounded"),
        (lambda: Stochastic(4, "equal"), "stochastic_equal"),
        (lambda: Stochastic(beyond="clip"), "unknown beyond 'clip'; known: overflow, saturate, probability"),
        (lambda: Rounding(Mode.STOCHASTIC_EQUAL, bits=3), "draws one bit, got bits=3"),
        (lambda: Rounding(Mode.UP, beyond=Beyond.SATURATE), "beyond='saturate' is for stochastic rounding, got up"),
        (lambda: as_rounding("stochastic_fast"), "stochastic_half_offset"),
    ],
)
def test_bad_roundings_are_named(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_beyond_is_no_string_inside() -> None:
    with pytest.raises(TypeError, match="must be a Beyond, got 'saturate'"):
        Rounding(Mode.STOCHASTIC, beyond="saturate")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [31, 32])
@every_variant
def test_words_of_nearly_all_bits_decide_to_the_last(variant: str, bits: int, rounder: str) -> None:
    """Up where fraction and word sum to one, not where anything is missing, be it less than the word has a bit for."""
    last = 2 ** (32 - bits)
    words = (reference.random_words(400, KEY) // last * last).double()
    stays = (2.0**32 - last - words + 2.0**-10) / 2**32
    goes = (2.0**32 - words) / 2**32
    for part, up in ((stays, 0), (goes, 1)):
        for sign in (1, -1):
            y = run(rounder, sign * (1 + part), FixedPoint(8, 0), Stochastic(bits, variant), KEY)
            assert (y == sign * (1 + up)).all()


@every_variant
def test_what_is_far_below_the_spacing_goes_up_as_rarely_as_its_words_say(variant: str, rounder: str) -> None:
    words = reference.random_words(2**14, KEY)
    for exponent in (-8, -9, -10, -31, -32, -41, -42, -60, -100):
        x = 1.25 * 2.0**exponent
        up = words >= 2**32 - int(x * 2**32)
        assert up.sum() > 5 or exponent < -10
        for dtype in (torch.float32, torch.float64):
            y = run(rounder, torch.full(words.shape, x, dtype=dtype), FixedPoint(8, 0), Stochastic(32, variant), KEY)
            assert torch.equal(y != 0, up) and (y[up] == 1).all()
