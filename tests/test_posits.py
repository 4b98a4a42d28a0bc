"""Posits: codes, values and rounding against exact rationals and against SoftPosit."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from backends import (
    BACKENDS,
    BUILDS,
    DTYPES,
    flushed_denormals,
    random_bits,
    run,
    same_bits,
    threads,
    with_neighbours,
    words_of_seed,
)
from lptensor import ops
from lptensor.posits import Posit
from lptensor.rounding import Mode, Stochastic
from oracles import posit
from oracles.draws import goes_up

SIZES = [
    (2, 2),
    (3, 0),
    (3, 2),
    (4, 1),
    (5, 0),
    (5, 3),
    (6, 2),
    (8, 0),
    (8, 1),
    (8, 2),
    (8, 4),
    (9, 2),
    (10, 1),
    (11, 3),
]

WORDS = words_of_seed(6, 300)


def exactly(x: float) -> Fraction:
    return Fraction(x)


def judged(x: torch.Tensor, oracle: posit.Posits, mode: str) -> torch.Tensor:
    found = [float(oracle.round(exactly(v), mode)) if math.isfinite(v) else math.nan for v in x.tolist()]
    return torch.tensor(found, dtype=torch.float64)


def assert_rounds(x: torch.Tensor, oracle: posit.Posits) -> None:
    expectations = {mode: judged(x, oracle, mode) for mode in posit.MODES}
    for mode, backend in itertools.product(posit.MODES, BACKENDS):
        expected = expectations[mode]
        got = run(backend, x, Posit(oracle.n, oracle.es), mode).double()
        wrong = ~((got == expected) | got.isnan() & expected.isnan())
        assert not wrong.any(), (
            backend,
            mode,
            x[wrong][:4].tolist(),
            got[wrong][:4].tolist(),
            expected[wrong][:4].tolist(),
        )
        assert not (torch.signbit(got) & (got == 0)).any(), "one zero, without a sign"


@pytest.mark.parametrize("n, es", SIZES)
def test_every_code_has_the_value_of_its_bit_string(n: int, es: int) -> None:
    values = Posit(n, es).values_of(torch.arange(2**n)).tolist()
    for code, got in enumerate(values):
        expected = posit.value(code, n, es)
        assert math.isnan(got) if expected is None else exactly(got) == expected


@pytest.mark.parametrize("n, es", [*SIZES, (16, 2), (16, 1), (16, 0)])
def test_codes_of_values_are_the_codes(n: int, es: int) -> None:
    codes = torch.arange(2**n)
    assert torch.equal(Posit(n, es).codes_of(Posit(n, es).values_of(codes)), codes)


def test_every_sixteen_bit_code_has_the_value_of_its_bit_string() -> None:
    values = Posit(16).values_of(torch.arange(2**16)).tolist()
    assert all(posit.value(c, 16, 2) == exactly(v) for c, v in enumerate(values) if c != 2**15)


@pytest.mark.parametrize("n, es", [(20, 2), (24, 1), (28, 2), (32, 2), (32, 5), (31, 0)])
def test_wide_codes_have_the_values_of_their_bit_strings(n: int, es: int) -> None:
    rng = random.Random(n)
    codes = [0, 1, 2, 2 ** (n - 1) - 1, 2 ** (n - 1) + 1, 2**n - 1, *(rng.randrange(2**n) for _ in range(2000))]
    codes += [rng.randrange(2 ** rng.randrange(1, n)) for _ in range(1000)]
    codes = [c for c in codes if c != 2 ** (n - 1)]
    values = Posit(n, es).values_of(torch.tensor(codes))
    assert [exactly(v) for v in values.tolist()] == [posit.value(c, n, es) for c in codes]
    assert Posit(n, es).codes_of(values).tolist() == codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, es", SIZES)
def test_every_value_border_and_midpoint_rounds_as_exact_rationals(n: int, es: int, dtype: torch.dtype) -> None:
    oracle = posit.Posits(n, es)
    values = [Fraction(0), *oracle.positive]
    middles = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
    borders = [oracle.border(code) for code in range(1, len(oracle.positive))]
    points = [float(p) for p in (*values, *middles, *borders)]
    if n > 8:
        points = random.Random(n).sample(points, 300) + points[:50]
    assert_rounds(with_neighbours(points, dtype), oracle)


@pytest.mark.parametrize(
    "n, es, dtype", [(16, 2, 0), (16, 1, 1), (20, 2, 0), (28, 2, 0), (28, 2, 1), (32, 2, 1), (32, 5, 1)]
)
def test_wide_posits_round_as_exact_rationals(n: int, es: int, dtype: int) -> None:
    oracle, rng = posit.Posits(n, es), random.Random(0)
    top = 2 ** (n - 1) - 2
    codes = [1, 2, 3, top, top - 1, 2 ** (n - 2), *(rng.randrange(1, top) for _ in range(20))]
    codes += [max(1, top >> k) for k in range(n - 1)] + [max(1, top - (top >> k)) for k in range(n - 1)]
    points = [p for c in codes for p in (oracle.at(c), oracle.border(c), (oracle.at(c) + oracle.at(c + 1)) / 2)]
    assert_rounds(with_neighbours([float(p) for p in points], DTYPES[dtype]), oracle)


def test_the_border_is_no_arithmetic_mean_where_exponent_bits_are_cut_off() -> None:
    """Between 2**16 and 2**18, 8-bit posits of es = 2 change over at 2**17 (from the 9-bit string between)."""
    x = torch.tensor([131072.0, 131073.0, 144179.2, 163840.0])
    low, high = posit.value(0b01111100, 8, 2), posit.value(0b01111101, 8, 2)
    assert (low, high) == (2**16, 2**18)
    assert ops.round(x, Posit(8)).tolist() == [65536.0, 262144.0, 262144.0, 262144.0]


@pytest.mark.parametrize("variant", ["plain", "half_offset", "pre_rounded", "equal"])
@pytest.mark.parametrize("n, es", [(4, 1), (8, 2), (16, 1)])
def test_the_word_of_an_element_decides_from_its_exact_chance(n: int, es: int, variant: str) -> None:
    oracle = posit.Posits(n, es)
    spread = torch.randn(100, dtype=torch.float64) * 2.0 ** torch.randint(-30, 30, (100,))
    steps = [float(oracle.at(2 ** (n - 2)) * (1 + Fraction(k, 8) * Fraction(2) ** -n)) for k in range(60)]
    x = torch.cat([spread, torch.tensor([*steps, 1e-9, -1e-9, 3.3, 1e30, float(oracle.at(1)) / 4])])
    for dtype in DTYPES:
        exact = [exactly(v) for v in x.to(dtype).tolist()]
        chances = [oracle.chance(v) for v in exact]
        sides = [[float(oracle.round(v, mode)) for v in exact] for mode in ("toward_zero", "up", "down")]
        for bits in (1, 5, 31) if variant != "equal" else (32,):
            up = [goes_up(c, word, bits, variant) for c, word in zip(chances, WORDS, strict=False)]
            expected = [
                (above if v > 0 else below) if u else near
                for v, u, near, above, below in zip(exact, up, *sides, strict=True)
            ]
            rule = Stochastic(bits, variant) if variant != "equal" else "stochastic_equal"
            for backend in BACKENDS:
                assert run(backend, x.to(dtype), Posit(n, es), rule, seed=6).tolist() == expected, (backend, bits)


VARIANTS = [Stochastic(bits, name) for name in ("plain", "half_offset", "pre_rounded") for bits in (1, 5, 31)]
RULES = [*(mode.name.lower() for mode in Mode), *VARIANTS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, es", [(2, 0), (8, 2), (8, 0), (16, 2), (28, 2), (19, 1), (32, 2), (32, 5)])
def test_kernels_give_the_bits_of_the_reference(n: int, es: int, dtype: torch.dtype) -> None:
    if n == 32 and dtype == torch.float32:
        dtype, n, es = torch.float64, 31, es - 1  # fp32 holds no 32-bit posits
    x = torch.cat([random_bits(5000, dtype), torch.randn(5001, dtype=dtype) * 2.0 ** torch.randint(-40, 40, (5001,))])
    for rule in RULES:
        expected = run("reference", x, Posit(n, es), rule, seed=3)
        for backend in BUILDS:
            assert same_bits(run(backend, x, Posit(n, es), rule, seed=3), expected), (backend, rule)
        with flushed_denormals():
            for backend in BACKENDS:
                assert same_bits(run(backend, x, Posit(n, es), rule, seed=3), expected), (backend, rule)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_give_the_bits_of_one(dtype: torch.dtype) -> None:
    x = random_bits(100_001, dtype)
    for rule in ("nearest", "stochastic"):
        with threads(1):
            alone = run(BACKENDS[-1], x, Posit(16), rule)
        with threads(2):
            assert same_bits(run(BACKENDS[-1], x, Posit(16), rule), alone)


# What SoftPosit 0.3.4.4 (Leong), a C library with es = 0, 1, 2 for 8, 16, 32 bits, makes of some numbers.
SOFTPOSIT = {
    (8, 0): [
        (math.pi, 3.125),
        (-1 / 3, -0.328125),
        (2.0**4.5, 24.0),
        (1e-12, 2.0**-6),
        (-0.001, -(2.0**-6)),
        (48.0, 32.0),
    ],
    (16, 1): [
        *((math.pi, 3.1416015625), (-1 / 3, -0.33331298828125), (2.0**10.5, 1448.0), (1e-12, 2.0**-28)),
        *((-0.001, -0.00099945068359375), (12345.678, 12288.0), (3 * 2.0**25, 2.0**26), (1e30, 2.0**28)),
    ],
    (32, 2): [
        *((math.pi, 3.141592651605606), (-1 / 3, -0.33333333395421505), (2.0**22.5, 5931642.0)),
        *((1e-12, 9.999986949615902e-13), (-0.001, -0.0009999999892897904), (12345.678, 12345.67822265625)),
        *((3 * 2.0**115, 2.0**116), (1e30, 1.0299661126854364e30)),
    ],
}


@pytest.mark.parametrize("n, es", SOFTPOSIT)
def test_rounding_is_that_of_softposit(n: int, es: int) -> None:
    x, theirs = torch.tensor(SOFTPOSIT[n, es], dtype=torch.float64).unbind(1)
    assert torch.equal(ops.round(x, Posit(n, es)), theirs)


FORMATS = st.builds(Posit, st.integers(2, 16), st.integers(0, 2))
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=100)
@given(FORMATS, st.lists(FLOATS, min_size=1, max_size=20), st.sampled_from(posit.MODES))
def test_rounding_is_idempotent_monotone_odd_and_on_the_table(format: Posit, xs: list[float], mode: str) -> None:
    x = torch.tensor(sorted(xs), dtype=torch.float32)
    y = ops.round(x, format, mode)
    assert torch.equal(ops.round(y, format, mode), y)
    assert (y.diff() >= 0).all()
    assert torch.isin(y.double(), format.values()).all()
    mirrored = {"up": "down", "down": "up"}.get(mode, mode)
    assert torch.equal(ops.round(-x, format, mirrored), -y)


def test_parameters_have_bounds() -> None:
    for bad in (1, 33):
        with pytest.raises(ValueError, match=f"nbits must be from 2 to 32, got {bad}"):
            Posit(bad)
    with pytest.raises(ValueError, match="es must be from 0 to 5, got 6"):
        Posit(8, 6)
    with pytest.raises(TypeError, match="nbits"):
        Posit(8.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "n, es, named", [(32, 2, "1 [+] 2[*][*]-27"), (29, 2, "1 [+] 2[*][*]-24"), (16, 4, "2[*][*]224")]
)
def test_what_fp32_does_not_hold_is_refused_by_value_and_rounds_in_float64(n: int, es: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"the value {named}, which float32 does not hold; use a float64 tensor"):
        ops.round(torch.ones(2), Posit(n, es))
    assert ops.round(torch.ones(2, dtype=torch.float64), Posit(n, es)).tolist() == [1.0, 1.0]


def test_codes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of 8 bits, got 256"):
        Posit(8).values_of(torch.tensor([3, 256]))
    with pytest.raises(ValueError, match="3[.]29.* is not a value of Posit"):
        Posit(8).codes_of(torch.tensor([1.0, 3.3]))
    with pytest.raises(ValueError, match="is not a value"):
        Posit(8).codes_of(torch.tensor([2.0**25]))
    with pytest.raises(ValueError, match="values_of"):
        Posit(17).values()


def test_formats_contain_each_other_as_their_values_do() -> None:
    assert Posit(16).contains(Posit(8)) and not Posit(8).contains(Posit(16))
    assert Posit(32).contains(Posit(28))
    small = [Posit(n, es) for n in (3, 5, 8) for es in (0, 1, 2)]
    for a in small:
        for b in small:
            assert a.contains(b) == bool(torch.isin(b.values(), a.values()).all())


def test_a_posit_is_a_value() -> None:
    assert Posit(8) == Posit(8, 2) != Posit(8, 1)
    assert len({Posit(8), Posit(8, 2)}) == 1
    assert pickle.loads(pickle.dumps(Posit(16))) == Posit(16)
    assert repr(Posit(8)) == "Posit(nbits=8)" and repr(Posit(8, 1)) == "Posit(nbits=8, es=1)"
    assert Posit(8).bits == 8 and Posit(8).max == 2.0**24 == -Posit(8).min


def test_any_layout_and_gradient() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    y = ops.round(x.t(), Posit(8))
    assert y.stride() == x.t().stride() and torch.equal(y, ops.round(x.detach().t().contiguous(), Posit(8)))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(6, 4))
    assert ops.round(torch.empty(0, 3), Posit(8)).shape == (0, 3)


@pytest.mark.parametrize("posit", [Posit(2), Posit(3, 0), Posit(5, 3), Posit(8, 0), Posit(8), Posit(10, 1)], ids=str)
def test_has_is_membership_in_the_list_of_values(posit: Posit) -> None:
    values = posit.values()
    between = torch.cat([(values[1:] + values[:-1]) / 2, values * (1 + 2.0**-50), values * 2, values / 2]).tolist()
    assert all(map(posit.has, values.tolist())) and posit.has(math.nan) and posit.has(-0.0)
    listed = {*values.tolist()}
    assert [posit.has(x) for x in between] == [x in listed for x in between]
    assert not posit.has(math.inf) and not posit.has(-math.inf)
