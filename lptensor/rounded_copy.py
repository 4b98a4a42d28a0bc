"""A rounded copy of a plain tensor, also of one that a compiler traces."""

from __future__ import annotations

from torch import Tensor

from lptensor.base import Format
from lptensor.library import traced_round
from lptensor.ops import round_fresh
from lptensor.rounding import Rounding


def rounded_copy(x: Tensor, format: Format, rounding: Rounding) -> Tensor:
    """``x`` rounded, in memory of its own.

    >>> from lptensor import BF16
    >>> import torch
    >>> rounded_copy(torch.tensor([1.001]), BF16, Rounding())
    tensor([1.])
    """
    if type(x) is Tensor:
        return x.clone() if x.device.type == "meta" else round_fresh(x, format, rounding)
    return traced_round(x, format, rounding)
