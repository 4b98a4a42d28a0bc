"""Codebooks: rounding to any list of values against exact rationals, and the lists of papers against the papers."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import pickle
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from backends import (
    BACKENDS,
    BUILDS,
    DTYPES,
    chosen,
    flushed_denormals,
    random_bits,
    run,
    same_bits,
    threads,
    with_neighbours,
    words_of_seed,
)
from lptensor import E8M0, FP32, MXFP4, Arithmetic, ops
from lptensor.arithmetic import contains
from lptensor.base import CARRIER_MAX
from lptensor.codebooks import DYNAMIC8, FP4_RADIX4, NF4, UDYNAMIC8, Codebook, LogNumber, TableFormat
from lptensor.formats import FixedPoint
from lptensor.hifloat import HiFloat8
from lptensor.names import named_formats
from lptensor.posits import Posit
from lptensor.rounding import Mode, Rounding, Stochastic
from lptensor.tables import Table
from oracles import codebook
from oracles.draws import goes_up

WORDS = words_of_seed(6, 400)
TINY = 2.0**-149
TABLES: dict[str, TableFormat] = {
    "one value": Codebook([3.0]),
    "two values": Codebook([-1.0, 1.0]),
    "no zero, uneven": Codebook([-3.0, -0.1, 0.5, 7.0]),
    "ends of fp32": Codebook([-CARRIER_MAX, -TINY, 0.0, TINY, 3 * TINY, 2.0**-126, 1.0, CARRIER_MAX]),
    "neighbouring floats": Codebook([1.0 + k * 2.0**-23 for k in (0, 1, 2, 4, 7)] + [2.0, 3.0]),
    "positive": Codebook([0.5, 1.0, 1.5, 4.0]),
    "linear": Codebook([k / 64 for k in range(-128, 128)]),
    "linear, mirrored": Codebook([k / 64 for k in range(-127, 128)]),
    "mirrored but for one value": Codebook([*(k / 64 for k in range(-100, 100)), 2.0]),
    "posit8": Codebook(Posit(8).values()),
    **{name: row for name, row in named_formats().items() if isinstance(row, TableFormat) and row.table.ends is None},
    "HiF8": HiFloat8("saturate"),
    "log": LogNumber(8),
    "log, powers of four": LogNumber(5, gamma=1, base=4.0),
    "LNS-Madam": LogNumber(8, gamma=8, bias=0, zero=False),
    "log to the ends": LogNumber(8, gamma=1, base=3.9, bias=64),
}
VARIANTS = [Stochastic(bits, name) for name in ("plain", "half_offset", "pre_rounded") for bits in (1, 5, 31)]
RULES = [*(mode.name.lower() for mode in Mode), *VARIANTS]


def judge(format: TableFormat) -> codebook.Listed:
    return codebook.Listed(format.values().tolist(), logarithmic=isinstance(format, LogNumber))


def points_of(format: TableFormat, dtype: torch.dtype) -> torch.Tensor:
    """Every value and border with the floats beside them, as far as a few hundred go."""
    values = format.values().tolist()
    pairs = list(zip(values, values[1:], strict=False))
    points = [*values, *((a + b) / 2 for a, b in pairs), *(math.sqrt(a * b) for a, b in pairs if a * b > 0)]
    if len(points) > 100:
        points = [*values[:9], *values[-9:], *random.Random(0).sample(points, 250)]
    return with_neighbours([abs(p) for p in points], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TABLES)
def test_values_and_borders_round_as_exact_rationals(name: str, dtype: torch.dtype) -> None:
    format, oracle = TABLES[name], judge(TABLES[name])
    x = points_of(format, dtype)
    bounded = [Fraction(v) if math.isfinite(v) else Fraction(10) ** 400 * int(math.copysign(1, v)) for v in x.tolist()]
    for mode in codebook.MODES:
        expected = torch.tensor([float(oracle.round(v, mode)) for v in bounded], dtype=torch.float64)
        for backend in BACKENDS:
            got = run(backend, x, format, mode).double()
            wrong = got != expected
            assert not wrong.any(), (backend, mode, x[wrong][:3].tolist(), got[wrong][:3], expected[wrong][:3])
            assert not (torch.signbit(got) & (got == 0)).any(), "one zero, without a sign"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TABLES)
def test_kernels_give_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    spread = torch.randn(3001, dtype=dtype) * 2.0 ** torch.randint(-30, 8, (3001,))
    x = torch.cat([random_bits(3000, dtype), spread, points_of(TABLES[name], dtype)])
    for rule in RULES:
        expected = run("reference", x, TABLES[name], rule, seed=3)
        for backend in BUILDS:
            assert same_bits(run(backend, x, TABLES[name], rule, seed=3), expected), (backend, rule)
        with flushed_denormals():
            for backend in BACKENDS:
                assert same_bits(run(backend, x, TABLES[name], rule, seed=3), expected), (backend, rule)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tables_derived_on_a_machine_that_flushes_are_the_same(dtype: torch.dtype) -> None:
    values = [-1.0, -5 * TINY, 0.0, TINY, 3 * TINY, 2.0**-126, 1.5]
    x = points_of(Codebook(values), dtype)
    expected = [ops.round(x, Codebook(values), mode) for mode in codebook.MODES]
    with flushed_denormals():
        again = Codebook([*values, 1e30])  # a table that nothing has been derived from yet
        for mode, y in zip(codebook.MODES, expected, strict=True):
            inside = (x.abs() <= 1.5).nonzero().squeeze(1)
            assert same_bits(ops.round(x[inside], again, mode), y[inside])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2**12, 2**16])
def test_tables_of_sixteen_bits(n: int, dtype: torch.dtype) -> None:
    """Against searchsorted in float64, which holds every midpoint of these values."""
    values = (torch.arange(n, dtype=torch.float64) - n // 3) * 2.0**-10
    format = Codebook(values)
    assert format.bits == n.bit_length() - 1
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, middles, middles.nextafter(torch.tensor(9e9)), torch.rand(2000).double() * 90 - 45]).to(
        dtype
    )
    low = torch.searchsorted(middles, x.double())  # ties down
    tie = torch.isin(x.double(), middles)
    expected = values[low + (tie & (low % 2 == 1))]
    for backend in BACKENDS:
        assert torch.equal(run(backend, x, format, "nearest").double(), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000])
def test_tables_and_tensors_of_any_size(n: int) -> None:
    """Kernels treat small tables, and what is left over of a vector, apart."""
    values = torch.unique(torch.randn(4 * n))[:n]
    format = Codebook(values)
    for dtype in DTYPES:
        for length in (1, 7, 15, 16, 17, 31, 48, 1001):
            x = torch.cat([values.repeat(length)[: length // 2], torch.randn(length - length // 2)]).to(dtype)
            expected, drawn = (run("reference", x, format, rule, seed=3) for rule in ("nearest", "stochastic"))
            for backend in BUILDS:
                padded = torch.full((length + 32,), 7.0, dtype=dtype)
                inside = padded[16 : length + 16]
                inside.copy_(x)
                assert same_bits(run(backend, inside, format, "nearest"), expected)
                assert same_bits(run(backend, inside, format, "stochastic", seed=3), drawn)
                with chosen(backend):
                    ops.round(inside, format, out=inside)
                assert same_bits(inside, expected)
                assert (padded[:16] == 7).all() and (padded[length + 16 :] == 7).all(), "nothing else is written"


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_give_the_bits_of_one(dtype: torch.dtype) -> None:
    x = random_bits(100_001, dtype)
    for rule in ("nearest", "stochastic"):
        with threads(1):
            alone = run(BACKENDS[-1], x, DYNAMIC8, rule)
        with threads(2):
            assert same_bits(run(BACKENDS[-1], x, DYNAMIC8, rule), alone)


@pytest.mark.parametrize("variant", ["plain", "half_offset", "pre_rounded", "equal"])
@pytest.mark.parametrize("name", ["NF4", "no zero, uneven", "two values", "log", "LNS-Madam"])
def test_the_word_of_an_element_decides_from_its_exact_chance(name: str, variant: str) -> None:
    """The chance is that of the neighbour further from zero, or across it."""
    format, oracle = TABLES[name], codebook.Listed(TABLES[name].values().tolist())
    values = format.values().double()
    between = (values[:-1] + torch.arange(len(values) - 1) % 9 / 8 * values.diff())[:: max(1, len(values) // 60)]
    x = torch.cat([torch.randn(100), between, between * (1 + 1e-5), torch.tensor([1e-9, -1e-9, 1e30, -1e30])])
    for dtype in DTYPES:
        exact = [Fraction(v) for v in x.to(dtype).tolist()]
        around = [oracle.around(v) for v in exact]
        chances = [1 - oracle.chance(v) if v < 0 else oracle.chance(v) for v in exact]
        for bits in (1, 5, 31) if variant != "equal" else (32,):
            far = [goes_up(c, word, bits, variant) for c, word in zip(chances, WORDS, strict=False)]
            index = [high if up != (v < 0) else low for v, up, (low, high) in zip(exact, far, around, strict=True)]
            expected = [float(oracle.values[i]) for i in index]
            rule = Stochastic(bits, variant) if variant != "equal" else "stochastic_equal"
            for backend in BACKENDS:
                assert run(backend, x.to(dtype), format, rule, seed=6).tolist() == expected, (backend, bits)


FEW_BITS = [Stochastic(bits, variant) for bits in (1, 2, 4, 32) for variant in ("plain", "half_offset", "pre_rounded")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", FEW_BITS, ids=repr)
def test_few_random_bits_treat_both_signs_alike(rule: Rounding, backend: str) -> None:
    for format in (
        LogNumber(6, 4),
        Codebook([-1, 0, 1]),
        Codebook(sorted(s * v for s in (-1, 1) for v in range(1, 300))),
    ):
        for dtype in DTYPES:
            x = torch.randn(3000, dtype=dtype, generator=torch.Generator().manual_seed(0))
            assert torch.equal(run(backend, -x, format, rule, seed=3), -run(backend, x, format, rule, seed=3))
    fixed, same = FixedPoint(2, 0, symmetric=True), Codebook([-1, 0, 1])  # the same values, and words
    assert torch.equal(run(backend, x, same, rule, seed=3).abs(), run(backend, x, fixed, rule, seed=3).abs())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fraction_is_cut_on_the_side_of_zero(backend: str) -> None:
    x, format = torch.tensor([0.375, -0.375, 0.625, -0.625]).repeat(1000), Codebook([-1, 0, 1])
    got = run(backend, x, format, Stochastic(1)).view(1000, 4)
    assert not got[:, :2].any()  # 0.375 of the way is none of two steps
    assert {-1.0, 0.0} == set(got[:, 3].tolist()) and {0.0, 1.0} == set(got[:, 2].tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TABLES)
def test_values_never_move(name: str, backend: str) -> None:
    for dtype in DTYPES:
        values = TABLES[name].values().to(dtype)
        for rule in RULES:
            assert torch.equal(run(backend, values, TABLES[name], rule), values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_specials(backend: str) -> None:
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 0.0, -1e-30])
    for mode in codebook.MODES:
        y = run(backend, x, NF4, mode)
        assert y[:2].isnan().all() and y[2:6].tolist() == [1.0, -1.0, 0.0, 0.0] and not torch.signbit(y[4:6]).any()
        bare = run(backend, x, TABLES["two values"], mode)
        assert bare[:2].isnan().all() and bare[2:4].tolist() == [1.0, -1.0] and bare[4] == bare[5]


VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40, unique=True)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)


@settings(max_examples=100)
@given(VALUES.map(lambda vs: sorted({v + 0.0 for v in vs})), FLOATS, st.sampled_from(codebook.MODES))
def test_any_list_rounds_as_exact_rationals_and_keeps_the_laws(values: list[float], xs: list[float], mode: str) -> None:
    x, format = torch.tensor(sorted([*xs, *values])), Codebook(values)
    y, oracle = ops.round(x, format, mode), codebook.Listed(values)
    assert y.tolist() == [float(oracle.round(Fraction(v), mode)) for v in x.tolist()]
    assert torch.equal(ops.round(y, format, mode), y) and (y.double().diff() >= 0).all()
    assert same_bits(run("reference", x, format, mode), y)


@settings(max_examples=50)
@given(VALUES.map(lambda vs: sorted({v + 0.0 for v in vs})))
def test_codes_count_the_values(values: list[float]) -> None:
    format, codes = Codebook(values), torch.arange(len(values))
    assert format.values_of(codes).tolist() == format.values().tolist() == values
    assert torch.equal(format.codes_of(format.values()), codes)
    assert 2**format.bits >= len(values) and (len(values) <= 2 or 2 ** (format.bits - 1) < len(values))


def test_bad_lists_are_refused_by_value() -> None:
    for values, message in [
        ([], "has 1 to 65536 values, got 0"),
        ([0.0, math.nan], "finite fp32 numbers, got nan"),
        ([0.0, math.inf], "finite fp32 numbers, got inf"),
        ([0.0, 1e39], "finite fp32 numbers, got 1e[+]39"),
        ([1.0, 2.0, 2.0], "distinct values in ascending order, got 2.0 twice"),
        ([1.0, 1.0 + 2.0**-30], "twice .in fp32"),
        ([-0.0, 0.0], "got 0.0 twice"),
        ([1.0, 0.5], "ascending order, got 0.5 after 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Codebook(values)
    with pytest.raises(ValueError, match="got 65537"):
        Codebook(range(2**16 + 1))


def test_codes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="codes 0 to 15, got 16"):
        NF4.values_of(torch.tensor([3, 16]))
    for bad in (0.3, math.nan, 2.0):
        with pytest.raises(ValueError, match="is not a value of NF4; round to the format first"):
            NF4.codes_of(torch.tensor([1.0, bad]))


def test_values_are_float32() -> None:
    assert Codebook([0.1, 0.2]).values().tolist() == torch.tensor([0.1, 0.2]).double().tolist()
    assert ops.round(torch.tensor([0.13], dtype=torch.float64), Codebook([0.1, 0.2])).item() == torch.tensor(0.1).item()


def test_a_codebook_is_a_value() -> None:
    a, b = Codebook([1.0, 2.0]), Codebook(torch.tensor([1.0, 2.0]), name="pair")
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1 and a != Codebook([1.0, 3.0])
    assert a.table is b.table, "what is derived from equal lists is derived once"
    ops.round(torch.ones(3), a)
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert twin == a and ops.round(torch.tensor([1.6]), twin).item() == 2.0
    assert repr(a) == "Codebook([1.0, 2.0])" and repr(b) == "pair" and repr(NF4) == "NF4"
    mine = Codebook(NF4.given, name="mine")
    assert mine == NF4 and repr(mine) == "mine" and repr(Codebook(NF4.given)) == "NF4"
    assert (NF4.bits, NF4.max, NF4.min) == (4, 1.0, -1.0)


def test_other_values_replace_those_of_a_list_and_its_name() -> None:
    half = dataclasses.replace(NF4, values=NF4.values()[7:])
    assert half == Codebook(NF4.values()[7:]) and repr(half) == "Codebook(9 values from 0 to 1)"
    assert dataclasses.replace(LogNumber(8), gamma=4) == LogNumber(8, gamma=4)


def test_tables_lie_on_the_cpu_whatever_the_default_device() -> None:
    x, format = torch.tensor([0.3, -2.5, 9.0]), Codebook([-2.0, 0.25, 4.0])
    with torch.device("meta"):
        assert ops.round(x, format).tolist() == [0.25, -2.0, 4.0]
        assert format.codes_of(ops.round(x, format, "up")).tolist() == [2, 0, 2]


def test_nan_of_every_payload_stays_nan() -> None:
    """The largest patterns lie beyond every step."""
    x = torch.tensor([2**31 - 1, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    for format in (NF4, DYNAMIC8, TABLES["one value"], TABLES["neighbouring floats"], LogNumber(12, gamma=64)):
        for rule in RULES:
            for backend in BACKENDS:
                assert run(backend, x, format, rule).isnan().all()


def test_contains() -> None:
    assert Codebook([-1.0, 0.0, 1.0, 2.0]).contains(Codebook([-1.0, 2.0]))
    assert not NF4.contains(Codebook([0.5])) and DYNAMIC8.contains(Codebook([0.0, 1.0]))
    assert contains(E8M0, Codebook([1.0, 2.0])) and not contains(E8M0, Codebook([0.0, 1.0, 2.0]))
    assert TABLES["posit8"].contains(Posit(8)) and Posit(8).contains(TABLES["posit8"])
    for format in (NF4, Posit(8)):
        with pytest.raises(TypeError, match="single numbers, got MX.*ask its element"):
            format.contains(MXFP4)


def test_any_layout_and_gradient() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    y = ops.round(x.t(), NF4)
    assert y.stride() == x.t().stride() and torch.equal(y, ops.round(x.detach().t().contiguous(), NF4))
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(6, 4))
    z = x.detach().clone()
    assert ops.round(z, NF4, out=z) is z and torch.equal(z, ops.round(x.detach(), NF4))
    assert ops.round(torch.empty(0, 3), NF4).shape == (0, 3) and ops.round(torch.tensor(0.3), NF4).shape == ()


def test_nf4_is_the_published_list() -> None:
    """QLoRA, arXiv 2305.14314, appendix E."""
    assert NF4.values().float().tolist() == [
        torch.tensor(v).item()
        for v in (
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
            *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
            *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
            *(0.7229568362236023, 1.0),
        )
    ]


@pytest.mark.parametrize(
    "format, digest",
    [
        (DYNAMIC8, "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"),
        (UDYNAMIC8, "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"),
    ],
)
def test_dynamic_maps_are_those_of_the_authors_to_the_last_bit(format: Codebook, digest: str) -> None:
    """SHA-256 of create_dynamic_map(signed) in float32, the same in bitsandbytes 0.50.2 and torchao 0.18.0 on AVX2."""
    assert hashlib.sha256(format.values().float().numpy().tobytes()).hexdigest() == digest


@pytest.mark.parametrize("format, signed", [(DYNAMIC8, True), (UDYNAMIC8, False)])
def test_dynamic_maps_are_trees_of_seven_decades(format: Codebook, signed: bool) -> None:
    """arXiv 2110.02861, section 1.3: a decade per zero bit, halved fractions, 0 and 1 in the spare codes."""
    values = format.values()
    assert len(values) == 256 and format.max == 1.0 and 0.0 in values
    positive = values[values > 0][:-1]
    assert torch.equal(values[values < 0], -positive.flip(0) if signed else values[:0])
    for zeros in range(7):
        part = positive[(positive > 10.0 ** -(zeros + 1)) & (positive < 10.0**-zeros)]
        count = 2 ** (6 - zeros + (not signed))
        assert len(part) == count
        spacing = 0.9 * 10.0**-zeros / count
        expected = torch.arange(count) * spacing + (0.1 * 10.0**-zeros + spacing / 2)
        assert torch.allclose(part, expected.double(), rtol=1e-6, atol=0)
    assert len(positive) == sum(2 ** (6 - z + (not signed)) for z in range(7))


def test_radix_four_changes_over_halfway() -> None:
    """Sun et al., NeurIPS 2020: seven powers of four of either sign; 4**n ends at 2.5 * 4**n = 4**(n + 1) / 1.6."""
    assert FP4_RADIX4.values()[8:].tolist() == [4.0**k for k in range(-3, 4)] and FP4_RADIX4.bits == 4
    for k in range(-3, 3):
        x = torch.tensor([2.5 * 4.0**k]).nextafter(torch.tensor([0.0, 9e9]))
        assert ops.round(x, FP4_RADIX4).tolist() == [4.0**k, 4.0 ** (k + 1)]


@pytest.mark.parametrize(
    "format", [LogNumber(8), LogNumber(8, gamma=8, bias=0, zero=False), LogNumber(7, gamma=5, base=10.0), LogNumber(2)]
)
def test_log_numbers_are_the_nearest_floats_to_their_powers(format: LogNumber) -> None:
    with mpmath.workdps(50):
        powers = [
            mpmath.mpf(format.base) ** (mpmath.mpf(j - format.bias) / format.gamma)
            for j in range(int(format.zero), 2 ** (format.bits - 1))
        ]
        nearest = [mpmath.mpf(v) for v in torch.tensor([float(p) for p in powers]).tolist()]
        ulps = [
            abs(a - p) <= mpmath.mpf(2) ** (mpmath.floor(mpmath.log(p, 2)) - 24)
            for a, p in zip(nearest, powers, strict=True)
        ]
    assert all(ulps)
    expected = [float(v) for v in nearest]
    assert format.values().tolist() == [*(-v for v in reversed(expected)), *[0.0] * format.zero, *expected]


def test_lns_madam_rounds_the_logarithm() -> None:
    """arXiv 2106.13914: sign(x) 2**(clip(round(gamma log2 |x|), 0, 2**(B-1) - 1) / gamma), B = gamma = 8, scale 1."""
    format, x = LogNumber(8, gamma=8, bias=0, zero=False), torch.randn(20_000) * 300
    k = (8 * x.double().abs().log2()).round().clamp(0, 127)
    assert torch.equal(ops.round(x, format), (x.sign() * 2.0 ** (k / 8)).float())


def test_log_number_borders_are_decided_exactly() -> None:
    """Between 4 and 16 the geometric mean 8 is a tie, and goes to the even code."""
    format = LogNumber(5, gamma=1, base=4.0)
    codes = format.codes_of(torch.tensor([4.0, 16.0])).tolist()
    even = (4.0, 16.0)[codes.index(next(c for c in codes if c % 2 == 0))]
    around = torch.tensor([8.0, 8.0, 8.0]).nextafter(torch.tensor([0.0, 8.0, 9e9]))
    assert ops.round(around, format).tolist() == [4.0, even, 16.0]


def test_log_number_parameters_have_bounds() -> None:
    for given_, message in [
        (dict(bits=1), "bits must be from 2 to 16, got 1"),
        (dict(bits=8, gamma=0), "gamma must be from 1"),
        (dict(bits=8, base=1.0), "base must be above 1 and up to 65536, got 1.0"),
        (dict(bits=8, base=math.nan), "base must be above 1"),
        (dict(bits=9, gamma=1), r"reaches 2\*\*127, |fp32 normals span"),
        (dict(bits=10, gamma=1), "fp32 normals span"),
        (dict(bits=16, gamma=2**16, base=1.0001), "not distinct fp32 numbers"),
    ]:
        if given_ == dict(bits=9, gamma=1):
            given_ = dict(bits=9, gamma=1, bias=0)
        with pytest.raises(ValueError, match=message):
            LogNumber(**given_)  # type: ignore[arg-type]
    assert repr(LogNumber(8)) == "LogNumber(bits=8)"
    assert repr(LogNumber(8, bias=0, zero=False)) == "LogNumber(bits=8, bias=0, zero=False)"
    assert LogNumber(8, bias=64) == LogNumber(8) and LogNumber(16, gamma=512).bits == 16


FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "zeros_like": torch.zeros_like,
    "diag_embed": torch.diag_embed,
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2)),
    "masked_fill": lambda x: x.masked_fill(x != x.max(), 0),
    "zero_": lambda x: x.clone().zero_(),
    "masked_fill_": lambda x: x.clone().masked_fill_(x != x.max(), 0),
}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("format", [Codebook([-1.0, 1.0]), Codebook([-3.0, 0.5, 1.0]), E8M0], ids=repr)
def test_tensors_of_formats_without_zero_are_filled_up_with_their_values(format: Any, fill: str) -> None:
    x = torch.tensor([1.0, 0.5, 1.0]).to_lp(Arithmetic(format, backward=FP32))  # type: ignore[attr-defined]
    y = FILLS[fill](x).dequantize()  # type: ignore[attr-defined]
    assert not (y == 0).any() and torch.allclose(y, ops.round(y, format), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x.clone().dequantize(), x.dequantize())  # type: ignore[attr-defined]


def test_values_that_a_tracer_was_the_first_to_ask_for_are_real() -> None:
    listed = Codebook([-1.0, 0.0, 0.5, 2.125])
    make_fx(lambda x: x * listed.values().max(), tracing_mode="fake")(torch.ones(2))
    assert listed.values().tolist() == [-1.0, 0.0, 0.5, 2.125]
    assert listed.codes_of(torch.tensor([0.5])).tolist() == [2]


def test_values_that_fp32_lacks_are_refused_by_name() -> None:
    for wrong in (0.1, 2.0**-150, 2.0**128):
        with pytest.raises(ValueError, match=re.escape(f"fp32 numbers, got {wrong!r};")):
            Table((-1.0, wrong))
    assert Table((-1.0, 2.0**-149, 0.10000000149011612)).values[1] == 2.0**-149
