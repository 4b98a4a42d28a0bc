"""Sweeps over values against theory, exact rationals and other people's number types."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lptensor import CurrentMaximum, LogNumber, Scaled, Tile, reference, study
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.blocks import MXFP4, MXFP8_E4M3, MXINT8, NVFP4, BlockFloatingPoint
from lptensor.codebooks import NF4, Codebook
from lptensor.convert import convert
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    FP32,
    INT4,
    INT8,
    TF32,
    FixedPoint,
    FloatingPoint,
    Format,
)
from lptensor.gemm import cumsum, reduce
from lptensor.ops import round as round_to
from lptensor.optim import OptimLP
from lptensor.posits import Posit
from lptensor.rounding import Stochastic
from lptensor.study import (
    accumulation_error,
    bits_per_value,
    exactness,
    exponent_histogram,
    format_table,
    number_line,
    plot_stagnation,
    plot_training,
    record,
    relative_error,
    rounding_bias,
    sqnr,
    update_stagnation,
)
from lptensor.study.rounding_bias import odds
from oracles.exact import MODES

TYPES: dict[Format, Any] = {
    FP16: np.float16,
    BF16: ml_dtypes.bfloat16,
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
}


def axes() -> Any:
    return __import__("matplotlib.figure").figure.Figure().subplots()


def grid_of(dtype: Any) -> np.ndarray[Any, Any]:
    """The finite values of somebody else's type, ascending."""
    width = ml_dtypes.finfo(dtype).bits
    codes = np.arange(2**width, dtype=np.uint16 if width == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        values = codes.view(dtype).astype(np.float64)
    found: np.ndarray[Any, Any] = np.unique(values[np.isfinite(values)])
    return found


def gaussian_noise(values: np.ndarray[Any, Any], stochastic: bool) -> float:
    """E (q(x) - x)**2 for a standard normal x, from integrals over the cells of a grid."""
    keep = (values > -9) & (values < 9)
    values = values[keep]
    edges = np.concatenate([[-40.0], (values[1:] + values[:-1]) / 2, [40.0]])

    def moments(a: Any, b: Any) -> tuple[Any, Any, Any]:
        """Integrals of 1, x and x**2 under the density, from a to b."""
        cdf = np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))
        density = lambda t: np.exp(-t * t / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        zero, one = cdf(b) - cdf(a), density(a) - density(b)
        return zero, one, zero + a * density(a) - b * density(b)

    if stochastic:  # (x - low) (high - x) between neighbours
        low, high = values[:-1], values[1:]
        m0, m1, m2 = moments(low, high)
        return float(np.sum((low + high) * m1 - m2 - low * high * m0))
    m0, m1, m2 = moments(edges[:-1], edges[1:])
    return float(np.sum(m2 - 2 * values * m1 + values**2 * m0))


class TestRelativeError:
    @pytest.mark.parametrize("format", [FP16, BF16, E4M3, E5M2], ids=repr)
    def test_is_that_of_another_type(self, format: Any) -> None:
        rows = relative_error(format)
        x = np.array([row["x"] for row in rows])
        grid = grid_of(TYPES[format])
        inside = x <= grid[-1]
        at = np.clip(np.searchsorted(grid, x[inside]), 1, len(grid) - 1)
        nearest = np.minimum(np.abs(grid[at] - x[inside]), np.abs(grid[at - 1] - x[inside]))
        got = np.array([row["relative"] * row["x"] for row in rows])[inside]
        assert np.allclose(got, nearest, rtol=1e-12, atol=0)

    def test_finds_the_end_of_the_normals(self) -> None:
        rows = relative_error(FP16)
        u = 2.0**-11
        for row in rows:
            if row["region"] == "normal":
                assert row["relative"] <= u / (1 + u) and row["ulps"] <= 0.5  # Jeannerod and Rump 2018
        assert min(r["x"] for r in rows if r["region"] == "normal") >= 2.0**-14
        assert max(r["relative"] for r in rows if r["region"] == "subnormal") > 100 * u
        assert {r["relative"] for r in rows if r["region"] == "underflow"} == {1.0}

    @pytest.mark.parametrize("format", [INT8, FixedPoint(4, 0, signed=False), E4M3, FixedPoint(1, 0)], ids=repr)
    def test_overflow_begins_beyond_either_end(self, format: Any) -> None:
        values = format.values().double()
        x = torch.cat([values, values[:1] * 1.01 - 0.01, values[-1:] * 1.01 + 0.01, torch.tensor([torch.nan])])
        *inside, below, above = relative_error(format, x)
        assert below["region"] == above["region"] == "overflow"
        assert [row["relative"] for row in inside] == [0.0] * int((values != 0).sum())
        assert all(row["region"] != "overflow" for row in inside)
        assert relative_error(format)[-1]["region"] == "overflow"

    def test_without_clamping_nothing_overflows(self) -> None:
        rows = relative_error(FixedPoint(8, 4, clamp=False), count=50)
        assert rows[0]["x"] == 2.0**-6 and rows[-1]["x"] == 2.0**5
        assert {row["region"] for row in rows} == {"underflow", "normal"}

    def test_ulps_and_regions_are_those_of_the_number_before_it_is_rounded(self) -> None:
        x = torch.tensor([15.75, 2.0**-6 - 2.0**-11], dtype=torch.float64)  # both become a power of two above them
        assert [(row["rounded"], row["ulps"], row["region"]) for row in relative_error(E4M3, x)] == [
            (16.0, 0.25, "normal"),
            (2.0**-6, 0.25, "subnormal"),
        ]

    def test_a_format_without_positive_values_is_looked_at_below_zero(self) -> None:
        rows = relative_error(Codebook([-4.0, -1.0]), count=7)
        assert [row["x"] for row in rows] == [-(2.0 ** (k - 2)) for k in range(7)]

    def test_formats_without_ulps_and_without_a_range(self) -> None:
        assert relative_error(Posit(8), count=9)[0]["ulps"] is None
        with pytest.raises(TypeError, match="element"):
            relative_error(MXFP4)

    def test_the_picture_has_the_rows(self) -> None:
        rows = relative_error(E4M3, count=300)
        lines = rows.plot(axes()).lines
        drawn = {(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
        assert {(row["x"], row["relative"]) for row in rows if 0 < row["relative"] < math.inf} <= drawn

    def test_the_picture_shows_a_single_point_and_none(self) -> None:
        (line,) = relative_error(E4M3, torch.tensor([1.03])).plot(axes()).lines
        assert line.get_marker() == "."
        with pytest.raises(ValueError, match="no rows to draw"):
            relative_error(E4M3, torch.zeros(3)).plot(axes())

    def test_infinities_have_no_relative_error(self) -> None:
        rows = relative_error(E5M2, torch.tensor([math.inf, 1.03, -math.inf, math.nan]))
        assert rows == relative_error(E5M2, torch.tensor([1.03]))

    @pytest.mark.parametrize("x", [[1.0, 2.0], [1e9]], ids=["exact", "overflows"])
    def test_errors_that_are_zero_or_infinite_have_no_picture(self, x: list[float]) -> None:
        with pytest.raises(ValueError, match="all are zero or infinite"):
            relative_error(E5M2, torch.tensor(x)).plot(axes())


class TestSqnr:
    @pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
    @pytest.mark.parametrize("format", TYPES, ids=repr)
    def test_of_a_gaussian_is_the_integral_over_the_grid(self, format: Any, rounding: str) -> None:
        x = torch.randn(2**20, dtype=torch.float64)
        (row,) = sqnr(x, [format], rounding)
        expected = -10 * math.log10(gaussian_noise(grid_of(TYPES[format]), rounding == "stochastic"))
        assert row["sqnr"] == pytest.approx(expected, abs=0.1)

    @pytest.mark.parametrize("bits", [3, 4, 6, 8, 10, 12])
    def test_a_bit_of_a_uniform_quantizer_is_worth_6_decibels(self, bits: int) -> None:
        x = torch.rand(2**19, dtype=torch.float64) * 2 - 1
        (row,) = sqnr(x, [FixedPoint(bits + 2, bits - 1)])
        assert row["sqnr"] == pytest.approx(20 * bits * math.log10(2), abs=0.1)

    def test_stochastic_rounding_costs_half_the_power(self) -> None:
        x = torch.rand(2**19, dtype=torch.float64) + 1
        near, random = (sqnr(x, [E4M3], rounding)[0]["sqnr"] for rounding in ("nearest", "stochastic"))
        assert near - random == pytest.approx(10 * math.log10(2), abs=0.05)  # ulp**2 / 12 against ulp**2 / 6

    def test_finds_the_format_that_keeps_outliers(self) -> None:
        x = torch.randn(2**16)
        x[::1000] *= 100
        rows = {row["format"]: row for row in sqnr(x, {"float": E4M3, "fixed": FixedPoint(8, 4)})}
        assert rows["float"]["sqnr"] > 20 > rows["fixed"]["sqnr"]
        assert rows["fixed"]["largest"] == (x - x.clamp(-8, 127 / 16)).abs().max()

    def test_counts_what_vanishes_and_what_is_lost(self) -> None:
        (row,) = sqnr(torch.tensor([1.0, 1e-9, 1e9, math.nan]), [E5M2])
        assert (row["zeros"], row["lost"], row["sqnr"]) == (0.5, 0.5, pytest.approx(180, abs=0.1))
        (row,) = sqnr(torch.tensor([0.0, 0.0, 1e-9, 1.0]), [E5M2])
        assert row["zeros"] == 0.25  # not those that were zero
        (row,) = sqnr(torch.tensor([1.125, 2.0, 3.0, 1e9]), [E5M2])  # 1.125 becomes 1
        assert (row["lost"], row["mse"], row["largest"]) == (0.25, 0.125**2 / 3, 0.125)

    def test_infinities_have_no_part_in_signal_or_noise(self) -> None:
        (row,) = sqnr(torch.tensor([1.0, math.inf]), [INT8])  # which saturates
        assert (row["sqnr"], row["mse"], row["largest"], row["lost"]) == (math.inf, 0, 0, 0.5)

    def test_the_cosine_is_that_of_the_values_and_what_they_become(self) -> None:
        (row,) = sqnr(torch.tensor([1.125, 2.0]), [E5M2])  # 1 and 2
        assert row["cosine"] == pytest.approx((1.125 + 4) / math.sqrt((1.125**2 + 4) * 5), rel=1e-12)

    def test_of_nothing_nothing_is_lost(self) -> None:
        for row in sqnr(torch.empty(0, 3), [E4M3, MXFP4, NVFP4]):
            assert (row["zeros"], row["lost"], row["mse"]) == (0, 0, 0)
        assert bits_per_value(MXFP4, (0, 3)) == 4

    @pytest.mark.theory
    def test_the_table_of_scaled_formats(self) -> None:
        """Decibels of N(0, 1), measured once with a prototype that shares nothing with this code."""
        x = torch.randn(2**11, 1024)
        table = {MXFP8_E4M3: 30.65, MXINT8: 41.66, MXFP4: 18.78, NVFP4: 20.44}
        for format, expected in table.items():
            assert sqnr(x, [format])[0]["sqnr"] == pytest.approx(expected, abs=0.1), format
        assert sqnr(x, [MXFP4], "stochastic")[0]["sqnr"] == pytest.approx(16.00, abs=0.1)
        assert sqnr(x, [NVFP4], "stochastic")[0]["sqnr"] == pytest.approx(17.23, abs=0.1)

    def test_bits_count_the_shares_of_scales(self) -> None:
        assert bits_per_value(MXFP4) == 4 + 8 / 32 and bits_per_value(NVFP4) == 4 + 8 / 16
        assert bits_per_value(MXFP4, (33,)) == 4 + 16 / 33
        assert bits_per_value(BlockFloatingPoint(8), (4, 4)) == 8 + 8 / 16
        assert bits_per_value(Scaled(INT8, CurrentMaximum(Tile((32,)), scale=FP16))) == 8 + 16 / 32
        assert [bits_per_value(f) for f in (E4M3, E2M1, INT4, Posit(16), NF4)] == [8, 4, 4, 16, 4]

    def test_the_picture_has_the_rows(self) -> None:
        rows = sqnr(torch.randn(999), [E4M3, INT8, FP16])
        (line,) = rows.plot(axes()).lines
        assert sorted(line.get_xdata()) == [8, 8, 16]
        assert sorted(line.get_ydata()) == sorted(row["sqnr"] for row in rows)

    def test_the_picture_names_what_lost_nothing_at_the_upper_edge(self) -> None:
        ax = sqnr(torch.tensor([1.25, 1.5]), [E4M3, INT8, FP16, E5M2]).plot(axes())
        finite, *beyond = ax.lines
        assert finite.get_xdata().tolist() == [8]
        marks = [(x, y, line.get_marker()) for line in beyond for x, y in line.get_xydata().tolist()]
        assert marks == [(8, 0.98, "^"), (16, 0.98, "^")]
        assert [text.get_text() for text in ax.texts] == ["INT8", "E4M3\nE5M2", "FP16"]
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["infinite"]

    def test_the_picture_names_noise_without_a_signal_at_the_lower_edge(self) -> None:
        ax = sqnr(torch.zeros(3), {"log": LogNumber(4, zero=False), "E4M3": E4M3}).plot(axes())
        marks = {line.get_marker(): line.get_ydata().tolist() for line in ax.lines[1:]}
        assert marks == {"v": [0.02], "^": [0.98]}
        assert [text.get_text() for text in ax.texts] == ["E4M3", "log"]


class TestRoundingBias:
    @pytest.mark.parametrize("r", [1, 2, 3])
    def test_few_random_bits_have_the_bias_of_the_paper(self, r: int) -> None:
        """Fitzgibbon and Felix, On Stochastic Rounding with Few Random Bits (arXiv 2504.20634)."""
        m = 4
        assert rounding_bias(Stochastic(r), m).bias == -(2.0**-r - 2.0**-m) / 2
        assert rounding_bias(Stochastic(r, "half_offset"), m).bias == 2.0 ** -(m + 1)
        assert rounding_bias(Stochastic(r, "pre_rounded"), m).bias == 0

    @pytest.mark.parametrize("variant", ["plain", "half_offset", "pre_rounded"])
    @pytest.mark.parametrize("bits", [1, 2, 7, 24, 30, 31, 32])
    def test_odds_are_the_share_of_words_that_the_reference_takes_up(self, bits: int, variant: str) -> None:
        """The largest words do; with 32 bits of a fraction to see, half a bit more changes nothing."""
        rule, all_words = Stochastic(bits, variant), 2**bits
        for fraction in (0.3, 0.5, 0.75, 1.5 * 2.0**-33, 0.25 + 1.5 * 2.0**-33, 0.5 - 2.0**-35, 1 - 2.0**-33):
            first = all_words - int(odds(rule, Fraction(fraction)) * all_words)
            words = torch.tensor([word for word in (first - 1, first) if 0 <= word < all_words])
            up = reference._drawn(torch.full(words.shape, fraction, dtype=torch.float64), rule, words << 32 - bits)
            assert up.tolist() == (words >= first).tolist(), fraction

    @pytest.mark.parametrize("name", [*MODES, "stochastic"])
    @pytest.mark.parametrize("negative", [False, True])
    def test_real_roundings_agree(self, name: str, negative: bool) -> None:
        for row in rounding_bias(name, 4, trials=4000, negative=negative):
            assert abs(row["measured"] - row["bias"]) <= 4.5 * row["deviation"] + 1e-12, row

    def test_a_flag_is_no_number(self) -> None:
        """2 times a chance of 1 would be one of 2."""
        with pytest.raises(TypeError, match="negative must be True or False, got 2"):
            rounding_bias("down", 2, negative=2)  # type: ignore[arg-type]

    @pytest.mark.parametrize("variant", ["plain", "half_offset", "pre_rounded"])
    @pytest.mark.parametrize("r", [1, 3])
    def test_real_roundings_with_few_bits_agree(self, r: int, variant: str) -> None:
        for row in rounding_bias(Stochastic(r, variant), 4, BF16, trials=8000):
            assert abs(row["measured"] - row["bias"]) <= 4.5 * row["deviation"] + 1e-12, row

    def test_variance_of_stochastic_rounding_is_a_sixth(self) -> None:
        assert rounding_bias("stochastic", 12).variance == pytest.approx(1 / 6, rel=1e-6)

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="21"):
            rounding_bias("nearest", 21)
        for format in (INT8, E8M0):
            with pytest.raises(ValueError, match="lacks"):
                rounding_bias("nearest", format=format)

    def test_the_picture_has_the_rows(self) -> None:
        rows = rounding_bias(Stochastic(2), 4, trials=100)
        ax = rows.plot(axes())
        chance = next(line for line in ax.lines if line.get_label() == "chance")
        assert chance.get_ydata().tolist() == [row["up"] for row in rows]
        ((points, _, (bars,)),) = ax.containers
        assert points.get_ydata() == pytest.approx([row["position"] + row["measured"] for row in rows])
        lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
        assert lengths == pytest.approx([2 * 3 * row["deviation"] for row in rows])  # three of them up and down


def test_a_posit_has_no_even_spacing() -> None:
    with pytest.raises(TypeError, match=r"scalar format.*Posit"):
        rounding_bias("up", format=Posit(8))  # type: ignore[arg-type]


class TestAccumulation:
    @pytest.mark.parametrize(("format", "limit", "n"), [(BF16, 5.0625, 65), (FP16, 7.0859375, 513), (E5M2, 2.0, 5)])
    def test_finds_where_the_harmonic_series_stops(self, format: Any, limit: float, n: int) -> None:
        kind, total = TYPES[format], Fraction(0)
        for k in range(1, n + 1):  # the same loop in another type; float64 sums of two such terms are exact enough
            after = Fraction(float(kind(np.float32(float(total + Fraction(1, k))))))
            stopped, total = after == total, after
            assert stopped == (k == n)
        assert float(total) == limit
        terms = 1 / torch.arange(1, 601, dtype=torch.float64)
        found = accumulation_error(terms, format)
        assert found.stagnation == [n] and found[-1]["sum"] == limit

    def test_stochastic_rounding_does_not_stop(self) -> None:
        terms = (1 / torch.arange(1, 1001, dtype=torch.float64)).expand(400, -1)
        found = accumulation_error(terms, BF16, "stochastic")
        exact = math.fsum(1 / k for k in range(1, 1001))
        spread = found[-1]["error"] * 2.0**-8 * exact
        assert found[-1]["sum"] == pytest.approx(exact, abs=4 * spread / math.sqrt(400))

    @pytest.mark.parametrize("rounding", ["stochastic", "stochastic_equal", Stochastic(4, "half_offset")])
    def test_stochastic_sums_are_those_of_an_accumulator(self, rounding: Any) -> None:
        terms, draw = torch.rand(20, 300, dtype=torch.float64), torch.Generator().manual_seed(0)
        sums = cumsum(terms, 1, Accumulator(E4M3, rounding=rounding), generator=draw)
        torch.manual_seed(0)
        found = accumulation_error(terms, E4M3, rounding)
        assert [row["sum"] for row in found] == [sums[:, row["n"] - 1].mean().item() for row in found]
        first = [[a == b for a, b in zip(row, [0.0, *row], strict=False)].index(True) + 1 for row in sums.tolist()]
        assert found.stagnation == first

    def test_chunks_save_a_long_sum(self) -> None:
        terms = 1 + torch.randn(4096, dtype=torch.float64)
        fp9 = FloatingPoint(6, 9)
        naive, chunked = accumulation_error(terms, fp9), accumulation_error(terms, fp9, chunk=64)
        exact = math.fsum(terms.tolist())
        assert naive[-1]["sum"] / exact < 0.95 and chunked[-1]["sum"] / exact > 0.99  # Wang et al. 2018, figure 3
        assert naive[-1]["exact"] == pytest.approx(exact)

    def test_the_error_is_the_root_of_the_mean_square_over_trials(self) -> None:
        found = accumulation_error(torch.tensor([[1.0, 2.0**-9], [1.0, 0.0]]), BF16)
        one = 2.0**-9 / (1 + 2.0**-9) / 2.0**-8  # of the first trial, in units of u; the second is exact
        assert found[-1]["error"] == pytest.approx(one / math.sqrt(2), rel=1e-12)

    def test_terms_of_both_signs_have_an_error_for_their_magnitudes_and_trials_one_for_all(self) -> None:
        """Higham, Accuracy and Stability of Numerical Algorithms, section 4.2: the backward error."""
        terms = [[1.0, -(2.0**-9)], [0.5, 0.25]]  # in BF16 the first sum is 1, the second is exact
        found = accumulation_error(torch.tensor(terms), BF16)[-1]
        one = Fraction(1, 2**9) / (1 + Fraction(1, 2**9)) * 2**8
        assert found["error"] == pytest.approx(float(one) / math.sqrt(2), rel=1e-12)
        assert found["exact"] == (1 - 2.0**-9 + 0.75) / 2 and found["sum"] == (1 + 0.75) / 2

    def test_rounded_terms_have_a_sum_of_their_own(self) -> None:
        terms = torch.tensor([1 + 2.0**-10, 2.0**-9])
        assert accumulation_error(terms, BF16)[-1]["exact"] == 1 + 2.0**-10 + 2.0**-9
        rounded = accumulation_error(terms, BF16, quantize_terms=True)[-1]
        assert (rounded["exact"], rounded["sum"]) == (1 + 2.0**-9, 1.0)

    def test_it_stops_at_the_first_term_that_changes_nothing_in_chunks_too(self) -> None:
        terms = torch.tensor([1.0, 256.0, 1.0, 1.0, 1.0])
        assert accumulation_error(terms, BF16, chunk=5).stagnation == accumulation_error(terms, BF16).stagnation == [3]
        assert accumulation_error(terms[1:], BF16, chunk=5).stagnation == [2]

    def test_chunks_are_those_of_a_loop(self) -> None:
        terms = torch.randn(11, dtype=torch.float64)
        for chunk in (1, 2, 4, 11, 20):
            outer = 0.0
            for start in range(0, 11, chunk):
                inner = 0.0
                for t in terms[start : start + chunk].tolist():
                    inner = float(np.float16(inner + t))
                outer = float(np.float16(outer + inner))
            assert accumulation_error(terms, FP16, chunk=chunk)[-1]["sum"] == outer

    def test_an_accumulator_says_how_itself(self) -> None:
        terms = torch.rand(3, 100, dtype=torch.float64)
        named, itself = accumulation_error(terms, FP16), accumulation_error(terms, Accumulator(FP16))
        assert list(named) == list(itself) and named.stagnation == itself.stagnation
        chunked = accumulation_error(terms, Accumulator(FP16, chunk=16))
        assert list(chunked) == list(accumulation_error(terms, FP16, chunk=16))
        whole = [math.fsum(row) for row in terms.tolist()]
        once = accumulation_error(terms, Accumulator(FP16, order="exact"))
        assert once[-1]["sum"] == pytest.approx(np.mean([float(np.float16(x)) for x in whole]), rel=1e-12)
        assert once.stagnation == [None] * 3
        harmonic = 1 / torch.arange(1, 601, dtype=torch.float64)
        assert accumulation_error(harmonic, Accumulator(BF16)).stagnation == [65]

    @pytest.mark.parametrize("rounding", ["nearest", "up", "down", "toward_zero", "odd"])
    def test_each_sum_is_rounded_once(self, rounding: str) -> None:
        """In float64 alone 1 + (2**-8 + 2**-59) is the middle of two numbers of BF16, and 1 + 2**-60 is 1."""
        for small in (2.0**-8 + 2.0**-59, 2.0**-60, -(2.0**-60)):
            terms = torch.tensor([1.0, small], dtype=torch.float64)
            (_, itself), (_, named), (_, chunk) = (
                accumulation_error(terms, Accumulator(BF16, rounding=rounding)),
                accumulation_error(terms, BF16, rounding),
                accumulation_error(terms, BF16, rounding, chunk=2),
            )
            assert named["sum"] == chunk["sum"] == itself["sum"]

    def test_steps_in_fp32_are_those_of_float32_terms(self) -> None:
        terms = torch.rand(100, generator=torch.Generator().manual_seed(0))
        fast = Accumulator(FP16, compute="fp32")
        assert accumulation_error(terms, fast)[-1]["sum"] == reduce(terms, 0, fast).item()
        inside = Accumulator(FP16, chunk=8, inner=fast)
        assert accumulation_error(terms, inside)[-1]["sum"] == reduce(terms, 0, inside).item()
        with pytest.raises(ValueError, match="got float64"):
            accumulation_error(terms.double(), fast)

    def test_nearest_grows_like_n_and_stochastic_slower(self) -> None:
        terms = torch.rand(20, 2**13, dtype=torch.float64)
        near = accumulation_error(terms, BF16)
        random = accumulation_error(terms, BF16, "stochastic")
        assert near.slope is not None and near.slope > 0.7
        assert near[-1]["error"] > 10 * random[-1]["error"]
        assert all(row["error"] <= row["worst"] for row in near)
        assert all(row["error"] <= row["sqrt"] for row in random)  # Connolly, Higham and Mary 2021, lambda = 1

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            accumulation_error(torch.zeros(2, 2, 2), BF16)
        with pytest.raises(ValueError, match="shape"):
            accumulation_error(torch.zeros(0, 2), BF16)
        with pytest.raises(TypeError, match="ask its element"):
            accumulation_error(torch.ones(2, 3), MXINT8)
        with pytest.raises(ValueError, match="chunk"):
            accumulation_error(torch.ones(3), BF16, chunk=0)
        with pytest.raises(ValueError, match="names its rounding and chunks"):
            accumulation_error(torch.ones(3), Accumulator(BF16), chunk=2)

    def test_the_picture_has_the_rows(self) -> None:
        rows = accumulation_error(torch.rand(64), BF16)
        ax = rows.plot(axes(), label="nearest")
        accumulation_error(torch.rand(64), BF16, "stochastic").plot(ax, label="stochastic")
        errors = [line for line in ax.lines if line.get_gid() == "error"]
        assert [line.get_label() for line in errors] == ["nearest", "stochastic"]
        assert errors[0].get_ydata().tolist() == [row["error"] for row in rows]
        assert errors[0].get_color() != errors[1].get_color() and errors[0].get_marker() != errors[1].get_marker()


class TestUpdateStagnation:
    def model(self) -> Any:
        p = nn.Parameter(torch.tensor([1.0, 2.0**-4, 3.0, 0.0]))
        q = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([{"params": [p]}, {"params": [q]}], lr=2.0**-10, momentum=0.5)
        (p[:3].sum() + 0 * p[3] + 512 * q.sum()).backward()
        return p, q, optimizer

    def test_finds_the_parameter_whose_steps_are_lost(self) -> None:
        p, q, optimizer = self.model()
        first, second = update_stagnation(optimizer, BF16)
        # 2**-10 beside 1, 2**-4 and 3: units in the last place are 2**-7, 2**-11 and 2**-6
        assert (first["parameter"], first["wanted"], first["lost"]) == ("0.0", 3, 2 / 3)
        assert first["binades"] == {-3: 1, 1: 1, -4: 1}
        assert (second["parameter"], second["lost"], second["edq"]) == ("1.0", 0.0, 1.0)
        assert second["ratio"] == 0.5 * 2**7

    def test_a_gradient_of_nan_is_not_praised(self) -> None:
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.tensor([math.nan, 0.3])
        (row,) = update_stagnation(torch.optim.SGD([p], lr=0.1), BF16)
        assert row["wanted"] == 2 and math.isnan(row["noise"]) and math.isnan(row["edq"])

    def test_takes_the_step_back(self) -> None:
        p, q, optimizer = self.model()
        before = [p.tolist(), q.tolist(), p.grad.tolist(), str(optimizer.state_dict())]
        update_stagnation(optimizer, BF16)
        assert [p.tolist(), q.tolist(), p.grad.tolist(), str(optimizer.state_dict())] == before
        optimizer.step()
        momentum = optimizer.state[p]["momentum_buffer"].clone()
        update_stagnation(optimizer, BF16)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], momentum)

    def test_states_keep_a_dtype_of_their_own(self) -> None:
        """load_state_dict() would cast them to their parameter's."""
        p, _, optimizer = self.model()
        optimizer.step()
        optimizer.state[p]["momentum_buffer"] = torch.full((4,), 1 + 2.0**-40, dtype=torch.float64)
        update_stagnation(optimizer, BF16)
        assert optimizer.state[p]["momentum_buffer"].tolist() == [1 + 2.0**-40] * 4

    def test_leaves_the_random_numbers_alone(self) -> None:
        _, _, optimizer = self.model()
        state = torch.get_rng_state()
        update_stagnation(OptimLP(optimizer, weight_quant=BF16), BF16, "stochastic")
        assert torch.equal(torch.get_rng_state(), state)

    def test_noise_is_that_of_the_rounded_gradient(self) -> None:
        w = nn.Parameter(torch.ones(1000))
        w.grad = torch.randn(1000)
        (row,) = update_stagnation(torch.optim.SGD([w], lr=2.0**-9), BF16)
        g = w.grad.double().numpy()
        error = w.grad.numpy().astype(ml_dtypes.bfloat16).astype(np.float64) - g
        expected = np.linalg.norm(g) / (math.sqrt(3 * 1000) * math.sqrt((error**2).mean()))
        assert row["noise"] == pytest.approx(expected, rel=1e-9)

    def test_of_a_converted_model(self) -> None:
        model = convert(nn.Linear(2, 1, bias=False), FP16)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-9)
        model(torch.ones(1, 2).to_lp(FP16)).sum().backward()  # type: ignore[attr-defined]
        (row,) = update_stagnation(optimizer, E4M3)
        assert row["lost"] == 1.0 and row["noise"] == math.inf and model.weight.tolist() == [[1.0, 1.0]]

    def test_noise_is_that_of_the_gradients_own_format(self) -> None:
        w = torch.ones(2).to_lp(BF16, grad=E4M3).requires_grad_()  # type: ignore[attr-defined]
        (w * 1.125).sum().backward()  # a number of E4M3, not of E2M1
        (row,) = update_stagnation(torch.optim.SGD([w], lr=2.0**-9), E2M1)
        assert row["noise"] == math.inf

    def test_a_step_starts_from_the_weight_as_the_format_has_it(self) -> None:
        w = nn.Parameter(torch.tensor([1.3]))
        w.grad = torch.tensor([1.0])
        (row,) = update_stagnation(torch.optim.SGD([w], lr=2.0**-12), BF16)
        assert (row["wanted"], row["lost"]) == (1, 1.0)  # rounding 1.3 itself is no step

    def test_an_infinite_step_has_no_binade(self) -> None:
        w = nn.Parameter(torch.ones(2))
        w.grad = torch.tensor([math.inf, 1.0])
        (row,) = update_stagnation(torch.optim.SGD([w], lr=2.0**-10), BF16)
        assert row["binades"] == {-3: 1} and row["ratio"] == math.inf

    def test_the_picture_divides_at_half_a_unit(self) -> None:
        ax = axes()
        plot_stagnation([{"binades": {-2: 1, -1: 3}}, {"binades": None}], ax)
        heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
        assert heights == {"lost": [25.0], "may be kept": [75.0]}

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="backward"):
            update_stagnation(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), BF16)
        with pytest.raises(TypeError, match="int"):
            update_stagnation(3, BF16)  # type: ignore[arg-type]

    @pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, lambda o: OptimLP(o, weight_quant=BF16)])
    def test_an_optimizer_that_needs_a_closure_is_refused_by_name(self, wrap: Any) -> None:
        w = nn.Parameter(torch.ones(2))
        w.grad = torch.ones(2)
        with pytest.raises(TypeError, match="LBFGS needs a closure.*such as SGD"):
            update_stagnation(wrap(torch.optim.LBFGS([w])), BF16)

    def test_the_picture_has_the_rows(self) -> None:
        _, _, optimizer = self.model()
        rows = update_stagnation(optimizer, BF16)
        bars = rows.plot(axes()).patches
        drawn = {round(b.get_x() + b.get_width() / 2 - 0.5): b.get_height() for b in bars}
        counts: dict[int, int] = {}
        for row in rows:
            for e, n in row["binades"].items():
                counts[e] = counts.get(e, 0) + n
        assert drawn == {e: pytest.approx(100 * n / sum(counts.values())) for e, n in counts.items()}


@pytest.mark.parametrize(
    "study",
    [
        lambda: relative_error(E4M3, [1.0]),  # type: ignore[arg-type]
        lambda: sqnr([1.0], [E4M3]),  # type: ignore[arg-type]
        lambda: accumulation_error([1.0], BF16),  # type: ignore[arg-type]
    ],
)
def test_lists_are_refused_by_name(study: Any) -> None:
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        study()


@pytest.mark.parametrize(("given", "error"), [("", ValueError), (0, TypeError), (False, TypeError), ([], TypeError)])
def test_only_none_is_no_rounding(given: Any, error: Any) -> None:
    for format in (BF16, NF4):
        with pytest.raises(error, match="rounding"):
            accumulation_error(torch.ones(3), format, given)


@pytest.mark.parametrize(
    "study",
    [
        lambda x: relative_error(E4M3, x),
        lambda x: sqnr(x, [E4M3]),
        lambda x: accumulation_error(x, BF16),
        lambda x: exponent_histogram(x, E4M3),
    ],
)
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(2, dtype=torch.complex64), "got torch.complex64; take .real and .imag"),
        (torch.ones(2).to_sparse(), r"got torch.sparse_coo; take its .values\(\)"),
        (torch.ones(2, device="meta"), "meta device"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_that_are_no_dense_real_numbers_are_refused(study: Any, x: Tensor, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        study(x)


PICTURES: dict[Any, list[dict[str, Any]]] = {
    study.plot_accumulation: accumulation_error(torch.ones(4), BF16),
    study.plot_bias: rounding_bias("nearest", bits=1),
    study.plot_bisect: [{"undone": 0, "loss": 2.0, "recovered": False}],
    study.plot_bit_layout: study.bit_layout(E4M3),
    study.plot_errors: [{"op": "add", "error": 0.5, "born": 0.5, "nonfinite": 0}],
    study.plot_front: [{"bits": 4, "loss": 0.5}],
    study.plot_histogram: exponent_histogram(torch.ones(3), E4M3),
    study.plot_layer_map: [{"role": "weight", "values": 4, "underflow": 0.25}],
    study.plot_number_line: number_line(E2M1),
    study.plot_ranges: format_table([E4M3, FP16]),
    study.plot_relative_error: relative_error(E4M3, count=20),
    study.plot_sqnr: sqnr(torch.linspace(1, 9, 50), [E4M3, INT8]),
    plot_stagnation: [{"binades": {-3: 1, 1: 1}}],
}


@pytest.mark.parametrize("plot", PICTURES)
class TestRowsOfAPicture:
    def test_a_generator_gives_the_picture_of_a_list(self, plot: Any) -> None:
        parts = [
            [(type(part), str(part)) for part in plot(rows, axes()).get_children()]
            for rows in (list(PICTURES[plot]), (row for row in PICTURES[plot]))
        ]
        assert parts[0] == parts[1]

    def test_no_rows_are_refused(self, plot: Any) -> None:
        for nothing in ([], iter([])):
            with pytest.raises(ValueError, match="no rows to draw"):
                plot(nothing, axes())

    @pytest.mark.parametrize("rows", [None, 3, "abc", [1, 2], [{}], [{"a": 1}], E4M3], ids=repr)
    def test_rows_of_something_else_are_refused(self, plot: Any, rows: Any) -> None:
        with pytest.raises(TypeError, match="this picture is of rows, dicts with .*, got "):
            plot(rows, axes())

    @pytest.mark.parametrize("ax", ["ax", 3, np.array([None, None])], ids=str)
    def test_axes_are_one_of_matplotlib(self, plot: Any, ax: Any) -> None:
        with pytest.raises(TypeError, match="ax must be one matplotlib axes"):
            plot(PICTURES[plot], ax)


def test_rows_without_a_column_of_their_picture_say_which() -> None:
    rows = sqnr(torch.ones(2), [E4M3]).only("format", "bits")
    with pytest.raises(TypeError, match="dicts with format, bits, sqnr, got a row of format, bits$"):
        rows.plot(axes())


def test_zeros_have_a_picture_of_a_range() -> None:
    assert len(exponent_histogram(torch.zeros(3), E4M3).plot(axes()).lines) == 3


@pytest.mark.parametrize("column", ["format", "binades", "nothing"])
def test_a_layer_map_shows_numbers(column: str) -> None:
    rows = [{"role": "weight", "values": 4, "underflow": 0.25, "format": "E4M3", "binades": {0: 4}}]
    with pytest.raises(ValueError, match=f"such as values, underflow, got column='{column}'"):
        study.plot_layer_map(rows, axes(), column=column)


class TestPictures:
    def test_older_rows_draw_themselves(self) -> None:
        assert len(number_line(E2M1).plot(axes()).lines) >= 3
        table = format_table([E4M3, FP16])
        ax = table.plot(axes())
        assert [t.get_text() for t in ax.get_yticklabels()] == ["E4M3", "FP16"]
        ends = sorted(b.get_x() for b in ax.patches), max(b.get_x() + b.get_width() for b in ax.patches)
        assert ends[0] == [-24, -14, -9, -6] and ends[1] == pytest.approx(math.log2(65504))

    def test_training_curves_show_where_a_run_breaks(self) -> None:
        ax = plot_training({"fp32": [1.0, 0.5, 0.25], "fp8": [1.0, 2.0, math.nan]}, axes())
        names = [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]
        assert names == ["fp32", "fp8"]
        assert ax.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.25]
        cross = ax.lines[-1]
        assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([2], [2.0])
        with pytest.raises(ValueError, match="no curves"):
            plot_training({}, axes())

    @pytest.mark.parametrize("values", [[], [math.nan], [math.inf, 0.0, -1.0]], ids=str)
    def test_curves_without_a_value_to_draw_are_refused(self, values: list[float]) -> None:
        with pytest.raises(ValueError, match="no curve has a positive value to draw: fp8"):
            plot_training({"fp8": values}, axes())
        assert len(plot_training({"fp8": values, "fp32": [1.0]}, axes()).lines) >= 2

    @pytest.mark.parametrize("values", ["abc", [None], torch.ones(2, 2)], ids=["letters", "none", "matrix"])
    def test_values_of_a_curve_are_numbers(self, values: Any) -> None:
        with pytest.raises(TypeError, match="a value of 'fp8' must be a number"):
            plot_training({"fp8": values}, axes())
        with pytest.raises(TypeError, match="ax must be one matplotlib axes"):
            plot_training({"fp8": [1.0]}, "ax")


class Counting(torch.optim.SGD):
    """SGD that notes in its groups how often it has stepped."""

    def step(self, closure=None):
        self.param_groups[0]["steps"] = self.param_groups[0].get("steps", 0) + 1
        return super().step(closure)


def test_what_the_step_adds_to_a_group_is_taken_back() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    optimizer = Counting([w], lr=0.5)
    update_stagnation(optimizer, BF16)
    assert "steps" not in optimizer.param_groups[0]


def test_gradients_that_the_step_would_round_are_as_before() -> None:
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([1.1, 0.3])
    before = w.grad.clone()
    update_stagnation(OptimLP(torch.optim.SGD([w], lr=0.5), grad_quant=E5M2), BF16)
    assert torch.equal(w.grad, before)


def test_plain_gradients_beside_low_precision_weights_stay_plain_and_step_as_they_are_rounded() -> None:
    """To the weights' format, in which 0.3 is 0.3125."""
    w = nn.Parameter(torch.full((2,), 0.625).to_lp(E5M2))  # type: ignore[attr-defined]
    w.grad = grad = torch.full((2,), 0.3)
    optimizer = torch.optim.SGD([w], lr=0.2)
    (row,) = update_stagnation(optimizer, E5M2)
    assert row["ratio"] == pytest.approx(0.2 * 0.3125 / 2.0**-3)
    assert w.grad is grad and grad.tolist() == torch.full((2,), 0.3).tolist() and w.tolist() == [0.625] * 2
    optimizer.step()
    assert w.grad.arithmetic == w.arithmetic and w.grad.tolist() == [0.3125] * 2  # type: ignore[attr-defined]


def test_terms_of_zero_are_no_stagnation() -> None:
    for chunk in (None, 4):
        assert accumulation_error(torch.tensor([1.0, 0.0, 0.5, 2.0**-10]), BF16, chunk=chunk).stagnation == [4]


def test_noise_without_a_signal_is_minus_infinite() -> None:
    (row,) = sqnr(torch.zeros(3), LogNumber(4, zero=False))  # which takes zeros to its smallest value
    assert row["sqnr"] == -math.inf and row["mse"] > 0


@pytest.mark.parametrize("kind", ["plain", "convert", "nearest", "kahan", "accumulator", "convert nearest"])
def test_a_step_is_looked_at_before_weights_are_rounded(kind: str) -> None:
    """Seven of eight updates are a quarter of a unit in the last place of BF16 at 1: lost, whatever holds weights."""
    w = nn.Linear(8, 1, bias=False)
    w.weight.data = torch.tensor([[1.0] * 7 + [2.0**-4]])
    net = convert(w, BF16) if "convert" in kind else w
    optim: Any = torch.optim.SGD(net.parameters(), lr=2.0**-9)
    if kind in ("nearest", "kahan", "convert nearest"):
        optim = OptimLP(optim, weight_quant=None if "convert" in kind else BF16, update=kind.split()[-1])
    elif kind == "accumulator":
        optim = OptimLP(optim, weight_quant=BF16, acc_quant=FP32)
    net(torch.ones(1, 8)).sum().backward()
    before = [p.detach().clone() for p in net.parameters()]
    (row,) = update_stagnation(optim, BF16)
    assert row["wanted"] == 8 and row["lost"] == 7 / 8 and row["binades"] == {-2: 7, 2: 1}
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    arithmetic = Arithmetic(BF16) if "convert" in kind else None
    assert getattr(net.weight, "arithmetic", None) == arithmetic == getattr(net.weight.grad, "arithmetic", None)
    if kind not in ("plain", "accumulator"):
        optim.step()
        assert net.weight[0, :7].tolist() == [1.0] * 7


def test_products_that_are_subnormal_where_fp32_is_too_coarse_are_no_theorem() -> None:
    """x y = 1.000116 * 2**-137 is above the middle of 0 and TF32's smallest number, and fp32 has it on the middle."""
    x, y = float.fromhex("0x1.05p-69"), float.fromhex("0x1.f64p-69")
    exact = Fraction(x) * Fraction(y)
    assert 2 * exact > Fraction(2) ** -136 and Fraction(float(np.float32(x) * np.float32(y))) * 2 == Fraction(2) ** -136
    assert all(round_to(torch.tensor([v]), TF32).item() == v for v in (x, y))
    for format in (TF32, FloatingPoint(8, 9), FloatingPoint(8, 8), FloatingPoint(7, 10, bias=125)):
        found = exactness(format, "mul", trials=1000)
        assert found.exact is False, format
        product, smallest = math.prod(map(Fraction, found.operands)), Fraction(format.grid.smallest)
        assert (found.computed, found.correct) == (0, smallest) and smallest / 2 < product < smallest
    for format in (FP16, BF16, FloatingPoint(8, 7), FloatingPoint(7, 10, bias=118)):
        assert exactness(format, "mul").proof == "theorem", format


def test_a_step_that_is_taken_back_is_heard_of_by_nobody() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 8)
    optim = torch.optim.SGD(net.parameters(), lr=0.1)
    heard: list[int] = []
    optim.register_step_post_hook(lambda *_: heard.append(1))
    with record(net, optim, forward=BF16) as log:
        for _ in range(4):
            optim.zero_grad()
            net(torch.randn(4, 8)).square().mean().backward()
            update_stagnation(OptimLP(optim, weight_quant=BF16), BF16)
            update_stagnation(optim, BF16)
            optim.step()
    assert log.steps == 4 and len(heard) == 4
    assert {row["wanted"] for row in log.rows() if row["role"] == "weight"} == {4 * 64, 4 * 8}


def test_sparse_gradients_take_steps_that_are_looked_at() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2, 1])).sum().backward()
    (row,) = update_stagnation(torch.optim.SGD(table.parameters(), lr=0.1), BF16)
    assert row["wanted"] == 6 and row["noise"] == math.inf  # 1 and 2 are BF16 numbers


def test_no_value_of_a_wide_format_lies_beyond_its_ends() -> None:
    assert not number_line(FP32, 1e39, 1e40) and not number_line(FixedPoint(20, 0, signed=False), -3, -2.999)


def test_an_infinite_error_has_no_part_in_a_slope() -> None:
    found = accumulation_error(torch.full((40,), 30000.0), FP16)
    assert [row["error"] for row in found[:2]] == [0, 0] and found[-1]["error"] == math.inf and found.slope is None


def test_replicas_of_which_some_overflow_agree_in_no_digit() -> None:
    torch.manual_seed(0)
    x = torch.tensor([65503.0, torch.nan]).to_lp(FP16, "stochastic")
    found = study.replicas(lambda x: x * 1.00001 + 15.9, x)
    assert set(found.samples[:, 0].tolist()) == {65504.0, math.inf}
    assert found.digits[0] == 0 and found.digits[1].isnan()
    found = study.replicas(lambda x: (y := x * 1.00001 + 15.9) - y, x)  # NaN where it overflows, else 0
    assert {str(value) for value in found.samples[:, 0].tolist()} == {"0.0", "nan"} and found.digits[0] == 0
