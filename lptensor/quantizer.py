"""A function that rounds values on the way forward and gradients on the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lptensor import _compat, ops
from lptensor.base import check_bool, check_signed, no_format
from lptensor.formats import Format, Grid, Overflow, ScalarFormat
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.tensor import LPTensor

Quant: TypeAlias = "Format | Callable[[Tensor], Tensor]"
Hook: TypeAlias = "Callable[[Tensor], Tensor | None]"


def quantizer(
    forward_number: Format | None = None,
    backward_number: Format | None = None,
    forward_rounding: Rounding | Mode | str = "stochastic",
    backward_rounding: Rounding | Mode | str = "stochastic",
    clamping_grad_zero: bool = False,
    backward_hooks: Iterable[Hook] = (),
) -> Quantize:
    """A function ``x -> x rounded to forward_number``, whose gradient is rounded to ``backward_number``.

    Tensors keep shape, dtype (float32 or float64) and device. What NaN, infinities, -0 and overflow become
    depends on the format, in both directions. The derivative of the forward rounding is taken to be one
    (straight-through), also in double backward. The function is frozen, compares
    by its settings, and can be pickled and copied.

    Args:
        forward_number: format of the values; None leaves them as they are.
        backward_number: format of the gradient; None leaves it as it is.
        forward_rounding, backward_rounding: names as of ``round``, a ``Mode`` or a ``Rounding``.
        clamping_grad_zero: the gradient becomes zero where rounding met the limits of
            ``forward_number``, a float or fixed-point format that has some.
        backward_hooks: functions applied to the gradient, in order, before it is rounded; None from one leaves it.

    Raises:
        TypeError: a number that is not a format, a hook that cannot be called, integer tensors.
        ValueError: an unknown rounding, clamping_grad_zero with a format without limits of its own, a backward_number
            without negative numbers, tensors that cannot hold the values.

    >>> from lptensor import FloatingPoint
    >>> quantizer(FloatingPoint(8), forward_rounding="nearest")(torch.tensor([0.3, 1e9]))
    tensor([0.3125,    inf])
    """
    check_signed(backward_number, "leave backward_number out, or name one that has")
    return Quantize(
        _format("forward_number", forward_number),
        _format("backward_number", backward_number),
        as_rounding(forward_rounding),
        as_rounding(backward_rounding),
        check_bool("clamping_grad_zero", clamping_grad_zero),
        _hooks(backward_hooks),
    )


class Quantizer(nn.Module):
    """``quantizer`` as a module; it has no parameters and no state.

    Args:
        forward_number, backward_number, forward_rounding, backward_rounding, clamping_grad_zero, backward_hooks: as
            of ``quantizer``.

    Raises:
        TypeError, ValueError: as ``quantizer``.

    >>> from lptensor import FixedPoint
    >>> net = nn.Sequential(nn.Linear(2, 2), Quantizer(FixedPoint(8, 4)))
    >>> net(torch.ones(2)).mul(16).frac().count_nonzero().item()
    0
    """

    def __init__(
        self,
        forward_number: Format | None = None,
        backward_number: Format | None = None,
        forward_rounding: Rounding | Mode | str = "stochastic",
        backward_rounding: Rounding | Mode | str = "stochastic",
        clamping_grad_zero: bool = False,
        backward_hooks: Iterable[Hook] = (),
    ) -> None:
        super().__init__()
        self.quantize = quantizer(
            forward_number, backward_number, forward_rounding, backward_rounding, clamping_grad_zero, backward_hooks
        )

    def forward(self, x: Tensor) -> Tensor:
        """``x``, of any shape, float32, float64 or an LPTensor, rounded; so is its gradient on the way back."""
        return self.quantize(x)

    def extra_repr(self) -> str:
        """The arguments that are not at their defaults, for ``print``."""
        return repr(self.quantize).partition("(")[2][:-1]


@dataclass(frozen=True, repr=False)
class Step:
    """One rounding that a person asked for, by a format or by a function of their own, and by what name."""

    name: str
    quantize: Callable[[Tensor], Tensor]
    format: Format | None

    def __call__(self, x: Tensor) -> Tensor:
        # A function may work in place or return its argument; the rounding to a format does neither.
        result = self.quantize(x if self.format is not None else x.clone())
        if not isinstance(result, Tensor) or result.shape != x.shape:
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{self.name} must return a tensor of shape {tuple(x.shape)}, got {got}")
        return result

    def __repr__(self) -> str:
        return f"{self.name}={self.format or self.quantize!r}"


def as_step(name: str, quant: object) -> Step | None:
    """The rounding that the argument ``name`` asks for; a format is rounded to stochastically.

    Raises:
        TypeError: neither a format nor a function nor None.

    >>> from lptensor import E4M3
    >>> as_step("weight_quant", E4M3).format is E4M3
    True
    """
    if quant is None:
        return None
    if isinstance(quant, Format):
        return Step(name, quantizer(quant), quant)
    if callable(quant) and not isinstance(quant, type):
        return Step(name, quant, None)
    hint = "; say arguments by name, QPyTorch's come in another order" if isinstance(quant, (int, float)) else ""
    raise TypeError(
        f"{name} must be a number format such as FloatingPoint(8), or a function such as quantizer(...) makes, "
        f"got {no_format(quant)}{hint}"
    )


@dataclass(frozen=True, repr=False)
class Quantize:
    """What ``quantizer`` returns."""

    forward_number: Format | None
    backward_number: Format | None
    forward_rounding: Rounding
    backward_rounding: Rounding
    clamping_grad_zero: bool
    backward_hooks: tuple[Hook, ...]

    def __post_init__(self) -> None:
        if self.clamping_grad_zero and self.forward_number is not None:
            _limits(self.forward_number)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling() and isinstance(x, Tensor):
            return self._node(x)
        if not isinstance(x, Tensor) or not torch.is_grad_enabled() and not _compat.differentiating_forward():
            return self.forward(x)
        apply: Callable[..., tuple[Tensor, Tensor | None]] = _Rounded.apply
        return apply(x, self)[0]

    def _node(self, x: Tensor) -> Tensor:
        """The call as one node of Dynamo's graph; hooks are the user's code, which it may look into."""
        y: Tensor = _lptensor_quantize(
            x,
            self.forward_number,
            self.backward_number,
            self.forward_rounding,
            self.backward_rounding,
            self.clamping_grad_zero,
        )
        apply: Callable[..., Tensor] = _Hooked.apply
        return apply(y, *self.backward_hooks) if self.backward_hooks else y

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_number is None:
            return x
        if isinstance(x, LPTensor):  # it stays one, and on its own format as well
            return torch.empty_like(x).copy_(self.forward(x.dequantize().detach()))
        return ops.round(x, self.forward_number, self.forward_rounding)

    def in_place(self, x: Tensor) -> None:
        """Round a plain tensor where it lies, which nothing else may have kept: autograd does not learn of it."""
        if self.forward_number is not None:
            ops.check_roundable(x, self.forward_number)
            plain = x.detach()
            ops.round_into(plain, plain, self.forward_number, self.forward_rounding)

    def backward(self, grad: Tensor) -> Tensor:
        grad = _hooked(grad, self.backward_hooks)
        if self.backward_number is None:
            return grad
        return self._of_gradients(grad)

    @cached_property
    def _of_gradients(self) -> Quantize:
        """A quantizer in its turn: double backward and functional transforms then find a Function here too."""
        return quantizer(self.backward_number, None, self.backward_rounding)

    def clamped(self, x: Tensor) -> Tensor | None:
        """Where the result of rounding ``x`` would lie beyond the limits, did the format have none."""
        if self.forward_number is None or not self.clamping_grad_zero:
            return None
        x = getattr(x, "_inner", x)
        ops.check_roundable(x, self.forward_number)
        limits, unlimited = _limits(self.forward_number)
        same = None
        if self.forward_rounding.stochastic:
            # The forward pass is about to draw the same random numbers from torch's generator.
            same = torch.Generator()
            same.set_state(torch.get_rng_state())
        free = ops.round_fresh(x, unlimited, self.forward_rounding, same)
        return (free > limits.max) | (free < limits.min)

    def __repr__(self) -> str:
        default = Quantize(None, None, as_rounding("stochastic"), as_rounding("stochastic"), False, ())
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        shown = [f"{name}={value!r}" for name, value in given if value != getattr(default, name)]
        return f"quantizer({', '.join(shown)})"


class _Rounded(torch.autograd.Function):
    """Rounds forward, and rounds the gradient backward."""

    generate_vmap_rule = True  # made of round(), which has its own

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, rule: Quantize) -> tuple[Tensor, Tensor | None]:
        clamped = rule.clamped(x)
        # A copy where nothing is rounded: torch forbids in-place ops on a view that a Function returned,
        # and a layer that works in place may well come next.
        return x.clone() if rule.forward_number is None else rule.forward(x), clamped

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Quantize], output: tuple[Tensor, Tensor | None]) -> None:
        ctx.rule, clamped = inputs[1], output[1]
        ctx.save_for_backward(clamped)
        ctx.save_for_forward(clamped)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        return _masked(ctx.rule.backward(grad), ctx.saved_tensors[0]), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> tuple[Tensor, None]:
        return _masked(tangent, ctx.saved_tensors[0]), None


class _Hooked(torch.autograd.Function):
    """The identity, whose gradient goes through functions."""

    @staticmethod
    @_compat.known_signature
    def forward(ctx: Any, x: Tensor, *hooks: Hook) -> Tensor:
        ctx.hooks = hooks
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _hooked(grad, ctx.hooks), *(None for _ in ctx.hooks)


@_compat.graph_node
def _lptensor_quantize(x: Tensor, *settings: Any) -> Tensor:
    return quantizer(*settings)(x)


def _hooked(grad: Tensor, hooks: Iterable[Hook]) -> Tensor:
    """The gradient through functions, of which one that returns None leaves it, as torch's own hooks do."""
    for hook in hooks:
        made = hook(grad)
        grad = grad if made is None else made
    return grad


def _masked(grad: Tensor, clamped: Tensor | None) -> Tensor:
    return grad if clamped is None else grad.masked_fill(clamped, 0.0)


@dataclass(frozen=True, repr=False)
class _Unlimited(ScalarFormat):
    """A format without limits: the spacing of its last binade goes on."""

    format: ScalarFormat

    @cached_property
    def grid(self) -> Grid:
        return self.format.grid._replace(max=math.inf, min=-math.inf, overflow=Overflow.INF)


def _limits(format: Format) -> tuple[Grid, ScalarFormat]:
    """The grid of a format that has limits, and the format without them."""
    if not isinstance(format, ScalarFormat) or math.isinf(format.grid.max):
        raise ValueError(
            f"clamping_grad_zero needs a float or fixed-point format with a largest value, got {format!r}; "
            "leave clamping_grad_zero at False"
        )
    return format.grid, _Unlimited(format)


def _format(name: str, number: object) -> Format | None:
    if number is None or isinstance(number, Format):
        return number
    raise TypeError(f"{name} must be a number format such as FloatingPoint(8), or None, got {no_format(number)}")


def _hooks(hooks: object) -> tuple[Hook, ...]:
    if not isinstance(hooks, Iterable):
        raise TypeError(f"backward_hooks must be a list of functions of the gradient, got {hooks!r}")
    listed = tuple(hooks)
    for hook in listed:
        if not callable(hook):
            raise TypeError(f"backward_hooks must be functions of the gradient, got {hook!r}")
    return listed
