"""Sums in float64 rounded to odd, after which one more rounding, in any direction, is the right one.

In float64 the products of fp32 numbers are exact, and their quotients and roots never come near a
value or a midpoint of a format of up to 24 bits without being it (Figueroa 1995: 53 >= 2 * 24 + 2).
Sums do: 1 + 2**-60 is 1 in float64. Rounded to odd in 53 bits, they round rightly to 51 bits or fewer
(Boldo and Melquiond 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lptensor.accumulate import odd_sum

aten = torch.ops.aten


def _add(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    if any(isinstance(v, complex) or isinstance(v, Tensor) and v.is_complex() for v in (x, y, alpha)):
        plain: Tensor = aten.add(x, y, alpha=alpha)
        return plain
    device = (x if isinstance(x, Tensor) else y).device
    x, y = (torch.as_tensor(v, device=device).to(torch.float64) for v in (x, y))
    x, y = torch.broadcast_tensors(x, y if alpha == 1 else y * alpha)
    return odd_sum(x.contiguous(), y.contiguous())


def _sub(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _add(x, y, -alpha)


def _rsub(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _add(y, x, -alpha)


def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    return _add(x, a * b, value)


def _in_place(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(f(x, *args, **kwargs))


def _into(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        result = f(*args, **kwargs)
        return (out if out.shape == result.shape else out.resize_(result.shape)).copy_(result)

    return run


_SUMS: dict[Any, Callable[..., Tensor]] = {
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.rsub.Tensor: _rsub,
    aten.rsub.Scalar: _rsub,
    aten.addcmul.default: _addcmul,
    aten.add_.Tensor: _in_place(_add),
    aten.add_.Scalar: _in_place(_add),
    aten.sub_.Tensor: _in_place(_sub),
    aten.sub_.Scalar: _in_place(_sub),
    aten.addcmul_.default: _in_place(_addcmul),
    aten.add.out: _into(_add),
    aten.sub.out: _into(_sub),
    aten.addcmul.out: _into(_addcmul),
}


@cache
def in_double(func: Any) -> Callable[..., Any]:
    """What computes ``func`` on float64 tensors that hold fp32 numbers, so that one rounding is left.

    >>> in_double(aten.mul.Tensor) is aten.mul.Tensor
    True
    """
    run: Callable[..., Any] = _SUMS.get(func, func)
    return run
