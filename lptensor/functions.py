"""The contract "function": a function of torch.nn.functional rounds once, and once each gradient that leaves it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, get_overridable_functions

from lptensor import _compat, direction, watch
from lptensor.arguments import join
from lptensor.arithmetic import Arithmetic
from lptensor.contracts import contract
from lptensor.escape import leave
from lptensor.rules import Kind
from lptensor.tensor import LPTensor, is_low

# Select or move values, or are one kernel in which nothing can be counted differently: they act as under "aten".
_AS_ATEN = frozenset(
    """
    relu hardtanh _threshold hardshrink one_hot embedding pad interpolate fold unfold channel_shuffle
    native_channel_shuffle pixel_shuffle pixel_unshuffle max_unpool1d max_unpool2d max_unpool3d
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d
    fractional_max_pool3d fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
    """.split()
)

# Run other functions, which are to be seen: a layer's parts, and what a checkpoint recomputes.
_ENTERED = (F.multi_head_attention_forward, Tensor.backward, torch.autograd.backward, torch.autograd.grad)

# Arguments that a function writes its statistics to.
_BUFFERS = {"batch_norm": ("running_mean", "running_var"), "instance_norm": ("running_mean", "running_var")}

# fp32 takes another path, with other last bits, if these have operands in another order of memory.
_CONTIGUOUS = frozenset({"linear", "bilinear"})


@cache
def functions() -> dict[Any, str]:
    """The functions that round once, by what torch calls them, with their names.

    A namesake in torch or a method of Tensor is the same function, unless it takes buffers: then its
    arguments have another order.
    """
    overridable = get_overridable_functions()[F]
    names = {f.__name__: f for f in overridable if f.__name__ not in _AS_ATEN and f not in _ENTERED}
    found: dict[Any, str] = {}
    for name, function in names.items():
        found[function] = name
        for owner in (torch, Tensor):
            if name not in _BUFFERS and hasattr(owner, name):
                found[getattr(owner, name)] = name
    return found


class Functions(TorchFunctionMode):
    """Sees functions before they fall into ops, and runs those on LPTensors as the contract says."""

    @_compat.run_by_python
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        holds = contract()
        if holds == "aten":
            return func(*args, **kwargs)
        name = functions().get(func)
        if name is not None and holds == "function":
            return _once(name, func, args, kwargs)
        if name == "scaled_dot_product_attention":  # by primitives, it is no single op
            return _compat.attention_in_steps(*args, **kwargs)
        if func in _ENTERED:
            with self:  # torch takes a mode off while it asks it
                return _inside(func)(*args, **kwargs)
        return func(*args, **kwargs)


def _inside(func: Any) -> FunctionType:
    """``func`` without its question to modes, which led here."""
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = {**func.__globals__, **dict.fromkeys(asks, lambda *_: False)}
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _once(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave low precision, run ``func``, come back."""
    found = [x for x in _compat.leaves((args, kwargs), Tensor) if is_low(x)]
    exporting = torch.compiler.is_exporting()
    if found and (exporting or _compat.transforming() or _compat.differentiating_forward()):
        where = "torch.export" if exporting else "torch.func and forward-mode AD"
        raise NotImplementedError(
            f'rounding_points("function") does not reach into {where}, where {name} would round at each of its ops; '
            'say "aten" or "primitive" there, or let torch.autograd differentiate'
        )
    if not found or not all(x._arithmetic.direct for x in found):  # aten's kernels know of operands and sums
        return func(*args, **kwargs)
    if name == "embedding_bag" and kwargs.get("max_norm", (*args[3:4], None)[0]) is not None:  # writes to its weights
        return func(*args, **kwargs)
    if kwargs.get("out") is not None:  # one kernel, which rounds once too, to the format of what it writes to
        return func(*args, **kwargs)
    arithmetic, gradient = join(found), direction.in_backward()
    originals: dict[int, Any] = {}  # operand by what the function sees of it

    def open_(x: Any) -> Any:
        plain = _operand(x, arithmetic, name in _CONTIGUOUS) if isinstance(x, Tensor) else x
        originals[id(plain)] = x, plain
        return plain

    def close(x: Any) -> Any:
        if id(x) in originals or not isinstance(x, Tensor):  # dropout in evaluation is the identity
            return originals[id(x)][0] if id(x) in originals else x
        if x.dtype is not torch.float32 or x.layout is not torch.strided:
            return leave(name, x, kwargs.get("dtype") is not None)
        return _leave(x, arithmetic, gradient, name)

    inplace = kwargs.pop("inplace", False)
    buffers = _buffers(name, args, kwargs)

    def seen(x: Any) -> Any:
        return x._inner if any(x is b for b in buffers) else _compat.tree_map(open_, x, LPTensor)

    before = [b._inner.clone() for b in buffers]
    result = func(*map(seen, args), **{k: seen(x) for k, x in kwargs.items()})
    result = _compat.tree_map(close, result, LPTensor)
    for buffer, old in zip(buffers, before, strict=True):
        if not torch.equal(buffer._inner, old):
            watch.watched(name, Kind.MUTATE, partial(watch.round_, buffer._inner, buffer._arithmetic, False))
    return args[0].copy_(result) if inplace else result


def _buffers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LPTensor]:
    """The LPTensors that a function writes to: second and third in every function that has some."""
    wanted = _BUFFERS.get(name, ())
    given = [*args[1:3], *(kwargs.get(k) for k in wanted)] if wanted else []
    return [x for x in given if type(x) is LPTensor]


def _operand(x: Tensor, arithmetic: Arithmetic, contiguous: bool) -> Tensor:
    if x.is_floating_point() and x.requires_grad and torch.is_grad_enabled():
        plain: Tensor = _enter(x, arithmetic)
    else:
        plain = x._inner if type(x) is LPTensor else x
    return plain.contiguous() if contiguous else plain


class _Operand(torch.autograd.Function):
    """Into a function: its plain values. The gradient that leaves the function here is rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arithmetic: Arithmetic) -> Tensor:
        ctx.arithmetic = arithmetic
        # A copy: writes to an LPTensor do not count on its inner tensor, and autograd would not see that what
        # the function saved has changed.
        return x._inner.clone() if type(x) is LPTensor else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _leave(grad, ctx.arithmetic, True, "gradient"), None


class _Result(torch.autograd.Function):
    """Out of a function, forward or backward: values round here, and what comes back goes on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arithmetic: Arithmetic, gradient: bool, name: str) -> LPTensor:
        inner = (x._inner if type(x) is LPTensor else x).detach().clone()
        round_ = partial(watch.round_, inner, arithmetic, gradient)
        return LPTensor(watch.watched(name, Kind.ROUND, round_), arithmetic, gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.dequantize() if type(grad) is LPTensor else grad, None, None, None


_enter: Any = _Operand.apply
_leave: Any = _Result.apply
