"""The compiled loops that count what roundings did, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from lptensor import _native
from lptensor.formats import Grid
from lptensor.posits import PositBits
from lptensor.rounding import Rounding
from lptensor.tables import Table

LOWEST, HIGHEST = -150, 128  # binades, as in csrc/census.h
COUNTS = ("zero", "underflow", "subnormal", "saturated", "overflow", "nonfinite")


class CensusStruct(ctypes.Structure):
    """What a ``Census`` found: struct lpt_census in csrc/census.h."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("highest", "lowest", "tiny")),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_double) for name in ("signal", "noise")),
        ("binades", ctypes.c_int64 * (HIGHEST - LOWEST + 1)),
    )


class UpdatesStruct(ctypes.Structure):
    """What ``Updates`` found: struct lpt_updates in csrc/census.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("wanted", "lost")),
        *((name, ctypes.c_double) for name in ("along", "whole")),
    )


_POINTER = ctypes.c_void_p
_ARGUMENTS = {
    "census": (_POINTER, _POINTER, ctypes.c_int64, _POINTER, ctypes.c_int32),
    "ask": (_POINTER, ctypes.c_int64, _POINTER, _POINTER, _POINTER, ctypes.c_int32),
    "updates": (_POINTER, _POINTER, _POINTER, ctypes.c_int64, _POINTER, ctypes.c_int32),
}


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> Any:
    kernel = getattr(_native.library(), f"lpt_{name}_f{torch.finfo(dtype).bits}")
    kernel.argtypes, kernel.restype = _ARGUMENTS[name.partition("_")[0]], None
    return kernel


def census(x: Tensor, y: Tensor, found: CensusStruct) -> None:
    """Add what rounding ``x`` to ``y`` did: CPU tensors of one dtype and memory layout, without gaps."""
    kernel = _kernel("census", x.dtype)
    kernel(x.data_ptr(), y.data_ptr(), x.numel(), ctypes.byref(found), torch.get_num_threads())


def ask(
    x: Tensor,
    lowered: Grid | Table | PositBits,
    rounding: Rounding,
    key: tuple[int, int] | None,
    found: CensusStruct,
) -> None:
    """Add what rounding ``x`` would do: a CPU tensor without gaps, contiguous where there is a key."""
    if isinstance(lowered, Grid):
        kernel, format = _kernel("ask", x.dtype), _native.grid_struct(lowered)
    elif isinstance(lowered, Table):
        kernel, (format, _) = _kernel("ask_table", x.dtype), _native.table_struct(lowered, rounding.mode, x.dtype)
    else:
        kernel, format = _kernel("ask_posit", x.dtype), _native.posit_struct(lowered)
    rule = _native.rule(rounding, key)
    n, threads = x.numel(), torch.get_num_threads()
    kernel(x.data_ptr(), n, ctypes.byref(format), ctypes.byref(rule), ctypes.byref(found), threads)


def updates(start: Tensor, before: Tensor, after: Tensor, found: UpdatesStruct) -> None:
    """Add what became of the way from ``start`` to ``before``: tensors as in ``census``."""
    kernel = _kernel("updates", start.dtype)
    pointers = start.data_ptr(), before.data_ptr(), after.data_ptr()
    kernel(*pointers, start.numel(), ctypes.byref(found), torch.get_num_threads())
