"""Values to bit patterns and back: ``encode`` and ``decode``, and the ``scales`` of blocks."""

from __future__ import annotations

import math
from functools import lru_cache, singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lptensor import _compat, _native, layout, reference
from lptensor._bits import carried, exact
from lptensor.base import check_bool, wrong_format
from lptensor.blocks import BlockFormat, Shifted
from lptensor.codebooks import TableFormat
from lptensor.formats import FixedPoint, Format, Overflow, ScalarFormat
from lptensor.ops import check_roundable, round_fresh
from lptensor.posits import Posit
from lptensor.ranges import Ranges
from lptensor.rounding import Rounding

_MOST_CODES = 2**21  # of a table, 4 MiB of 16-bit ones: more leave the cache
_DTYPES = ((8, torch.uint8), (16, torch.int16), (32, torch.int32), (64, torch.int64))


def code_dtype(bits: int) -> torch.dtype:
    """The dtype of codes of this width: uint8 to 8 bits, then int16, int32 and int64.

    Only uint8 has full support among torch's unsigned integers; a code that fills a wider dtype is
    its bit pattern, so that int16 -1 is 0xFFFF.
    """
    return next(dtype for width, dtype in _DTYPES if bits <= width)


def _no_codes(format: Format) -> TypeError:
    way = "values divided by their lptensor.scales(x, format)"
    if isinstance(format, BlockFormat) and format.offset is not None and format.has(0.0):
        way += " plus their lptensor.zero_points(x, format)"
    return TypeError(f"{format!r} has no codes of single elements, but a scalar format has: encode {way}")


@singledispatch
def encode_exact(format: Format, values: Tensor) -> Tensor:
    """Integer codes of float64 ``values`` that are on the format's grid: register a new kind of format here.

    The values were rounded to the format first, so that NaN and infinities are there only where
    rounding gives them. ``decode_exact`` is the inverse; both ask for ``format.bits``. Those of a scalar
    format may be float32, where ``layout.arithmetic`` says so.
    """
    raise _no_codes(format)


@singledispatch
def decode_exact(format: Format, codes: Tensor) -> Tensor:
    """float64 values of int64 codes in 0 .. 2**bits - 1: register a new kind of format here."""
    raise _no_codes(format)


@encode_exact.register
def _(format: ScalarFormat, values: Tensor) -> Tensor:
    if format.layout.nan is None and _have_nan(values):
        raise ValueError(f"{format!r} has no code for NaN; replace NaNs first, by x.nan_to_num() say")
    if isinstance(format, FixedPoint) and not format.clamp:
        bounded = FixedPoint(format.wl, format.fl, symmetric=format.symmetric, signed=format.signed)
        if values.numel() and not bounded.min <= float(values.min()) <= float(values.max()) <= bounded.max:
            outside = (values > bounded.max) | (values < bounded.min)
            raise ValueError(
                f"{_first(values, outside)} has no code of {format.wl} bits in {format!r}: codes reach from "
                f"{bounded.min} to {bounded.max}; clamp=True saturates"
            )
    return layout.encode(values, format.grid, format.layout)


@encode_exact.register
def _(format: Shifted, values: Tensor) -> Tensor:
    return encode_exact(format.element, values * 2.0**-format.exponent)


@decode_exact.register
def _(format: ScalarFormat, codes: Tensor) -> Tensor:
    values = layout.decode(codes, format.grid, format.layout, layout.arithmetic(format.grid, format.layout))
    if isinstance(format, FixedPoint) and format.symmetric and not format.clamp:  # the grid has no limits
        values = values.clamp(min=-math.ldexp(2 ** (format.wl - 1) - 1, -format.fl))
    return values


@encode_exact.register
def _(format: TableFormat, values: Tensor) -> Tensor:
    if _have_nan(values) and not format.has(math.nan):
        raise ValueError(f"{format!r} has no code for NaN; replace NaNs first, by x.nan_to_num() say")
    return format.codes_of(values)


@encode_exact.register
def _(format: Posit, values: Tensor) -> Tensor:
    return format.codes_of(values)


@decode_exact.register(TableFormat)
@decode_exact.register(Posit)
def _(format: TableFormat | Posit, codes: Tensor) -> Tensor:
    return format.values_of(codes)


def encode(x: Tensor, format: Format, strict: bool = False) -> Tensor:
    """The codes of ``x``: bit patterns of ``format.bits`` bits, in the smallest dtype that holds them.

    Values that the format lacks are rounded to nearest first, infinities and results out of range as
    its ``overflow`` says; an infinity that has a code keeps it. Every NaN gets the canonical code. In a
    format without -0 it gets the code of 0. Fixed point is two's complement, unsigned plain binary; a
    codebook's code is the index of the value in its list.

    Args:
        x: float32 or float64, or an LPTensor of whatever format; any shape and device.
        format: one with ``bits``: any but a block format, of which the element has codes (see ``scales``).
        strict: refuse values that the format lacks instead.

    Returns:
        uint8 for up to 8 bits, int16 to 16, int32 to 32, int64 beyond; the shape of ``x``.

    Raises:
        TypeError: x is not a float32 or float64 tensor, the format has no codes, ``strict`` is not a bool.
        ValueError: NaN in a format without a code for it, a value off the grid where strict.
        RuntimeError: within a transformation of torch.func.

    >>> from lptensor import E4M3, INT4
    >>> encode(torch.tensor([1.0, -0.0, 448.0, torch.nan]), E4M3)
    tensor([ 56, 128, 126, 127], dtype=torch.uint8)
    >>> encode(torch.tensor([-1.0, 7.0, 100.0]), INT4)
    tensor([15,  7,  7], dtype=torch.uint8)
    """
    check_roundable(x, format)
    check_bool("strict", strict)
    if x.is_meta:
        return torch.empty(x.shape, dtype=code_dtype(_bits(format)), device="meta")
    if _compat.transforming():
        raise RuntimeError("codes are made of tensors with memory, which torch.func's have not: encode outside of it")
    x = _values(x)
    rounded = round_fresh(x, format, Rounding())
    if isinstance(format, ScalarFormat) and format.layout.inf is not None and format.grid.overflow is not Overflow.INF:
        rounded = torch.where(x.isinf() & (format.grid.signed | (x > 0)), x, rounded)
    if isinstance(format, TableFormat) and format.overflow != "inf" and format.has(math.inf):
        rounded = torch.where(x.isinf(), x, rounded)
    if strict:
        moved = (rounded != x) & ~(rounded.isnan() & x.isnan())
        if moved.any():
            raise ValueError(
                f"{_first(x, moved)} is not a value of {format!r}: the nearest is {_first(rounded, moved)}; "
                f"{int(moved.sum())} of {x.numel()} values are off the grid; strict=False rounds them"
            )
    if rounded.dtype is torch.float32 and _pays(rounded, format):
        table = _codes_by_upper_bits(format, rounded.device)
        if table is not None and (table.of_nan or not rounded.max().isnan()):
            upper = rounded.contiguous().view(torch.int32) >> table.shift & len(table.codes) - 1
            return table.codes.index_select(0, upper.flatten()).view(rounded.shape)
    narrow = isinstance(format, ScalarFormat) and layout.arithmetic(format.grid, format.layout) is rounded.dtype
    codes = encode_exact(format, rounded if narrow else exact(rounded))
    return codes.to(code_dtype(_bits(format)))


def decode(codes: Tensor, format: Format) -> Tensor:
    """The values of ``codes``, as float32 (as float64 where float32 does not hold them all).

    The inverse of ``encode``, NaN codes becoming NaN and those of infinities and -0 what they say. Codes
    without a value of their own: subnormal ones of a format without subnormals are zero of their sign,
    the most negative one of a symmetric fixed-point format is -max.

    Args:
        codes: integers from 0 to 2**bits - 1, any integer dtype, shape and device; where the codes
            fill a signed dtype, its bit patterns.
        format: as of ``encode``.

    Raises:
        TypeError: codes are not integers, or the format has no codes.
        ValueError: a code out of range.

    >>> from lptensor import E2M1
    >>> decode(torch.tensor([0, 1, 7, 9], dtype=torch.uint8), E2M1)
    tensor([ 0.0000,  0.5000,  6.0000, -0.5000])
    """
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes must be a tensor of integers, got {got}; encode() makes them of values")
    if not isinstance(format, Format):
        raise wrong_format(format)
    bits = _bits(format)
    if codes.is_meta:
        return torch.empty(codes.shape, dtype=format.carrier, device="meta")
    wide = codes.long()
    if codes.dtype.itemsize * 8 == bits:
        wide = wide & (1 << bits) - 1 if bits < 64 else wide
    elif bits < 63:
        if wide.numel() and not 0 <= int(wide.min()) <= int(wide.max()) < 1 << bits:
            outside = (wide < 0) | (wide >= 1 << bits)
            raise ValueError(f"codes of {format!r} are 0 to {2**bits - 1}, got {_first(codes, outside)}")
    # A codebook may have fewer values than its bits could tell apart; the others were checked above.
    if _pays(wide, format) and (not isinstance(format, TableFormat) or wide.max() < _count(format)):
        return _values_by_code(format, wide.device).index_select(0, wide.flatten()).view(wide.shape)
    return carried(decode_exact(format, wide), format.carrier)


def _pays(x: Tensor, format: Format) -> bool:
    """Whether to work out each code once, and keep it: of many elements, which nobody traces or transforms.

    Nor captures in a CUDA graph: that would hold a table which it only fills when it is replayed, or which is freed
    before.
    """
    plain = type(x) is Tensor and not _compat.traced() and not _compat.transforming()
    captured = x.is_cuda and torch.cuda.is_current_stream_capturing()
    return plain and not captured and x.numel() > 2**16 and _bits(format) <= 16


@lru_cache(maxsize=64)
def _values_by_code(format: Format, device: torch.device) -> Tensor:
    """What ``decode`` makes of every code. It is there, for all streams of a device, when this returns."""
    return decode(torch.arange(_count(format), device="cpu"), format).to(device)


def _count(format: Format) -> int:
    """How many codes have a value: of a codebook as many as it lists."""
    return len(format.table.listed) if isinstance(format, TableFormat) else 1 << _bits(format)


class _Codes(NamedTuple):
    codes: Tensor  # by the upper bits of fp32 numbers
    shift: int  # how many lower bits say nothing
    of_nan: bool  # whether NaN has a code


@lru_cache(maxsize=64)
def _codes_by_upper_bits(format: Format, device: torch.device) -> _Codes | None:
    """What ``encode`` makes of rounded fp32 numbers, if few enough of their bits tell them apart."""
    if format.carrier is not torch.float32 or isinstance(format, FixedPoint) and not format.clamp:
        return None
    values = decode(torch.arange(_count(format), device="cpu"), format)
    of_nan = bool(values.isnan().any())
    values = values[~values.isnan()]
    bits, shift = values.view(torch.int32), 16
    while len((bits >> shift).unique()) < len(bits.unique()):
        shift -= 1
        if 1 << 32 - shift > _MOST_CODES:
            return None
    codes = torch.zeros(1 << 32 - shift, dtype=code_dtype(_bits(format)), device="cpu")
    codes[values.view(torch.int32) >> shift & len(codes) - 1] = encode_exact(format, exact(values)).to(codes.dtype)
    if of_nan:
        every = (torch.arange(len(codes), device="cpu") << shift).int().view(torch.float32)
        codes[every.isnan()] = encode_exact(format, exact(values.new_tensor(math.nan))).to(codes.dtype)
    return _Codes(codes.to(device), shift, of_nan)


def scales(x: Tensor, format: BlockFormat) -> Tensor:
    """What the elements of each block of ``x`` are multiplied by when it is rounded to a block format.

    Float64, as many along each axis as there are blocks. The scale of a block that becomes NaN is NaN; where
    one underflows it is 0, as are the values of its block. With them ``round(x, format)`` comes apart: the
    values of a block over its scale are those of the element, which ``encode`` takes; under a ``CurrentRange``
    with ``zero_points`` added. Where a scale is no power of two they are so but for a last bit, which ``encode``
    rounds away and ``strict`` refuses.

    Args:
        x: float32 or float64, or an LPTensor of whatever format; any shape and device.
        format: a block format, such as MXFP4, NVFP4 or what ``Scaled`` makes with a maximum or a range.

    Raises:
        TypeError: x is not a float32 or float64 tensor, or format not a block format.

    >>> from lptensor import MX, E2M1, NVFP4
    >>> scales(torch.tensor([[0.1, -2.7, 33.0, 4.0], [1.0, 2.0, 3.0, 4.0]]), MX(E2M1, block_size=4))
    tensor([[8.],
            [1.]], dtype=torch.float64)
    >>> scales(torch.ones(2, 64), NVFP4).shape
    torch.Size([2, 4])
    """
    check_roundable(x, format)
    if not isinstance(format, BlockFormat):
        raise TypeError(f"scales are those of a block format such as MXFP4, got {format!r}, which has none")
    return _of_blocks(x, format)[0]


def zero_points(x: Tensor, format: BlockFormat) -> Tensor:
    """Which value of the element stands for zero in each block of ``x`` when it is rounded under a ``CurrentRange``.

    Float64, of the shape of ``scales``, NaN where the block becomes NaN. With the scale s and the zero point z of its
    block, a value y of ``round(x, format)`` has the code of the element's value y / s + z, which ``encode`` takes.

    Args:
        x: float32 or float64, or an LPTensor of whatever format; any shape and device.
        format: ``Scaled(element, CurrentRange(...))`` with zero preserved.

    Raises:
        TypeError: x is not a float32 or float64 tensor, or format not such a format.
        ValueError: a range that does not preserve zero: it starts at the smallest value of a block.

    >>> from lptensor import INT8, Channel, CurrentRange, Scaled, encode
    >>> x, format = torch.tensor([[-1.0, 4.1], [0.0, 2.55]]), Scaled(INT8, CurrentRange(Channel(0)))
    >>> zero_points(x, format).tolist()
    [[-78.0], [-128.0]]
    >>> encode(round_fresh(x, format, Rounding()) / scales(x, format) + zero_points(x, format), INT8).to(torch.int8)
    tensor([[-128,  127],
            [-128,  127]], dtype=torch.int8)
    """
    check_roundable(x, format)
    lowered = format.lowered
    if not isinstance(lowered, Ranges):
        raise TypeError(f"zero points are those of a format such as Scaled(INT8, CurrentRange()), got {format!r}")
    if not lowered.preserve_zero:
        raise ValueError(
            f"blocks of {format!r} start at their smallest value, which no code need stand for zero; "
            "preserve_zero=True has zero points"
        )
    return _of_blocks(x, format)[1]


def _of_blocks(x: Tensor, format: BlockFormat) -> tuple[Tensor, ...]:
    """The scale of each block, and under a range its zero point, by the kernels or with torch's operations."""
    shape = format.block_shape(x.shape)
    if x.is_meta:
        counts = [-(-n // wide) for n, wide in zip(x.shape, shape, strict=True)]
        return (torch.empty(counts, dtype=torch.float64, device="meta"),) * 2
    x = _values(x).resolve_neg()
    here = type(x) is Tensor and x.is_cpu and x.numel() and not _compat.traced() and not _compat.transforming()
    if not here or _compat.is_zero_tensor(x) or _native.library() is None:
        return reference.scales(x, format.lowered, shape)
    return _native.scales(x.contiguous(), format.lowered, shape)


def _values(x: Tensor) -> Tensor:
    """The plain tensor whose values ``x`` has: ops on an LPTensor would round to its own format."""
    values: Tensor = getattr(x, "_inner", x)
    return values.detach()


def _bits(format: Format) -> int:
    bits: Any = getattr(format, "bits", None)
    if bits is None:
        raise _no_codes(format)
    return int(bits)


def _have_nan(values: Tensor) -> bool:
    return values.numel() > 0 and bool(values.max().isnan())  # faster than to ask each of them


def _first(x: Tensor, where: Tensor) -> object:
    """The first value that ``where`` marks, for a message."""
    return x[where].reshape(-1)[0].item()
