"""Unit scaling: constants in the graph that give all tensors unit variance at first, so that FP8 needs no scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lptensor import _compat
from lptensor.base import check_number, check_tensor
from lptensor.formats import Format
from lptensor.quantizer import quantizer
from lptensor.weighted_layers import become, check_dtypes, check_weights, layers_of, with_first

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.LeakyReLU, nn.Mish)


def scale(x: Tensor, forward: float = 1.0, backward: float = 1.0) -> Tensor:
    """``x * forward``, and the gradient times ``backward``, whichever that is.

    >>> x = torch.ones(1, requires_grad=True)
    >>> scale(x, 2.0, 3.0).backward(); x.grad.item()
    3.0
    """
    if not torch.compiler.is_dynamo_compiling():
        check_tensor(x)
        forward, backward = check_number("forward", forward), check_number("backward", backward)
    function: Any = _Scale if torch.compiler.is_dynamo_compiling() else _ScaleTangents  # Dynamo traces no jvp
    scaled: Tensor = function.apply(x, forward, backward)
    return scaled


class _Scale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, forward: float, backward: float) -> Tensor:
        return x * forward

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.forward_scale, ctx.backward_scale = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.backward_scale, None, None


class _ScaleTangents(_Scale):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent * ctx.forward_scale  # type: ignore[no-any-return]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean cross entropy of (n, classes) logits, whose gradient is scaled to unit variance for equal logits.

    That is by n classes / sqrt(classes - 1): p - 1 of the right class and p = 1 / classes of the others
    have the mean square (classes - 1) / classes**2 (Blake et al., 2303.11257, appendix). The mean of no rows is NaN.

    Args:
        logits: floating-point (n, classes); classes at least 2.
        target: int64 (n,), the right class of each row.

    Raises:
        TypeError: what is not a tensor.
        ValueError: logits of another shape; what torch's cross entropy refuses raises torch's own error.

    >>> z = torch.zeros(4, 5, requires_grad=True)
    >>> cross_entropy(z, torch.tensor([0, 1, 2, 3])).backward(); round(z.grad.square().mean().item(), 4)
    1.0
    """
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise TypeError(f"cross_entropy takes tensors, got {type(logits).__name__} and {type(target).__name__}")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits are (n, classes) with two classes or more, got {tuple(logits.shape)}")
    n, classes = logits.shape
    return F.cross_entropy(scale(logits, backward=n * classes / math.sqrt(classes - 1)), target)


class UnitLinear(nn.Linear):
    """A linear layer whose tensors have unit variance, if input, weight and incoming gradient have it.

    y = x w.T / sqrt(sqrt(in) sqrt(out)) + b, the gradient of x under the same factor as the paper's
    constraint asks (both are then exact only for square layers), those of w and b over sqrt(rows).
    ``formats`` are what the operands are rounded to, to nearest: x and w, and the incoming gradient.

    >>> layer = UnitLinear(256, 256, bias=False)
    >>> torch.allclose(layer(torch.ones(1, 256)) * 16, layer.weight.sum(1), atol=1e-4)
    True
    """

    formats: tuple[Format | None, Format | None] = (None, None)

    def forward(self, input: Tensor) -> Tensor:
        """``input`` (..., in_features), times the weight and under the scales, as (..., out_features)."""
        forward, backward = self.formats
        common = (self.in_features * self.out_features) ** -0.25
        rare = max(input.numel() // self.in_features, 1) ** -0.5
        operand = quantizer(forward, forward_rounding="nearest")
        y = F.linear(operand(scale(input, backward=common)), operand(scale(self.weight, backward=rare)))
        y = quantizer(None, backward, backward_rounding="nearest")(scale(y, common))
        return y if self.bias is None else y + scale(self.bias, backward=rare)


class UnitEmbedding(nn.Embedding):
    """An embedding, the gradient of its weight times sqrt(rows / how many are looked up).

    >>> layer = UnitEmbedding(16, 2)
    >>> layer(torch.tensor([3])).sum().backward(); layer.weight.grad[3]
    tensor([4., 4.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The rows of the weight that the integers ``input`` name, as (..., embedding_dim)."""
        own = scale(self.weight, backward=math.sqrt(self.num_embeddings / max(input.numel(), 1)))
        return F.embedding(
            input, own, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


@dataclass(frozen=True)
class _Before:
    """A hook that scales the gradient of an activation's input."""

    factor: float

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return with_first(partial(scale, backward=self.factor), args, kwargs)


@dataclass(frozen=True)
class _After:
    factor: float

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return scale(output, self.factor)


def activation_scale(activation: nn.Module) -> float:
    """1 / sqrt(d s): d the standard deviation of f(z), s the root mean square of f'(z), z standard normal.

    By the midpoint rule in float64; for nn.ReLU (1/4 - 1/(4 pi))**(-1/4).

    >>> round(activation_scale(nn.ReLU()), 4) == round((1 / 4 - 1 / (4 * math.pi)) ** -0.25, 4)
    True
    """
    step = 2.0**-10
    z = torch.arange(-10 + step / 2, 10, step, dtype=torch.float64, device="cpu")
    p = torch.exp(-z * z / 2) * (step / math.sqrt(2 * math.pi))
    z.requires_grad_()
    with torch.enable_grad():
        f = type(activation).forward(activation, z.clone())  # a copy: some work in place
        (slope,) = torch.autograd.grad(f.sum(), z)
    f = f.detach()
    variance, power = float((p * f * f).sum() - (p * f).sum() ** 2), float((p * slope * slope).sum())
    if not variance * power > 0:
        raise ValueError(f"unit scaling needs an elementwise activation with a slope, got {activation}")
    return math.pow(variance * power, -0.25)


def unit_layers(
    model: nn.Module, forward: Format | None, backward: Format | None, exempt: Sequence[str], initialize: bool
) -> None:
    """Scale every nn.Linear, nn.Embedding and elementwise activation; round the operands of the linear ones."""
    quantizer(forward, backward)  # refuses what is no format
    rounded = layers_of(model, exempt, (nn.Linear,))
    scaled = {path: m for path, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    for path, module in scaled.items():
        if type(module) not in (nn.Linear, nn.Embedding):
            raise ValueError(
                f"{path!r} is a {type(module).__name__}; unit scaling is for plain nn.Linear, nn.Embedding"
            )
    check_weights(scaled.values())
    if (forward, backward) != (None, None):
        check_dtypes([module.weight for module in rounded.values()])
    factors = {m: activation_scale(m) for m in model.modules() if isinstance(m, ACTIVATIONS)}
    for path, module in scaled.items():
        if isinstance(module, nn.Linear):
            become(module, UnitLinear, formats=(forward, backward) if path in rounded else (None, None))
        else:
            become(module, UnitEmbedding)
        if initialize:
            _unit_variance(module)
    for activation, factor in factors.items():
        _compat.set_hooks(activation, _compat.UNIT_SCALING, before=_Before(factor), after=_After(factor))


@torch.no_grad()
def _unit_variance(module: nn.Linear | nn.Embedding) -> None:
    nn.init.normal_(module.weight)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.zero_()
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()
