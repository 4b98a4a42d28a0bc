"""What happens when the result of an op is no fp32 tensor, so that it cannot stay in low precision."""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat

# Formulas of gradients that go through float64 on the CPU, through fp32 where the dtype is narrow, and come back.
_WIDE_FORMULAS = frozenset({"RenormBackward0"})

_SETTINGS = ("error", "warn", "allow")
_Said = tuple["weakref.ref[escapes]", str]
_said: list[_Said] = []  # on all threads, the last first, which holds; without those that are over
_setting = "error"  # what holds
_lock = threading.Lock()

_AUTOCAST = (
    "autocast does this, and so do .half() and .bfloat16(); an LPTensor's format already is its precision: "
    "turn autocast off, convert the model back with lptensor.convert(model, None), or "
)
_COMPLEX = "no format has complex values, and torch.fft and .cfloat() ask for them: "
# Dtypes to which torch casts without being asked. That a caller has named one of them looks the same.
_UNASKED = {
    torch.float16: _AUTOCAST,
    torch.bfloat16: _AUTOCAST,
    torch.complex32: _COMPLEX,
    torch.complex64: _COMPLEX,
    torch.complex128: _COMPLEX,
}


class escapes:  # reads as a function, and in a with statement
    """Say what happens when an op would silently leave low precision: "error", "warn" or "allow".

    A dtype or layout that the caller names (``x.double()``, ``x.to_sparse()``, ``dtype=``) is no
    escape: it gives a plain tensor. A complex or float64 result nobody asked for is one, and so are
    casts to half, bfloat16 and complex, which autocast and torch.fft make without being asked. Holds
    at once and for the whole process; as a context manager until the end of the block. Where blocks
    overlap, on whatever threads, the last that began, and has not ended, holds.

    Args:
        setting: "error", the default of the process, raises a RuntimeError; "warn" a RuntimeWarning; "allow"
            neither, and gives the plain tensor.

    Raises:
        ValueError: any other setting.

    >>> with escapes("allow"):
    ...     pass
    """

    def __init__(self, setting: str) -> None:
        if setting not in _SETTINGS:
            raise ValueError(f"escapes takes one of {', '.join(_SETTINGS)}, got {setting!r}")
        self._said, self._entered = (weakref.ref(self), setting), False
        _change(None, self._said)

    def __enter__(self) -> None:
        _change(None if self._entered else self._said, self._said)
        self._entered = True

    def __exit__(self, *_: Any) -> None:
        _change(self._said, None)


def _change(over: _Said | None, new: _Said | None) -> None:
    """Strike out what is ``over``, where it was said last, and say what is ``new``."""
    global _setting
    with _lock:
        if over is not None:
            _said.remove(over)
        if new is not None:
            _said.insert(0, new)
        for_good = [each for each in _said if each[0]() is None]  # nobody can enter or leave it any more
        _said[:] = [each for each in _said if each not in for_good[1:]]
        _setting = _said[0][1] if _said else "error"


def leave(func: Any, result: Tensor, named: bool, operands: Sequence[Tensor] = ()) -> Tensor:
    """Let the plain ``result`` of an op on LPTensors out, or refuse: also if a gradient would come back that way.

    Args:
        operands: of the op, if nothing rounds the gradients that come back to them.
    """
    if not (result.is_floating_point() or result.is_complex()) or _setting == "allow" or _comes_back(result):
        return result
    unasked = _UNASKED.get(result.dtype)
    if named and unasked is None and _has_gradient(func, operands):
        unasked = "Its gradient would come back plain, and not be rounded where it enters low precision: "
    elif named and unasked is None or unasked is _AUTOCAST and _called_by("torch.optim"):
        return result
    what = str(result.dtype).removeprefix("torch.") if result.layout is torch.strided else str(result.layout)
    message = f"{func} on an LPTensor gives a plain {what} tensor: it would leave low precision unnoticed. "
    message += unasked or ("make float64 operands of yours float32, " if result.dtype is torch.float64 else "")
    message += 'say x.dequantize() first, or lptensor.escapes("allow").'
    if _setting == "error":
        raise RuntimeError(message)  # a TypeError within an operator would be taken for "not mine"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    return result


def _comes_back(result: Tensor) -> bool:
    """Whether torch's own formula of a gradient has asked for float64."""
    node = _compat.running_formula() if result.dtype is torch.float64 else None
    return node is not None and node.name() in _WIDE_FORMULAS


def _has_gradient(func: Any, operands: Sequence[Tensor]) -> bool:
    """Whether a gradient is to come back to the operands of an op: none does from a factory."""
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in operands):
        return False
    name = _compat.schema(func).name.removeprefix("aten::")
    return not (name.startswith("new_") or name.endswith("_like"))


def _called_by(package: str) -> bool:
    """Whether the op was called by name in a package: what autocast casts is called in torch.nn.

    torch.optim.Muon says .bfloat16(): there it is no loss that nobody asked for.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and _module(frame).startswith(("lptensor", "torch._")):
        frame = frame.f_back
    return _module(_compat.past_modes(frame)).startswith(package)


def _module(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))  # code that exec() runs may have none
