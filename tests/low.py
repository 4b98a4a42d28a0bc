"""Short words that tests of LPTensor share."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from lptensor import BF16, E4M3, E5M2, FP16, Format, LPTensor

# Formats that torch has a dtype for: its casts say what is on their grid.
DTYPES = {BF16: torch.bfloat16, FP16: torch.float16, E5M2: torch.float8_e5m2}


def values(x: Any) -> Tensor:
    """The plain values of a tensor."""
    return (x._inner if isinstance(x, LPTensor) else x).detach()


def rounded(x: Tensor, format: Format) -> Tensor:
    """Plain values rounded by PyTorch's own casts; E4M3 saturates where the cast gives NaN."""
    if format == E4M3:
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    return x.to(DTYPES[format]).float()


def same(a: Any, b: Any) -> bool:
    """Equal values, NaN equal to NaN."""
    return bool(torch.equal(values(a).nan_to_num(nan=12345.0), values(b).nan_to_num(nan=12345.0)))


def is_low(x: Any, format: Format) -> bool:
    """An LPTensor that says this format, with all values on its grid."""
    return isinstance(x, LPTensor) and x.format == format and same(x, rounded(values(x), format))


def through_file(x: Any, weights_only: bool = True) -> Any:
    """What ``torch.load`` makes of what ``torch.save`` has written."""
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)
