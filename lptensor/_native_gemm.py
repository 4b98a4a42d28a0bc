"""The compiled sums of products, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor

from lptensor import _native
from lptensor.accumulator import ORDERS, Accumulator
from lptensor.grid import Overflow

_STRIDES = ctypes.c_int64 * 3
_NARROW, _HIGH = 12, 32  # tiles are low and broad, 4 by 16 or 32: few columns of many rows are better taken as rows


class _Accumulator(ctypes.Structure):
    pass


_Accumulator._fields_ = (
    ("sum", _native.GridStruct),
    ("product", _native.GridStruct),
    *((name, ctypes.c_int32) for name in ("mode", "bits", "beyond")),
    *(
        (name, ctypes.c_int32)
        for name in ("order", "has_product", "fp32", "alignment", "whole", "least", "least_a", "least_b")
    ),
    ("chunk", ctypes.c_int64),
    ("turn", ctypes.c_double),
    ("inner", ctypes.POINTER(_Accumulator)),
)


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "y")),
        *((name, ctypes.c_int64) for name in ("batch", "m", "n", "k")),
        *((name, _STRIDES) for name in ("a_stride", "b_stride", "c_stride")),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("running", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


@functools.cache
def _kernel(bits: int) -> Any:
    kernel = getattr(_native.library(), f"lpt_gemm_f{bits}")
    kernel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
    return kernel


@functools.lru_cache(maxsize=256)
def accumulator_struct(acc: Accumulator) -> _Accumulator:
    """The C struct of an accumulator and of those inside it."""
    grid, turn = acc.sum.grid, 0.0
    least, least_a, least_b = acc.least_exponents
    if acc.wrap:  # rounded without ends, then brought into the range
        turn = 2.0 ** (grid.emax + 2)
        grid = grid._replace(max=math.inf, min=-math.inf, overflow=Overflow.INF)
    struct = _Accumulator(
        sum=_native.grid_struct(grid),
        product=_native.grid_struct((acc.product or acc.sum).grid),
        mode=acc.rounding.mode,
        bits=acc.rounding.bits,
        beyond=acc.rounding.beyond,
        order=ORDERS[acc.order],
        has_product=acc.product is not None,
        fp32=acc.compute == "fp32",
        alignment=acc.places,
        whole=acc.whole,
        least=least,
        least_a=least_a,
        least_b=least_b,
        chunk=acc.chunk,
        turn=turn,
    )
    if acc.nested:
        struct.inner = ctypes.pointer(accumulator_struct(acc.inside))
    return struct


def product_struct(
    a: Tensor, b: Tensor, y: Tensor, c: Tensor | None, key: tuple[int, int] | None, running: bool
) -> _Product:
    """The C struct of a product, as in ``gemm``."""
    batch, m, k = a.shape
    return _Product(
        a.data_ptr(),
        b.data_ptr(),
        None if c is None else c.data_ptr(),
        y.data_ptr(),
        batch,
        m,
        b.shape[2],
        k,
        _STRIDES(*a.stride()),
        _STRIDES(*b.stride()),
        _STRIDES(*(0, 0, 0) if c is None else c.stride()),
        *(key or (0, 0)),
        running,
    )


def gemm(
    a: Tensor, b: Tensor, y: Tensor, acc: Accumulator, c: Tensor | None, key: tuple[int, int] | None, running: bool
) -> None:
    """a[batch, m, k] b[batch, k, n] + c into ``y``, contiguous; ``running``: every sum, [batch, m, k, n]."""
    m, n = a.shape[1], b.shape[2]
    if 1 < n <= _NARROW and m >= _HIGH and not running and not acc.stochastic:  # a random word knows its row and column
        turned = y.new_empty(a.shape[0], n, m)
        gemm(b.mT, a.mT, turned, acc.turned, None if c is None else c.mT, None, False)
        y.copy_(turned.mT)
        return
    product, form = product_struct(a, b, y, c, key, running), accumulator_struct(acc)
    failed = _kernel(torch.finfo(a.dtype).bits)(ctypes.byref(product), ctypes.byref(form), torch.get_num_threads())
    if failed:
        raise MemoryError(f"no memory for the operands of chunks of {acc.chunk} terms of {a.shape[2]}")
