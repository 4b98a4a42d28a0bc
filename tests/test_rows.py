"""Every named format, and the page's examples of the other kinds, rounded as exact rationals say."""

from __future__ import annotations

from fractions import Fraction
from functools import singledispatch
from typing import Any

import gfloat
import numpy as np
import pytest
import torch

import test_mx
import test_nvfp4
import test_p3109
from backends import BACKENDS, random_bits, run, with_neighbours
from lptensor.blocks import MX, BlockFloatingPoint, BlockFormat, TwoLevel
from lptensor.codebooks import LogNumber, TableFormat
from lptensor.formats import FixedPoint, FloatingPoint, Format
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from lptensor.rounding import Mode
from lptensor.study.format_table import element_of
from lptensor.study.formats_page import shown_formats
from oracles import codebook, exact, posit
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
    way = test_p3109.MODES[Mode[mode.upper()]]
    return gfloat.round_ndarray(info, x.double().numpy(), way, format.overflow == "saturate")


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


def points(format: Format) -> torch.Tensor:
    """Random numbers; of 8 bits or fewer every value and midpoint too, with the floats beside them."""
    element: Any = element_of(format)
    values = element.values() if element.bits <= 8 else torch.zeros(1, dtype=torch.float64)
    marks = with_neighbours([*values.tolist(), *((values[1:] + values[:-1]) / 2).tolist()], torch.float32)
    if not isinstance(format, BlockFormat):
        return torch.cat([marks, random_bits(200, torch.float32)])
    width = format.block_shape((1, 32))[1]
    inside = marks[marks.abs() <= element.max]
    inside = torch.cat([inside, inside[: -len(inside) % (width - 1)]]).view(-1, width - 1)
    # With the largest value beside them the scale of a block is 1, as that of the tensor is with this one.
    top = element.max * (format.scale.max if isinstance(format, TwoLevel) else 1)
    marked = torch.cat([torch.full((len(inside), 1), element.max), inside], 1)
    return torch.cat([marked, torch.full((1, width), top), test_mx.spread((10, width)) * element.max * 2.0**-17])


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_format_rounds_as_its_oracle(name: str) -> None:
    format, x = FORMATS[name], points(FORMATS[name])
    for mode in ("nearest", "nearest_away", "toward_zero", "down", "up"):
        wanted = expected(format, x, mode)
        for backend in BACKENDS:
            assert_same(run(backend, x, format, mode), wanted, x, (backend, name, mode))
