"""Products, sums and convolutions of plain tensors with the accumulator of one's choice, for studies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.base import as_int, check_bool, check_dense, check_int, check_tensor
from lptensor.gemm import axes_of, check_accumulator, common_shape, gemm, reduce
from lptensor.ops import check_samples_draw


def matmul(
    a: Tensor,
    b: Tensor,
    accumulator: Accumulator,
    c: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``torch.matmul(a, b)``, plus ``c``, each output added up by the accumulator, in the dtype of the operands.

    Axes broadcast as in ``torch.matmul``; 1-D operands are a row and a column. The addend ``c``
    broadcasts to the result and is the initial value of each sum. Gradients are products too and
    are added up by the same accumulator; along broadcast axes they are then summed in the dtype. What NaN and
    infinities become depends on the accumulator's formats. A sum of no products is +0, or the addend
    rounded (in the order "exact" -0 becomes +0). If all products are -0 the sum is +0, since sums start at +0,
    but -0 in "pairwise".

    Args:
        a, b, c: plain tensors, float32 or float64, of one dtype and device.
        accumulator: what adds up each output.
        generator: where stochastic accumulators draw their key, on the CPU; torch's own by default.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not go together, or that cannot hold the sums; no
            ``Accumulator``; an LPTensor, whose own arithmetic names its accumulator.

    >>> from lptensor import BF16
    >>> a = torch.full((1, 1000), 0.5)
    >>> matmul(a, a.T, Accumulator(BF16)).item(), (a @ a.T).item()
    (64.0, 250.0)
    """
    _check_tensors(a, b)
    if a.dim() == 0 or b.dim() == 0:
        raise ValueError("matmul() takes operands of one axis or more, got a scalar; multiply it instead")
    row, column = a.dim() == 1, b.dim() == 1
    if a.shape[-1] != b.shape[0 if column else -2]:
        raise ValueError(f"matmul() takes [..., m, k] and [..., k, n], got {tuple(a.shape)} and {tuple(b.shape)}")
    if c is not None and not isinstance(c, Tensor):
        raise TypeError(f"the addend c must be a tensor, got {c!r}")
    left = a.unsqueeze(0) if row else a
    right = b.unsqueeze(1) if column else b
    if c is not None:
        check_dense(c, "sums are formed of")
        c = c.unsqueeze(-2) if row and c.dim() else c
        c = c.unsqueeze(-1) if column and c.dim() else c
        while c.dim() < 2:
            c = c.unsqueeze(0)
        _check_addend(c, left, right)
    r = with_gradients(left, right, accumulator, c, generator)
    r = r.squeeze(-2) if row else r
    return r.squeeze(-1) if column else r


def _check_tensors(*given: Any) -> None:
    for t in given:
        check_tensor(t)
        check_dense(t, "sums are formed of")


def _check_addend(c: Tensor, a: Tensor, b: Tensor) -> None:
    """Refuse an addend that would make the product ``a @ b`` larger."""
    batch = common_shape(a.shape[:-2], b.shape[:-2])
    if batch is None:
        return  # operands that do not go together: gemm() says so
    wanted = (*batch, a.shape[-2], b.shape[-1])
    if common_shape(wanted, c.shape) != wanted:
        raise ValueError(f"the addend must broadcast to {wanted}, got shape {tuple(c.shape)}")


def sum(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    accumulator: Accumulator,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``torch.sum``, added up by the accumulator in contiguous order of the axes ``dim``; None adds all.

    The gradient is that of an exact sum. What NaN and infinities become depends on the accumulator's formats. An empty
    sum is +0, and so is a sum of -0 alone, except in the order "pairwise".

    Args:
        x: a plain tensor, float32 or float64.
        dim: an axis or several; () adds all, too.
        keepdim: leave the axes that are summed over, of one element each.
        accumulator: what adds up each output.
        generator: as of ``matmul``.

    Raises:
        TypeError, ValueError: axes that x lacks, a dtype that cannot hold the sums, no ``Accumulator``; an
            LPTensor, whose own arithmetic names its accumulator.

    >>> from lptensor import FP16
    >>> sum(1 / torch.arange(1.0, 1000.0), accumulator=Accumulator(FP16))
    tensor(7.0859)
    """
    if torch.compiler.is_dynamo_compiling():
        node: Tensor = _lptensor_sum(x, dim, keepdim, accumulator, generator)
        return node
    _check_tensors(x)
    total: Tensor = _Sum.apply(x, axes_of(dim, x.dim()), check_bool("keepdim", keepdim), accumulator, generator)  # type: ignore[no-untyped-call]
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
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A convolution over 1, 2 or 3 axes as the product of the weights with the unfolded input.

    The terms of an output come channel after channel, in each the kernel's positions in contiguous
    order, and those of the padding are products with zero: what ``matmul`` of ``unfold`` gives. The
    bias is the initial value of the sum. Gradients of overlapping windows, of the weights over samples and of
    the bias are summed in the dtype (those of LPTensors in the accumulator). NaN, infinities, empty sums and -0 are
    as in ``matmul``.

    Args:
        x: [batch, channels, sizes ...]. w: [out channels, channels / groups, sizes of the kernel ...].
        accumulator: what adds up each output.
        bias: a number for each output channel.
        stride, padding, dilation: one number, or one for each axis.
        groups: into how many parts channels and outputs fall, each a convolution of its own.
        generator: as of ``matmul``.

    Raises:
        TypeError, ValueError: shapes, dtypes or numbers that do not go together, or that cannot hold the sums; no
            ``Accumulator``; an LPTensor, whose own arithmetic names its accumulator.

    >>> from lptensor import BF16
    >>> conv(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), Accumulator(BF16))
    tensor([[[[9., 9.],
              [9., 9.]]]])
    """
    check_accumulator(accumulator)
    _check_tensors(*(x, w) if bias is None else (x, w, bias))
    axes = w.dim() - 2
    if axes not in (1, 2, 3) or x.dim() != w.dim():
        raise ValueError(
            f"conv() takes x of [batch, channels, 1 to 3 axes] and w of as many axes, got {tuple(x.shape)} "
            f"and {tuple(w.shape)}"
        )
    groups = check_int("groups", groups, 1, 2**62)
    if x.shape[1] != groups * w.shape[1] or w.shape[0] % groups:
        raise ValueError(
            f"{groups} groups need w of [a multiple of {groups}, {x.shape[1]} / {groups}, ...], got {tuple(w.shape)}"
        )
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"the bias has one number for each of {w.shape[0]} output channels, got {tuple(bias.shape)}")
    columns, size = unfold(x, w.shape[2:], stride, padding, dilation)
    terms = w.shape[1] * math.prod(w.shape[2:])
    columns = columns.reshape(len(x), groups, terms, math.prod(size))
    weights = w.reshape(groups, w.shape[0] // groups, terms)
    start = None if bias is None else bias.reshape(groups, w.shape[0] // groups, 1)
    y = with_gradients(weights, columns, accumulator.turned, start, generator)
    return y.reshape(len(x), w.shape[0], *size)


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
    strides, pads = _each("stride", stride, axes, 1), _each("padding", padding, axes, 0)
    dilations = _each("dilation", dilation, axes, 1)
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
    return x.reshape(x.shape[0], x.shape[1] * math.prod(kernel), math.prod(size)), size


def _each(name: str, value: int | Sequence[int], axes: int, least: int) -> list[int]:
    given = [as_int(n) for n in (value if isinstance(value, Sequence) else [value] * axes)]
    values = [n for n in given if n is not None and n >= least]
    if len(given) != axes or len(values) != axes:
        raise ValueError(f"{name} takes one number of {least} or more, or one for each axis ({axes}), got {value!r}")
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
    @_compat.known_signature
    def forward(a: Tensor, b: Tensor, c: Tensor | None, accumulator: Accumulator, generator: Any) -> Tensor:
        return gemm(a, b, accumulator, c, generator)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        a, b, c, accumulator, ctx.generator = inputs
        ctx.first_known, ctx.second_known = accumulator.naming(True, False), accumulator.naming(False, True)
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)
        ctx.set_materialize_grads(False)
        ctx.start, ctx.shape = None if c is None else c.shape, output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        (a, b), wanted = ctx.saved_tensors, ctx.needs_input_grad
        of_a = of_b = None
        if wanted[0]:
            of_a = with_gradients(grad, b.mT, ctx.second_known, None, ctx.generator).sum_to_size(a.shape)
        if wanted[1]:
            of_b = with_gradients(a.mT, grad, ctx.first_known, None, ctx.generator).sum_to_size(b.shape)
        return of_a, of_b, grad.sum_to_size(ctx.start) if wanted[2] else None, None, None

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor | None, of_b: Tensor | None, of_c: Tensor | None, *_: Any) -> Tensor:
        a, b = ctx.saved_tensors
        pairs = [] if of_a is None else [(of_a, b, ctx.second_known)]
        pairs += [] if of_b is None else [(a, of_b, ctx.first_known)]
        tangents = [with_gradients(left, right, acc, None, ctx.generator) for left, right, acc in pairs]
        tangents += [] if of_c is None else [of_c.expand(ctx.shape).clone()]
        return functools.reduce(torch.add, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor, b: Tensor, c: Tensor | None, accumulator: Any, generator: Any) -> Any:
        _check_draws(info, accumulator)
        operands = [(t, d) for t, d in zip((a, b, c), in_dims, strict=False) if t is not None]
        axes = max(t.dim() - (d is not None) for t, d in operands)
        a, b, *start = (t if d is None else _samples_first(t, d, axes) for t, d in operands)
        return with_gradients(a, b, accumulator, start[0] if start else None, generator), 0


class _Sum(torch.autograd.Function):
    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, axes: list[int], keepdim: bool, accumulator: Accumulator, generator: Any) -> Tensor:
        return reduce(x, axes, accumulator, keepdim, generator)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, *ctx.how = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        axes, keepdim, *_ = ctx.how
        for axis in () if keepdim else axes:
            grad = grad.unsqueeze(axis)
        return grad.expand(ctx.shape), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        total: Tensor = _Sum.apply(tangent, *ctx.how)  # type: ignore[no-untyped-call]
        return total

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, axes: list[int], keepdim: bool, accumulator: Accumulator, generator: Any
    ) -> Any:
        _check_draws(info, accumulator)
        x = x.movedim(in_dims[0], 0)
        if x.dim() == 1:  # a number alone is summed along its only axis
            x, axes, keepdim = x.unsqueeze(1), [0], False
        return sum(x, [axis + 1 for axis in axes], keepdim, accumulator=accumulator, generator=generator), 0


def _samples_first(t: Tensor, axis: int, axes: int) -> Tensor:
    """The samples of a vmap as one more leading axis, each of ``axes`` axes."""
    t = t.movedim(axis, 0)
    return t.reshape(len(t), *[1] * (axes + 1 - t.dim()), *t.shape[1:])


def _check_draws(info: Any, accumulator: Accumulator) -> None:
    if accumulator.stochastic:
        check_samples_draw(info, "an accumulator that rounds stochastically")
