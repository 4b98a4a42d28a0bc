"""Agreement with ml_dtypes, torch's own dtypes and gfloat, and the bugs that users reported elsewhere."""

from __future__ import annotations

import functools
import math

import gfloat
import gfloat.formats as gf
import ml_dtypes
import numpy as np
import pytest
import torch

from lptensor.blocks import BlockFloatingPoint
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
    FloatingPoint,
    Grid,
    Overflow,
)
from lptensor.ops import round as lp_round
from lptensor.rounding import Stochastic
from oracles.exact import MODES, Float, rounded
from oracles.philox import word_of_element
from oracles.table import table_of
from rounders import assert_same, judge, run

E4M3_TO_NAN = FloatingPoint(4, 3, specials="fn")
ML_DTYPES = {
    "float4_e2m1fn": E2M1,
    "float6_e2m3fn": E2M3,
    "float6_e3m2fn": E3M2,
    "float8_e3m4": E3M4,
    "float8_e4m3": FloatingPoint(4, 3),
    "float8_e4m3fn": E4M3_TO_NAN,
    "float8_e4m3fnuz": E4M3FNUZ,
    "float8_e4m3b11fnuz": E4M3B11FNUZ,
    "float8_e5m2": E5M2,
    "float8_e5m2fnuz": E5M2FNUZ,
    "bfloat16": BF16,
    "float8_e8m0fnu": E8M0,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_the_codes_of_ml_dtypes_are_the_oracles_values(name: str) -> None:
    """The oracle itself is held to another authority: its value set, code by code."""
    dtype, values = np.dtype(getattr(ml_dtypes, name)), judge(ML_DTYPES[name])
    codes = np.arange(2 ** (values.exp + values.man), dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        decoded = codes.view(dtype).astype(np.float64)
    finite = decoded[np.isfinite(decoded)]
    assert [float(m) for m in values.magnitudes()] == finite.tolist()


@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_even_is_the_cast_of_ml_dtypes(name: str, rounder: str) -> None:
    dtype, format = np.dtype(getattr(ml_dtypes, name)), ML_DTYPES[name]
    x = table_of(judge(format)).points()
    if format in (E2M1, E2M3, E3M2):
        x = x[np.isfinite(x)]  # no code for NaN: ml_dtypes leaves it undefined
    if format is E8M0:
        x = x[np.abs(x) >= 2.0**-126]  # ml_dtypes 0.6.0 takes 0x1.7f509p-127 to 2**-126; the middle is 1.5
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype).astype(np.float64)
    assert_same(run(rounder, torch.from_numpy(x), format), expected, x)


TORCH = {
    torch.float16: FP16,
    torch.bfloat16: BF16,
    torch.float8_e5m2: E5M2,
    torch.float8_e4m3fn: E4M3,
    torch.float8_e4m3fnuz: E4M3FNUZ,
    torch.float8_e5m2fnuz: E5M2FNUZ,
}


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_nearest_even_is_the_cast_of_torch(dtype: torch.dtype, rounder: str) -> None:
    x = torch.from_numpy(table_of(judge(TORCH[dtype])).points())
    if dtype is torch.float8_e4m3fn:  # past 464 torch 2.13 saturates, older ones give NaN
        x = x[x.abs() <= 464]
    assert_same(run(rounder, x, TORCH[dtype]), x.to(dtype).double(), x)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn], ids=str)
def test_all_floats_round_as_torch_casts_them(dtype: torch.dtype) -> None:
    """All 2**32 bit patterns, in the build that this processor would choose."""
    step = 2**20  # stays in the cache
    first = torch.arange(step, dtype=torch.int32)
    for start in range(-(2**31), 2**31, step):
        x = (first + start).view(torch.float32)
        y, expected = lp_round(x, TORCH[dtype]), x.to(dtype).float()
        if dtype is torch.float8_e4m3fn:
            expected = torch.where(x.abs() > 464, x.sign() * 448, expected)
        if not torch.equal(y.view(torch.int32), expected.view(torch.int32)):  # nans have many codes
            same = (y.view(torch.int32) == expected.view(torch.int32)) | (y.isnan() & expected.isnan() & x.isnan())
            assert same.all(), (x[~same][:5], y[~same][:5], expected[~same][:5])


GFLOAT = {
    "ocp_e4m3": (gf.format_info_ocp_e4m3, E4M3_TO_NAN, E4M3),
    "ocp_e5m2": (gf.format_info_ocp_e5m2, E5M2, FloatingPoint(5, 2, overflow="saturate")),
    "ocp_e2m3": (gf.format_info_ocp_e2m3, None, E2M3),
    "ocp_e3m2": (gf.format_info_ocp_e3m2, None, E3M2),
    "ocp_e2m1": (gf.format_info_ocp_e2m1, None, E2M1),
    "binary16": (gf.format_info_binary16, FP16, FloatingPoint(5, 10, overflow="saturate")),
    "bfloat16": (gf.format_info_bfloat16, BF16, FloatingPoint(8, 7, overflow="saturate")),
}
GFLOAT_MODES = {
    "nearest": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "down": gfloat.RoundMode.TowardNegative,
    "up": gfloat.RoundMode.TowardPositive,
}


@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize("name", GFLOAT)
def test_every_direction_agrees_with_gfloat(name: str, mode: str, rounder: str) -> None:
    for format in GFLOAT[name][1:]:
        if format is not None:
            x, expected = gfloat_rounded(name, mode, format is GFLOAT[name][2])
            assert_same(run(rounder, torch.from_numpy(x), format, mode), expected, x, format)


@functools.cache
def gfloat_rounded(name: str, mode: str, saturate: bool) -> tuple[np.ndarray, np.ndarray]:
    info, _, saturating = GFLOAT[name]
    x = table_of(judge(saturating)).points()
    x = x[~np.isnan(x)][:: 1 if saturating.bits < 16 else 7]
    return x, gfloat.round_ndarray(info, x.astype(np.float64), GFLOAT_MODES[mode], sat=saturate)


@pytest.mark.parametrize("precision", range(1, 8))
def test_a_grid_holds_the_8_bit_formats_of_p3109(precision: int, rounder: str) -> None:
    """The IEEE P3109 draft as gfloat has it, ties to the even code where precision is 1."""
    info = gf.format_info_p3109(8, precision)
    grid = Grid(
        precision=precision,
        emin=1 - info.bias,
        emax=math.frexp(info.max)[1] - 1,
        max=info.max,
        min=-info.max,
        overflow=Overflow.INF,
        negative_zero=False,
        ties_to_even_code=precision == 1,
    )
    values = np.array([gfloat.decode_float(info, code).fval for code in range(256)])
    values = np.unique(values[np.isfinite(values)])
    marks = np.concatenate([values, (values[:-1] + values[1:]) / 2])
    x = np.concatenate([marks, np.nextafter(marks, -np.inf), np.nextafter(marks, np.inf)])
    expected = gfloat.round_ndarray(info, x, gfloat.RoundMode.TiesToEven)
    assert_same(run(rounder, torch.from_numpy(x), _Lowered(grid)), expected, x)  # type: ignore[arg-type]


class _Lowered:
    """A grid without a format around it."""

    def __init__(self, grid: Grid) -> None:
        self.lowered = grid


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_stochastic_rounding_with_few_bits_is_gfloats_fastest(bits: int, rounder: str) -> None:
    """The words of the key, as an independent Philox gives them, decide exactly as gfloat's bits do."""
    x = np.repeat(table_of(judge(E4M3)).points()[:400], 4).astype(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) <= 448)]
    words = np.array([word_of_element(i, 5, 7) >> (32 - bits) for i in range(len(x))])
    expected = gfloat.round_ndarray(
        gf.format_info_ocp_e4m3,
        x.astype(np.float64),
        gfloat.RoundMode.StochasticFastest,
        sat=True,
        srbits=words,
        srnumbits=bits,
    )
    assert_same(run(rounder, torch.from_numpy(x), E4M3, Stochastic(bits), (5, 7)), expected, x)


# What users of other libraries reported, each as a sentence. The numbers in the comments are where.


def test_fp32_is_the_identity(rounder: str) -> None:  # Tiiiger/QPyTorch#48: 3.0 -> -3.0
    x = torch.tensor([3.0, 1.0, 2.5, -1.5, 0.1, -0.0, 1e-45, torch.inf])
    for mode in MODES:
        assert_same(run(rounder, x, FloatingPoint(8, 23), mode), x, x)
        assert_same(run(rounder, x, FP32, mode), x, x)


def test_a_half_way_fp16_goes_to_even(rounder: str) -> None:  # QPyTorch#23
    x = torch.tensor([1.00048828125])
    assert_same(run(rounder, x, FP16), x.half().float())


def test_e2m2_without_specials_has_its_sixteen_magnitudes(rounder: str) -> None:  # QPyTorch#42
    format = FloatingPoint(2, 2, specials="none")
    x = torch.linspace(0, 8, 4097)
    assert set(run(rounder, x, format).tolist()) == {float(m) for m in judge(format).magnitudes()}
    assert len(judge(format).magnitudes()) == 16


def test_float64_is_rounded_once(rounder: str) -> None:  # jax-ml/ml_dtypes#401: through fp32 -448 and 1
    x = torch.tensor([-431.99999999999994, 16973823.0], dtype=torch.float64)
    for format in (E4M3, BF16, FP16):
        assert_same(run(rounder, x, format), [rounded(judge(format), v, "nearest") for v in x.tolist()], x)
    assert run(rounder, x[:1], E4M3).item() == -416
    above_the_tie = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert run(rounder, above_the_tie, BF16).item() == 1 + 2**-7


def test_beyond_448_e4m3_saturates_or_becomes_nan_as_asked(rounder: str) -> None:  # ml_dtypes#400, pytorch#178817
    x = torch.tensor([448.0, 464.0, 465.0, 1000.0, torch.inf, -torch.inf])
    assert_same(run(rounder, x, E4M3), [448, 448, 448, 448, 448, -448])
    assert_same(run(rounder, x, E4M3_TO_NAN), [448, 448, *[torch.nan] * 4])


def test_e8m0_has_a_value_for_code_zero_and_none_for_zero(rounder: str) -> None:  # gfloat#62, TransformerEngine#3262
    x = torch.tensor([2.0**-127, 2.0**-128, 2.0**-149, 0.0, -0.0, -1.0, 2.0**127, 1.5 * 2.0**127, torch.inf])
    low = 2.0**-127
    assert_same(run(rounder, x, E8M0), [low, low, low, *[torch.nan] * 3, 2.0**127, torch.nan, torch.nan])


def test_half_way_between_powers_e8m0_goes_up(rounder: str) -> None:  # ml_dtypes and torch; gfloat goes to even codes
    assert_same(run(rounder, torch.tensor([1.49, 1.5, 3.0, 6.0]), E8M0), [1, 2, 4, 8])


def test_half_the_smallest_subnormal_goes_to_even_and_beyond_it_up(rounder: str) -> None:  # tt-metal#51971
    x = torch.tensor([0.25, 0.25000006, -0.25, -0.25000006])
    assert_same(run(rounder, x, E2M1), [0.0, 0.5, -0.0, -0.5])


def test_half_the_smallest_subnormal_goes_up_half_of_the_time(rounder: str) -> None:  # StochasticRounding.jl#62
    y = run(rounder, torch.full((2**16,), 2.0**-10), E4M3, "stochastic", (1, 2))
    assert set(y.tolist()) == {0.0, 2.0**-9}
    assert abs((y > 0).double().mean().item() - 0.5) < 5 * 0.5 / 2**8


def test_small_numbers_of_e5m2_go_to_zero(rounder: str) -> None:  # QPyTorch: 2**-17 -> 2**-16
    assert_same(run(rounder, torch.tensor([2.0**-17, -(2.0**-17), 1e-30]), E5M2), [0.0, -0.0, 0.0])


def test_fp16_overflows_to_infinity_from_65520(rounder: str) -> None:  # QPyTorch had one binade too many
    x = torch.tensor([65519.996, 65520.0, 70000.0, 1e6, torch.inf, -1e6, torch.nan])
    assert_same(run(rounder, x, FP16), x.half().float(), x)


def test_an_odd_bias_is_honoured(rounder: str) -> None:  # qonnx#159: 0.3125 in e4m4 with bias 0
    format = FloatingPoint(4, 4, bias=0, specials="none")
    x = torch.tensor([0.3125, 0.31250003, 0.0625, 0.06250001])
    assert_same(run(rounder, x, format), [rounded(judge(format), v, "nearest") for v in x.tolist()], x)


def test_exponents_come_from_bits_not_from_logarithms(rounder: str) -> None:  # log2(65535.996) is 16 in fp32
    for exponent in (-14, 16, 20, 100):
        x = torch.tensor([2.0**exponent * (1 - 2.0**-24), 2.0**exponent])
        wanted = [2.0**exponent * (1 - 2.0**-7), 2.0**exponent]
        y = torch.stack([run(rounder, x[i : i + 1], BlockFloatingPoint(8)) for i in (0, 1)]).flatten()
        assert_same(y, wanted, x)


def test_a_block_holds_its_largest_value_at_the_end_of_the_grid(rounder: str) -> None:  # QPyTorch clips the same
    assert run(rounder, torch.tensor([1.9999]), BlockFloatingPoint(8)).item() == 1.984375


def test_a_block_near_the_end_of_fp32_does_not_overflow(rounder: str) -> None:  # QPyTorch: [3e38, 1] -> -3.376e38 twice
    y = run(rounder, torch.tensor([3e38, 1.0]), BlockFloatingPoint(8))
    assert y[1] == 0 and abs(y[0] / 3e38 - 1) < 2**-7


def test_a_block_of_subnormal_numbers_is_quantized(rounder: str) -> None:  # QPyTorch leaves it as it is
    x = torch.arange(1, 1000, dtype=torch.int32).view(torch.float32)
    assert len(run(rounder, x, BlockFloatingPoint(4)).unique()) <= 8


def test_a_nan_in_a_block_is_not_lost(rounder: str) -> None:  # TransformerEngine#3550: a finite scale
    for special in (torch.nan, torch.inf, -torch.inf):
        assert run(rounder, torch.tensor([1.0, 2.0, special]), BlockFloatingPoint(8)).isnan().all()


def test_the_oracle_knows_ieee_half_from_the_cast_of_numpy() -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        half = x.astype(np.float16).astype(np.float64)
    assert_same([rounded(Float(5, 10, 15), float(v), "nearest") for v in x], half, x)
