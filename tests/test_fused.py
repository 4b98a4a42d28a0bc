"""The integer formula that compiled graphs hold, and what inductor makes of it, against the kernels' bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lptensor as lp
from compiling import MADE_INSIDE, code_of, compile_anew as compile_anew
from lptensor import (
    BF16,
    E2M1,
    E4M3,
    E4M3FNUZ,
    E8M0,
    FP16,
    NF4,
    P3109,
    FixedPoint,
    FloatingPoint,
    Format,
    Posit,
    Rounding,
)
from lptensor.base import ScalarFormat
from lptensor.fused import fusible, round_tensor
from lptensor.rounding import Mode
from rounders import assert_same_bits

MODES = [mode for mode in Mode if not Rounding(mode).stochastic]
FORMATS: list[ScalarFormat] = [row for row in vars(lp).values() if isinstance(row, ScalarFormat)]
FORMATS += [P3109(8, p) for p in range(1, 8)] + [P3109(8, 1, signed=False)]
FORMATS += [FixedPoint(8, 4), FixedPoint(8, 4, clamp=False), FixedPoint(8, 4, symmetric=True), FixedPoint(12, -3)]
FORMATS += [FixedPoint(4, 140), FixedPoint(24, 3), FixedPoint(8, 130, clamp=False), FixedPoint(8, 9)]
for _below in (True, False, "flush"):  # in the middle of the carrier's range, at its edge, in its subnormals
    FORMATS += [FloatingPoint(5, 2, subnormals=_below), FloatingPoint(8, 7, subnormals=_below)]
    FORMATS += [FloatingPoint(4, 3, bias=137, subnormals=_below)]
FORMATS += [FloatingPoint(5, 2, overflow=over) for over in ("inf", "saturate", "propagate", "nan")]
FORMATS += [FloatingPoint(4, 3, signed=False, overflow=over) for over in ("inf", "saturate", "propagate")]
FORMATS += [FloatingPoint(4, 3, signed=False, zero=False, subnormals=False, specials="none")]
FORMATS += [FloatingPoint(4, 1, bias=-103), FloatingPoint(4, 3, bias=-94)]  # near the top of the carrier's range
FORMATS += [FloatingPoint(5, 23), FixedPoint(25, 3)]  # as fine as the carrier
FORMATS += [FloatingPoint(1, 0, specials="none"), FloatingPoint(3, 0, specials="none")]
FORMATS += [FloatingPoint(3, 2, zero=False, subnormals=False, specials="none", bias=bias) for bias in (20, 127)]


def samples(format: ScalarFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every value and midpoint with its neighbours, what is beyond the ends, random bits and special values."""
    integer, width = (torch.int32, 32) if dtype == torch.float32 else (torch.int64, 64)
    special = torch.tensor([0.0, torch.inf, torch.finfo(dtype).tiny, 1.0, torch.finfo(dtype).max], dtype=dtype)
    points = special
    if format.max < 1e38 and format.bits <= 16:
        values = format.values()
        points = torch.cat([values, (values[1:] + values[:-1]) / 2, 1.5 * values[-1:], 2 * values[-1:]]).to(dtype)
        points = torch.cat([points, special])
    bits = points.view(integer)
    bits = torch.cat([bits, bits + 1, bits - 1, torch.tensor([2 ** (width - 1) - 1])]).to(integer)
    random = torch.randint(-(2 ** (width - 1)), 2 ** (width - 1) - 1, (20000,)).to(integer)
    near = (torch.randn(20000).double() * torch.randn(20000).mul(6).exp2()).to(dtype).view(integer)
    low = torch.tensor(-(2 ** (width - 1))).to(integer)
    return torch.cat([bits, bits ^ low, random, near]).view(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_the_formula_gives_the_bits_of_the_kernels(format: ScalarFormat, dtype: torch.dtype) -> None:
    x = samples(format, dtype)
    for mode in MODES:
        rounding = Rounding(mode)
        assert_same_bits(round_tensor(x, format.grid, rounding), lp.round(x, format, rounding), (format, mode))


def test_only_deterministic_rounding_to_scalar_formats_has_a_formula() -> None:
    assert fusible(E4M3, Rounding())
    for format in (NF4, Posit(8), lp.MXFP4, lp.NVFP4):
        assert not fusible(format, Rounding())
    assert not fusible(E4M3, lp.Stochastic())


# -- compiled ------------------------------------------------------------------------------------------


def compiled_equals_eager(formats: list[Format], modes: list[Mode], x: Tensor) -> str:
    """Rounds x to all formats in one graph; the code that inductor wrote for it."""

    def f(x: Tensor) -> list[Tensor]:
        return [lp.round(x, format, Rounding(mode)) for format in formats for mode in modes]

    got, code = code_of(f, x)
    for a, b in zip(got, f(x), strict=True):
        assert_same_bits(a, b)
    return code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler
def test_compiled_loops_give_the_bits_of_the_kernels() -> None:
    formats = [E4M3, FP16, FixedPoint(8, 4), FloatingPoint(4, 3, bias=137), E8M0]
    x = torch.cat([samples(format) for format in (E4M3, E2M1, FixedPoint(8, 4), formats[3])])
    code = compiled_equals_eager(formats, [Mode.NEAREST, Mode.DOWN], x)
    assert "ops.lptensor" not in code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_compiled_loops_give_the_bits_of_the_kernels_for_every_format(mode: Mode) -> None:
    x = torch.cat([samples(format) for format in FORMATS if format.bits <= 8])
    for first in range(0, len(FORMATS), 12):
        compiled_equals_eager(list(FORMATS[first : first + 12]), [mode], x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_rounding_is_a_part_of_the_loop_around_it() -> None:
    def f(a: Tensor, b: Tensor) -> Tensor:
        return lp.round(lp.round(a + b, BF16) * b, E4M3FNUZ)

    a, b = torch.randn(1000), torch.randn(1000)
    got, code = code_of(f, a, b)
    assert_same_bits(got, f(a, b))
    assert code.count("async_compile.cpp") == 1 and "ops.lptensor" not in code


@MADE_INSIDE
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_has_no_formula_calls_the_kernel() -> None:
    def f(a: Tensor) -> Tensor:
        return lp.round(lp.round(a * 2, lp.MXFP4) + 1, NF4) + 1

    a = torch.randn(4, 64)
    got, code = code_of(f, a)
    assert_same_bits(got, f(a))
    assert code.count("torch.ops.lptensor.round.default(") == 2


def test_half_of_the_smallest_normal_spacing_of_the_carrier_is_still_told_from_a_quarter() -> None:
    narrow = FloatingPoint(7, 2, bias=125)  # its subnormals are multiples of 2**-126
    x = torch.tensor([2.0**-128, 2.0**-127, 3 * 2.0**-128, 5 * 2.0**-128])
    away = round_tensor(x, narrow.grid, Rounding(Mode.NEAREST_AWAY))
    assert away.mul(2.0**126).tolist() == [0.0, 1.0, 1.0, 1.0]


# -- what is in the format already ---------------------------------------------------------------------


def roundings(graph: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.lptensor.round.default for node in graph.graph.nodes)


@pytest.mark.parametrize("format", [E4M3, BF16, FixedPoint(8, 4)], ids=repr)
def test_a_graph_does_not_round_the_relu_of_rounded_values_again(format: Format) -> None:
    def f(x: Tensor) -> Tensor:
        return lp.round(lp.round(x, format).relu().view(-1), format)

    x = torch.cat([torch.randn(1000) * 9, torch.tensor([-0.0, torch.inf, torch.nan])])
    graph = make_fx(f)(x)
    assert roundings(graph) == 1
    assert_same_bits(graph(x), f(x))
    assert_same_bits(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


def _written(x: Tensor) -> Tensor:
    y = lp.round(x, E4M3)
    y[::2].mul_(0.3)
    return y.relu()


BETWEEN = {
    "another format": lambda x: lp.round(x, BF16).relu(),
    "another mode": lambda x: lp.round(x, E4M3, "toward_zero").relu(),
    "written to by a view": _written,
    "another function": lambda x: lp.round(x, E4M3).exp(),
    "blocks": lambda x: lp.round(x, lp.MXFP4).relu(),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_a_graph_rounds_whatever_may_not_be_in_the_format(between: str) -> None:
    def f(x: Tensor) -> Tensor:
        return lp.round(BETWEEN[between](x), lp.MXFP4 if between == "blocks" else E4M3)

    x = torch.randn(64, 64)
    graph = make_fx(f)(x)
    assert roundings(graph) == 2
    assert_same_bits(graph(x), f(x))
    assert_same_bits(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


def test_a_graph_rounds_values_of_a_format_without_zero_behind_a_relu() -> None:
    def f(x: Tensor) -> Tensor:
        return lp.round(lp.round(x, E8M0).relu(), E8M0)

    x = torch.tensor([1.0, -1.0])
    assert roundings(make_fx(f)(x)) == 2
    assert_same_bits(make_fx(f)(x)(x), f(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lowered_relu_saves_no_mask() -> None:
    """Inductor stores masks byte by byte on a CPU, which takes longer than all of the rounding."""
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    lp.lower(net, ["linear", "activation"], E4M3, lp.E5M2, "nearest", "nearest")
    x = torch.randn(8, 16)
    _, code = code_of(lambda x: net(x).sum(), x)
    assert "bool*" not in code
