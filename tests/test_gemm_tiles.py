"""Sums on tiles: every accumulator that has them, past their edges and at the ends of fp32, by all builds."""

from __future__ import annotations

import pytest
import torch

from lptensor import accumulate
from lptensor.accumulator import Accumulator
from lptensor.finfo import finfo
from lptensor.formats import BF16, E2M1, E4M3, E5M2, FP16, FP32, FixedPoint, FloatingPoint, Overflow, ScalarFormat
from lptensor.gemm import gemm
from lptensor.hardware_sums import tensor_core
from lptensor.rounding import Stochastic
from rounders import NATIVE_BUILDS
from test_gemm import IMPLEMENTATIONS, KEY, SIDES, WANG, expected, operands, product, same

TILED = (
    Accumulator(FP16),
    Accumulator(BF16),
    Accumulator(FP32),
    Accumulator(FloatingPoint(8, 22)),
    Accumulator(FP16, compute="fp32"),
    Accumulator(BF16, compute="fp32"),
    Accumulator(FP16, E5M2),
    Accumulator(BF16, BF16),
    Accumulator(BF16, E5M2, compute="fp32"),
    Accumulator(FP16, BF16),
    Accumulator(WANG, chunk=64),
    Accumulator(BF16, chunk=7, compute="fp32"),
    Accumulator(BF16, chunk=32, inner=FP32),
    Accumulator(FP16, chunk=300, inner=FP32, compute="fp32"),
    Accumulator(FP16, rounding="stochastic"),
    Accumulator(BF16, rounding=Stochastic(5), compute="fp32"),
    Accumulator(BF16, E5M2, rounding="stochastic"),
    Accumulator(FP16, rounding="stochastic", compute="fp32"),
    Accumulator(FloatingPoint(4, 3), rounding="stochastic"),
    Accumulator(FloatingPoint(8, 15), rounding="stochastic"),  # where it takes double to decide is no longer rare
    Accumulator(FloatingPoint(5, 14), FloatingPoint(6, 15), rounding="stochastic"),
    Accumulator(FloatingPoint(5, 14, bias=3), rounding=Stochastic(20)),
    Accumulator(FloatingPoint(7, 2, bias=124), rounding="stochastic"),
    Accumulator(E4M3, rounding="stochastic"),
    Accumulator(BF16, chunk=7, rounding="stochastic"),
    Accumulator(FP16, E5M2, chunk=64, rounding="stochastic"),
    Accumulator(FloatingPoint(8, 19), chunk=300, rounding="stochastic"),
    Accumulator(FloatingPoint(5, 10, subnormals="flush"), BF16, chunk=6, rounding="stochastic", compute="fp32"),
    *(Accumulator(FP16, chunk=30, inner=FP32, rounding="stochastic", compute=compute) for compute in ("exact", "fp32")),
    Accumulator(FP16, chunk=5, rounding="stochastic", inner=Accumulator(BF16, rounding="stochastic")),
    # Of which many sums lie below the normal numbers, and some beyond the largest.
    *(
        Accumulator(FloatingPoint(5, man), rounding="stochastic", compute="fp32", **inside)
        for man in (20, 21, 22)
        for inside in ({}, {"chunk": 4, "inner": Accumulator(FP32, compute="fp32")})
    ),
    Accumulator(FloatingPoint(4, 3, specials="fnuz"), rounding="stochastic"),
    Accumulator(FloatingPoint(8, 19), rounding="stochastic"),
    Accumulator(FloatingPoint(8, 20), rounding="stochastic"),
    *(Accumulator(sum, rounding=mode) for sum in (FP32, BF16, FP16) for mode in SIDES),
    Accumulator(E4M3, rounding="up"),
    Accumulator(FloatingPoint(8, 7, overflow="saturate"), rounding="down"),
    Accumulator(FP16, E5M2, rounding="down"),
    *(Accumulator(BF16, chunk=7, rounding=mode) for mode in ("down", "up")),
    *(Accumulator(sum, chunk=32, rounding="toward_zero", inner=FP32) for sum in (FP32, BF16, FP16)),
    Accumulator(FP16, chunk=5, rounding="toward_zero", inner=Accumulator(BF16, rounding="toward_zero")),
    Accumulator(BF16, rounding="toward_zero", compute="fp32"),
    Accumulator(FixedPoint(8, 4), rounding="stochastic", wrap=True),
    tensor_core("hopper_fp8"),
    tensor_core("volta", (E2M1, None)),  # all below one count with its exponent
    tensor_core("hopper", (None, E2M1)),
    Accumulator(FP16, order="aligned", chunk=3, rounding="odd", alignment=0),
    Accumulator(BF16, order="aligned", chunk=300, rounding="nearest_away", alignment=30),
    *(Accumulator(sum, order="aligned", chunk=chunk) for sum, chunk in ((FP32, 4), (FP16, 2), (E4M3, 300))),
    Accumulator(FloatingPoint(8, 22), order="aligned", chunk=16, rounding="up"),
    *(
        Accumulator(sum, product, order=order, rounding=mode)
        for order in ("kahan", "pairwise")
        for sum, product, mode in (
            (FP32, None, "nearest"),
            (BF16, None, "nearest"),
            (FP16, None, "nearest"),
            (FloatingPoint(8, 22), None, "nearest"),
            (E4M3, E5M2, "nearest"),
            (FP16, None, "up"),
            (BF16, E5M2, "odd"),
        )
    ),
    *(Accumulator(FP16, order=order, compute="fp32") for order in ("kahan", "pairwise")),
    Accumulator(BF16, order="exact"),
    Accumulator(FloatingPoint(8, 22), order="exact", rounding="up"),
    *(
        Accumulator(sum, rounding=mode)
        for sum in (BF16, FP16, FixedPoint(12, 4))
        for mode in ("nearest_away", "nearest_up", "odd")
    ),
    Accumulator(FixedPoint(16, 6)),
    Accumulator(FixedPoint(22, 12, symmetric=True)),  # the widest that is added in fp32
    Accumulator(FixedPoint(23, 12)),
    Accumulator(FixedPoint(24, 14), compute="fp32"),
    Accumulator(FixedPoint(16, 6), FixedPoint(12, 8)),
    Accumulator(FixedPoint(14, 5), chunk=7, compute="fp32"),
    *(Accumulator(FixedPoint(10, 4), rounding=mode, wrap=True) for mode in ("nearest", "down", "odd")),
    Accumulator(FixedPoint(10, 4), wrap=True, compute="fp32"),
    *(
        Accumulator(FloatingPoint(5, man, bias=8, subnormals=subnormals), **more)
        for man, subnormals, more in (
            (10, False, {}),
            (10, "flush", {}),
            (10, "flush", {"compute": "fp32"}),
            (4, False, {"chunk": 5}),
            (4, "flush", {"order": "kahan"}),
            (4, False, {"product": E5M2}),
            (4, "flush", {"rounding": "up"}),
            (4, False, {"rounding": "stochastic"}),
        )
    ),
    Accumulator(FP16, FP16, rounding="up"),
    Accumulator(BF16, E5M2, chunk=5, rounding="down"),
    Accumulator(FP16, E5M2, rounding="nearest_away", compute="fp32"),
    Accumulator(BF16, rounding="down", compute="fp32"),
    Accumulator(E4M3, BF16, rounding="stochastic", compute="fp32"),
    Accumulator(FixedPoint(12, 6), rounding="stochastic", compute="fp32"),
)


@pytest.mark.parametrize("scale", [-74, -66, -50, 62, 63])
@pytest.mark.parametrize(
    "acc",
    [
        Accumulator(BF16),
        Accumulator(FloatingPoint(8, 2)),
        Accumulator(FloatingPoint(8, 13)),
        Accumulator(BF16, BF16),
        Accumulator(BF16, chunk=32, inner=FP32),
        Accumulator(BF16, order="kahan"),
        Accumulator(BF16, order="pairwise"),
        *(Accumulator(sum, rounding=mode) for sum in (FP32, BF16) for mode in SIDES),
        *(Accumulator(BF16, chunk=7, rounding=mode) for mode in ("up", "odd")),
        Accumulator(FP32, chunk=7, rounding="down"),
        Accumulator(BF16, rounding="stochastic"),
        Accumulator(FloatingPoint(7, 7, bias=127, specials="fnuz"), BF16, rounding="stochastic"),
        Accumulator(FloatingPoint(7, 7, bias=124), rounding="stochastic"),
        Accumulator(FloatingPoint(7, 7, bias=124), rounding="stochastic", compute="fp32"),
        Accumulator(FloatingPoint(8, 7, subnormals=False)),
        Accumulator(FloatingPoint(8, 7, subnormals="flush")),
        Accumulator(FloatingPoint(8, 7, subnormals="flush"), chunk=8, compute="fp32"),
        Accumulator(FloatingPoint(5, 4, bias=110)),
        *(Accumulator(FixedPoint(8, fl), compute=compute) for fl in (-110, 140) for compute in ("exact", "fp32")),
    ],
    ids=repr,
)
def test_products_at_the_ends_of_fp32_are_exact_too(acc: Accumulator, scale: int) -> None:
    a, b, c = (t[None] for t in operands(7, 5, 70, 37, 3))
    few = (x.mul(16).round() / 16 for x in (a, b))  # many sums lie half way, and tiny products decide
    for x, y in ((a, b), few):
        x, y, z = x * 2.0**scale, y * 2.0**scale, c * 2.0 ** max(2 * scale, -149)
        wanted = accumulate.gemm(x, y, acc, z, KEY)
        for build in NATIVE_BUILDS:
            assert same(product(build, x, y, acc, z), wanted), build


@pytest.mark.parametrize("subnormals", [True, False, "flush"])
@pytest.mark.parametrize("compute", ["exact", "fp32"])
def test_sums_in_a_format_below_the_normal_numbers_of_fp32_are_those_of_rationals(
    compute: str, subnormals: bool | str
) -> None:
    low = FloatingPoint(5, 2, bias=143, subnormals=subnormals, overflow="saturate")
    a, b, c = operands(12, 5, 6, 18, 2)
    a, b, c = a * 2.0**-70, b * 2.0**-70, c * 2.0**-140
    for more in ({}, {"product": low}, {"chunk": 3}, {"order": "kahan"}, {"order": "pairwise"}):
        acc = Accumulator(low, compute=compute, **more)
        wanted = expected(a, b, acc, c)
        for build in NATIVE_BUILDS:
            assert torch.equal(product(build, a[None], b[None], acc, c[None])[0], wanted), (build, acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("subnormals", [True, False, "flush"])
def test_sums_in_one_binade_are_those_of_rationals(subnormals: bool | str, dtype: torch.dtype) -> None:
    binade = FloatingPoint(1, 3, subnormals=subnormals, specials="fnuz", overflow="saturate")
    a, b, c = operands(14, 5, 6, 18, 0, dtype)
    wanted = expected(a, b, Accumulator(binade), c)
    for build in NATIVE_BUILDS:
        assert torch.equal(product(build, a[None], b[None], Accumulator(binade), c[None])[0], wanted), build


@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("sum", [FloatingPoint(5, 0, specials="none"), FixedPoint(1, 0)], ids=repr)
def test_random_sums_of_one_bit_are_those_of_rationals(sum: ScalarFormat, compute: str) -> None:
    a, b, c = (t / 8 for t in operands(13, 5, 6, 18, 1))
    for product_format in (None, sum):
        acc = Accumulator(sum, product_format, rounding="stochastic", compute=compute)
        wanted = expected(a, b, acc, c)
        for build in NATIVE_BUILDS:
            assert torch.equal(product(build, a[None], b[None], acc, c[None])[0], wanted), build


@pytest.mark.parametrize("acc", [Accumulator(BF16), Accumulator(BF16, BF16), Accumulator(FP32, BF16)], ids=repr)
def test_what_a_product_has_below_the_smallest_fp32_breaks_a_tie(acc: Accumulator) -> None:
    # half of BF16's smallest number, and 2**-151 more or less, which fp32 takes for half
    for factor, rounded in ((1 + 2.0**-17, 2.0**-133), (1 - 2.0**-17, 0.0), (1.0, 0.0)):
        a, b = torch.full((1, 6, 1), factor * 2.0**-67), torch.full((1, 1, 40), 2.0**-67)
        for build in NATIVE_BUILDS:
            assert (product(build, a, b, acc) == rounded).all(), (build, factor)


@pytest.mark.parametrize(
    "sum, bound, rounded",
    [
        (FloatingPoint(5, 4, bias=110), 3 * 2.0**-114, 2.0**-113),  # half way between one and two spacings
        (FloatingPoint(5, 10, bias=8, subnormals="flush"), 2.0**-7, 0.0),  # the smallest number
        (FloatingPoint(5, 10, bias=8, subnormals=False), 2.0**-8, 0.0),  # half of it
    ],
)
def test_what_is_2_to_the_minus_40_below_a_bound_is_below_it(sum: FloatingPoint, bound: float, rounded: float) -> None:
    a, b = torch.full((1, 6, 1), bound * 2.0**57 * (1 + 2.0**-20)), torch.full((1, 1, 40), 2.0**-57 * (1 - 2.0**-20))
    for build in NATIVE_BUILDS:
        assert (product(build, a, b, Accumulator(sum)) == rounded).all(), build
        assert (product(build, -a, b, Accumulator(sum)) == -rounded).all(), build


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("order", ["sequential", "pairwise", "kahan"])
def test_half_of_the_smallest_number_goes_up_where_there_are_no_subnormals(order: str, chunk: int) -> None:
    a, b = torch.full((1, 6, 1), 2.0**-8), torch.ones(1, 1, 40)
    for subnormals, rounded in ((False, 2.0**-7), ("flush", 0.0)):
        format = FloatingPoint(5, 10, bias=8, subnormals=subnormals)
        for build in NATIVE_BUILDS:
            assert (product(build, a, b, Accumulator(format, order=order, chunk=chunk)) == rounded).all(), build


@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("alignment", [24, None])
def test_aligned_sums_keep_what_is_infinite_and_end_in_positive_zeros(chunk: int, alignment: int | None) -> None:
    acc = Accumulator(FP32, chunk=chunk, order="aligned", rounding="toward_zero", alignment=alignment)
    a, b, c = (t[None] for t in operands(6, 5, 9, 40, 2))
    c[0, 0, :3], c[0, 1, :2], a[0, 2], c[0, 2] = torch.inf, torch.nan, -0.0, -0.0
    a[0, 3, 1], b[0, 1, 7] = torch.inf, 0.0
    b[0, :, 3] = b[0, :, 3].abs()  # one sum of negative zeros alone
    wanted = accumulate.gemm(a, b, acc, c, None)
    assert wanted[0, 0, 0] == torch.inf and wanted[0, 3, 7].isnan()
    assert (wanted[0, 2] == 0).all() and not wanted[0, 2].signbit().any()
    for build in NATIVE_BUILDS:
        assert same(product(build, a, b, acc, c), wanted), build


@pytest.mark.parametrize("reach", [20, 30, 40, 60])  # the last two leave more digits than tiles hold in parts
def test_exact_sums_know_numbers_that_are_far_apart(reach: int) -> None:
    g = torch.Generator().manual_seed(reach)
    a, b, c = (
        torch.randn(shape, generator=g) * 2.0 ** torch.randint(-reach, reach, shape, generator=g)
        for shape in ((1, 5, 300), (1, 300, 40), (1, 5, 40))
    )
    b[0, 1::2], a[0, :, 1::2] = b[0, ::2], -a[0, :, ::2]  # all large terms cancel
    a[0, :, 299] *= 2.0**-reach
    c[0, 0, 0], c[0, 1, 0], a[0, 2, 5] = torch.inf, torch.nan, -torch.inf
    for mode, order, chunk in (
        ("nearest", "exact", 1),
        ("up", "exact", 1),
        ("nearest", "aligned", 4),
        ("up", "aligned", 30),
    ):
        acc = Accumulator(FP32, chunk=chunk, order=order, rounding=mode)
        wanted = accumulate.gemm(a, b, acc, c, None)
        assert wanted.isfinite()[0, 3:].all() and not wanted.isfinite()[0, 2].any()
        for build in NATIVE_BUILDS:
            assert same(product(build, a, b, acc, c), wanted), build


@pytest.mark.parametrize("exponent", [-20, -40, -60])  # of what 2**200 covers: some 240 to 320 places
def test_fused_sums_keep_what_is_left_of_numbers_that_cancel(exponent: int) -> None:
    a = torch.tensor([2.0**100, 2.0**exponent, -(2.0**100)]).expand(1, 5, 3)
    b = torch.tensor([2.0**100, 2.0**exponent, 2.0**100])[:, None].expand(3, 40)[None]
    for build in NATIVE_BUILDS:
        got = product(build, a, b, Accumulator(FP32, chunk=3, order="aligned"))
        assert (got == 2.0 ** (2 * exponent)).all(), build


def test_exact_sums_lose_no_bit_of_many_large_products_and_round_their_addend_with_them() -> None:
    a, b = torch.full((1, 5, 256), 2 - 2.0**-23), torch.full((1, 256, 40), 2 - 2.0**-23)
    c = torch.full((1, 5, 40), -1024.0 + 2.0**-13)  # leaves what a double of the whole sum would not have
    tie, little = torch.full((1, 5, 40), 1 + 2.0**-8), torch.full((1, 5, 1), 2.0**-12)
    for build in NATIVE_BUILDS:
        acc = Accumulator(FP32, order="exact")
        assert same(product(build, a, b, acc, c), accumulate.gemm(a, b, acc, c, None)), build
        one = product(build, little, torch.ones(1, 1, 40), Accumulator(BF16, order="exact"), tie)
        assert (one == 1 + 2.0**-7).all(), build


@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize(
    "format",
    [
        FixedPoint(12, 6),
        FloatingPoint(4, 3, specials="fnuz"),
        FloatingPoint(7, 7, bias=127, specials="fnuz"),  # its smallest normal number is that of fp32
    ],
    ids=repr,
)
def test_a_format_without_negative_zero_has_none_where_its_sums_vanish(format: ScalarFormat, compute: str) -> None:
    acc = Accumulator(format, rounding="stochastic", compute=compute)
    for size in (2.0**-60, 2.0**-71, 2.0**-80):  # of which squares are numbers of fp32, subnormal ones, and none
        a, b = torch.full((1, 5, 1), -size), torch.rand(1, 1, 40) * size
        wanted = accumulate.gemm(a, b, acc, None, KEY)
        for build in NATIVE_BUILDS:
            got = product(build, a, b, acc)
            assert same(got, wanted) and not got[got == 0].signbit().any()


@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("format", [E4M3, FP16, FloatingPoint(4, 3, specials="none")], ids=repr)
def test_sums_about_the_smallest_normal_number_and_the_largest_are_drawn_from_the_grid(
    format: FloatingPoint, compute: str
) -> None:
    acc, info = Accumulator(format, rounding="stochastic", compute=compute), finfo(format)
    for least, most in ((info.smallest_normal / 2, info.smallest_normal * 2), (info.max / 2, info.max * 1.01)):
        b = torch.linspace(least, most, 4096)[torch.randperm(4096, generator=torch.Generator().manual_seed(1))]
        for low, high in ((least, info.max), (0, most)):  # all of one kind, so that whole vectors are
            a, few = torch.ones(1, 5, 1), b[(b >= low) & (b <= high)][None, None]
            wanted = accumulate.gemm(a, few, acc, None, KEY)
            for build in NATIVE_BUILDS:
                assert same(product(build, a, few, acc), wanted), build


def test_a_product_below_fp32_is_drawn_where_the_format_has_spacings_near_it() -> None:
    """2**-150 is 2**-12 of the smallest number."""
    acc = Accumulator(FloatingPoint(7, 15, bias=124), rounding="stochastic")
    a, b = torch.full((1, 1, 1), 2.0**-75), torch.full((1, 1, 1 << 15), 2.0**-75)
    wanted = accumulate.gemm(a, b, acc, None, KEY)
    assert wanted.unique().tolist() == [0.0, 2.0**-138]
    for build in NATIVE_BUILDS:
        assert same(product(build, a, b, acc), wanted), build


@pytest.mark.parametrize("compute", ["exact", "fp32"])
def test_rows_of_zeros_and_sums_at_the_largest_value_draw_as_others_do(compute: str) -> None:
    for format in (E4M3, FloatingPoint(4, 7, specials="fnuz", overflow="saturate")):
        acc = Accumulator(format, rounding="stochastic", compute=compute)
        a, b, c = (t[None] for t in operands(15, 6, 40, 45, 1))
        a[0, :3], a[0, 1], c[0, :2] = 0.0, -0.0, 0.0
        a[0, 3], b = a[0, 3].abs() * 1e3, b.abs()
        wanted = accumulate.gemm(a, b, acc, c, KEY)
        for build in NATIVE_BUILDS:
            assert same(product(build, a, b, acc, c), wanted), (build, format)


def test_what_fp32_has_no_digits_for_decides_a_draw() -> None:
    """One of 256 words, and a part of the spacing, are together one step of fp32 from a carry."""
    n, fine = 1 << 13, FloatingPoint(8, 15)
    acc, spacing = Accumulator(fine, rounding="stochastic"), 2.0**-15
    for part in (2.0**-9, 255 * 2.0**-8, 2.0**-8 - 2.0**-20, 1 - 2.0**-20):
        a, b = torch.ones(1, 1, 2), torch.ones(1, 2, n)
        a[0, 0, 1], b[0, 1] = spacing, part
        wanted = accumulate.gemm(a, b, acc, None, KEY)
        assert set(wanted.unique().tolist()) <= {1.0, 1.0 + spacing}
        for build in NATIVE_BUILDS:
            assert same(product(build, a, b, acc), wanted), (build, part)


# What tiles must leave to others: chunks in chunks, and chunks that are rounded in another mode than their sums.
NESTED = (
    Accumulator(BF16, chunk=6, inner=Accumulator(BF16, chunk=2)),
    Accumulator(BF16, chunk=4, inner=Accumulator(BF16, rounding="toward_zero")),
    Accumulator(BF16, chunk=4, rounding="up", inner=BF16),
    Accumulator(BF16, chunk=4, rounding="stochastic", inner=Accumulator(BF16, rounding=Stochastic(9))),
    Accumulator(BF16, chunk=4, rounding="stochastic", inner=FP16),
    Accumulator(FixedPoint(12, 6), chunk=4, rounding="stochastic", inner=FP32),
    Accumulator(FP16, FixedPoint(12, 6), rounding="up"),
)


@pytest.mark.parametrize("acc", [*TILED, *NESTED], ids=repr)
def test_builds_have_the_bits_of_the_reference_past_the_edges_of_tiles(acc: Accumulator) -> None:
    a, b, c = (t[None] for t in operands(5, 5, 300, 37, 4))
    wanted = accumulate.gemm(a, b, acc, c, KEY)
    for build in NATIVE_BUILDS:
        assert same(product(build, a, b, acc, c), wanted), build


@pytest.mark.parametrize("acc", [*TILED, *NESTED], ids=repr)
def test_few_columns_of_many_rows_have_the_bits_of_the_reference(acc: Accumulator) -> None:
    a, b, c = operands(9, 132, 11, 5, 4)
    a, b, c = a.view(2, 66, 11), b.mT.contiguous().mT.expand(2, -1, -1), c.view(2, 66, 5)
    wanted = accumulate.gemm(a, b, acc, c, KEY)
    for build in NATIVE_BUILDS:
        assert same(product(build, a, b, acc, c), wanted), build


# Next to what a short way takes, each in one respect; and the power of two of their operands.
BARE, WHOLE = (FloatingPoint(5, 4, bias=8, subnormals=subnormals) for subnormals in (False, True))
BESIDE = (
    (0, Accumulator(FixedPoint(12, 4), BF16)),
    (0, Accumulator(FP16, chunk=4, inner=FixedPoint(12, 4))),
    (0, Accumulator(FixedPoint(12, 6), chunk=4, inner=Accumulator(FixedPoint(8, 4), wrap=True))),
    (0, Accumulator(FloatingPoint(5, 22))),
    (0, Accumulator(FloatingPoint(5, 23), compute="fp32")),
    (0, Accumulator(FloatingPoint(8, 22), chunk=2, inner=FP32)),
    (0, Accumulator(FloatingPoint(8, 20), chunk=4, inner=Accumulator(FloatingPoint(8, 20), compute="fp32"))),
    (0, Accumulator(FloatingPoint(8, 20), chunk=4, rounding="toward_zero", compute="fp32", inner=FP32)),
    (12, Accumulator(FloatingPoint(8, 7, subnormals=False), chunk=4, inner=Accumulator(BARE))),
    (50, Accumulator(FloatingPoint(4, 3, bias=-93))),  # its largest spacing times 2**24 is beyond fp32
    (-67, Accumulator(FloatingPoint(5, 4, bias=128))),  # starts one binade below fp32's normal numbers
    (-67, Accumulator(FloatingPoint(4, 3, bias=133), rounding="up")),
    (-70, Accumulator(FixedPoint(8, 148))),
    (-70, Accumulator(FixedPoint(8, 149))),
    (0, Accumulator(FloatingPoint(5, 0, specials="fn"), rounding="up")),
    (-8, Accumulator(FloatingPoint(4, 3, specials="fnuz"), rounding="up")),
    (0, Accumulator(FP16, chunk=4, rounding="up", inner=Accumulator(FixedPoint(12, 6), E5M2, rounding="up"))),
    (0, Accumulator(FP16, chunk=4, rounding="up", inner=Accumulator(FixedPoint(12, 6), rounding="up"))),
    (0, Accumulator(FixedPoint(12, 6), chunk=4, rounding="up", inner=Accumulator(FP16, rounding="up"))),
    (0, Accumulator(FP32, chunk=4, rounding="up", inner=Accumulator(FP16, rounding="up"))),
    (9, Accumulator(BF16, chunk=4, rounding="up", inner=Accumulator(FP16, rounding="up"))),
    (0, Accumulator(FloatingPoint(5, 22), rounding="stochastic")),
    (-5, Accumulator(BARE, chunk=4, rounding="stochastic", inner=FP32)),
    (-5, Accumulator(BARE, chunk=4, rounding="stochastic", inner=Accumulator(WHOLE, rounding="stochastic"))),
    (-3, Accumulator(WHOLE, chunk=4, rounding="stochastic", inner=Accumulator(BARE, rounding="stochastic"))),
    (0, Accumulator(BF16, chunk=4, rounding="stochastic", inner=Accumulator(BF16, rounding=Stochastic(1)))),
    (
        0,
        Accumulator(
            FloatingPoint(8, 19),
            chunk=4,
            rounding="stochastic",
            inner=Accumulator(FloatingPoint(8, 19), rounding="stochastic", compute="fp32"),
        ),
    ),
)


@pytest.mark.parametrize(("power", "acc"), BESIDE, ids=repr)
def test_what_lies_beside_a_short_way_does_not_take_it(power: int, acc: Accumulator) -> None:
    a, b, c = (t[None] for t in operands(21, 5, 24, 37, 3))
    a, b, c = a * 2.0**power, b * 2.0**power, c * 2.0 ** (2 * power)
    wanted = accumulate.gemm(a, b, acc, c, KEY)
    for build in NATIVE_BUILDS:
        assert same(product(build, a, b, acc, c), wanted), build


@pytest.mark.parametrize(
    "acc",
    [
        Accumulator(FP32),
        Accumulator(BF16, E5M2, rounding="up"),
        Accumulator(FloatingPoint(5, 4, bias=8, subnormals="flush"), rounding="odd"),
        Accumulator(FP16, order="kahan"),
        Accumulator(FP32, order="pairwise", rounding="down"),
        Accumulator(FixedPoint(40, 20)),
        Accumulator(FixedPoint(52, 20)),
        *(Accumulator(FixedPoint(32, 20), rounding=mode, wrap=True) for mode in ("nearest", "toward_zero")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("reach", [3, 25, 520])  # of the exponents; the last is beyond what products hold
def test_builds_have_the_bits_of_the_reference_of_float64_operands(acc: Accumulator, reach: int) -> None:
    a, b, c = (t[None] * (1 + 2.0**-50) for t in operands(9, 5, 70, 37, reach, torch.float64))
    a[0, 0, 3], b[0, 5, 7], b[0, :, 1], a[0, 4] = torch.nan, torch.inf, 0.0, 3.0
    a[0, 1, 5], b[0, 5, 2] = 2.0**-1060, -0.0
    a[0, 3], c[0, 3, 1] = -a[0, 3].abs(), -0.0  # negative zeros alone, beside sums that are inexact
    few = (x.sign() * x.abs().log2().round().clamp(-8, 8).exp2() for x in (a, b))
    for x, y in ((a, b), few):
        wanted = accumulate.gemm(x, y, acc, c, KEY)
        for build in NATIVE_BUILDS:
            assert same(product(build, x, y, acc, c), wanted), build


@pytest.mark.parametrize("acc", TILED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_and_neighbours_change_no_bit(acc: Accumulator, dtype: torch.dtype) -> None:
    acc = acc if dtype == torch.float32 or acc.compute == "exact" and not acc.inner else Accumulator(BF16)
    a, b, _ = (t[None] for t in operands(8, 135, 140, 70, 3, dtype))
    torch.set_num_threads(1)
    alone = gemm(a, b, acc, generator=torch.Generator().manual_seed(4))
    torch.set_num_threads(2)
    assert same(gemm(a, b, acc, generator=torch.Generator().manual_seed(4)), alone)
    if not acc.stochastic:  # a stochastic word knows how many outputs there are
        assert same(gemm(a[:, 130:133], b[:, :, 65:], acc), alone[:, 130:133, 65:])
        assert same(gemm(a[:, 7:8], b[:, :, 9:10], acc), alone[:, 7:8, 9:10])
        assert same(gemm(a, b[:, :, 9:10], acc), alone[:, :, 9:10])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("acc", TILED, ids=repr)
def test_a_machine_that_flushes_subnormals_changes_no_bit(implementation: str, acc: Accumulator) -> None:
    a, b, c = (t[None] for t in operands(3, 5, 20, 18, 60))
    wanted = product(implementation, a, b, acc, c)
    torch.set_flush_denormal(True)
    got = product(implementation, a, b, acc, c)
    torch.set_flush_denormal(False)
    assert same(got, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "acc",
    [
        *TILED,
        *(Accumulator(FP16, order=order) for order in ("kahan", "pairwise", "exact")),
        *(Accumulator(FloatingPoint(5, 0, specials="fn"), rounding=mode) for mode in (*SIDES, "stochastic")),
    ],
    ids=repr,
)
def test_nan_and_infinity_follow_ieee_754(implementation: str, acc: Accumulator) -> None:
    nan, inf = torch.nan, torch.inf
    payload = torch.tensor(-1, dtype=torch.int32).view(torch.float32).item()
    a = torch.tensor([[1.0, nan], [inf, 1.0], [inf, -inf], [inf, 0.0], [payload, 1.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    got = product(implementation, a[None], b[None], acc)[0]
    assert got[0].isnan().all() and got[4].isnan().all()
    endless = acc.sum.grid.overflow is Overflow.INF  # else an infinite sum comes back to the largest value
    if endless:
        assert got[2, 0].isnan() and got[2, 1].isnan()
    assert same(got[got.isnan()], torch.full_like(got[got.isnan()], nan))
    if endless and acc.order != "kahan":
        assert got[1, 0] == inf and got[3, 0] == inf
    assert got[5].tolist() == [1.0, 0.0]
