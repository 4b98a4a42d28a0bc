"""Products, sums and convolutions of plain tensors with the accumulator of one's choice, for studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.gemm import gemm, reduce


def matmul(
    a: Tensor, b: Tensor, accumulator: Accumulator, c: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """``torch.matmul(a, b)``, plus ``c``, each output added up by the accumulator, in the dtype of the operands.

    Axes broadcast as in ``torch.matmul``; 1-D operands are a row and a column. The addend ``c``
    broadcasts to the result and is the initial value of each sum. Gradients are products too and
    are added up by the same accumulator; those of broadcast axes are then summed in the dtype.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not go together, or that cannot hold the sums.

    >>> from lptensor import BF16
    >>> a = torch.full((1, 1000), 0.5)
    >>> matmul(a, a.T, Accumulator(BF16)).item(), (a @ a.T).item()
    (64.0, 250.0)
    """
    for t in (a, b):
        if isinstance(t, Tensor) and t.dim() == 0:
            raise ValueError("matmul() takes operands of one axis or more, got a scalar; multiply it instead")
    row, column = a.dim() == 1, b.dim() == 1
    left = a.unsqueeze(0) if row else a
    right = b.unsqueeze(1) if column else b
    if c is not None:
        c = c.unsqueeze(-2) if row and c.dim() else c
        c = c.unsqueeze(-1) if column and c.dim() else c
        while c.dim() < 2:
            c = c.unsqueeze(0)
    r = with_gradients(left, right, accumulator, c, generator)
    r = r.squeeze(-2) if row else r
    return r.squeeze(-1) if column else r


def sum(
    x: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    accumulator: Accumulator,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``torch.sum``, added up by the accumulator in contiguous order of the axes ``dim``; None adds all.

    The gradient is that of an exact sum.

    >>> from lptensor import FP16
    >>> sum(1 / torch.arange(1.0, 1000.0), accumulator=Accumulator(FP16))
    tensor(7.0859)
    """
    if torch.compiler.is_dynamo_compiling():
        node: Tensor = _lptensor_sum(x, dim, keepdim, accumulator, generator)
        return node
    total: Tensor = _Sum.apply(x, dim, keepdim, accumulator, generator)  # type: ignore[no-untyped-call]
    return total


@_compat.graph_node
def _lptensor_sum(x: Tensor, dim: Any, keepdim: bool, accumulator: Accumulator, generator: Any) -> Tensor:
    return sum(x, dim, keepdim, accumulator=accumulator, generator=generator)


def conv(
    x: Tensor,
    w: Tensor,
    accumulator: Accumulator,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A convolution over 1, 2 or 3 axes as the product of the weights with the unfolded input.

    The terms of an output come channel after channel, in each the kernel's positions in contiguous
    order, and those of the padding are products with zero: what ``matmul`` of ``unfold`` gives. The
    bias is the initial value of the sum. Overlapping windows' gradients are summed in the dtype.

    Args:
        x: [batch, channels, sizes ...]. w: [out channels, channels / groups, sizes of the kernel ...].

    >>> from lptensor import BF16
    >>> conv(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), Accumulator(BF16))
    tensor([[[[9., 9.],
              [9., 9.]]]])
    """
    axes = w.dim() - 2
    if axes not in (1, 2, 3) or x.dim() != w.dim():
        raise ValueError(
            f"conv() takes x of [batch, channels, 1 to 3 axes] and w of as many axes, got {tuple(x.shape)} "
            f"and {tuple(w.shape)}"
        )
    if groups < 1 or x.shape[1] != groups * w.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"{groups} groups need w of [a multiple of {groups}, {x.shape[1]} / {groups}, ...], got {tuple(w.shape)}"
        )
    columns, size = unfold(x, w.shape[2:], stride, padding, dilation)
    columns = columns.reshape(len(x), groups, -1, math.prod(size))
    weights = w.reshape(groups, w.shape[0] // groups, -1)
    start = None if bias is None else bias.reshape(groups, -1, 1)
    return with_gradients(weights, columns, accumulator, start, generator).reshape(len(x), w.shape[0], *size)


def unfold(
    x: Tensor,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> tuple[Tensor, list[int]]:
    """The windows of ``x``, [batch, channels * kernel positions, output positions], and the output's size.

    What ``torch.nn.functional.unfold`` gives for two axes, for any number of them.

    >>> unfold(torch.arange(4.0).reshape(1, 1, 4), (2,))[0]
    tensor([[[0., 1., 2.],
             [1., 2., 3.]]])
    """
    axes = len(kernel)
    strides, pads, dilations = (_each(v, axes) for v in (stride, padding, dilation))
    x = torch.nn.functional.pad(x, [p for pad in reversed(pads) for p in (pad, pad)])
    for d in range(axes):
        reach = dilations[d] * (kernel[d] - 1) + 1
        if x.shape[2 + d] < reach:
            raise ValueError(
                f"axis {2 + d} has {x.shape[2 + d]} elements with its padding, a kernel of {kernel[d]} with "
                f"dilation {dilations[d]} reaches over {reach}"
            )
        x = x.unfold(2 + d, reach, strides[d])[..., :: dilations[d]]
    size = list(x.shape[2 : 2 + axes])
    x = x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return x.reshape(x.shape[0], -1, math.prod(size)), size


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    if len(values) != axes:
        raise ValueError(f"expected one number or {axes}, got {values}")
    return values


def with_gradients(
    a: Tensor, b: Tensor, accumulator: Accumulator, c: Tensor | None = None, generator: Any = None
) -> Tensor:
    """``gemm`` under autograd: the gradients' products are added up by the same accumulator."""
    if torch.compiler.is_dynamo_compiling():
        node: Tensor = _lptensor_gemm(a, b, accumulator, c, generator)
        return node
    r: Tensor = _Gemm.apply(a, b, c, accumulator, generator)  # type: ignore[no-untyped-call]
    return r


@_compat.graph_node
def _lptensor_gemm(a: Tensor, *args: Any) -> Tensor:
    return with_gradients(a, *args)


class _Gemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor | None, accumulator: Accumulator, generator: Any) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.accumulator, ctx.generator = accumulator, generator
        ctx.start = None if c is None else c.shape
        return gemm(a, b, accumulator, c, generator)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (a, b) = grads, ctx.saved_tensors
        acc, wanted = ctx.accumulator, ctx.needs_input_grad
        of_a = with_gradients(grad, b.mT, acc, None, ctx.generator).sum_to_size(a.shape) if wanted[0] else None
        of_b = with_gradients(a.mT, grad, acc, None, ctx.generator).sum_to_size(b.shape) if wanted[1] else None
        return of_a, of_b, grad.sum_to_size(ctx.start) if wanted[2] else None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: Any, keepdim: bool, accumulator: Accumulator, generator: Any) -> Tensor:
        ctx.shape = x.shape
        ctx.dim, ctx.keepdim = dim, keepdim
        return reduce(x, dim, accumulator, keepdim, generator)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if not ctx.keepdim and ctx.dim is not None:
            dims = (ctx.dim,) if isinstance(ctx.dim, int) else ctx.dim
            for d in sorted(d % max(len(ctx.shape), 1) for d in dims):
                grad = grad.unsqueeze(d) if ctx.shape else grad
        return grad.expand(ctx.shape), None, None, None, None
