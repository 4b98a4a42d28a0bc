"""Results in float64 rounded to odd, after which one more rounding, in any direction, is the right one.

In float64 the products of fp32 numbers are exact, and their quotients and roots never come near a
value or a midpoint of a format of up to 24 bits without being it (Figueroa 1995: 53 >= 2 * 24 + 2).
Sums do: 1 + 2**-60 is 1 in float64; so do products and quotients with a float64 number that fp32 does not
hold. Rounded to odd in 53 bits, they round rightly to 51 bits or fewer (Boldo and Melquiond 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat, _native
from lptensor.accumulate import odd_sum, two_product
from lptensor.ops import is_dense
from lptensor.overloads import overloads

aten = torch.ops.aten


def _both(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Two operands, of which one may be a number, as float64 tensors of one device."""
    devices = [v.device for v in (x, y) if isinstance(v, Tensor)]
    device = next((d for d in devices if d.type != "cpu"), devices[0])  # beside which a single number may be on the CPU

    def wide(v: Any) -> Tensor:
        if isinstance(v, Tensor):
            return v.to(device if v.dim() == 0 else v.device, torch.float64)
        return torch.full((), v, dtype=torch.float64, device=device)  # no constant, which torch.export could not place

    return wide(x), wide(y)


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors in one shape and one order of memory, that of the first without gaps, as torch has its results."""
    x, y = torch.broadcast_tensors(x, y)
    like = next((t for t in (x, y) if is_dense(t)), None)
    if like is None:
        return x.contiguous(), y.contiguous()
    strides, device = like.stride(), like.device  # a tensor from elsewhere is refused by what comes next
    x, y = (t if t.stride() == strides or t.device != device else torch.empty_like(like).copy_(t) for t in (x, y))
    return x, y


def _by_kernel(kind: str, x: Tensor, y: Tensor) -> Tensor | None:
    """The compiled sums or products, where there are tensors in memory to read and they are far from float64's ends."""
    here = all(type(t) is Tensor and t.is_cpu and not _compat.is_zero_tensor(t) for t in (x, y))
    if not here or _compat.traced() or _native.library() is None:
        return None
    x, y = x.resolve_neg(), y.resolve_neg()
    if not (x.dim() == 0 and y.numel() > 1 and is_dense(y) or y.dim() == 0 and x.numel() > 1 and is_dense(x)):
        x, y = _alike(x, y)
    return _native.odd(kind, x, y) if x.numel() and y.numel() else None


def _add(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    x, y = _both(x, y if alpha == 1 else y * alpha)
    made = _by_kernel("sums", x, y)
    return odd_sum(*_alike(x, y)) if made is None else made


def _sub(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _add(x, y, -alpha)


def _rsub(x: Any, y: Any, alpha: Any = 1) -> Tensor:
    return _add(y, x, -alpha)


def _addcmul(x: Tensor, a: Tensor, b: Tensor, value: Any = 1) -> Tensor:
    return _add(x, a * b, value)


def _mul(x: Any, y: Any) -> Tensor:
    x, y = _both(x, y)
    made = _by_kernel("products", x, y)
    return odd_sum(*two_product(*_alike(x, y))) if made is None else made


def _div(x: Any, y: Any) -> Tensor:
    """Of the nearest quotient q, x - q y is a float64 number: its sign says on which side the quotient is."""
    x, y = _alike(*_both(x, y))
    q = x / y
    p, rest = two_product(q, y)
    left = ((x - p) - rest) / y
    return odd_sum(q, torch.where(left.isfinite(), left, -0.0))


def _unless_complex(f: Callable[..., Tensor], op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``f`` of real operands, and the op itself of others."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        values = (*args, *kwargs.values())
        beyond = any(isinstance(v, complex) or isinstance(v, Tensor) and v.is_complex() for v in values)
        return (op if beyond else f)(*args, **kwargs)

    return run


def _everywhere(name: str, real: Callable[..., Tensor]) -> dict[Any, Callable[..., Any]]:
    return overloads(name, _unless_complex(real, getattr(aten, name)))


def _of_each_number(op: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, which takes a list of numbers, of a tensor of one for each item; what is none the op itself refuses."""

    def run(*args: Any) -> Any:
        *lists, numbers = args
        return f(*lists, numbers.unbind()) if numbers.shape == (len(lists[0]),) else op(*args)

    return run


_SUMS = _everywhere("add", _add) | _everywhere("sub", _sub) | _everywhere("rsub", _rsub)
_SUMS |= _everywhere("addcmul", _addcmul)
for _scalars in (aten._foreach_addcmul.Tensor, aten._foreach_addcmul_.Tensor):
    _SUMS[_scalars] = _of_each_number(_scalars, _SUMS[_scalars])
_FACTORS = _everywhere("mul", _mul) | _everywhere("div", _div)


@cache
def in_double(func: Any, single: bool = True) -> Callable[..., Any]:
    """What computes ``func`` on float64 tensors, so that one rounding is left.

    Args:
        single: whether fp32 holds all numbers that the operands hold.

    >>> in_double(aten.mul.Tensor) is aten.mul.Tensor, in_double(aten.mul.Tensor, False) is aten.mul.Tensor
    (True, False)
    """
    run: Callable[..., Any] = _SUMS.get(func, func)
    return run if single else _FACTORS.get(func, run)
