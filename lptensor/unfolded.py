"""Convolutions as matrix products of the unfolded input, forward and backward, in any number of axes.

The contraction of the forward product runs over (channel, taps), as in ``torch.nn.functional.unfold``;
that of the weight's gradient over (sample, positions); that of the input's gradient, a transposed
convolution, over (output channel, taps), the zeros that a stride puts between the gradients included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lptensor.multiply import Multiply
from lptensor.operands import Product

aten = torch.ops.aten


class Form(NamedTuple):
    """What aten's convolutions take besides tensors, each with one number per axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def spread(self, axes: int) -> Form:
        """The same where torch left one number for all axes."""

        def each(values: Sequence[int]) -> Sequence[int]:
            return [*values] * axes if len(values) == 1 else values

        stride, padding, dilation, transposed, extra, groups = self
        return Form(each(stride), each(padding), each(dilation), transposed, each(extra), groups)


def forward(multiply: Multiply, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """aten::convolution with rounded operands."""
    form = form.spread(x.dim() - 2)
    _check(x, weight, bias, form)
    if multiply.elementwise:
        x, weight, multiply = multiply.round(x, 0), multiply.round(weight, 1), multiply.rounded
        if multiply.accumulator is None:
            y: Tensor = aten.convolution(x, weight, bias, *form)
            return y
    if form.transposed:
        return _transposed(multiply, x, weight, bias, form, form.output_padding)
    return _correlated(multiply, _padded(x, form.padding, form.padding), weight, bias, form.stride, form)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> None:
    """Refuse what torch's convolutions refuse, and unfolding would not notice."""
    for name, values, least in (
        ("stride", form.stride, 1),
        ("dilation", form.dilation, 1),
        ("padding", form.padding, 0),
        ("output padding", form.output_padding, 0),
    ):
        if min(values, default=least) < least:
            raise RuntimeError(f"the {name} of a convolution must be {least} or more, got {tuple(values)}")
    channels = weight.shape[1] * form.groups if form.transposed else weight.shape[0]
    if bias is not None and bias.shape != (channels,):
        raise RuntimeError(f"the bias has one number for each of {channels} output channels, got {tuple(bias.shape)}")
    for n, k, s, p, d, extra in zip(
        x.shape[2:], weight.shape[2:], form.stride, form.padding, form.dilation, form.output_padding, strict=True
    ):
        reach, padded = d * (k - 1) + 1, n + 2 * p
        if not form.transposed and padded < reach:
            raise RuntimeError(
                f"a kernel of {k} with dilation {d} reaches over {reach} elements, the padded input has {padded}"
            )
        if form.transposed and extra >= max(s, d):
            raise RuntimeError(f"output padding must be smaller than the stride {s} or the dilation {d}, got {extra}")


def backward(
    multiply: Multiply,
    factors: Sequence[Tensor],
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    form: Form,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten::convolution_backward with the operands of each of its products rounded.

    Args:
        factors: gradient, input and weight as they came to the op.
    """
    form = form.spread(x.dim() - 2)
    g, first, second, *_ = factors
    for_input = multiply.of(Product.GRAD_INPUT, 0, (g, second))
    for_weight = multiply.of(Product.GRAD_WEIGHT, 0, (g, first))
    if form.transposed:
        for_weight = multiply.of(Product.GRAD_WEIGHT, 1, (first, g))
    of_input = _grad_input(for_input, grad, x, weight, form) if mask[0] else None
    of_weight = _grad_weight(for_weight, grad, x, weight, form) if mask[1] else None
    return of_input, of_weight, multiply.sum(grad, [0, *range(2, grad.dim())]) if mask[2] else None


def _grad_input(multiply: Multiply, grad: Tensor, x: Tensor, weight: Tensor, form: Form) -> Tensor:
    if multiply.elementwise:
        grad, weight, multiply = multiply.round(grad, 0), multiply.round(weight, 1), multiply.rounded
        if multiply.accumulator is None:
            of_input: Tensor = aten.convolution_backward(grad, x, weight, None, *form, [True, False, False])[0]
            return of_input
    sizes = x.shape[2:]
    if form.transposed:
        y = _correlated(multiply, _padded(grad, form.padding, form.padding), weight, None, form.stride, form)
        return _cropped(y, sizes)
    reached = _reached(grad.shape[2:], weight.shape[2:], form)
    return _transposed(multiply, grad, weight, None, form, [n - r for n, r in zip(sizes, reached, strict=True)])


def _grad_weight(multiply: Multiply, grad: Tensor, x: Tensor, weight: Tensor, form: Form) -> Tensor:
    if multiply.elementwise:
        place = multiply.gradient
        grad, x, multiply = multiply.round(grad, place), multiply.round(x, 1 - place), multiply.rounded
        if multiply.accumulator is None:
            of_weight: Tensor = aten.convolution_backward(grad, x, weight, None, *form, [False, True, False])[1]
            return of_weight
    still, moving = (x, grad) if form.transposed else (grad, x)
    positions = still.shape[2:]
    windows = _windows(_padded(moving, form.padding, form.padding), weight.shape[2:], form.stride, form.dilation)
    columns = _matrices(_cropped(windows, positions), form.groups, len(positions))
    rows = still.unflatten(1, (form.groups, -1)).permute(1, 2, 0, *range(3, still.dim() + 1)).flatten(2)
    return multiply.matmul(rows, columns).reshape(weight.shape)


def _correlated(
    multiply: Multiply, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], form: Form
) -> Tensor:
    """A convolution of a padded input: its windows (groups, samples * positions, channels * taps) times the weights."""
    windows = _windows(x, weight.shape[2:], stride, form.dilation)
    positions, groups = windows.shape[2 : x.dim()], form.groups
    columns = weight.flatten(1).unflatten(0, (groups, -1)).mT
    start = None if bias is None else bias.reshape(groups, 1, -1)
    y = multiply.matmul(_matrices(windows, groups, len(positions)), columns, start)
    y = y.unflatten(1, (x.shape[0], *positions)).movedim(-1, 2)  # groups, samples, channels, positions
    joined: Tensor = y.transpose(0, 1).flatten(1, 2).contiguous()
    return joined


def _transposed(
    multiply: Multiply, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, extra: Sequence[int]
) -> Tensor:
    """A transposed convolution: one of the input with zeros between its values, with the weights turned round."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], form.stride, strict=True)]
    spaced = x.new_zeros(*x.shape[:2], *sizes)
    every = tuple(slice(None, None, s) for s in (1, 1, *form.stride))
    spaced[every] = x
    low = [d * (k - 1) - p for d, k, p in zip(form.dilation, weight.shape[2:], form.padding, strict=True)]
    spaced = _padded(spaced, low, [n + e for n, e in zip(low, extra, strict=True)])
    turned = weight.unflatten(0, (form.groups, -1)).transpose(1, 2).flatten(0, 1)
    turned = turned.flip([*range(2, turned.dim())])
    return _correlated(multiply, spaced, turned, bias, [1] * len(sizes), form)


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What a kernel sees at each position: (samples, channels, positions..., taps...), a view."""
    x = x.contiguous()
    axes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    positions = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes]
    steps = [s * step for s, step in zip(stride, x.stride()[2:], strict=True)]
    inside = [d * step for d, step in zip(dilation, x.stride()[2:], strict=True)]
    return x.as_strided((*x.shape[:2], *positions, *kernel), (*x.stride()[:2], *steps, *inside))


def _matrices(windows: Tensor, groups: int, axes: int) -> Tensor:
    """Windows as (groups, samples * positions, channels * taps)."""
    grouped = windows.unflatten(1, (groups, -1))
    order = [1, 2, *range(3 + axes, grouped.dim()), 0, *range(3, 3 + axes)]
    columns: Tensor = grouped.permute(order).flatten(1, 1 + axes).flatten(2)  # which copies runs of positions
    return columns.mT


def _reached(positions: Sequence[int], kernel: Sequence[int], form: Form) -> list[int]:
    """How many inputs a convolution with these output sizes needs."""
    axes = zip(positions, kernel, form.stride, form.padding, form.dilation, strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes]


def _padded(x: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
    pairs = [n for pair in zip(reversed(low), reversed(high), strict=True) for n in pair]
    return F.pad(x, pairs) if any(pairs) else x


def _cropped(x: Tensor, sizes: Sequence[int]) -> Tensor:
    for axis, n in enumerate(sizes, start=2):
        x = x.narrow(axis, 0, n)
    return x
