"""Scaled dot product attention as two products and a softmax, where the products' operands are rounded.

It stands for PyTorch's fused kernel on the CPU: what is between the products stays unrounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lptensor.multiply import Multiply
from lptensor.operands import Product

WAY_OUT = "run attention under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"


def forward(
    multiply: Multiply,
    factors: Sequence[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, and the logsumexp of the scores that the backward pass asks for.

    Args:
        factors: the three tensors as they came to the op.
    """
    _check(multiply, dropout_p)
    q, k, v, *_ = factors
    key, value = (_for_each_head(query, x) for x in (key, value))
    scores = _scores(multiply.of(Product.FORWARD, 0, (q, k)), query, key, is_causal, attn_mask, scale)
    weights, logsumexp = _softmax(multiply, scores)
    return multiply.of(Product.FORWARD, 0, (None, v)).matmul(weights, value), logsumexp


def backward(
    multiply: Multiply,
    factors: Sequence[Tensor],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value.

    Args:
        factors: the incoming gradient and these three as they came to the op.
    """
    g, q, k, v, *_ = factors
    heads = key.shape[1]
    key, value = (_for_each_head(query, x) for x in (key, value))
    scores = _scores(multiply.of(Product.FORWARD, 0, (q, k)), query, key, is_causal, attn_mask, scale)
    weights, _ = _softmax(multiply, scores)  # of the logsumexp, where scores are large, they would lose digits
    of_value = multiply.of(Product.GRAD_WEIGHT, 1, (None, g)).matmul(weights.mT, grad)
    of_weights = multiply.of(Product.GRAD_INPUT, 0, (g, v)).matmul(grad, value.mT)
    of_scores = weights * (of_weights - multiply.sum(weights * of_weights, -1, True)) * _scale(query, scale)
    of_query = multiply.of(Product.GRAD_INPUT, 0, (None, k)).matmul(of_scores, key)
    of_key = multiply.of(Product.GRAD_WEIGHT, 0, (None, q)).matmul(of_scores.mT, query)
    return of_query, _of_groups(multiply, of_key, heads), _of_groups(multiply, of_value, heads)


def _for_each_head(query: Tensor, x: Tensor) -> Tensor:
    """A key or value for each head of ``query``, if there is one for a group of them."""
    heads = query.shape[1]
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _of_groups(multiply: Multiply, grad: Tensor, groups: int) -> Tensor:
    """The gradient of what the heads of a group have in common: the sum of theirs."""
    return grad if grad.shape[1] == groups else multiply.sum(grad.unflatten(1, (groups, -1)), 2)


def _scale(query: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale


def _scores(
    multiply: Multiply, query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None
) -> Tensor:
    scores = multiply.matmul(query, key.mT) * _scale(query, scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    return scores if mask is None else scores + mask  # PyTorch has made numbers of a boolean one


def _softmax(multiply: Multiply, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the logsumexp of each row; one in which nothing is seen has no weight."""
    most = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    each = (scores - most).exp()
    total = multiply.sum(each, -1, True)
    return (each / total).masked_fill(total == 0, 0.0), (total.log() + most).squeeze(-1)


def _check(multiply: Multiply, dropout_p: float) -> None:
    """Refuse what the backward pass could not repeat."""
    if dropout_p:
        raise NotImplementedError(f"fused attention with dropout has no rounded operands: {WAY_OUT}")
    if multiply.of(Product.FORWARD).draws:
        raise NotImplementedError(
            f"fused attention computes its weights anew in the backward pass, and random bits would differ: {WAY_OUT}"
        )
