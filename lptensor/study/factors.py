"""Factors of a matrix in float64, with the signs and the pivots that low precision chose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lptensor.study.places import values_of

# Ops that return vectors of either sign: which results hold them, and the axis along which each runs.
_VECTORS = {"_linalg_eigh": {1: -2}, "_linalg_svd": {0: -2, 2: -1}}
# Ops that return, or keep for their backward pass, both factors in one matrix, at this place, and then the pivots.
_BOTH = {"linalg_lu_factor_ex": 0, "_linalg_solve_ex": 1, "_linalg_det": 1, "_linalg_slogdet": 2}


def as_chosen(name: str, low: Any, right: Any, matrix: Any) -> Any:
    """What an op gave in float64, turned and permuted as its results in low precision are.

    Args:
        name: of the op.
        low: its results in low precision.
        right: its results in float64.
        matrix: what they are the factors of, in float64.

    >>> x = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> values, vectors = torch.linalg.eigh(x.double())
    >>> as_chosen("_linalg_eigh", (values, -vectors), (values, vectors), x)[1].equal(-vectors)
    True
    """
    if name in _VECTORS:
        return _turned(_VECTORS[name], low, right)
    if name in _BOTH and not low[_BOTH[name] + 1].equal(right[_BOTH[name] + 1]):
        return _exchanged(_BOTH[name], low, right, matrix)
    if name == "linalg_lu" and not (rows := values_of(low[0]).double()).equal(right[0]):
        both, k = _eliminated(matrix, rows), min(matrix.shape[-2:])
        lower = both[..., :k].tril(-1) + torch.eye(matrix.shape[-2], k, dtype=both.dtype, device=both.device)
        return rows, lower, both[..., :k, :].triu()
    return right


def _turned(axes: dict[int, int], low: Any, right: Any) -> list[Tensor]:
    turned = list(right)
    for place, axis in axes.items():
        if right[place].numel():  # torch leaves out vectors that nobody asks for
            opposite = (values_of(low[place]).double() * right[place]).sum(axis, keepdim=True) < 0
            turned[place] = torch.where(opposite, -right[place], right[place])
    return turned


def _exchanged(place: int, low: Any, right: Any, matrix: Tensor) -> list[Tensor]:
    results, (both, pivots) = list(right), right[place : place + 2]
    if place:  # on the way to something else torch factors the transpose, if that is how a matrix lies in memory
        p, lower, upper = torch.lu_unpack(both, pivots)
        product = p @ lower @ upper
        matrix = min(matrix, matrix.mT, key=lambda x: (product - x).norm().nan_to_num().item())
    rows = torch.lu_unpack(both, low[place + 1], unpack_data=False)[0]
    results[place : place + 2] = _eliminated(matrix, rows), low[place + 1]
    return results


def _eliminated(matrix: Tensor, rows: Tensor) -> Tensor:
    """L below the diagonal and U above, of the matrix with its rows in the order of a permutation: no more pivoting."""
    x = rows.mT @ matrix
    for k in range(min(x.shape[-2:])):
        x[..., k + 1 :, k] /= x[..., k, k, None]
        x[..., k + 1 :, k + 1 :] -= x[..., k + 1 :, k, None] * x[..., k, None, k + 1 :]
    return x
