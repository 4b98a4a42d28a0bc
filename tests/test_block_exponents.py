"""Truncating sums of operands in blocks, whose subnormal elements have their block's smallest exponent, as MMA-Sim."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import pytest
import torch
from mmasim.nv_ptx.sim import MMABlockScale, TCGen05MMABlockScale
from torch import Tensor, nn

import lptensor
from compiling import compile_anew as compile_anew
from low import same
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.base import ScalarFormat
from lptensor.blocks import MX, NVFP4, BlockFloatingPoint, BlockFormat, Scaled
from lptensor.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FP32, INT8
from lptensor.hadamard import Hadamard
from lptensor.hardware_sums import tensor_core
from lptensor.operands import Gemm, Operand
from lptensor.scaling import CurrentMaximum, Tile

NAMES = {E4M3: "e4m3", E5M2: "e5m2", E3M2: "e3m2", E2M3: "e2m3", E2M1: "e2m1"}
DTYPES = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
# significand bits behind the point, exponent bits, bias: the types of less than 8 bits are held in bytes, by code
SMALL = {E3M2: (2, 3, 3), E2M3: (3, 2, 1), E2M1: (1, 2, 1)}
EMIN = {E4M3: -6, E5M2: -14, E3M2: -2, E2M3: 0, E2M1: 0}
EMAX = {E4M3: 8, E5M2: 15, E3M2: 4, E2M3: 2, E2M1: 2}


def values(format: ScalarFormat) -> list[float]:
    """What the codes of a type of less than 8 bits stand for."""
    fraction, width, bias = SMALL[format]
    found = []
    for code in range(2 ** (1 + width + fraction)):
        field, low = code >> fraction & 2**width - 1, code & 2**fraction - 1
        size = (low + 2**fraction * (field > 0)) * 2.0 ** (max(field, 1) - bias - fraction)
        found.append(-size if code >> width + fraction else size)
    return found


def held(x: Tensor, format: ScalarFormat) -> Tensor:
    """Elements as MMA-Sim takes them."""
    if format in DTYPES:
        return x.to(DTYPES[format])
    codes = {value: code << 2 * (format == E2M1) for code, value in reversed(list(enumerate(values(format))))}
    return torch.tensor([[codes[v] for v in row] for row in x.tolist()], dtype=torch.uint8)


def blocks(rows: int, format: ScalarFormat, g: torch.Generator, top: int) -> tuple[Tensor, Tensor]:
    """(rows, 64) elements, subnormal but for a large one at ``top`` of each block of 32; and exponents of scales."""
    fine = 2.0 ** (EMIN[format] - (3 if format in (E4M3, E2M3) else 2 if format != E2M1 else 1))
    most = round(2.0 ** EMIN[format] / fine)
    elements = torch.randint(1 - most, most, (rows, 2, 32), generator=g) * fine
    elements[:, :, 8 + top :: 3] = torch.randint(-1, 2, elements[:, :, 8 + top :: 3].shape, generator=g) * 1.0
    elements[:, :, top] = 2.0 ** EMAX[format] * (1 - 2.0 * torch.randint(0, 2, (rows, 2), generator=g))
    elements[:, :, 1 - top] = 0.0
    return elements.view(rows, 64), torch.randint(-9, 10, (rows, 2), generator=g)


def scaled(elements: Tensor, exponents: Tensor) -> Tensor:
    return elements * torch.exp2(exponents.float()).repeat_interleave(32, 1)


KINDS: list[tuple[Any, str, ScalarFormat, ScalarFormat]] = [
    (TCGen05MMABlockScale, "Blackwell", E4M3, E4M3),
    (TCGen05MMABlockScale, "Blackwell", E5M2, E4M3),
    (TCGen05MMABlockScale, "Blackwell", E2M3, E3M2),
    (TCGen05MMABlockScale, "Blackwell", E4M3, E2M1),
    (MMABlockScale, "RTX Blackwell", E4M3, E5M2),
]


def of_hardware(kind: Any, name: str, formats: tuple[ScalarFormat, ScalarFormat], a: Any, b: Any, c: Tensor) -> Tensor:
    """``a @ b.mT + c`` of elements and exponents of scales, one instruction after another."""
    types = ".".join(NAMES[f] for f in formats)
    shape = "m128n8k32" if kind is TCGen05MMABlockScale else "m16n8k32"
    text = f"{shape}.kind::mxf8f6f4.block32.f32.{types}"
    core = kind(name, f"{text}.ue8m0" if kind is TCGen05MMABlockScale else f"{text}.f32.ue8m0")
    (x, of_x), (w, of_w) = a, b
    for k in range(x.shape[1] // 32):
        left, right = held(x[:, 32 * k : 32 * k + 32], formats[0]), held(w[:, 32 * k : 32 * k + 32], formats[1])
        scales = (torch.exp2(s[:, k : k + 1].float()).to(torch.float8_e8m0fnu) for s in (of_x, of_w))
        alpha, beta = scales
        c = core(left, right.T, c, alpha, beta.T)
    return c


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks, where a graph ends within a layer
@pytest.mark.parametrize("way", ["lowered", "converted", "compiled"])
@pytest.mark.parametrize("which", range(len(KINDS)), ids=[f"{k[1]}-{k[2]}-{k[3]}" for k in KINDS])
def test_subnormal_elements_count_as_in_hardware(which: int, way: str) -> None:
    kind, name, *formats = KINDS[which]
    g = torch.Generator().manual_seed(which)
    a, b = blocks(128 if kind is TCGen05MMABlockScale else 16, formats[0], g, 0), blocks(8, formats[1], g, 1)
    bias = torch.randn(8, generator=g) * torch.exp2(torch.randint(-12, 12, (8,), generator=g))
    wanted = of_hardware(kind, name, (formats[0], formats[1]), a, b, bias.expand(len(a[0]), 8))
    gemm, acc = Gemm((MX(formats[0]), MX(formats[1]))), tensor_core("blackwell_fp8")
    layer, x = nn.Linear(64, 8), scaled(*a)
    layer.weight.data, layer.bias.data = scaled(*b), bias
    assert all(same(lptensor.round(t, MX(f)), t) for t, f in zip((x, scaled(*b)), formats, strict=True))
    unknown = lptensor.matmul(x, scaled(*b).mT, acc, c=bias)
    if way == "converted":
        lptensor.convert(layer, Arithmetic(operands=gemm, accumulator=acc))
    else:
        lptensor.lower(layer, ["linear"], operands=gemm, accumulator=acc)
    y = (torch.compile(layer, backend="aot_eager") if way == "compiled" else layer)(x)
    assert same((y.dequantize() if way == "converted" else y).detach(), wanted)
    assert not same(unknown, wanted)


def exponent(x: Fraction) -> int:
    e = 0
    while abs(x) >= Fraction(2) ** (e + 1):
        e += 1
    while abs(x) < Fraction(2) ** e:
        e -= 1
    return e


def cut(x: Fraction, unit: Fraction) -> Fraction:
    """Toward zero."""
    return floor(abs(x) / unit) * unit * (1 if x > 0 else -1)


def factors(x: Tensor, format: Any) -> list[list[tuple[Fraction, int]]]:
    """Rows of numbers and their exponents, by what the blocks of a format along the last axis have as their largest."""
    if format is None:
        return [[(Fraction(v), exponent(Fraction(v)) if v else 0) for v in row] for row in x.tolist()]
    size = format.block_size
    emin, emax = (0, 0) if isinstance(format, BlockFloatingPoint) else (EMIN[format.element], EMAX[format.element])
    made = []
    for row in lptensor.round(x, format).tolist():
        numbers = [Fraction(v) for v in row]
        made.append([])
        for k, v in enumerate(numbers):
            largest = max(abs(u) for u in numbers[k - k % size : k - k % size + size])
            made[-1].append((v, max(exponent(v), exponent(largest) - emax + emin) if v else 0))
    return made


def added(a: Tensor, b: Tensor, formats: tuple[Any, Any], chunk: int, places: int) -> Tensor:
    """``a @ b.mT`` in fp32: groups of products and the running sum, each cut off below the largest exponent."""
    rows = []
    for row in factors(a, formats[0]):
        rows.append([])
        for column in factors(b, formats[1]):
            s = Fraction(0)
            pairs = [(v * w, e + f) for (v, e), (w, f) in zip(row, column, strict=True)]
            for k in range(0, len(pairs), chunk):
                terms = [(v, e) for v, e in [*pairs[k : k + chunk], (s, exponent(s) if s else 0)] if v]
                unit = Fraction(2) ** (max((e for _, e in terms), default=0) - places)
                s = sum((cut(v, unit) for v, _ in terms), Fraction(0))
                s = cut(s, Fraction(2) ** (exponent(s) - 23)) if s else s
            rows[-1].append(float(s))
    return torch.tensor(rows)


def coarse(chunk: int, places: int) -> Accumulator:
    return Accumulator(FP32, chunk=chunk, order="aligned", rounding="toward_zero", alignment=places)


def wide(*shape: int, top: int = 0) -> Tensor:
    """Numbers far below the few large ones, which stand where a tensor with the other ``top`` has zeros."""
    x = torch.randn(shape) * torch.exp2(torch.randint(-14, -5, shape))
    for axis, n in ((-2, shape[-2]), (-1, shape[-1])):
        x.index_fill_(axis, torch.arange(top, n, 16), 8.0)
    for axis, n in ((-2, shape[-2]), (-1, shape[-1])):
        x.index_fill_(axis, torch.arange(1 - top, n, 16), 0.0)
    return x


MX4, BFP = MX(E4M3, block_size=16), BlockFloatingPoint(6, block_size=8)
PAIRS: list[tuple[Any, Any]] = [
    (MX4, MX4),
    (MX(E5M2, block_size=7), MX4),  # blocks that end within a group
    (MX4, None),
    (None, BFP),
    (BFP, MX(E2M1, block_size=32)),
]


@pytest.mark.parametrize("formats", PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
@pytest.mark.parametrize(("chunk", "places"), [(4, 2), (16, 5), (170, 9)])
def test_sums_are_cut_off_below_the_exponents_of_blocks(formats: tuple[Any, Any], chunk: int, places: int) -> None:
    torch.manual_seed(0)
    x, w = wide(6, 50), wide(5, 50, top=1)
    layer = lowered(nn.Linear(50, 5, bias=False), w, Gemm(formats), coarse(chunk, places))
    assert same(layer(x).detach(), added(x, w, formats, chunk, places))


def lowered(layer: Any, weight: Tensor, gemm: Gemm, acc: Accumulator) -> nn.Module:
    layer.weight.data = weight.clone()
    made: nn.Module = lptensor.lower(layer, "all", operands=gemm, accumulator=acc)
    return made


def test_gradients_have_the_blocks_of_their_own_products() -> None:
    x, w, g = wide(40, 10, top=1).requires_grad_(), wide(24, 10, top=1), wide(40, 24)
    g *= torch.exp2(torch.arange(24.0) % 5)  # so that blocks along one axis have other scales than along the other
    gemm = Gemm(None, grad_input=(BFP, MX4), grad_weight=(MX(E4M3, axis=0), MX4))  # along whatever is added up
    layer = lowered(nn.Linear(10, 24, bias=False), w, gemm, coarse(8, 4))
    layer(x).backward(g)
    assert x.grad is not None
    assert same(x.grad, added(g, w.mT, (BFP, MX4), 8, 4))
    of_weight = added(g.mT, x.detach().mT, (MX(E4M3), MX4), 8, 4)
    assert same(layer.get_parameter("weight").grad, of_weight)


def test_convolutions_and_batches_have_them_along_what_is_added_up() -> None:
    x, w = wide(2, 6, 9), wide(5, 6, 3, top=1)
    layer = lowered(nn.Conv1d(6, 5, 3, bias=False), w, Gemm(MX4), coarse(8, 4))
    windows = x.unfold(2, 3, 1).permute(0, 2, 1, 3).reshape(14, 18)
    wanted = added(windows, w.reshape(5, 18), (MX4, MX4), 8, 4).view(2, 7, 5).mT
    assert same(layer(x).detach(), wanted)
    a, b = wide(3, 4, 40), wide(3, 40, 5, top=1)
    arithmetic = Arithmetic(operands=Gemm((BFP, MX4)), accumulator=coarse(8, 4))
    low: Any = [t.to_lp(arithmetic) for t in (a, b)]  # type: ignore[attr-defined]
    products = torch.stack([added(p, q.mT, (BFP, MX4), 8, 4) for p, q in zip(a, b, strict=True)])
    assert same(torch.bmm(*low).dequantize(), products)


def test_blocks_are_those_of_transformed_operands() -> None:
    turn = Hadamard(16, "none")
    x, w = wide(6, 48), wide(5, 48, top=1)
    layer = lowered(nn.Linear(48, 5, bias=False), w, Gemm(MX4, transform=turn), coarse(8, 4))
    assert same(layer(x).detach(), added(*(turn.apply(t, turn.draw(t)) for t in (x, w)), (MX4, MX4), 8, 4))


def test_chunks_of_such_sums_stay_as_long() -> None:
    x, w = wide(6, 100), wide(5, 100, top=1)
    layer = lowered(nn.Linear(100, 5, bias=False), w, Gemm(MX4), Accumulator(FP32, chunk=32, inner=coarse(8, 3)))
    parts = [added(x[:, k : k + 32], w[:, k : k + 32], (MX4, MX4), 8, 3) for k in range(0, 100, 32)]
    wanted = parts[0]
    for part in parts[1:]:
        wanted = wanted + part
    assert same(layer(x).detach(), wanted)


def test_a_block_says_more_than_the_accumulator_that_names_a_format() -> None:
    x, w = wide(6, 32) * 2.0**-30, wide(5, 32, top=1)
    acc = Accumulator(FP32, chunk=8, order="aligned", rounding="toward_zero", alignment=4, operands=(E4M3, None))
    layer = lowered(nn.Linear(32, 5, bias=False), w, Gemm(MX4), acc)
    assert same(layer(x).detach(), added(x, w, (MX4, MX4), 8, 4))


def test_the_scales_are_those_of_what_was_rounded() -> None:
    """450 needs the scale 2, by which it is 448 that is left, whose own scale would be 1."""
    x = torch.tensor([[450.0, 2.0**-6, 2.0**-7]])  # both count as 2**-5
    layer = lowered(
        nn.Linear(3, 1, bias=False),
        torch.tensor([[0.0, 1.0, 1.0]]),
        Gemm((MX(E4M3, scale_rule="rceil"), None)),
        coarse(8, 1),
    )
    assert layer(x).item() == 2.0**-6


def test_what_is_not_finite_stays_what_it_is() -> None:
    x, w = torch.ones(3, 32), torch.ones(2, 32)
    x[0, 3], w[1, 7] = torch.inf, torch.nan  # x is kept, and a block with NaN becomes NaN
    layer = lowered(nn.Linear(32, 2, bias=False), w, Gemm((None, MX4)), coarse(8, 4))
    assert same(layer(x).detach(), torch.tensor([[torch.inf, torch.nan], [32, torch.nan], [32, torch.nan]]))
    large = torch.tensor([[3.4e38, 1.0]])  # becomes 2**128 by the scale 2**120
    layer = lowered(nn.Linear(2, 1, bias=False), large, Gemm((None, MX(E4M3, scale_rule="rceil"))), coarse(8, 4))
    assert layer(torch.ones(1, 2)).item() == torch.inf


@pytest.mark.parametrize(
    "format",
    [
        NVFP4,  # whose scales are no powers of two
        MX(INT8),  # whose elements have no exponents
        Scaled(E4M3, CurrentMaximum(Tile((32,)))),
    ],
)
def test_other_blocks_say_nothing(format: BlockFormat) -> None:
    x, w = wide(6, 64), wide(5, 64, top=1)
    layer = lowered(nn.Linear(64, 5, bias=False), w, Gemm(format), coarse(8, 4))
    rounded = [lptensor.round(t, Operand(format)._lowered) for t in (x, w)]
    assert same(layer(x).detach(), added(*rounded, (None, None), 8, 4))


def test_more_at_once_than_there_is_room_for_are_refused() -> None:
    layer = lowered(nn.Linear(32, 2), torch.ones(2, 32), Gemm(MX4), coarse(171, 4))
    with pytest.raises(ValueError, match="up to 170 products at once, got chunk=171"):
        layer(torch.ones(3, 32))
