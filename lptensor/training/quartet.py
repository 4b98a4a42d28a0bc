"""Quartet: all three products of a linear layer in 4 bits, those of the backward pass unbiased."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lptensor import _compat, observe
from lptensor.arithmetic import Arithmetic
from lptensor.formats import E2M1
from lptensor.hadamard import Hadamard
from lptensor.layer_products import LayerProducts
from lptensor.of_values import made_by
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Rounding
from lptensor.tensor import is_low
from lptensor.weighted_layers import become, check_dense, check_dtypes, layers_of

Round: TypeAlias = Callable[[Tensor], Tensor]
BLOCK = 32
# Over its standard deviation, where a normal variable is clipped for the least square error of E2M1 (the authors').
CLIP = 2.92247856
_FORWARD, _BACKWARD = Hadamard(BLOCK, "none"), Hadamard(BLOCK, "random")
_OWN = _FORWARD.apply  # its own inverse


def clipped_mxfp4(x: Tensor) -> tuple[Tensor, Tensor]:
    """MXFP4 to nearest under QuEST's scales, and where values lie within the largest one, 6 times the scale.

    A block of 32 along the last axis, a multiple of 32 long, has the scale 2**floor(log2(2.92247856 / 6
    d + 1e-8)), d being its standard deviation (Quartet, 2505.14669, as its authors compute it). What
    lies beyond saturates. NaN or an infinity makes its block NaN. Float32 and float64.

    >>> values, inside = clipped_mxfp4(torch.tensor([[8.0] + 31 * [1.0]]))
    >>> values[0, :2].tolist(), inside[0, :2].tolist()
    ([3.0, 1.0], [False, True])
    """
    check_roundable(x, E2M1)
    blocks = x.unflatten(-1, (-1, BLOCK))
    spread = blocks.var(-1, correction=0, keepdim=True).sqrt()
    exponent = torch.frexp(spread * (CLIP / 6) + 1e-8).exponent - 1
    scale = torch.ldexp(torch.ones_like(spread), exponent)
    scale = torch.where(spread.isfinite(), scale, torch.full_like(scale, torch.nan))
    scaled = blocks / scale
    values = round_fresh(scaled.clamp(-E2M1.max, E2M1.max), E2M1, Rounding()) * scale
    return values.flatten(-2), (scaled.abs() < E2M1.max).flatten(-2)


@dataclass(frozen=True)
class _Rounds:
    """What the operands of each product go through."""

    unbiased: Round
    operand: Round | None
    transform: Hadamard

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """An operand of the forward product, and where its gradient passes; studies know it for what x is."""
        with observe.saying("operand", x):
            if self.operand is None:
                rounded, inside = clipped_mxfp4(_OWN(x, None))
            else:
                rounded, inside = made_by(self.operand, x, self.operand), torch.ones_like(x, dtype=torch.bool)
        if observe.anyone:
            observe.copied(x, rounded)
        return rounded, inside

    def back(self, gradient: Tensor, inside: Tensor, width: int) -> Tensor:
        """The gradient of what became that operand."""
        gradient = gradient * inside
        return gradient if self.operand is not None else _OWN(gradient, None)[:, :width]

    def turned(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b.T, a gradient and an operand, both turned by the same signs and rounded along the axis they share."""
        signs = self.transform.draw(a)
        first = made_by(self.unbiased, self.transform.apply(a, signs), self.unbiased)
        with observe.saying("operand", b):
            second = made_by(self.unbiased, self.transform.apply(b, signs), self.unbiased)
        return first @ second.T


class _Products(torch.autograd.Function):
    """x (n, in) and w (out, in) to x w.T; the gradients are those of the rounded operands, masked."""

    generate_vmap_rule = True

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, w: Tensor, rounds: _Rounds) -> tuple[Tensor, ...]:
        (qx, inside_x), (qw, inside_w) = map(rounds.forward, (x, w))
        return qx @ qw.T, qx, inside_x, qw, inside_w

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        ctx.width, ctx.rounds = inputs[0].shape[1], inputs[2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @_compat.differentiable_once("QuartetLinear")
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        qx, inside_x, qw, inside_w = ctx.saved_tensors
        rounds: _Rounds = ctx.rounds
        of_x, of_w = rounds.turned(grad, qw.T), rounds.turned(grad.T, qx.T)
        return rounds.back(of_x, inside_x, ctx.width), rounds.back(of_w, inside_w, ctx.width), None


@_compat.break_graph
def _products(x: Tensor, w: Tensor, rounds: _Rounds) -> Tensor:
    return _Products.apply(x, w, rounds)[0]  # type: ignore[no-any-return, no-untyped-call]


class QuartetLinear(nn.Linear):
    """A linear layer that multiplies as Quartet does (2505.14669); its parameters are those of ``nn.Linear``.

    Forward, input and weight go through a Hadamard transform of blocks of 32 features and are
    rounded by ``clipped_mxfp4``. Backward, the rounded operands and the gradient go through another,
    of fresh random signs, along the axis that each product sums over, and are rounded by ``unbiased``,
    a function such as ``ThreeQuarters()``; gradients of what was clipped are zero. Axes that are not multiples of a
    transform's block count as if zeros followed. The bias is added, and gets its gradient, in full.

    Quartet II (2601.22813) is ``unbiased=MSEden(), operand=FourOverSix(), transform=Hadamard(128, "random")``.

    Args:
        in_features, out_features, bias: as of ``nn.Linear``.
        unbiased: a function of a tensor (rows, contraction) that returns one of the same shape and dtype.
        operand: another such function rounds input and weight of the forward product, which then go through no
            transform; its derivative is taken to be one.
        transform: what the operands of backward products go through.
        made: what else ``nn.Linear`` takes: ``device`` and ``dtype``.

    Raises:
        TypeError: an input that is not float32 or float64, LPTensors with operands or an accumulator of their own; an
            ``unbiased`` or ``operand`` that cannot be called, or that returns something else; another transform.

    >>> from lptensor.training import ThreeQuarters
    >>> layer = QuartetLinear(64, 3, unbiased=ThreeQuarters())
    >>> layer(torch.randn(5, 64)).shape
    torch.Size([5, 3])
    """

    unbiased: Round
    operand: Round | None = None
    transform: Hadamard = _BACKWARD

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        unbiased: Round,
        operand: Round | None = None,
        transform: Hadamard = _BACKWARD,
        **made: Any,
    ) -> None:
        for name, function in (("unbiased", unbiased), ("operand", operand)):
            if (function is not None or name == "unbiased") and (not callable(function) or isinstance(function, type)):
                raise TypeError(f"{name} must be a function of a tensor, such as ThreeQuarters(), got {function!r}")
        if not isinstance(transform, Hadamard):
            raise TypeError(f"transform must be a Hadamard(block_size, signs), got {transform!r}")
        super().__init__(in_features, out_features, bias, **made)
        self.unbiased, self.operand, self.transform = unbiased, operand, transform

    def forward(self, input: Tensor) -> Tensor:
        """``input`` (..., in_features), times the weight, as (..., out_features).

        Float32, float64 or an LPTensor, of which the values go in, and on whose format the outputs lie.
        """
        low: Any = next((t for t in (input, self.weight) if is_low(t)), None)
        if low is not None:
            _check_alone(low.arithmetic)
        x, w = (t.dequantize() if is_low(t) else t for t in (input, self.weight))
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] == 0:
            return linear(input, self.weight, self.bias)
        y: Any = _products(flat, w, _Rounds(self.unbiased, self.operand, self.transform))
        y = y.unflatten(0, x.shape[:-1]) if x.dim() > 1 else y.squeeze(0)
        y = y if low is None else y.to_lp(low.arithmetic)
        return y if self.bias is None else y + self.bias  # type: ignore[no-any-return]


def _check_alone(arithmetic: Arithmetic) -> None:
    if arithmetic.operands is not None or arithmetic.accumulator is not None:
        raise TypeError(f"Quartet rounds operands itself, and takes no LPTensors with products of {arithmetic!r}")


def quartet_layers(model: nn.Module, exempt: Sequence[str] = (), **rounds: Any) -> None:
    """Let every ``nn.Linear`` multiply as a ``QuartetLinear`` that is given these functions."""
    chosen = layers_of(model, exempt, (nn.Linear,))
    for path, module in chosen.items():
        if type(module) is not nn.Linear:
            raise ValueError(f"{path!r} is a {type(module).__name__}, not a plain nn.Linear; name it in exempt")
        check_dense(module)
    check_dtypes([module.weight for module in chosen.values()])
    for path, module in chosen.items():
        if LayerProducts.attached(module):
            raise ValueError(f"the operands of {path!r} are rounded already; begin with a fresh model, or exempt it")
        weight: Any = module.weight
        if is_low(weight):
            _check_alone(weight.arithmetic)
    for module in chosen.values():
        become(module, QuartetLinear, **rounds)
