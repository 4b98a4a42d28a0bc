"""Every named format, and the page's examples of the other kinds, rounded as exact rationals say."""

from __future__ import annotations

from fractions import Fraction
from functools import singledispatch
from typing import Any

import numpy as np
import pytest
import torch

import test_mx
import test_nvfp4
import test_p3109
from backends import BACKENDS, DTYPES, random_bits, run, with_neighbours
from formats_page import shown_formats
from lptensor.blocks import MX, BlockFloatingPoint, BlockFormat, TwoLevel
from lptensor.codebooks import LogNumber, TableFormat
from lptensor.formats import FixedPoint, FloatingPoint, Format
from lptensor.fused import fusible, round_tensor
from lptensor.hifloat import HiFloat8
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from lptensor.rounding import Mode, as_rounding
from lptensor.study.format_table import element_of
from oracles import codebook, exact, hif8, posit
from oracles.exact import MODES
from rounders import assert_same, judge

FORMATS = shown_formats()


@singledispatch
def expected(format: Any, x: torch.Tensor, mode: str) -> Any:
    """What the oracle of the kind makes of x; it knows the parameters of the format, and no more."""
    raise NotImplementedError(f"{type(format).__name__} has no oracle here: register one that shares no code with it")


@expected.register(FloatingPoint)
@expected.register(FixedPoint)
def _(format: FloatingPoint | FixedPoint, x: torch.Tensor, mode: str) -> Any:
    return [exact.rounded(judge(format), v, mode) for v in x.tolist()]


@expected.register
def _(format: P3109, x: torch.Tensor, mode: str) -> Any:
    info = test_p3109.info_of(format.k, format.p, format.signed, format.extended)
    return test_p3109.rounded(info, x, Mode[mode.upper()], format.overflow == "saturate")


@expected.register
def _(format: Posit, x: torch.Tensor, mode: str) -> Any:
    values = posit.Posits(format.nbits, format.es)
    return [float(values.round(Fraction(v), mode)) if np.isfinite(v) else np.nan for v in x.tolist()]


@expected.register
def _(format: TableFormat, x: torch.Tensor, mode: str) -> Any:
    values = codebook.Listed(format.values().tolist(), logarithmic=isinstance(format, LogNumber))
    clipped = x.double().clamp(-(2.0**200), 2.0**200)  # no rational is infinite
    return [v if v != v else float(values.round(Fraction(v), mode)) for v in clipped.tolist()]


@expected.register
def _(format: HiFloat8, x: torch.Tensor, mode: str) -> Any:
    return [hif8.rounded(v, mode, format.overflow) for v in x.tolist()]


@expected.register
def _(format: BlockFloatingPoint, x: torch.Tensor, mode: str) -> Any:
    result = np.zeros(tuple(x.shape))
    for group in test_mx.groups(tuple(x.shape), format.block_shape(x.shape)):
        result[tuple(zip(*group, strict=True))] = exact.rounded_block([x[i].item() for i in group], format.wl, mode)
    return result


@expected.register
def _(format: MX, x: torch.Tensor, mode: str) -> Any:
    return test_mx.expected(x, format, mode, format.block_shape(x.shape))


@expected.register
def _(format: TwoLevel, x: torch.Tensor, mode: str) -> Any:
    return test_nvfp4.expected(x, format, mode, format.block_shape(x.shape))


def points(format: Format, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers, and values and midpoints with the floats beside them: all of 8 bits or fewer, else a sample."""
    element: Any = element_of(format)
    values = element.values() if element.bits < 20 else torch.tensor([element.min, 0.0, element.max]).double()
    middles = (values[1:] + values[:-1]) / 2
    few = slice(None, None, 1 if len(values) <= 256 else len(values) // 64)
    marks = with_neighbours([*values[few].tolist(), *middles[few].tolist(), *values[-1:].tolist()], dtype)
    if not isinstance(format, BlockFormat):
        return torch.cat([marks, random_bits(200, dtype)])
    width = format.block_shape((1, 32))[1]
    inside = marks[marks.abs() <= element.max]
    inside = torch.cat([inside, inside[: -len(inside) % (width - 1)]]).view(-1, width - 1)
    # With the largest value beside them the scale of a block is 1, as that of the tensor is with this one.
    top = element.max * (format.scale.max if isinstance(format, TwoLevel) else 1)
    marked = torch.cat([torch.full((len(inside), 1), element.max), inside], 1)
    return torch.cat([marked, torch.full((1, width), top), test_mx.spread((10, width)) * element.max * 2.0**-17])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_a_named_format_rounds_as_its_oracle(name: str, dtype: torch.dtype) -> None:
    """By the reference, by every build of the kernels, and by the formula of compiled graphs where there is one."""
    format, x = FORMATS[name], points(FORMATS[name], dtype)
    for mode in MODES:
        wanted = expected(format, x, mode)
        for backend in BACKENDS:
            assert_same(run(backend, x, format, mode), wanted, x, (backend, name, mode))
        if fusible(format, as_rounding(mode)):
            assert_same(round_tensor(x, format.lowered, as_rounding(mode)), wanted, x, ("formula", name, mode))
