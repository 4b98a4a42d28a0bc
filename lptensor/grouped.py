"""Products of groups of rows with a matrix each, as experts have them: torch's own have no float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    matmul: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """``aten::_grouped_mm``; ``offs`` says where each group ends. What torch refuses is refused here too.

    >>> a, b = torch.ones(3, 2), torch.eye(2).expand(2, 2, 2)
    >>> grouped_mm(a, b, torch.tensor([1, 3], dtype=torch.int32)).equal(a)
    True
    """
    if bias is not None or out_dtype not in (None, a.dtype):
        raise NotImplementedError("grouped_mm is for tensors of one dtype here: call it without bias= and out_dtype=")
    stacks = [len(x) for x in (a, b) if x.dim() == 3]
    if (offs is None) != (len(stacks) == 2):
        raise ValueError(
            f"grouped_mm needs offs= if one of the two has two axes, and takes none if both have three, got tensors of "
            f"{a.dim()} and {b.dim()} axes and offs={offs}"
        )
    if offs is None:
        return matmul(a, b)
    ends = offs.tolist()
    if stacks not in ([], [len(ends)]):
        raise ValueError(f"grouped_mm needs a matrix for each group, got {stacks[0]} and {len(ends)} groups")
    groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if a.dim() == b.dim() == 2:
        return torch.stack([matmul(a[:, group], b[group]) for group in groups])
    made = a.new_zeros(a.shape[-2], b.shape[-1])  # what is beyond the last group is nobody's
    for i, group in enumerate(groups):
        if a.dim() == 2:
            made[group] = matmul(a[group], b[i])
        else:
            made[:, group] = matmul(a[i], b[:, group])
    return made


# What computes an op on float64 tensors where its kernel does not.
IN_FLOAT64: dict[Any, Callable[..., Any]] = (
    {torch.ops.aten._grouped_mm.default: grouped_mm} if hasattr(torch.ops.aten, "_grouped_mm") else {}
)
