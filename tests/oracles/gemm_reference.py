"""Layers as three products of plain tensors, each operand rounded by hand along its own axis.

``quantize`` is an argument everywhere: (tensor, slot, axis) -> tensor, with slots "forward 0" ... "grad_weight 1".
Nothing here is imported from the code under test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Quantize = Callable[[Tensor, str, int], Tensor]


class Product(torch.autograd.Function):
    """``a @ b`` of tensors (..., m, k) and (..., k, n), with its two gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, quantize: Quantize) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.quantize = quantize
        return quantize(a, "forward 0", -1) @ quantize(b, "forward 1", -2)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        (a, b), quantize = ctx.saved_tensors, ctx.quantize
        of_a = quantize(g, "grad_input 0", -1) @ quantize(b, "grad_input 1", -1).mT
        of_b = (quantize(g, "grad_weight 0", -2).mT @ quantize(a, "grad_weight 1", -2)).mT
        return of_a, of_b, None


def product(a: Tensor, b: Tensor, quantize: Quantize) -> Tensor:
    result: Tensor = Product.apply(a, b, quantize)
    return result


def gathered(
    x: Tensor, kernel: Sequence[int], source: Callable[[int, int, int], int | None], out: Sequence[int]
) -> Tensor:
    """Columns (samples * positions, channels * taps), read one by one: 0 where ``source`` names no element.

    ``source(axis, position, tap)`` is the index along an axis that a tap sees at a position.
    """
    n, channels = x.shape[:2]
    rows = []
    for sample in range(n):
        for position in itertools.product(*map(range, out)):
            row = []
            for channel in range(channels):
                for taps in itertools.product(*map(range, kernel)):
                    where = [source(axis, p, t) for axis, (p, t) in enumerate(zip(position, taps, strict=True))]
                    inside = all(w is not None and 0 <= w < s for w, s in zip(where, x.shape[2:], strict=True))
                    row.append(x[(sample, channel, *where)].item() if inside else 0.0)  # type: ignore[arg-type]
            rows.append(row)
    return torch.tensor(rows, dtype=x.dtype)


def convolution(
    x: Tensor, w: Tensor, g: Tensor, stride: int, padding: int, dilation: int, quantize: Quantize
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and gradient of the weight of one group; ``g`` is the output's gradient."""
    out, kernel, n = g.shape[2:], w.shape[2:], x.shape[0]

    def seen(axis: int, p: int, t: int) -> int:
        return p * stride + t * dilation - padding

    def sent(axis: int, p: int, t: int) -> int | None:  # the taps are turned round
        at = p + padding - (kernel[axis] - 1 - t) * dilation
        return at // stride if at % stride == 0 else None

    columns, weights = gathered(x, kernel, seen, out), w.flatten(1)
    y = quantize(columns, "forward 0", -1) @ quantize(weights, "forward 1", -1).T
    spread = gathered(g, kernel, sent, x.shape[2:])
    turned = w.flip([*range(2, w.dim())]).transpose(0, 1).flatten(1)
    of_x = quantize(spread, "grad_input 0", -1) @ quantize(turned, "grad_input 1", -1).T
    rows = g.movedim(1, 0).flatten(1)  # channels x (samples, positions)
    of_w = quantize(rows, "grad_weight 0", -1) @ quantize(columns, "grad_weight 1", -2)
    return _image(y, n, out), _image(of_x, n, x.shape[2:]), of_w.reshape(w.shape)


def transposed_convolution(
    x: Tensor, w: Tensor, g: Tensor, stride: int, padding: int, dilation: int, quantize: Quantize
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a transposed convolution: of input and output gradient, one takes the other's place."""
    slots = {
        "forward 0": "grad_input 0",
        "forward 1": "grad_input 1",
        "grad_input 0": "forward 0",
        "grad_input 1": "forward 1",
        "grad_weight 0": "grad_weight 1",
        "grad_weight 1": "grad_weight 0",
    }
    of_x, y, of_w = convolution(
        g, w, x, stride, padding, dilation, lambda t, slot, axis: quantize(t, slots[slot], axis)
    )
    return y, of_x, of_w


def _image(rows: Tensor, n: int, sizes: Sequence[int]) -> Tensor:
    return rows.unflatten(0, (n, *sizes)).movedim(-1, 1)
