"""HiF8 against the package en_dtypes and exact rationals: every code, every border, every mode, both ends."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn

import lptensor
from backends import (
    BACKENDS,
    BUILDS,
    DTYPES,
    flushed_denormals,
    random_bits,
    run,
    same_bits,
    with_neighbours,
    words_of_seed,
)
from lptensor import E4M3, HIF8, Arithmetic, HiFloat8
from lptensor.rounding import Mode, Stochastic
from lptensor.study import bit_layout, faults, format_table, number_line
from lptensor.text import read, write
from oracles import hif8
from oracles.draws import goes_up
from oracles.exact import MODES

OVERFLOWS = ("inf", "saturate", "propagate", "nan")
EVERY = [HiFloat8(overflow) for overflow in OVERFLOWS]
CODES = torch.arange(256)
VALUES = torch.tensor(hif8.VALUES, dtype=torch.float64)


def points(dtype: torch.dtype) -> torch.Tensor:
    """Every value and every border, what would come next and its border, each with the floats beside it."""
    values = HIF8.values()[HIF8.values() >= 0]
    marks = [*values.tolist(), *((values[1:] + values[:-1]) / 2).tolist(), 40960.0, 45056.0, 49152.0, 65536.0]
    x = with_neighbours(marks, dtype)
    return torch.cat([x, x.new_tensor([math.nan, -math.nan])])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.double().nan_to_num(nan=3e5, posinf=1e9, neginf=-1e9), b.double().nan_to_num(3e5, 1e9, -1e9))


def test_every_code_stands_for_what_en_dtypes_says() -> None:
    assert same(lptensor.decode(CODES, HIF8), VALUES)
    assert lptensor.encode(VALUES, HIF8).tolist() == CODES.tolist()
    assert torch.equal(HIF8.values(), VALUES[VALUES.isfinite()].sort().values) and len(HIF8.values()) == 253
    assert (HIF8.max, HIF8.min, HIF8.bits) == (2.0**15, -(2.0**15), 8)


def test_away_from_zero_is_the_conversion_of_en_dtypes() -> None:
    """It becomes another value at the same floats."""
    first = torch.tensor(list(hif8.FIRST.values()), dtype=torch.int32)
    steps = first.clamp(min=1)
    x = torch.cat([steps, steps - 1]).view(torch.float32)
    codes = torch.tensor(list(hif8.FIRST))
    before = torch.cat([codes[:1], codes[:-1]])  # the file has them in ascending order of the values
    wanted = torch.cat([codes, before])
    for backend in BACKENDS:
        for sign in (1, -1):
            got = lptensor.encode(run(backend, sign * x, HIF8, "nearest_away"), HIF8).long()
            assert torch.equal(got, torch.where(wanted == 0, 0, wanted + 128 * (sign < 0)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", EVERY, ids=repr)
def test_every_border_rounds_as_exact_rationals(format: HiFloat8, dtype: torch.dtype) -> None:
    x = points(dtype)
    for mode in MODES:
        wanted = torch.tensor([hif8.rounded(v, mode, format.overflow) for v in x.tolist()], dtype=torch.float64)
        for backend in BACKENDS:
            got = run(backend, x, format, mode)
            wrong = ~((got == wanted) | got.isnan() & wanted.isnan())
            assert not wrong.any(), (backend, mode, x[wrong][:3].tolist(), got[wrong][:3], wanted[wrong][:3])
            assert not (torch.signbit(got) & (got == 0)).any(), "one zero, without a sign"


RULES = [
    *Mode,
    *(Stochastic(bits, name) for name in ("plain", "half_offset", "pre_rounded") for bits in (1, 5, 31)),
    *(Stochastic(32, beyond=beyond) for beyond in ("saturate", "probability")),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", EVERY, ids=repr)
def test_kernels_give_the_bits_of_the_reference(format: HiFloat8, dtype: torch.dtype) -> None:
    x = torch.cat([random_bits(2000, dtype), torch.randn(2000, dtype=dtype) * 3e4, points(dtype)])
    for rule in RULES:
        expected = run("reference", x, format, rule, seed=3)
        for backend in BUILDS:
            assert same_bits(run(backend, x, format, rule, seed=3), expected), (backend, rule)
        with flushed_denormals():
            for backend in BACKENDS:
                assert same_bits(run(backend, x, format, rule, seed=3), expected), (backend, rule)


@pytest.mark.parametrize("beyond", ["overflow", "saturate", "probability"])
@pytest.mark.parametrize("format", EVERY, ids=repr)
def test_the_word_of_an_element_decides_from_its_exact_chance(format: HiFloat8, beyond: str) -> None:
    """Past the largest value it is that of going to the number which comes next, or half as far."""
    words, most = words_of_seed(6, 900), Fraction(hif8.MAX)
    far = hif8.NEXT if beyond != "probability" else (most + hif8.NEXT) / 2
    kept = format.overflow in ("saturate", "propagate") or beyond == "saturate"
    end = hif8.MAX if kept else math.nan if format.overflow == "nan" else math.inf
    at = torch.linspace(-0.99, 1.5, 300).double()
    x = torch.cat([at * 49152, at.exp2() * 2.0**-22, at * 2.0**-22])
    for dtype in DTYPES:
        for bits, variant in [(1, "plain"), (3, "half_offset"), (5, "pre_rounded"), (32, "plain")]:
            wanted = []
            for v, word in zip(x.to(dtype).tolist(), words, strict=True):
                a = Fraction(abs(v))
                low, high = (most, far) if most <= a < far else (a, a) if a >= far else hif8.around(a)
                up = low == high or goes_up((a - low) / (high - low), word, bits, variant)
                value = high if up else low
                wanted.append(math.copysign(float(value) if value <= most else end, v) if value else 0.0)
            for backend in BACKENDS:
                got = run(backend, x.to(dtype), format, Stochastic(bits, variant, beyond), seed=6)
                assert same(got, torch.tensor(wanted)), (backend, dtype, bits, variant)


def test_borders_are_where_the_documentation_has_them() -> None:
    x = torch.tensor([40960.0, 2.0**-23, 1.0625, -1.0625])
    assert lptensor.round(x, HIF8, "nearest_away").tolist() == [math.inf, 2.0**-22, 1.125, -1.125]
    assert lptensor.round(x, HIF8).tolist() == [2.0**15, 0.0, 1.0, -1.0]
    beyond = torch.tensor([1e30, -1e30, math.inf])
    assert lptensor.round(beyond, HiFloat8("saturate")).tolist() == [2.0**15, -(2.0**15), 2.0**15]
    assert lptensor.round(beyond, HiFloat8("propagate")).tolist() == [2.0**15, -(2.0**15), math.inf]
    assert lptensor.round(beyond, HiFloat8("nan")).isnan().all()


def test_infinities_and_nan_have_codes_whatever_overflow_does() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1e9])
    wanted = {"inf": 0x6F, "saturate": 0x6E, "propagate": 0x6E, "nan": 0x80}
    for format in EVERY:
        assert lptensor.encode(x, format).tolist() == [0x6F, 0xEF, 0x80, 0, wanted[format.overflow]]
        assert all(map(format.has, (math.inf, -math.inf, math.nan, 0.0))) and not format.has(49152.0)
        many = x.repeat(2**15)  # by a table
        assert torch.equal(lptensor.encode(many, format), lptensor.encode(x, format).repeat(2**15))
    assert same(lptensor.decode(lptensor.encode(many, HIF8), HIF8)[:3], x[:3])
    packed = lptensor.pack(lptensor.encode(x, HIF8), 8)
    assert lptensor.unpack(packed, 8, 5).tolist() == [0x6F, 0xEF, 0x80, 0, 0x6F]


def test_neighbours_are_those_of_the_values_and_infinity_comes_last() -> None:
    values = HIF8.values()
    ladder = torch.cat([values.new_tensor([-math.inf]), values, values.new_tensor([math.inf])])
    assert same(lptensor.next(ladder, HIF8), torch.cat([ladder[1:], ladder[-1:]]))
    assert same(lptensor.next(ladder, HIF8, up=False), torch.cat([ladder[:1], ladder[:-1]]))
    middles = (values[1:] + values[:-1]) / 2
    assert same(lptensor.next(middles, HIF8), values[1:]) and same(lptensor.ulp(middles, HIF8), values.diff())
    ends = torch.tensor([2.0**15, 1e9, math.inf])
    beyond = ([math.inf] * 3, [2.0**15] * 3, [2.0**15] * 2 + [math.inf], [math.nan] * 3)
    for format, wanted in zip(EVERY, beyond, strict=True):
        assert same(lptensor.next(ends, format), torch.tensor(wanted))
        assert same(lptensor.next(-ends, format, up=False), -torch.tensor(wanted))


def test_its_limits() -> None:
    info = lptensor.finfo(HIF8)
    assert (info.bits, info.max, info.smallest_subnormal, info.eps, info.codes) == (8, 2.0**15, 2.0**-22, 0.125, 256)
    assert info.binades == 37.0


def test_a_format_is_a_value() -> None:
    for format in EVERY:
        for twin in (
            copy.deepcopy(format),
            pickle.loads(pickle.dumps(format)),
            read(write(format)),
            eval(repr(format)),
        ):
            assert twin == format and hash(twin) == hash(format) and twin.table is format.table
        assert lptensor.format_from(lptensor.describe(format)) == format
    assert repr(HIF8) == "HIF8" and repr(HiFloat8("saturate")) == "HiFloat8(overflow='saturate')"
    assert len(set(EVERY)) == 4 and HIF8 == HiFloat8() != HiFloat8("saturate")
    with pytest.raises(ValueError, match="overflow of HiFloat8 must be inf or saturate or propagate or nan, got 'no'"):
        HiFloat8("no")
    assert lptensor.formats.BF16.contains(HIF8) and not E4M3.contains(HIF8) and HIF8.contains(lptensor.E2M1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_functions_round_alike(backend: str) -> None:
    x = points(torch.float32).nan_to_num(0.0, 0.0, 0.0).clamp(-1e6, 1e6)

    def both(x: torch.Tensor) -> torch.Tensor:
        return lptensor.round(x, HIF8, "nearest_away") + lptensor.round(x, HiFloat8("saturate"))

    assert same_bits(torch.compile(both, backend=backend, fullgraph=True)(x), both(x))


def test_a_network_learns_in_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    lptensor.convert(model, Arithmetic(HIF8, rounding="stochastic", backward=HIF8))
    optim = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        loss = (model(x.to_lp(HIF8)).dequantize() - y).square().mean()  # type: ignore[attr-defined]
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    for p in model.parameters():
        assert all(map(HIF8.has, p.dequantize().flatten().tolist()))  # type: ignore[attr-defined]
        assert all(map(HIF8.has, p.grad.dequantize().flatten().tolist()))  # type: ignore[attr-defined, union-attr]
    assert losses[-1] < losses[0] / 4


def test_tensors_overflow_as_the_format_says() -> None:
    big = torch.full((2,), 2.0**15)
    assert (big.to_lp(HIF8) * 2).tolist() == [math.inf] * 2  # type: ignore[attr-defined]
    assert (big.to_lp(HiFloat8("saturate")) * 2).tolist() == [2.0**15] * 2  # type: ignore[attr-defined]
    up = torch.nextafter(big.to_lp(HIF8), torch.full((2,), math.inf).to_lp(HIF8))  # type: ignore[attr-defined]
    assert up.tolist() == [math.inf] * 2


def test_what_tables_and_pictures_say_of_it() -> None:
    (row,) = format_table([HIF8])
    assert (row["kind"], row["specials"], row["overflow"]) == ("HiF8", "inf, NaN, no -0", "inf")
    assert (row["values"], row["source"]) == (253, "arXiv 2409.16626")
    line = number_line(HIF8)
    assert [VALUES[r["code"]].item() for r in line] == [r["value"] for r in line] == HIF8.values().tolist()
    assert [r["beyond"] for r in line if r["beyond"]] == ["inf"] * 2
    assert [r["beyond"] for r in number_line(HiFloat8("propagate")) if r["beyond"]] == ["propagate"] * 2


def test_the_fields_of_a_code_make_its_value() -> None:
    """The value from what the fields say, as the paper defines them."""
    for code, value in enumerate(hif8.VALUES):
        rows = bit_layout(HIF8, value)
        assert "".join(row["code"] for row in rows) == f"{code:08b}"
        parts = {row["field"]: row["code"] for row in rows}
        assert parts["dot"] in ("11", "10", "01", "001", "0001", "0000")
        mantissa, written = int(parts["mantissa"], 2), parts.get("exponent", "")
        exponent = int("1" + written[1:], 2) * (-1) ** int(written[0]) if written else 0
        if parts["dot"] == "0000":
            wanted = 2.0 ** (mantissa - 23) if mantissa else math.nan if code == hif8.NAN else 0.0
        else:
            wanted = 2.0**exponent * (1 + mantissa / 2 ** len(parts["mantissa"]))
        signed = math.copysign(math.inf if wanted == hif8.NEXT else wanted, -1.0 if parts["sign"] == "1" else 1.0)
        assert signed == value or math.isnan(signed) and math.isnan(value)


def test_bits_flip_in_its_words() -> None:
    x = torch.ones(4).to_lp(HIF8)  # type: ignore[attr-defined]
    with faults(rate=1.0, bits=[7], seed=0):
        y = x * 2
    assert y.tolist() == [-2.0] * 4


def test_blocks_take_no_lists() -> None:
    with pytest.raises(TypeError):
        lptensor.MX(HIF8)
