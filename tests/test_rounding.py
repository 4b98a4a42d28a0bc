"""Rounding rules as values, and stochastic rounding against its exact probabilities."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lptensor.formats import BF16, E2M1, E4M3, E5M2, E8M0, FP16, FixedPoint, FloatingPoint
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic, as_rounding
from oracles import exact
from oracles.exact import power
from oracles.philox import word_of_element
from rounders import NATIVE_BUILDS, assert_same, judge, run
from strategies import fixed_parameters, float_parameters, numbers_near

WORDS = [word_of_element(i, 21, 22) for i in range(256)]
TO_INF = FloatingPoint(4, 3)


@pytest.mark.parametrize("mode", Mode)
def test_every_way_to_say_a_mode_means_one_value(mode: Mode) -> None:
    name = mode.name.lower()
    assert as_rounding(name) == as_rounding(mode) == as_rounding(Rounding(mode)) == Rounding(mode)
    assert Rounding(mode).name == name and Mode(name) is Mode(mode.value) is mode


def test_enums_are_found_by_the_names_that_arguments_have_and_no_others() -> None:
    assert all(Beyond(beyond.name.lower()) is beyond for beyond in Beyond)
    for unknown in ("NEAREST", "nearer", "", 99, None):
        with pytest.raises(ValueError, match="is not a valid Mode"):
            Mode(unknown)


def test_the_modes_of_the_oracle_are_all_deterministic_modes() -> None:
    assert set(exact.MODES) == {mode.name.lower() for mode in Mode if not Rounding(mode).stochastic}


@pytest.mark.parametrize("rounding", [*map(Rounding, Mode), Stochastic(1), Stochastic(8), Stochastic(32)], ids=repr)
def test_roundings_are_values(rounding: Rounding) -> None:
    for other in (eval(repr(rounding)), pickle.loads(pickle.dumps(rounding)), copy.deepcopy(rounding)):
        assert other == rounding and hash(other) == hash(rounding)
    assert len({Rounding(mode) for mode in Mode} | {Stochastic(8)}) == len(Mode) + 1


@pytest.mark.parametrize("bits", [0, -1, 33, 8.0, True, "8"], ids=repr)
def test_random_bits_out_of_range_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match=f"1 to 32 random bits, got {bits!r}"):
        Stochastic(bits)


def test_random_bits_for_a_mode_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="nearest rounding draws no random bits, got bits=8"):
        Rounding(Mode.NEAREST, 8)


@pytest.mark.parametrize("name", ["Nearest", "", "rne", "STOCHASTIC"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown rounding '{name}'.*; known: nearest, .*stochastic"):
        as_rounding(name)


@pytest.mark.parametrize("wrong", [None, 0, 1.0, Mode])
def test_what_names_no_rounding_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"name \(nearest, .*stochastic_equal\), a Mode or a Rounding"):
        as_rounding(wrong)
    with pytest.raises(TypeError, match="must be a Mode"):
        Rounding("nearest")  # type: ignore[arg-type]


def test_stochastic_rounding_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a key"):
        run("reference", torch.ones(3), E4M3, "stochastic")


# x as a fraction of the way between two neighbours: normals, subnormals, near-ties, beyond the largest value.
POINTS = [
    (E4M3, 1 + 1 / 8 * 0.3),
    (E4M3, -(1 + 1 / 8 * 0.7)),
    (E4M3, 17.3),
    (E4M3, 2.0**-9 * 0.1),
    (E4M3, 2.0**-9 * 0.5),
    (E4M3, -(2.0**-9) * 1.25),
    (E4M3, 2.0**-6 * (1 - 2.0**-5)),
    (E4M3, 2.0**-9 * 2.0**-7),
    (E5M2, 2.0**-16 * 0.01),
    (E5M2, 57344 * 1.05),
    (TO_INF, 240 * 1.02),
    (E2M1, 0.25),
    (E2M1, 0.25000006),
    (E2M1, 4.999999),
    (E2M1, 5.000001),
    (BF16, 1 + 2.0**-7 * 0.9),
    (BF16, 2.0**-133 * 0.4),
    (FP16, 2.0**-24 * 0.75),
    (FP16, 1000.3),
    (FixedPoint(8, 4), 3.3),
    (FixedPoint(8, 4), -0.02),
    (FixedPoint(8, 4), 0.01),
    (FloatingPoint(4, 3, subnormals=False), 2.0**-6 * 0.3),
    (E8M0, 1.75),
]


@pytest.mark.parametrize(("format", "x"), POINTS, ids=str)
@pytest.mark.parametrize("bits", [32, 3])
def test_both_neighbours_come_as_often_as_they_should(format: Any, x: float, bits: int) -> None:
    """One degree of freedom of chi-square, held to five sigma; the builds agree with each other elsewhere."""
    n = 2**18
    tensor = torch.full((n,), x)
    low, high, chance = exact.outcomes(judge(format), tensor[0].item(), bits)
    y = run(
        NATIVE_BUILDS[-1] if NATIVE_BUILDS else "reference", tensor, format, Stochastic(bits), (31, hash(x) % 2**62)
    )
    ups = int((y == high).sum())
    assert ups + int((y == low).sum()) == n
    expected = float(chance) * n
    if chance in (0, 1):
        assert ups == expected
    else:
        assert (ups - expected) ** 2 / (expected * float(1 - chance)) < 25


@settings(max_examples=60)
@given(st.data(), st.integers(1, 32))
def test_each_word_decides_as_exact_rationals_say(data: Any, bits: int) -> None:
    formats = st.one_of(
        float_parameters().map(lambda given: FloatingPoint(**given)),
        fixed_parameters().map(lambda given: FixedPoint(**given)),
    )
    format = data.draw(formats)
    values = judge(format)
    x = torch.tensor(data.draw(st.lists(numbers_near(values), min_size=40, max_size=40)), dtype=torch.float32)
    expected = np.array([exact.stochastic(values, v, w, bits) for v, w in zip(x.tolist(), WORDS, strict=False)])
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float32)
    for rounder in ("reference", *NATIVE_BUILDS):
        assert_same(run(rounder, x, format, Stochastic(bits), (21, 22)), expected, x, (rounder, format, bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_few_bits_round_up_with_the_truncated_probability(bits: int, rounder: str) -> None:
    """P(up) = floor(fraction * 2**N) / 2**N, counted over enough words to see each residue."""
    words = np.array([word_of_element(i, 1, 1) for i in range(2048)]) >> (32 - bits)
    share = np.bincount(words, minlength=2**bits)
    assert share.min() > 0
    for fraction in (Fraction(1, 100), Fraction(1, 3), Fraction(1, 2), Fraction(5, 7), Fraction(255, 256)):
        x = torch.full((2048,), float(1 + fraction / 8))
        kept = int(Fraction(x[0].item() - 1) * 8 * 2**bits)
        y = run(rounder, x, E4M3, Stochastic(bits), (1, 1))
        assert int((y > 1).sum()) == share[2**bits - kept :].sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_just_below_a_step_of_the_probability_the_step_below_holds(bits: int, rounder: str) -> None:
    """A fraction of k / 2**bits and of a little less: comparisons that are off by one bit in 32 show here."""
    steps = [Fraction(k, 2**bits) - less for k in (1, 2 ** (bits - 1), 2**bits) for less in (0, power(-32), power(-40))]
    x = [float(1 + step / 8) for step in steps for _ in range(100)]
    words = [word_of_element(i, 8, 9) for i in range(len(x))]
    expected = [exact.stochastic(judge(E4M3), v, w, bits) for v, w in zip(x, words, strict=True)]
    assert_same(run(rounder, torch.tensor(x, dtype=torch.float64), E4M3, Stochastic(bits), (8, 9)), expected, x)


@pytest.mark.parametrize("format", [E4M3, E5M2, E2M1, FP16, BF16, FixedPoint(8, 3)], ids=repr)
def test_a_representable_value_never_moves(format: Any, rounder: str) -> None:
    values = judge(format)
    if isinstance(values, exact.Fixed):
        magnitudes = [abs(k) * 2.0**-values.fl for k in values.integers() if k >= 0]
    else:
        magnitudes = [float(m) for m in values.magnitudes()]
    x = torch.tensor(magnitudes * (1 if format.bits > 8 else 20), dtype=torch.float32)
    x = torch.cat([x, -x])
    for bits in (1, 32):
        assert_same(run(rounder, x, format, Stochastic(bits), (3, 4)), expect(x, values), x)


def expect(x: torch.Tensor, values: Any) -> np.ndarray:
    """x itself, save that -0 becomes 0 where the format has only one zero."""
    y = x.double().numpy()
    return y if values.negative_zero else np.where(y == 0, 0.0, y)


def test_the_mean_of_stochastic_rounding_is_the_value() -> None:
    x = torch.linspace(-3, 3, 257).repeat(2000)
    y = run(NATIVE_BUILDS[-1] if NATIVE_BUILDS else "reference", x, E4M3, "stochastic", (1, 2))
    error = (y - x).double().reshape(2000, 257).mean(0)
    assert error.abs().max() < 5 * 0.25 / 2 / 2000**0.5


def test_beyond_the_last_spacing_a_result_always_overflows(rounder: str) -> None:
    x = torch.full((1000,), 256.0)
    assert run(rounder, x, TO_INF, "stochastic", (1, 2)).isinf().all()
    between = run(rounder, torch.full((1000,), 248.0), TO_INF, "stochastic", (1, 2))
    assert set(between.tolist()) == {240.0, torch.inf}
