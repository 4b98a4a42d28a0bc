"""Exactness of fp32-then-round: known counter-examples, other people's arithmetic, brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from lptensor.carriers import CARRIERS
from lptensor.formats import BF16, E4M3, E5M2, FP16, FP32, INT8, FixedPoint, FloatingPoint
from lptensor.ops import round as round_to
from lptensor.rounding import Rounding
from lptensor.study import exactness
from lptensor.study.exactness import _search
from lptensor.study.rationals import apply, both_ways, to_carrier, to_odd

FIVE = ["add", "sub", "mul", "div", "sqrt"]
WITH_ROUNDED = [*FIVE, "fma"]
SINGLE, DOUBLE = CARRIERS[torch.float32], CARRIERS[torch.float64]


def exact(op: str, x: tuple[float, ...]) -> Fraction:
    """The result in rationals; of an irrational root, to 200 digits."""
    a, *rest = (Fraction(v) for v in x)
    if op == "sqrt":
        return Fraction(math.isqrt(a.numerator * 10**400 // a.denominator), 10**200)
    b = rest[0]
    return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b if b else a, "fma": a * b + rest[-1]}[op]


def nearest(value: Fraction, precision: int, emin: int) -> Fraction:
    """A rational rounded to nearest, ties to even, on a grid without a largest value: from the definition."""
    exponent = emin
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - precision + 1)
    return round(value / unit) * unit  # Python rounds a Fraction to the even neighbour


class TestCounterexamples:
    @pytest.mark.parametrize(
        ("man", "op", "wrong"),
        [
            *[(man, op, False) for man in (2, 7) for op in FIVE],
            # Products may be subnormal, and then fp32 has too few bits of them.
            *[(man, op, op == "mul") for man in (9, 10) for op in FIVE],
            *[(11, op, op != "div") for op in FIVE],
            *[(man, op, True) for man in (12, 13, 16, 22) for op in FIVE],
        ],
    )
    def test_ten_mantissa_bits_are_the_limit_in_fp32(self, man: int, op: str, wrong: bool) -> None:
        found = exactness(FloatingPoint(8, man), op)
        assert found.exact is not wrong
        assert exactness(FloatingPoint(8, man), op, compute=torch.float64).exact is True

    @pytest.mark.parametrize("man", [11, 12, 16, 22])
    @pytest.mark.parametrize("op", WITH_ROUNDED)
    def test_a_counterexample_is_one(self, op: str, man: int) -> None:
        found = exactness(FloatingPoint(8, man), op)
        if found.exact:
            return
        assert found.exact is False and found.operands is not None
        value, p = exact(op, found.operands), man + 1
        single = Fraction(float(np.float32(float(nearest(value, 24, -126)))))
        assert Fraction(found.computed) == nearest(single, p, -126)  # type: ignore[arg-type]
        assert Fraction(found.correct) == nearest(value, p, -126)  # type: ignore[arg-type]
        assert found.computed != found.correct

    @pytest.mark.parametrize("op", FIVE)
    def test_torch_computes_what_the_counterexample_says(self, op: str) -> None:
        format = FloatingPoint(8, 12)
        found = exactness(format, op)
        assert found.operands is not None
        x = [torch.tensor([v]) for v in found.operands]
        assert round_to(getattr(torch, op)(*x), format).item() == found.computed
        doubled = [v.double() for v in x]
        assert round_to(getattr(torch, op)(*doubled), format).item() == found.correct

    def test_the_fused_multiply_add_of_fp16(self) -> None:
        found = exactness(FP16, "fma")
        assert found.exact is False and found.operands is not None
        a, b, c = (np.float64(v) for v in found.operands)
        assert found.computed == float(np.float16(np.float32(a * b + c)))  # float64 holds a * b + c here
        assert found.correct == float(nearest(exact("fma", found.operands), 11, -14))
        assert exactness(FP16, "fma", compute=torch.float64).exact is True

    @pytest.mark.parametrize("man", [9, 10])
    def test_a_narrow_range_does_not_make_the_fused_multiply_add_right(self, man: int) -> None:
        """fp32 holds all of the range, but not a small product beside the middle of two large values."""
        found = exactness(FloatingPoint(4, man), "fma", trials=0)
        assert found.exact is False and found.operands is not None
        a, b, c = found.operands
        assert found.computed == float(nearest(Fraction(float(np.float32(a * b + c))), man + 1, -6))
        assert found.correct == float(nearest(exact("fma", found.operands), man + 1, -6)) != found.computed

    def test_products_among_the_subnormals_of_the_carrier_are_exact(self) -> None:
        found = exactness(FloatingPoint(6, 4, bias=61), "mul", "up")  # down to 2**-128
        assert found.exact is True and found.proof == "theorem"

    @pytest.mark.parametrize("mode", ["up", "down", "toward_zero", "odd"])
    def test_directed_sums_are_never_right_after_fp32(self, mode: str) -> None:
        for format in (BF16, FP16):
            found = exactness(format, "add", mode)
            assert found.exact is False and found.operands is not None
            for op in ("mul", "div"):
                assert exactness(format, op, mode).exact is (format == FP16)  # BF16's leave fp32's range

    def test_stored_bits_of_fp32_itself(self) -> None:
        assert all(exactness(FP32, op).exact for op in WITH_ROUNDED)
        assert exactness(FloatingPoint(5, 23), "mul").exact is False  # its subnormals are rounded twice


class TestProofs:
    @pytest.mark.parametrize("format", [E4M3, E5M2, INT8, FixedPoint(8, 4)], ids=repr)
    @pytest.mark.parametrize("op", FIVE)
    def test_eight_bits_are_tried_out(self, format: Any, op: str) -> None:
        found = exactness(format, op)
        assert found.exact is True and found.proof == "exhaustive"
        count = len(format.values())
        assert found.tried == count ** (1 if op == "sqrt" else 2)

    @pytest.mark.parametrize("op", ["add", "mul", "div"])
    def test_eight_bits_agree_with_another_type(self, op: str) -> None:
        values = E4M3.values()
        a, b = (x.reshape(-1).float() for x in torch.meshgrid(values, values, indexing="ij"))
        with np.errstate(all="ignore"):
            right = getattr(torch, op)(a.double(), b.double()).numpy()  # of 4 bits each: far from any tie but exact
            right = right.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        mine = round_to(getattr(torch, op)(a, b), E4M3).numpy()
        inside = np.isfinite(right)
        assert (mine[inside] == right[inside]).all()

    @pytest.mark.parametrize(
        "format", [BF16, FP16, FloatingPoint(6, 9), FloatingPoint(8, 10, subnormals=False)], ids=repr
    )
    @pytest.mark.parametrize("op", FIVE)
    def test_the_search_agrees_with_the_theorem(self, format: Any, op: str) -> None:
        found = exactness(format, op)
        assert found.exact is True and found.proof == "theorem"
        assert _search(format, op, Rounding(), SINGLE, 2**18, 1).exact is None

    @pytest.mark.parametrize("op", ["mul", "div"])
    def test_the_theorem_holds_where_bfloat16_underflows(self, op: str) -> None:
        """All significands of two operands, where results are subnormal: 2**-133 is the spacing."""
        a, b = (x.reshape(-1) for x in np.meshgrid(np.arange(128, 256.0), np.arange(128, 256.0)))
        for k in range(-150, -126):
            # scaled so that the result is about 2**k
            x, y = (a * 2.0**-67, b * 2.0 ** (k + 53)) if op == "mul" else (a * 2.0**-67, b * 2.0 ** (-67 - k))
            right = x * y if op == "mul" else x / y
            assert np.abs(np.log2(right) - k).max() < 2
            units = np.rint(right / 2.0**-133) * 2.0**-133  # exact halves are halves in float64 too
            small = right < 2.0**-126
            with np.errstate(all="ignore"):
                f = np.float32(x) * np.float32(y) if op == "mul" else np.float32(x) / np.float32(y)
            mine = round_to(torch.tensor(f), BF16).double().numpy()
            assert (mine[small] == units[small]).all()

    def test_fixed_point_sums_and_products_fit(self) -> None:
        assert exactness(FixedPoint(16, 8), "add", "up").exact is True
        assert exactness(FixedPoint(12, 8), "mul", "down").exact is True
        assert exactness(FixedPoint(16, 8), "mul").exact is True
        found = exactness(FixedPoint(20, 10), "mul")
        assert found.exact is False and found.operands is not None
        assert Fraction(found.correct) == round(exact("mul", found.operands) * 1024) / Fraction(1024)  # type: ignore[arg-type]

    def test_words_say_it(self) -> None:
        assert str(exactness(FP16, "add")).startswith("exact (theorem)")
        assert "comes out as" in str(exactness(FP16, "fma"))

    @pytest.mark.parametrize(
        ("args", "error", "says"),
        [
            ((FP16, "exp"), ValueError, "exp"),
            ((FP16, "add", "stochastic"), ValueError, "rounding_bias"),
            ((FP16, "add", "nearest", torch.float16), ValueError, "float16"),
            ((3, "add"), TypeError, "3"),
            ((FixedPoint(8, 4, clamp=False), "add"), ValueError, "largest"),
        ],
    )
    def test_what_is_refused(self, args: Any, error: Any, says: str) -> None:
        with pytest.raises(error, match=says):
            exactness(*args)


fractions = st.builds(
    lambda n, d, k: Fraction(n, d) * Fraction(2) ** k,
    st.integers(-(2**70), 2**70),
    st.integers(1, 2**70),
    st.integers(-200, 200),
)


class TestRationals:
    @settings(max_examples=200)
    @given(fractions)
    @example(Fraction(2**53 + 1))  # what is cut off is the last bit alone
    def test_odd_rounding_is_one_step_of_any_rounding(self, x: Fraction) -> None:
        odd = Fraction(to_odd(x))
        assert nearest(odd, 24, -900) == nearest(x, 24, -900)
        if odd != x:
            assert int(to_odd(x).hex().partition("p")[0][-1], 16) % 2 == 1
            assert abs(odd - x) < abs(x) / 2**52

    @settings(max_examples=200)
    @given(fractions)
    def test_the_carrier_rounds_to_nearest(self, x: Fraction) -> None:
        assert to_carrier(x, DOUBLE) == x.numerator / x.denominator  # Python's true division is correctly rounded
        if abs(x) < 2**120:
            assert Fraction(to_carrier(x, SINGLE)) == nearest(x, 24, -126)

    def test_what_is_below_float64_is_its_smallest_number(self) -> None:
        for sign in (1, -1):
            assert to_odd(sign * Fraction(1, 2**1080)) == sign * 2.0**-1074  # whose significand is odd

    def test_the_root_of_zero_is_zero(self) -> None:
        assert apply("sqrt", (Fraction(0),)) == 0 and apply("sqrt", (Fraction(-1, 2),)) is None

    @pytest.mark.parametrize("op", WITH_ROUNDED)
    def test_vectors_agree_with_rationals(self, op: str) -> None:
        x = tuple(round_to(torch.randn(300, dtype=torch.float64).abs() + 0.1, BF16) for _ in range(3))
        x = x[: {"sqrt": 1, "fma": 3}.get(op, 2)]
        right, twice = both_ways(op, x, SINGLE)
        for i in range(300):
            value = apply(op, tuple(Fraction(float(part[i])) for part in x))
            assert value is not None
            assert nearest(Fraction(float(right[i])), 8, -126) == nearest(value, 8, -126)
            assert float(twice[i]) == to_carrier(value, SINGLE)


@pytest.mark.parametrize("mode", ["toward_zero", "down", "up", "odd"])
def test_a_product_that_the_carrier_loses_beside_the_addend_counts(mode: str) -> None:
    found = exactness(FP16, "fma", mode, torch.float64)
    assert found.exact is False
    a, b, c = map(Fraction, found.operands)
    lost = torch.tensor(found.operands, dtype=torch.float64)
    assert Fraction(float(lost[0] * lost[1] + lost[2])) != a * b + c
