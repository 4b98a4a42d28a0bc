"""The op by which ``torch.amp.GradScaler`` divides gradients in place: it needs formats with room for the quotients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from lptensor import _compat, observe
from lptensor.base import Format
from lptensor.blocks import BlockFormat
from lptensor.ops import round_fresh
from lptensor.rounding import Rounding

_SMALL = 2.0**-100  # bfloat16 and what has fp32's exponents have it, as torch has it of dtypes


def unscaled(run: Callable[..., Any]) -> Callable[..., Any]:
    """The op, refused where small quotients would vanish again, as they did before the loss was scaled."""

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for x in args[0]:
            format: Format | None = getattr(x, "format", None)
            if format is not None and not _has_room(format):
                raise ValueError(
                    f"GradScaler divides gradients in place, and {format!r} would lose what scaling the loss has "
                    "saved; lptensor.training.LossScaler, used alike, divides them in fp32"
                )
        return run(args, kwargs)

    return checked


@lru_cache(maxsize=256)
def _has_room(format: Format) -> bool:
    """Whether a small number stays about what it is, in whatever kind of format; blocks find a scale of their own."""
    with _compat.real_tensors(), observe.unseen():
        small = torch.tensor([_SMALL], dtype=torch.float32, device="cpu")
        return isinstance(format, BlockFormat) or 0.5 < round_fresh(small, format, Rounding()).item() / _SMALL < 2
