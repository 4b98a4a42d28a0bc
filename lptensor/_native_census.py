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
        ("sums", ctypes.c_double * 2),  # of the squares of signal and noise
        ("binades", ctypes.c_int64 * (HIGHEST - LOWEST + 1)),
    )


def join(whole: Any, part: Any) -> None:
    """Add what one struct found to what another of its kind did."""
    for name, kind in whole._fields_:
        mine, more = getattr(whole, name), getattr(part, name)
        if issubclass(kind, ctypes.Array):
            mine[:] = [a + b for a, b in zip(mine, more, strict=True)]
        elif kind is ctypes.c_int64:
            setattr(whole, name, mine + more)


class UpdatesStruct(ctypes.Structure):
    """What ``Updates`` found: struct lpt_updates in csrc/census.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("wanted", "lost")),
        ("sums", ctypes.c_double * 2),  # <made, wanted> and <wanted, wanted>
    )


_PAIR = _native.Rule * 2
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "census": (*(_POINTER,) * 2, _COUNT, _POINTER, ctypes.c_int32),
    "updates": (*(_POINTER,) * 3, _COUNT, _POINTER, ctypes.c_int32),
    "census_round": (*(_POINTER,) * 2, _COUNT, *(_POINTER,) * 3, ctypes.c_int32),
    "ask_updates": (*(_POINTER,) * 2, _COUNT, *(_POINTER,) * 3, ctypes.c_int32),
}


@functools.cache
def _kernel(name: str, kind: str, dtype: torch.dtype) -> Any:
    kernel = getattr(_native.library(), f"lpt_{name}_{kind}f{torch.finfo(dtype).bits}")
    kernel.argtypes, kernel.restype = _ARGUMENTS[name], None
    return kernel


def census(x: Tensor, y: Tensor, found: CensusStruct) -> None:
    """Add what rounding ``x`` to ``y`` did: CPU tensors of one dtype and memory layout, without gaps."""
    kernel = _kernel("census", "", x.dtype)
    kernel(x.data_ptr(), y.data_ptr(), x.numel(), ctypes.byref(found), torch.get_num_threads())


def updates(start: Tensor, before: Tensor, after: Tensor, found: UpdatesStruct) -> None:
    """Add what became of the way from ``start`` to ``before``: tensors as in ``census``."""
    kernel = _kernel("updates", "", start.dtype)
    pointers = start.data_ptr(), before.data_ptr(), after.data_ptr()
    kernel(*pointers, start.numel(), ctypes.byref(found), torch.get_num_threads())


class Rounder:
    """Calls the loops that round to one format as one rounding says, and count what that does."""

    def __init__(self, lowered: Grid | Table | PositBits, rounding: Rounding, dtype: torch.dtype) -> None:
        kind = lowered.loop.removeprefix("round_") + "_"
        self._format, self._held = _native.OF_ELEMENTS[lowered.loop](lowered, rounding, dtype)
        self.rounding, self.dtype = rounding, dtype
        self._rule = None if rounding.stochastic else _native.rule(rounding, None)
        self._rules = None if self._rule is None else _PAIR(self._rule, self._rule)
        self._round, self._updates = (_kernel(name, kind, dtype) for name in ("census_round", "ask_updates"))

    def fits(self, rounding: Rounding, dtype: torch.dtype) -> bool:
        """Whether this is the one for them; by identity, since hashing a format costs more than a call."""
        return rounding is self.rounding and dtype is self.dtype

    def round(self, x: Tensor, y: Tensor | None, key: tuple[int, int] | None, found: CensusStruct) -> None:
        """Round ``x`` into ``y``, contiguous CPU tensors that may be one, or nowhere, and add what that does."""
        rule = self._rule or _native.rule(self.rounding, key)
        to = None if y is None else y.data_ptr()
        references = ctypes.byref(self._format), ctypes.byref(rule), ctypes.byref(found)
        self._round(x.data_ptr(), to, x.numel(), *references, torch.get_num_threads())

    def updates(self, start: Tensor, now: Tensor, keys: Any, found: UpdatesStruct) -> None:
        """Add what would become of the way from ``start`` to ``now``, both contiguous, if weights were rounded."""
        rules = self._rules or _PAIR(*(_native.rule(self.rounding, key) for key in keys))
        n, threads, format = start.numel(), torch.get_num_threads(), ctypes.byref(self._format)
        self._updates(start.data_ptr(), now.data_ptr(), n, format, rules, ctypes.byref(found), threads)
