"""Sums of elements, which scales multiply afterwards: integers by numpy, tensor cores by MMA-Sim, and powers of two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from mmasim.nv_ptx.sim import WGMMA
from torch import Tensor, nn

import lptensor
from compiling import compile_anew as compile_anew
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.blocks import MXFP8_E4M3, Scaled
from lptensor.formats import BF16, FP16, FP32, INT8, FixedPoint, FloatingPoint
from lptensor.hadamard import Hadamard
from lptensor.hardware_sums import integer_accumulator
from lptensor.operands import Gemm
from lptensor.scaling import Channel, CurrentMaximum, CurrentRange, PowerOfTwo
from lptensor.training import recipes
from lptensor.unscaled_sums import take_apart
from oracles import exact

PER_ROW = Scaled(INT8, CurrentMaximum(Channel(0)))
PER_TENSOR = Scaled(INT8, CurrentMaximum())
RANGES, RANGE = Scaled(INT8, CurrentRange(Channel(0))), Scaled(INT8, CurrentRange())


def lowered(layer: nn.Module, gemm: Gemm, acc: Accumulator) -> nn.Module:
    return lptensor.lower(layer, layer_types="all", operands=gemm, accumulator=acc)


def single(x: Fraction) -> float:
    return float(exact.rounded(exact.Float(8, 23, 127), x, "nearest"))


def integers(x: np.ndarray, per_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """Along the last axis: whole numbers, and the scale of each row."""
    scale = (np.abs(x).max(axis=-1 if per_row else None, keepdims=True) / np.float32(127)).astype(np.float32)
    return np.rint(x / scale).astype(np.int64), np.broadcast_to(scale, (len(x), 1))


def asymmetric(x: np.ndarray, per_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same with a zero point, which is subtracted."""
    axis = -1 if per_row else None
    low, high = (np.minimum(x.min(axis, keepdims=True), 0), np.maximum(x.max(axis, keepdims=True), 0))
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    zero = np.clip(-128 - np.rint(low / scale), -128, 127)
    codes = np.clip(np.rint(x / scale) + zero, -128, 127)
    return (codes - zero).astype(np.int64), np.broadcast_to(scale, (len(x), 1))


def product(x: np.ndarray, w: np.ndarray, bits: int, format: Any) -> np.ndarray:
    """``x @ w.T`` by way of integers that wrap; both scales, multiplied in fp32, times the sum, rounded once."""
    per_row = format.tile != lptensor.PER_TENSOR
    take = asymmetric if isinstance(format.scaling, CurrentRange) else integers
    (a, of_a), (b, of_b) = take(x, per_row), take(w, per_row)
    sums = (a @ b.T + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    scales = of_a * of_b.T
    return np.array(
        [
            [single(Fraction(int(s)) * Fraction(float(t))) for s, t in zip(*r, strict=True)]
            for r in zip(sums, scales, strict=True)
        ]
    )


@pytest.mark.parametrize(
    "element",
    [INT8, FixedPoint(4, 0, signed=False), FixedPoint(6, 4), FixedPoint(5, -3, symmetric=True), FixedPoint(23, 0)],
    ids=repr,
)
def test_elements_of_ranges_are_their_codes_less_the_zero_point(element: FixedPoint) -> None:
    x = torch.randn(6, 50)
    x[2:4], x[4:] = x[2:4].abs(), -x[4:].abs()  # differences as large as there are
    format: Any = Scaled(element, CurrentRange(Channel(0)))
    rounded, s, z = lptensor.round(x, format), lptensor.scales(x, format), lptensor.zero_points(x, format)
    codes = lptensor.decode(lptensor.encode(rounded / s + z, element), element)
    factor = take_apart(x, rounded, format)
    assert factor.scales is not None and torch.equal(factor.scales.double(), s)
    assert torch.equal(factor.elements.double(), codes - z)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks, where a graph ends within a layer
@pytest.mark.parametrize("bits", [16, 20, 32])  # 16 wrap
@pytest.mark.parametrize("format", [PER_ROW, PER_TENSOR, RANGES, RANGE])
@pytest.mark.parametrize("way", ["lowered", "converted", "compiled"])
def test_integers_are_added_up_and_scaled_then(bits: int, format: Any, way: str) -> None:
    acc, gemm = integer_accumulator(bits, unscaled=True), Gemm(format, format, format)
    layer = nn.Linear(200, 7, bias=False)
    weight = layer.weight.detach().clone()
    if way == "converted":
        lptensor.convert(layer, Arithmetic(operands=gemm, accumulator=acc))
    else:
        lowered(layer, gemm, acc)
    x, g = torch.randn(5, 200, requires_grad=True), torch.randn(5, 7)
    y = (torch.compile(layer, backend="aot_eager") if way == "compiled" else layer)(x)
    y.backward(y.to_lp(y.arithmetic) * 0 + g if hasattr(y, "arithmetic") else g)
    assert x.grad is not None and layer.weight.grad is not None
    (x_, w_, g_) = (t.detach().numpy() for t in (x, weight, g))
    for got, a, b in ((y, x_, w_), (x.grad, g_, w_.T), (layer.weight.grad, g_.T, x_.T)):
        assert np.array_equal(plain(got).numpy(), product(a, b, bits, format).astype(np.float32))
    if bits == 16:
        assert not np.array_equal(plain(y).numpy(), product(x_, w_, 32, format).astype(np.float32))


def plain(x: Tensor) -> Tensor:
    return (x.dequantize() if hasattr(x, "arithmetic") else x).detach()


def test_a_fixed_power_of_two_is_a_scale_too() -> None:
    format, acc = Scaled(INT8, PowerOfTwo(-5)), integer_accumulator(24, unscaled=True)
    for layer, x in ((nn.Linear(40, 3), torch.randn(6, 40)), (nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 5, 5))):
        wanted = plain(layer.double()(x.double()))  # close by
        rounded = {n: torch.round(p.detach() * 32).clamp(-128, 127) for n, p in layer.named_parameters()}
        exactly = torch.func.functional_call(
            layer,
            {"weight": rounded["weight"], "bias": layer.bias.detach().float().double() * 1024},
            torch.round(x.double() * 32).clamp(-128, 127),
        )
        got = lowered(layer.float(), Gemm(format), acc)(x)
        assert torch.equal(got, (exactly / 1024).float()) and (got - wanted).abs().max() < 1


@pytest.mark.parametrize("room", [1, 2**24])  # of sums of chunks: for a row, or for all
def test_tiles_of_deepseek_are_tensor_cores_times_scales(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements by PyTorch's conversion, sums of 128 by MMA-Sim; each, times its scales, is added in fp32."""
    x, w = torch.randn(64, 300), torch.randn(8, 300)
    monkeypatch.setattr("lptensor.unscaled_sums._ROOM", room)
    x[:, 128::5] *= 2.0**-12
    x[:, :127] *= 2.0**-15  # the first sums are of subnormal elements, since the largest meets a zero
    x[:, 127], w[:, 127] = 4.0, 0.0
    core = WGMMA("Hopper", "m64n8k32.f32.e4m3.e4m3")
    layer = nn.Linear(300, 8)
    layer.weight.data = w.clone()
    wanted = [[Fraction(b) for b in layer.bias.tolist()] for _ in x]
    for k in range(0, 300, 128):
        a, b = x[:, k : k + 128], w[:, k : k + 128]
        of_a, of_b = a.abs().amax(1, keepdim=True) / 448, b.abs().amax() / 448
        p = torch.zeros(64, 8)
        padded = (nn.functional.pad(t, (0, -t.shape[1] % 32)).to(torch.float8_e4m3fn) for t in (a / of_a, b / of_b))
        for left, right in zip(*(t.split(32, 1) for t in padded), strict=True):
            p = core(left, right.T, p)
        scale = of_a * of_b
        for i in range(64):
            for j in range(8):
                term = Fraction(float(p[i, j])) * Fraction(float(scale[i]))
                wanted[i][j] = Fraction(single(wanted[i][j] + term))
    got = recipes.deepseek(promote_every=128).model(layer)(x)
    assert torch.equal(got, torch.tensor([[float(t) for t in row] for row in wanted]))


class Batch(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "linear": lambda: (nn.Linear(80, 5), (torch.randn(3, 2, 80),)),
    "conv": lambda: (nn.Conv2d(6, 4, 3, 2, groups=2), (torch.randn(2, 6, 7, 7),)),
    "conv_transpose": lambda: (nn.ConvTranspose1d(6, 4, 3, 2), (torch.randn(2, 6, 5),)),
    "batch": lambda: (Batch(), (torch.randn(3, 4, 80), torch.randn(3, 80, 5))),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("transform", [None, Hadamard(16)])
@pytest.mark.parametrize("order", ["sequential", "kahan"])
def test_powers_of_two_change_nothing_before_or_after_sums_of_floats(name: str, transform: Any, order: str) -> None:
    """Where nothing overflows or vanishes: in whatever layer, forward and backward."""
    results = []
    for unscaled in (False, True):
        torch.manual_seed(0)
        layer, args = LAYERS[name]()
        acc = Accumulator(FP32, chunk=16, order=order, inner=Accumulator(BF16, unscaled=unscaled))
        gemm = Gemm(MXFP8_E4M3, MXFP8_E4M3, MXFP8_E4M3, transform=transform)
        lptensor.convert(layer, Arithmetic(operands=gemm, accumulator=acc))
        args = tuple(t.clone().requires_grad_() for t in args)
        y = layer(*args)
        y = y[0] if isinstance(y, tuple) else y
        plain_sum = (y.dequantize() if hasattr(y, "arithmetic") else y).square().sum()
        plain_sum.backward()
        results.append([y, *(t.grad for t in args), *(p.grad for n, p in layer.named_parameters() if "bias" not in n)])
    for scaled, other in zip(*results, strict=True):
        assert torch.equal(plain(scaled), plain(other))


def test_an_overflow_of_elements_is_one_however_small_the_scales() -> None:
    x = torch.full((1, 32), 2.0**-30)  # whose elements are 256
    for sum, wanted in ((BF16, 32 * 2.0**-60), (FP16, torch.inf)):
        layer = nn.Linear(32, 1, bias=False)
        layer.weight.data = x.clone()
        acc = Accumulator(FP32, chunk=32, inner=Accumulator(sum, unscaled=True))
        assert lowered(layer, Gemm(MXFP8_E4M3), acc)(x).item() == wanted


def test_sums_that_are_no_products_have_no_elements() -> None:
    acc = integer_accumulator(8, unscaled=True)
    x = torch.randn(4, 300)
    y = x.to_lp(Arithmetic(operands=Gemm(PER_ROW), accumulator=acc))
    assert torch.equal(plain(y.sum(1)), x.sum(1)) and torch.equal(plain(y.cumsum(1)), x.cumsum(1))
    assert lptensor.sum(torch.ones(300), accumulator=acc).item() == 44
    for layer, g in (
        (nn.Linear(300, 3), torch.randn(4, 3) / 8),
        (nn.Conv1d(300, 3, 1), torch.randn(4, 3, 1) / 8),
    ):
        lowered(layer, Gemm(PER_ROW), acc)(x if g.dim() == 2 else x[..., None]).backward(g)
        assert layer.bias.grad is not None
        assert torch.equal(layer.bias.grad, g.sum((0, 2)[: g.dim() - 1]))


def test_zeros_and_scales_beyond_fp32_hide_nothing() -> None:
    """A row of zeros has the scale zero, and the scales of huge rows a product beyond fp32."""
    x, w = torch.zeros(3, 64), torch.zeros(2, 64)
    x[1, 0], x[2], w[0, 1], w[1] = 1e38, 1e38, 1e38, 1.0
    got = lptensor.lower(layer := nn.Linear(64, 2, bias=False), ["linear"], operands=Gemm(PER_ROW), accumulator=LARGE)
    layer.weight.data = w
    assert got(x).tolist() == [
        [0.0, 0.0],
        [0.0, single(Fraction(127**2) * Fraction(scale(1e38, 1.0)))],
        [torch.inf] * 2,
    ]


LARGE = integer_accumulator(24, unscaled=True)


def scale(x: float, w: float) -> float:
    of_x, of_w = (np.float32(t) / np.float32(127) for t in (x, w))
    return float(of_x * of_w)


def test_products_have_their_format_within_chunks() -> None:
    x = torch.randn(4, 64)
    wide = FloatingPoint(8, 2)
    inner, layer = Accumulator(BF16, wide, unscaled=True), nn.Linear(64, 3)
    first, second = (
        lowered(copy.deepcopy(layer), Gemm(MXFP8_E4M3), Accumulator(FP32, product, chunk=32, inner=inner))(x)
        for product in (None, wide)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("acc", "format", "error", "message"),
    [
        (integer_accumulator(24, unscaled=True), MXFP8_E4M3, ValueError, "change every 32 .* chunk=32, inner"),
        (
            Accumulator(FP32, chunk=24, inner=Accumulator(BF16, unscaled=True)),
            MXFP8_E4M3,
            ValueError,
            "change every 32",
        ),
        (
            Accumulator(FP32, chunk=32, inner=Accumulator(FP32, chunk=4, inner=Accumulator(BF16, unscaled=True))),
            MXFP8_E4M3,
            ValueError,
            "the outermost ones, or those of its chunks",
        ),
        (Accumulator(BF16, unscaled=True), recipes.luq().operands, TypeError, "rounds in a way of its own"),
        (LARGE, Scaled(INT8, CurrentRange(preserve_zero=False)), ValueError, "say preserve_zero=True"),
        (LARGE, Scaled(FixedPoint(24, 0), CurrentRange()), ValueError, "up to 23 significant bits"),
        (LARGE, Scaled(FP32, CurrentMaximum()), ValueError, "up to 23 significant bits"),
    ],
)
def test_scales_that_cannot_wait_are_refused(acc: Accumulator, format: Any, error: Any, message: str) -> None:
    gemm = format if isinstance(format, Gemm) else Gemm(format)
    layer = lowered(nn.Linear(64, 3), gemm, acc)
    with pytest.raises(error, match=message):
        layer(torch.randn(2, 64))
    with pytest.raises(TypeError, match="unscaled must be True or False"):
        integer_accumulator(8, unscaled=1)
