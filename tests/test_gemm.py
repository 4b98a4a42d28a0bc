"""Sums of products, each implementation against exact rationals and against the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lptensor import _native_gemm, accumulate, accumulator
from lptensor.accumulator import Accumulator
from lptensor.formats import BF16, E4M3, E5M2, FP16, FP32, FixedPoint, FloatingPoint, ScalarFormat
from lptensor.gemm import cumsum, gemm, reduce
from lptensor.hardware_sums import integer_accumulator, tensor_core
from lptensor.posits import Posit
from lptensor.rounding import Stochastic
from oracles import exact, philox
from oracles.accumulate import Adder
from rounders import NATIVE_BUILDS, chosen, judge

IMPLEMENTATIONS = ["reference", *NATIVE_BUILDS]
ORDERS = list(accumulator.ORDERS)
ORDERS_BUT_KAHAN = [order for order in ORDERS if order != "kahan"]
KEY = (0x0123456789ABCDEF, 77)
WANG = FloatingPoint(6, 9)
SIDES = ("toward_zero", "down", "up")


def product(
    implementation: str, a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None = None, key: Any = KEY
) -> Tensor:
    """a[batch, m, k] b[batch, k, n] + c by the reference or one build."""
    if implementation == "reference":
        return accumulate.gemm(a, b, acc, c, key)
    y = torch.empty(*a.shape[:2], b.shape[2], dtype=a.dtype)
    with chosen(implementation):
        if y.numel():
            _native_gemm.gemm(a, b, y, acc, c, key, False)
    return y


def same(x: Tensor, y: Tensor) -> bool:
    kind = torch.int32 if x.dtype == torch.float32 else torch.int64
    return torch.equal(x.contiguous().view(kind), y.contiguous().view(kind))


class Rounder:
    """Rounding in rationals; the events of stochastic rounding are counted over all levels of an adder."""

    def __init__(self, element: int, elements: int) -> None:
        self.element, self.elements, self.event = element, elements, 0

    def of(self, format: ScalarFormat, mode: str, bits: int, wrap: bool = False) -> Callable[[Fraction], Fraction]:
        values = judge(format)

        def rounded(x: Fraction) -> Fraction:
            event, self.event = self.event, self.event + 1
            if wrap:
                assert isinstance(format, FixedPoint)
                unit, count = Fraction(2) ** -format.fl, 2**format.wl
                whole = Fraction(exact.rounded(exact.Fixed(format.wl, format.fl, clamp=False), x, mode)) / unit
                return ((int(whole) + count // 2) % count - count // 2) * unit
            if mode != "stochastic":
                return Fraction(exact.rounded(values, x, mode))
            index = event // 4 * self.elements + self.element
            counter = (index % 2**32, index >> 32, KEY[1] % 2**32, KEY[1] >> 32)
            word = philox.philox(counter, (KEY[0] % 2**32, KEY[0] >> 32))[event % 4]
            return Fraction(exact.stochastic(values, x, word >> 32 - bits << 32 - bits))

        return rounded


def least_exponent(format: Any) -> int | None:
    """That of the smallest normal number; fixed point has none."""
    return None if format is None or isinstance(format, FixedPoint) else 1 - format.bias


def adder(acc: Accumulator, rounder: Rounder) -> Adder:
    mode = "stochastic" if acc.rounding.stochastic else acc.rounding.name
    bits = acc.rounding.bits
    single = exact.Float(8, 23, 127, overflow="saturate")
    return Adder(
        sum=rounder.of(acc.sum, mode, bits, acc.wrap),
        order=acc.order,
        product=None if acc.product is None else rounder.of(acc.product, mode, bits),
        chunk=acc.chunk,
        inner=adder(acc.inner or replace(acc, chunk=1), rounder) if acc.chunk > 1 and acc.order != "aligned" else None,
        alignment=acc.alignment,
        least=(*map(least_exponent, acc.operands or (None, None)), least_exponent(acc.sum)),
        **({"step": lambda x: Fraction(exact.rounded(single, x, "nearest"))} if acc.compute == "fp32" else {}),
    )


def expected(a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None) -> Tensor:
    """The product of matrices, one exact rational at a time."""
    result = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype)
    for i, j in itertools.product(range(len(a)), range(b.shape[1])):
        rounder = Rounder(i * b.shape[1] + j, result.numel())
        rounder.event = int(c is None or acc.order == "exact")
        row, column = ([Fraction(x) for x in t.tolist()] for t in (a[i], b[:, j]))
        start = None if c is None else Fraction(float(c[i, j]))
        result[i, j] = float(adder(acc, rounder).dot(row, column, start))
    return result


def operands(seed: int, m: int, k: int, n: int, spread: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """Numbers of mixed sizes and signs, few digits among them so that ties and cancellation come up."""
    g = torch.Generator().manual_seed(seed)
    for shape in ((m, k), (k, n), (m, n)):
        digits = torch.randint(-4096, 4097, shape, generator=g).to(dtype)
        few = torch.randint(-3, 4, shape, generator=g).to(dtype)
        x = torch.where(torch.rand(shape, generator=g) < 0.4, few, digits / 1024 + digits * 2.0**-20)
        yield x * torch.exp2(torch.randint(-spread, spread + 1, shape, generator=g).to(dtype))


# Saturating formats keep the rationals finite.
FORMATS = (
    FloatingPoint(8, 7, overflow="saturate"),
    FloatingPoint(5, 10, overflow="saturate"),
    FloatingPoint(6, 9, overflow="saturate"),
    FloatingPoint(5, 2, overflow="saturate"),
    FloatingPoint(5, 2, overflow="propagate"),
    FloatingPoint(4, 3, subnormals=False, overflow="saturate"),
    FloatingPoint(5, 4, subnormals="flush", overflow="saturate"),
    FloatingPoint(8, 22, overflow="saturate"),
    FloatingPoint(4, 3, specials="fnuz", overflow="saturate"),
    E4M3,
    FixedPoint(8, 4),
    FixedPoint(20, 12, symmetric=True),
)


@st.composite
def accumulators(draw: Any, modes: tuple[str, ...] = exact.MODES) -> Accumulator:
    order = draw(st.sampled_from(("sequential", "sequential", "pairwise", "kahan", "exact", "aligned")))
    sum, rounding = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(modes))
    chunk = draw(st.sampled_from((1, 1, 2, 3, 5)))
    wrap = isinstance(sum, FixedPoint) and not sum.symmetric and draw(st.booleans())
    if order == "aligned":
        places = draw(st.one_of(st.none(), st.integers(0, 30)))
        factors = st.tuples(*[st.one_of(st.none(), st.sampled_from(FORMATS))] * 2)
        operands = None if places is None else draw(st.one_of(st.none(), factors))
        return Accumulator(sum, chunk=chunk, order=order, rounding=rounding, alignment=places, operands=operands)
    compute = "exact" if order == "exact" else draw(st.sampled_from(("exact", "fp32")))
    inner = draw(st.one_of(st.none(), st.just(FP32), accumulators(modes))) if chunk > 1 else None
    free = draw(st.one_of(st.none(), st.sampled_from(FORMATS)))
    if isinstance(inner, Accumulator):
        free = None
    return Accumulator(sum, free, chunk, order, rounding, compute, inner, wrap=wrap)


@settings(max_examples=150, deadline=None)
@given(accumulators(), st.integers(0, 2**32), st.integers(0, 13), st.sampled_from((0, 2, 9)), st.booleans())
def test_every_accumulator_adds_as_exact_rationals_do(
    acc: Accumulator, seed: int, k: int, spread: int, addend: bool
) -> None:
    a, b, c = operands(seed, 2, k, 3, spread)
    start = c if addend else None
    wanted = expected(a, b, acc, start)
    for implementation in IMPLEMENTATIONS:
        got = product(implementation, a[None], b[None], acc, None if start is None else start[None])[0]
        assert torch.equal(got, wanted), f"{implementation}: {got} instead of {wanted}"


@settings(max_examples=40, deadline=None)
@given(accumulators(), st.integers(0, 2**32), st.integers(0, 7), st.sampled_from((0, 9)))
def test_float64_operands_are_added_exactly_too(acc: Accumulator, seed: int, k: int, spread: int) -> None:
    if acc.compute == "fp32" or acc.inner is not None and acc.inner.compute == "fp32":
        acc = Accumulator(acc.sum, rounding=acc.rounding)
    a, b, c = (t * (1 + 2.0**-50) for t in operands(seed, 2, k, 3, spread, torch.float64))
    wanted = expected(a, b, acc, c)
    for implementation in IMPLEMENTATIONS:
        got = product(implementation, a[None], b[None], acc, c[None])[0]
        assert torch.equal(got, wanted), f"{implementation}: {got} instead of {wanted}"


# One format for each way in which a sum is brought to a side, in fp32 or in double.
SIDED = (
    FP32,
    BF16,
    FP16,
    E4M3,
    E5M2,
    FloatingPoint(8, 22),
    FloatingPoint(8, 7, overflow="saturate"),
    FloatingPoint(4, 3, specials="fn", overflow="nan"),
)


@pytest.mark.parametrize("mode", SIDES)
@pytest.mark.parametrize("sum", SIDED, ids=repr)
@pytest.mark.parametrize("product_format", [None, E5M2], ids=repr)
def test_sums_to_a_side_are_those_of_rationals_down_to_the_last_and_up_to_the_largest_number(
    sum: ScalarFormat, mode: str, product_format: Any
) -> None:
    grids = [format.grid for format in (sum, product_format) if format is not None]
    bottom, top = max(grid.quantum(grid.emin) for grid in grids), min(grid.emax for grid in grids)
    values = [replace(judge(format or sum), overflow="saturate") for format in (sum, product_format)]
    for exponent in (0, bottom // 2, bottom // 2 - 4, top // 2 - 2):
        a, b, c = operands(11, 2, 7, 5, 2)
        a, b, c = a * 2.0**exponent, b * 2.0**exponent, c * 2.0**exponent * 2.0**exponent
        for chunk in (1, 3):
            acc = Accumulator(sum, product_format, chunk, rounding=mode)
            wanted, endless = sided(a, b, c, acc, values)
            for implementation in IMPLEMENTATIONS:
                got = product(implementation, a[None], b[None], acc, c[None])[0]
                assert torch.equal(got[~endless], wanted[~endless]), implementation
                assert not endless.all()


def sided(a: Tensor, b: Tensor, c: Tensor, acc: Accumulator, values: list[Any]) -> tuple[Tensor, Tensor]:
    """The sums in rationals, and which of them went beyond an end of their format that the mode does not keep."""
    wanted, endless = c.clone(), torch.zeros_like(c, dtype=torch.bool)
    for i, j in itertools.product(range(len(a)), range(b.shape[1])):
        beyond: list[Fraction] = []
        sum, of_product = (noting(value, acc.rounding.name, beyond) for value in values)
        inside = Adder(sum, product=of_product if acc.product else None)
        outside = replace(inside, chunk=acc.chunk, inner=inside) if acc.chunk > 1 else inside
        row, column = ([Fraction(x) for x in t.tolist()] for t in (a[i], b[:, j]))
        wanted[i, j] = float(outside.dot(row, column, Fraction(float(c[i, j]))))
        endless[i, j] = bool(beyond)
    return wanted, endless


def noting(values: Any, mode: str, beyond: list[Fraction]) -> Callable[[Fraction], Fraction]:
    """Rounding that takes down what the mode sends to infinity."""

    def rounded(x: Fraction) -> Fraction:
        if abs(x) > values.largest(x < 0) and not exact.points_inward(mode, x < 0):
            beyond.append(x)
        return Fraction(exact.rounded(values, x, mode))

    return rounded


@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("product_format", [None, E5M2])
@pytest.mark.parametrize(("order", "chunk"), [("sequential", 1), ("sequential", 3), ("kahan", 1), ("kahan", 2)])
@pytest.mark.parametrize("sum", [FORMATS[0], FORMATS[1], FORMATS[4]])
@pytest.mark.parametrize("bits", [32, 3])
def test_stochastic_sums_draw_the_words_of_the_contract(
    sum: ScalarFormat, order: str, chunk: int, product_format: Any, compute: str, bits: int
) -> None:
    acc = Accumulator(sum, product_format and FORMATS[3], chunk, order, Stochastic(bits), compute)
    draws_its_words(acc, addend=bits == 32)


@pytest.mark.parametrize(
    "acc",
    [
        Accumulator(FORMATS[1], order="exact", rounding="stochastic"),
        Accumulator(FORMATS[1], FORMATS[3], order="exact", rounding="stochastic"),
        Accumulator(FORMATS[3], chunk=2, order="exact", rounding="stochastic", inner=Accumulator(FORMATS[1])),
        Accumulator(FORMATS[1], order="pairwise", rounding="stochastic"),
        Accumulator(FORMATS[1], FORMATS[3], order="pairwise", rounding="stochastic"),
        Accumulator(FORMATS[1], chunk=2, order="pairwise", rounding="stochastic"),
        *(Accumulator(FORMATS[1], None, 4, "aligned", "stochastic", alignment=places) for places in (14, None)),
        Accumulator(
            FORMATS[1],
            chunk=4,
            rounding="stochastic",
            inner=Accumulator(FORMATS[3], order="exact", rounding="stochastic"),
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("addend", [True, False])
def test_so_do_sums_in_the_other_orders(acc: Accumulator, addend: bool) -> None:
    draws_its_words(acc, addend)


def draws_its_words(acc: Accumulator, addend: bool) -> None:
    a, b, c = operands(1, 3, 9, 5, 3)
    wanted = expected(a, b, acc, c if addend else None)
    for implementation in IMPLEMENTATIONS:
        got = product(implementation, a[None], b[None], acc, c[None] if addend else None)[0]
        assert torch.equal(got, wanted), implementation


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_product_rounded_to_fp32_first_would_be_wrong(implementation: str) -> None:
    a, b = torch.tensor([[[2.0**-12, 1.5]] * 2]), torch.tensor([[[2.0**-12] * 2, [683 / 1024] * 2]])
    assert product(implementation, a, b, Accumulator(FP16)).unique().tolist() == [1 + 2.0**-10]
    assert product(implementation, a, b, Accumulator(FP16, compute="fp32")).unique().tolist() == [1.0]
    a = torch.full((1, 2, 1), 1 + 2.0**-12)  # its square lies above half way by half of fp32's spacing
    for order in ("sequential", "pairwise", "kahan"):
        exactly, twice = (Accumulator(FP16, FP16, order=order, compute=way) for way in ("exact", "fp32"))
        assert product(implementation, a, a.mT, exactly).unique().tolist() == [1 + 2.0**-10]
        assert product(implementation, a, a.mT, twice).unique().tolist() == [1.0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_rest_below_the_last_bit_of_float64_breaks_a_tie(implementation: str, sign: int) -> None:
    # 1 + 2**-10 + 2**-11 (1 - 2**-46): below half way by 2**-57, which a double beside 1 does not have
    a = sign * torch.tensor([[1 + 2.0**-10, 2.0**-11 * (1 - 2.0**-23)]]).expand(1, 2, 2)
    b = torch.tensor([[1.0], [1 + 2.0**-23]]).expand(1, 2, 3)
    for acc in (Accumulator(FP16), Accumulator(FP16, rounding="stochastic"), Accumulator(FloatingPoint(5, 10), FP32)):
        got = product(implementation, a, b, acc).unique().tolist()
        if acc.product is None and not acc.stochastic:
            assert got == [sign * (1 + 2.0**-10)]
        else:
            assert set(got) <= {sign * (1 + 2.0**-10), sign * (1 + 2.0**-9)}


# First n whose term 1 / n changes nothing, and the sum there: what rounding to nearest makes of the series.
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("format", "stop", "limit"), [(BF16, 65, 5.0625), (FP16, 513, 7.0859375), (E4M3, 9, 3.0), (E5M2, 5, 2.0)], ids=repr
)
def test_the_harmonic_series_stops_where_theory_says(
    implementation: str, format: ScalarFormat, stop: int, limit: float
) -> None:
    terms = 1 / torch.arange(1, 1000, dtype=torch.float64)
    ones = torch.ones(1, 2, 1, dtype=torch.float64)
    values, s, first = judge(format), Fraction(0), 0
    for n in range(1, 1000):  # the scalar loop, in rationals
        grown = Fraction(exact.rounded(values, s + Fraction(float(terms[n - 1])), "nearest"))
        first = first or (n if grown == s else 0)
        s = grown
    assert (first, float(s)) == (stop, limit)
    for count in (stop - 2, stop - 1, stop, 999):
        got = product(
            implementation, ones.expand(1, 2, count), terms[:count].expand(2, count).T[None], Accumulator(format)
        )
        assert (got[0, 0, 0] == limit) == (count >= stop - 1)


def test_chunks_keep_long_sums_from_stagnating() -> None:
    # Wang et al. 2018, figure 3: mean 1, standard deviation 1, sums in 1-6-9
    g = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(16384, 8, generator=g)
    whole = x.double().sum(0)
    ratio = {chunk: (reduce(x, 0, Accumulator(WANG, chunk=chunk)) / whole).mean().item() for chunk in (1, 32, 64)}
    assert ratio[1] < 0.3
    assert ratio[32] > 0.99 and ratio[64] > 0.999
    drawn = reduce(x, 0, Accumulator(WANG, rounding="stochastic"), generator=g) / whole
    assert abs(drawn.mean() - 1) < 0.02


@pytest.mark.parametrize("compute", ["exact", "fp32"])
def test_stochastic_sums_are_right_on_average(compute: str) -> None:
    n, k = 4096, 64
    terms = 1 / torch.arange(1.0, k + 1)
    acc = Accumulator(FloatingPoint(5, 4), rounding="stochastic", compute=compute)
    sums = gemm(torch.ones(2, k), terms[:, None].expand(k, n), acc, generator=torch.Generator().manual_seed(1))
    error = sums.double().mean() - terms.double().sum()
    # every rounding has mean zero and at most a variance of (spacing / 2)**2; four standard deviations
    assert abs(error) < 4 * (k**0.5 * 2.0**-3 / 2) / sums.numel() ** 0.5
    assert sums.unique().numel() > 3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize(("beyond", "odds"), [("overflow", 0.25), ("saturate", 0.0), ("probability", 0.5)])
def test_what_is_beyond_the_largest_value_has_the_odds_that_were_asked_for(
    implementation: str, beyond: str, odds: float, compute: str
) -> None:
    # 244 lies a quarter of the spacing above the largest value, and half way to where nearest overflows
    a, b = torch.full((1, 2, 1), 244.0), torch.ones(1, 1, 800)
    acc = Accumulator(FloatingPoint(4, 3), rounding=Stochastic(beyond=beyond), compute=compute)
    got = product(implementation, a, b, acc)
    assert set(got.unique().tolist()) <= {240.0, torch.inf}
    assert abs(got.isinf().float().mean() - odds) <= 4 * (odds * (1 - odds) / got.numel()) ** 0.5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", [*exact.MODES, "stochastic"])
@pytest.mark.parametrize("sum", [FP32, BF16, FP16], ids=repr)
def test_a_sum_of_zero_is_positive_unless_both_terms_are_negative_zeros(
    implementation: str, dtype: torch.dtype, mode: str, sum: ScalarFormat
) -> None:
    for start, factor, wanted in ((-0.0, -0.0, -0.0), (-0.0, 0.0, 0.0), (0.0, -0.0, 0.0), (1.0, -1.0, 0.0)):
        a, b, c = (torch.full((1, 2, 2), x, dtype=dtype) for x in (factor, 1.0, start))
        got = product(implementation, a[:, :, :1], b[:, :1], Accumulator(sum, rounding=mode), c)
        assert same(got, torch.full_like(got, wanted))
        got = product(implementation, a[:, :, :1], b[:, :1], Accumulator(sum, chunk=2, rounding=mode), c)
        assert same(got, torch.zeros_like(got))  # a chunk begins at +0
    zeros, ones = torch.full((1, 2, 3), -0.0, dtype=dtype), torch.ones(1, 3, 2, dtype=dtype)
    got = product(implementation, zeros, ones, Accumulator(sum, order="pairwise", rounding=mode))
    assert same(got, torch.full_like(got, -0.0))  # a tree begins with a term


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("compute", ["exact", "fp32"])
def test_sums_overflow_as_their_format_says(implementation: str, compute: str) -> None:
    x = torch.full((1, 2, 3), 200.0)
    top, nan, inf = FloatingPoint(4, 3, specials="fn", overflow="nan"), torch.nan, torch.inf
    for sum, mode, wanted, of_infinity in (
        (E4M3, "nearest", 448.0, 448.0),
        (E4M3, "stochastic", 448.0, 448.0),
        (top, "nearest", nan, nan),
        (top, "toward_zero", 448.0, nan),
        (top, "stochastic", nan, nan),
        (FloatingPoint(4, 3), "nearest", inf, inf),
        (FloatingPoint(4, 3), "down", 240.0, inf),
        (FloatingPoint(4, 3), "stochastic", inf, inf),
        (FixedPoint(8, 0), "nearest", 127.0, 127.0),
        (FixedPoint(8, 0), "stochastic", 127.0, 127.0),
    ):
        acc = Accumulator(sum, rounding=mode, compute=compute)
        for sign, term, result in ((1, 200.0, wanted), (1, inf, of_infinity), (-1, inf, -of_infinity)):
            x[0, :, 1] = term
            got = product(implementation, sign * x, torch.ones(1, 3, 2), acc)
            result -= sum == FixedPoint(8, 0) and sign < 0  # two's complement goes one further down
            assert torch.equal(got, torch.full_like(got, result)) or got.isnan().all() and result != result


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("mode", [*exact.MODES, "stochastic"])
def test_sums_that_propagate_stop_at_the_largest_value_and_keep_infinities(
    mode: str, compute: str, implementation: str
) -> None:
    wide = ((8, 7, True), (8, 22, True)) if compute == "exact" else ()  # beyond which fp32 itself is infinite
    for exp, man, subnormals in ((4, 3, True), (5, 10, True), (5, 2, "flush"), *wide):
        sum = FloatingPoint(exp, man, subnormals=subnormals, overflow="propagate")
        product_format = None if man > 10 else FloatingPoint(8, 10, overflow="propagate")
        for order, chunk in (("sequential", 1), ("sequential", 2), ("pairwise", 1)):
            acc = Accumulator(sum, product_format, chunk, order, rounding=mode, compute=compute)
            for term, wanted in ((0.75 * sum.max, sum.max), (torch.inf, torch.inf)):
                x = torch.full((1, 9, 3), 0.75 * sum.max)
                x[0, :, 1] = term
                for sign in (1, -1):
                    got = product(implementation, sign * x, torch.ones(1, 3, 17), acc)
                    assert torch.equal(got, torch.full_like(got, sign * wanted)), (sum, acc)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_integer_registers_wrap_or_saturate(implementation: str, bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    a, b = (torch.randint(-128, 128, shape, generator=g) for shape in ((1, 3, 700), (1, 700, 5)))
    if bits == 32:
        a = a * 2**16
    a64, b64 = a.double(), b.double()
    wrapped = (a @ b + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    assert torch.equal(product(implementation, a64, b64, integer_accumulator(bits)), wrapped.double())
    s = torch.zeros(1, 3, 5, dtype=torch.int64)
    for k in range(700):
        s = (s + a[:, :, k, None] * b[:, None, k]).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(product(implementation, a64, b64, integer_accumulator(bits, "saturate")), s.double())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_a_range_is_the_lowest_number_of_a_register_that_wraps(implementation: str) -> None:
    ones = torch.ones(1, 2, 128)
    for count, wanted in ((127, 127.0), (128, -128.0)):
        got = product(implementation, ones[:, :, :count], ones.mT[:, :count], integer_accumulator(8))
        assert torch.equal(got, torch.full((1, 2, 2), wanted))


@pytest.mark.parametrize("build", NATIVE_BUILDS)
@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
def test_a_register_that_wraps_takes_any_number(build: str, mode: str) -> None:
    acc = Accumulator(FixedPoint(8, 4), rounding=mode, wrap=True)
    a, b = torch.rand(1, 40, 3, dtype=torch.float64), torch.rand(1, 3, 40, dtype=torch.float64)
    c = torch.full((1, 40, 40), 1.5 * 2.0**1023, dtype=torch.float64)
    for m, n in ((40, 40), (40, 1), (1, 40), (1, 1)):
        given = a[:, :m], b[:, :, :n], acc, c[:, :m, :n]
        assert same(product(build, *given), accumulate.gemm(*given, KEY))


def test_an_order_that_nothing_adds_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulator, "ORDERS", accumulator.ORDERS | {"backwards": len(accumulator.ORDERS)})
    with pytest.raises(NotImplementedError, match="backwards"):  # of the kernels test_kernels.py sees to it
        product("reference", torch.ones(1, 2, 3), torch.ones(1, 3, 2), Accumulator(FP16, order="backwards"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_rest_of_a_float64_product_counts(implementation: str, order: str) -> None:
    # (1 + 2**-30)(1 - 2**-30) is below 1 by 2**-60, and 1 in float64
    sum = FixedPoint(32, 28)
    acc = Accumulator(sum, order=order, rounding="toward_zero")
    a, b = (torch.full((1, 2, 1), 1 + t, dtype=torch.float64) for t in (2.0**-30, -(2.0**-30)))
    for way in (acc, acc if order in ("exact", "aligned") else replace(acc, product=sum)):
        assert product(implementation, a, b.mT, way).unique().tolist() == [1 - 2.0**-28]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("order", "alignment"), [*((order, None) for order in ORDERS_BUT_KAHAN), ("aligned", 10)])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_below_the_normal_float64_is_more_than_nothing(
    implementation: str, order: str, alignment: int | None, sign: int
) -> None:
    acc = Accumulator(FP16, order=order, rounding="up" if sign > 0 else "down", alignment=alignment)
    least = sign * torch.full((1, 2, 2), 2.0**-1074, dtype=torch.float64)
    one, zero = torch.eye(2, dtype=torch.float64)[None], torch.zeros(1, 2, 2, dtype=torch.float64)
    for a, b, c in ((least, one, None), (one, least, None), (zero, zero, least)):
        assert product(implementation, a, b, acc, c).unique().tolist() == [sign * 2.0**-24]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("rest", [1, -1])
def test_an_exact_sum_knows_the_sign_of_its_last_digit(implementation: str, sign: int, rest: int) -> None:
    # half way between two numbers of FP16 but for 2**-100, two digits in base 2**32 further down
    terms = sign * torch.tensor([1.0, 2.0**-11, rest * 2.0**-100]).expand(1, 2, 3)
    got = product(implementation, terms, torch.ones(1, 3, 2), Accumulator(FP16, order="exact"))
    assert got.unique().tolist() == [sign * (1 + (2.0**-10 if rest > 0 else 0))]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tensor_cores_cut_off_below_the_largest_exponent(implementation: str) -> None:
    # Fasi et al. 2021, section 4: 1 + 2**-24 + 2**-24 would be 1 + 2**-23 if a bit below were kept
    def sum_of(core: str, *terms: float) -> float:
        a = torch.tensor(terms).expand(1, 2, len(terms))
        return product(implementation, a, torch.ones(1, len(terms), 2), tensor_core(core))[0, 0, 0].item()

    assert sum_of("volta", 1.0, 2.0**-24, 2.0**-24) == 1.0
    assert sum_of("ampere", 1.0, 2.0**-24, 2.0**-24) == 1 + 2.0**-23
    assert sum_of("ampere", 1.0, 2.0**-25, 2.0**-25, 2.0**-24) == 1.0
    assert sum_of("hopper", 1.0, 2.0**-25, 2.0**-25, 2.0**-24) == 1 + 2.0**-23
    assert sum_of("volta", 1.0, -(2.0**-24)) == 1.0  # cut off towards zero, not rounded
    assert sum_of("hopper_fp8", 1.0, 2.0**-14) == 1.0


def test_an_addend_lets_a_product_go_on() -> None:
    a, b, c = operands(6, 4, 40, 6, 2)
    for acc in (Accumulator(FP16), Accumulator(WANG, chunk=5), tensor_core("volta")):
        whole = gemm(a, b, acc, c)
        assert same(gemm(a[:, 20:], b[20:], acc, gemm(a[:, :20], b[:20], acc, c)), whole)
    assert same(gemm(a[:, :0], b[:0], Accumulator(BF16), c), c.bfloat16().float())


def test_leading_axes_broadcast_and_strides_do_not_matter() -> None:
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(3, 1, 4, 9, generator=g), torch.randn(2, 9, 5, generator=g)
    acc = Accumulator(BF16)
    got = gemm(a, b, acc, torch.ones(1, 5))
    for i, j in itertools.product(range(3), range(2)):
        assert same(got[i, j], gemm(a[i, 0], b[j], acc, torch.ones(4, 5)))
    wide = torch.randn(18, 10, generator=g)
    x, y = wide[::2, ::2].mT, wide[1::2, 1::2]
    assert same(gemm(x, y, acc), gemm(x.contiguous(), y.contiguous(), acc))
    assert same(gemm(x, y.flip(1), acc), gemm(x, y, acc).flip(1))
    starts = torch.randn(4, 6, generator=g)  # one column is a matrix with gaps
    one = gemm(a[0, 0], b[0, :, :1], acc, starts[:, 2:3])
    assert same(one, gemm(a[0, 0], b[0, :, :2], acc, starts[:, 2:4])[:, :1])
    negated = torch.randn(9, 5, dtype=torch.complex64, generator=g).conj().imag  # a view that says it is negative
    assert negated.is_neg() and same(gemm(x, negated, acc), gemm(x, negated.clone().resolve_neg(), acc))


@pytest.mark.parametrize("order", ["sequential", "pairwise", "exact"])
@pytest.mark.parametrize("k", [0, 3])
def test_without_kernels_too_a_product_lies_row_by_row_however_its_addend_lies(order: str, k: int) -> None:
    a, b, c = torch.ones(1, 4, k), torch.ones(1, k, 5), torch.ones(1, 5, 4).mT
    assert product("reference", a, b, Accumulator(BF16, order=order), c).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("order", ["sequential", "pairwise", "kahan", "exact"])
def test_empty_products_are_zero_or_empty(shape: tuple[int, int, int], order: str) -> None:
    m, k, n = shape
    got = gemm(torch.ones(2, m, k), torch.ones(2, k, n), Accumulator(BF16, order=order))
    assert same(got, torch.zeros(2, m, n))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0,)])
def test_running_sums_of_nothing_are_empty(shape: tuple[int, ...]) -> None:
    for dim in range(len(shape)):
        assert cumsum(torch.ones(shape), dim, Accumulator(BF16)).shape == shape


@pytest.mark.native
def test_running_sums_of_few_columns_and_many_rows_are_those_of_fewer_terms() -> None:
    (a, b), acc, y = (torch.randn(1, 40, 3), torch.randn(1, 3, 5)), Accumulator(FP16), torch.empty(1, 40, 3, 5)
    _native_gemm.gemm(a, b, y, acc, None, None, True)
    assert same(y, torch.stack([accumulate.gemm(a[..., :k], b[:, :k], acc, None, None) for k in (1, 2, 3)], 2))


def test_running_sums_end_in_the_sum() -> None:
    x = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    for acc in (Accumulator(E4M3), Accumulator(FP16, FP16, rounding="down"), Accumulator(BF16, rounding="stochastic")):
        sums = cumsum(x, 1, acc, torch.Generator().manual_seed(3))
        assert same(sums[:, -1], reduce(x, 1, acc, generator=torch.Generator().manual_seed(3)))
        reference = accumulate.cumulate(
            x.movedim(1, 0).reshape(1, 50, -1),
            replace(acc, product=None),
            tuple(torch.empty(2, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(3)).tolist()),
        )
        assert same(sums.movedim(1, 0).reshape(1, 50, -1), reference.reshape(1, 50, -1))
    with pytest.raises(ValueError, match="adds term by term"):
        cumsum(x, 1, Accumulator(BF16, order="pairwise"))


def test_sums_take_any_axes() -> None:
    x = torch.randint(-8, 9, (3, 4, 5), generator=torch.Generator().manual_seed(1)).float()
    acc = Accumulator(FP16)
    for dim in (None, (), 0, -1, (0, 2), (1, 2), (2, 0)):
        for keepdim in (False, True):
            assert torch.equal(reduce(x, dim, acc, keepdim), x.sum(dim, keepdim))
    with pytest.raises(ValueError, match="dim must name different axes of 3"):
        reduce(x, (0, -3), acc)
    with pytest.raises(ValueError, match="dim must name different axes of 3"):
        reduce(x, 3, acc)


def test_sums_see_the_sign_of_a_view_that_says_it_is_negative() -> None:
    whole = torch.randint(-8, 9, (3, 4), generator=torch.Generator().manual_seed(1)).float()
    x, acc = torch.complex(whole, -whole).conj().imag, Accumulator(FP16)
    assert x.is_neg() and torch.equal(x, whole)
    for dim in (None, 0, 1):
        assert torch.equal(reduce(x, dim, acc), whole.sum() if dim is None else whole.sum(dim))
    assert torch.equal(cumsum(x, 1, acc), whole.cumsum(1))


BY_PARTS = [
    Accumulator(BF16, order="pairwise"),
    Accumulator(E5M2, order="pairwise", rounding="up"),
    Accumulator(BF16, chunk=64),
    Accumulator(FP16, chunk=9, order="pairwise", inner=Accumulator(E5M2, chunk=2, order="kahan")),
    Accumulator(BF16, chunk=20, order="kahan", inner=FP16),
    Accumulator(BF16, chunk=16, order="exact", rounding="toward_zero"),
    Accumulator(BF16, chunk=16, compute="fp32"),
    replace(integer_accumulator(8), chunk=10),
    # The sums of their chunks are not by themselves: alignment knows the sum so far, and words count all roundings.
    *(Accumulator(BF16, chunk=16, order="aligned", alignment=places) for places in (10, None)),
    Accumulator(BF16, chunk=8, rounding="stochastic"),
    Accumulator(E5M2, order="pairwise", rounding="stochastic"),
]


@pytest.mark.parametrize("acc", BY_PARTS, ids=str)
def test_long_sums_by_parts_are_those_term_by_term(acc: Accumulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lptensor.ops.call_key", lambda *_: KEY)
    monkeypatch.setattr("lptensor.gemm._LONG", 100)  # rationals are too slow for sums that are long
    monkeypatch.setattr("lptensor.gemm._FEW", 2)
    for count, columns in ((0, 1), (300, 0), (5000, 0), (100, 2), (99, 1), (128, 1), (129, 1), (257, 1)):
        (_, terms, _) = operands(count, 1, count, columns, 6)
        terms = terms.round() if acc.wrap else terms
        assert same(reduce(terms, 0, acc), expected(torch.ones(1, count), terms, acc, None)[0]), (count, columns)
    for special in ([torch.inf], [torch.inf, -torch.inf], [torch.nan], [-0.0] * 300):
        terms = torch.randn(300, 1, generator=torch.Generator().manual_seed(1)).round()
        terms[: len(special), 0] = torch.tensor(special)
        want = accumulate.gemm(torch.ones(1, 1, 300), terms.unsqueeze(0), acc, None, KEY)[0, 0]
        assert same(reduce(terms, 0, acc).nan_to_num(7.7), want.nan_to_num(7.7))


@pytest.mark.parametrize("dim", [None, (), 0, -1, (0,)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_a_tensor_without_axes_is_one_term(dim: Any, keepdim: bool) -> None:
    x = torch.tensor(1 + 2.0**-8)  # half way between two numbers of BF16
    got = reduce(x, dim, Accumulator(BF16, rounding="up"), keepdim)
    assert same(got, x.sum(dim, keepdim) + 2.0**-8)
    assert same(cumsum(x, 0, Accumulator(BF16)), torch.tensor(1.0))
    for run in (reduce, cumsum):
        with pytest.raises(ValueError, match="dim must name different axes of 0"):
            run(x, 1, Accumulator(BF16))


def test_a_sum_has_no_products_to_round_inside_chunks_either() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(1))
    for outside, inside in ((E5M2, BF16), (None, BF16), (None, Accumulator(BF16, E5M2))):
        acc = Accumulator(FP16, outside, chunk=4, inner=inside)
        assert same(reduce(x, 0, acc), reduce(x, 0, Accumulator(FP16, chunk=4, inner=BF16)))


def test_a_format_inside_chunks_adds_as_is_said_of_the_whole() -> None:
    inside = Accumulator(FP16, E5M2, 4, inner=BF16, compute="fp32").inside
    assert inside == Accumulator(BF16, E5M2, compute="fp32")
    assert Accumulator(FP16, chunk=4, rounding="up").inside == Accumulator(FP16, rounding="up")
    drawn = Accumulator(FP16, rounding="stochastic")
    assert Accumulator(BF16, chunk=4, inner=drawn).stochastic and not Accumulator(BF16, chunk=4, inner=FP16).stochastic


WIDE_PRODUCT = Accumulator(BF16, FixedPoint(30, 4))
WIDE_INSIDE = Accumulator(BF16, chunk=3, inner=FixedPoint(32, 0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Accumulator(BF16, chunk=0), ValueError, "chunk must be from 1"),
        (lambda: Accumulator(BF16, order="tree"), ValueError, "unknown order 'tree'; known: sequential"),
        (lambda: Accumulator(BF16, compute="bf16"), ValueError, "unknown compute"),
        (lambda: Accumulator(BF16, rounding="far"), ValueError, "unknown rounding"),
        (lambda: Accumulator("bf16"), TypeError, "sum must be a floating-point or fixed-point format"),
        (lambda: Accumulator(FloatingPoint(5, 2, signed=False)), ValueError, "use a signed format"),
        (lambda: Accumulator(FixedPoint(8, 4, clamp=False)), ValueError, "say clamp=True"),
        (lambda: Accumulator(FixedPoint(53, 4)), ValueError, "use a narrower format"),
        (lambda: Accumulator(BF16, FixedPoint(30, 4), compute="fp32"), ValueError, "wider than fp32"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), WIDE_PRODUCT), ValueError, "product=.*24 bits; use float64"),
        (lambda: reduce(torch.ones(9), 0, WIDE_INSIDE), ValueError, "sum=.*24 bits; use float64"),
        (lambda: Accumulator(BF16, wrap=True), ValueError, "needs a FixedPoint sum"),
        (lambda: Accumulator(BF16, inner=FP32), ValueError, "give a chunk of 2 or more"),
        (lambda: Accumulator(BF16, alignment=3), ValueError, "alignment is for"),
        (
            lambda: Accumulator(BF16, order="aligned", operands=FP16),
            ValueError,
            "operands is for an alignment, .* without one",
        ),
        (lambda: Accumulator(BF16, order="aligned", chunk=513), ValueError, "chunk must be from 1 to 512"),
        (lambda: Accumulator(BF16, operands=FP16), ValueError, "operands is for order"),
        (lambda: tensor_core("hopper", "fp16"), TypeError, "a format of both factors, or a pair, got 'fp16'"),
        (lambda: tensor_core("hopper", (FP16, Posit(8))), TypeError, "got Posit.*; leave out others"),
        (
            lambda: Accumulator(FP32, chunk=513, order="aligned", alignment=24),
            ValueError,
            'chunk must be from 1 to 512 in the order "aligned"',
        ),
        (lambda: Accumulator(FP32, order="aligned", alignment=41), ValueError, "alignment must be from 0 to 40"),
        (
            lambda: Accumulator(FP32, order="aligned", alignment=24, compute="fp32"),
            ValueError,
            "leave compute out",
        ),
        (lambda: Accumulator(FixedPoint(26, 0), compute="fp32"), ValueError, "wider than fp32"),
        (lambda: integer_accumulator(1), ValueError, "bits must be from 2 to 52"),
        (lambda: Accumulator(BF16, order="exact", compute="fp32"), ValueError, "leave compute out"),
        (lambda: tensor_core("abacus"), ValueError, "unknown tensor core 'abacus'; known: volta"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(3, 2), Accumulator(BF16)), ValueError, r"got \(2, 2\) and \(3, 2\)"),
        (lambda: gemm(torch.ones(2, 1, 1), torch.ones(3, 1, 1), Accumulator(BF16)), ValueError, "leading axes"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), BF16), TypeError, "expected an Accumulator"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2).double(), Accumulator(BF16)), ValueError, "agree in dtype"),
        (lambda: gemm(torch.ones(2, 2).half(), torch.ones(2, 2).half(), Accumulator(BF16)), TypeError, r"\.float\(\)"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), Accumulator(FixedPoint(32, 0))), ValueError, "use float64"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), Accumulator(BF16), torch.ones(3, 2)), ValueError, "addend"),
        (lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), Accumulator(BF16), torch.ones(2, 3)), ValueError, "addend"),
        (
            lambda: gemm(torch.ones(2, 2), torch.ones(2, 2), Accumulator(BF16), torch.ones(2, 2).double()),
            ValueError,
            "agree in dtype",
        ),
        (lambda: cumsum(torch.ones(2, 2), (0, 1), Accumulator(BF16)), ValueError, "goes along one axis"),  # type: ignore[arg-type]
        (lambda: reduce(torch.eye(2).to_sparse(), 0, Accumulator(BF16)), TypeError, "to_dense"),
        (
            lambda: torch.func.grad(lambda x: reduce(x, 0, Accumulator(BF16)))(torch.ones(3)),
            RuntimeError,
            "lptensor.sum",
        ),
        (  # the product does not depend on x, and is refused all the same
            lambda: torch.func.grad(lambda x: (x * gemm(torch.eye(2), torch.eye(2), Accumulator(BF16))).sum())(
                torch.ones(2, 2)
            ),
            RuntimeError,
            "lptensor.matmul",
        ),
        (lambda: Accumulator(FixedPoint(8, 4, symmetric=True), wrap=True), ValueError, "symmetric=False"),
    ],
)
def test_bad_input_says_what_would_do(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_aligned_products_beyond_every_format_are_no_zeros() -> None:
    huge = torch.full((1, 1, 1), 2.0**600, dtype=torch.float64)
    sums = accumulate.gemm(huge, huge, Accumulator(FP32, order="aligned", alignment=24), None, None)
    assert sums.item() == float("inf")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_product_of_zero_is_aligned_to_nothing(implementation: str) -> None:
    # nor is the exponent that zero has in its bits: 2**-1023 times 2**1023 is no 1, below which the rest is cut off
    a = torch.tensor([0.0, 2.0**1023, 2.0**-30], dtype=torch.float64).expand(1, 2, 3)
    b = torch.tensor([2.0**1023, 0.0, 1.0], dtype=torch.float64)[:, None].expand(1, 3, 2)
    acc = Accumulator(FP32, chunk=3, order="aligned", alignment=24)
    assert product(implementation, a, b, acc).unique().tolist() == [2.0**-30]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("order", "alignment"), [*((order, None) for order in ORDERS), ("aligned", 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinities_of_both_signs_make_nan_and_nan_stays(
    implementation: str, order: str, alignment: int | None, dtype: torch.dtype
) -> None:
    inf, nan = torch.inf, torch.nan
    acc = Accumulator(FP32, chunk=3, order=order, alignment=alignment)
    for terms, lost in (
        ((inf, -inf, 1.0), True),
        ((nan, 1.0, inf), True),
        ((inf, nan, -1.0), True),
        ((inf, inf, -1.0), False),
    ):
        a = torch.tensor(terms, dtype=dtype).expand(1, 2, 3)
        got = product(implementation, a, torch.ones(1, 3, 2, dtype=dtype), acc)
        assert (got.isnan() if lost or order == "kahan" else got == inf).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("order", "alignment"), [*((order, None) for order in ORDERS_BUT_KAHAN), ("aligned", 24)])
def test_products_far_beyond_every_format_keep_their_sign_and_are_no_zeros(
    implementation: str, order: str, alignment: int | None
) -> None:
    acc = Accumulator(FP16, order=order, alignment=alignment, rounding="up")
    ends = [1 + 2.0**-30, 1 - 2.0**-30]  # what float64 leaves of the product is negative
    for size, wanted in ((2.0**-600, 2.0**-24), (2.0**500, torch.inf)):
        a, b = (torch.full((1, 2, 1), x * size, dtype=torch.float64) for x in ends)
        assert product(implementation, a, b.mT, acc).unique().tolist() == [wanted]


@pytest.mark.parametrize("least", [2.0**-1074, 3 * 2.0**-1074, 2.0**-1022 - 2.0**-1074, 2.0**-1022, 1.5 * 2.0**-1000])
def test_the_product_of_a_number_next_to_zero_and_its_rest_are_exact(least: float) -> None:
    x, y = torch.tensor([least, -least], dtype=torch.float64), torch.tensor(2.0**1000 / 3, dtype=torch.float64)
    for a, b in ((x, y), (y, x)):
        p, rest = accumulate.two_product(a, b)
        for number, high, low in zip(x.tolist(), p.tolist(), rest.tolist(), strict=True):
            assert Fraction(high) + Fraction(low) == Fraction(number) * Fraction(y.item())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_product_of_zero_cuts_nothing_off_other_aligned_ones(implementation: str) -> None:
    acc = Accumulator(FP32, order="aligned", chunk=4, alignment=24)
    few, many = ([[0.0, 2.0**-60]], [[2.0**1000] * 3, [2.0**-40] * 3])
    a, b = (torch.tensor([x], dtype=torch.float64) for x in (few, many))
    for x, y in ((a, b), (b.mT.contiguous(), a.mT.contiguous())):
        assert (product(implementation, x, y, acc) == 2.0**-100).all()
