"""The op by which ``torch.amp.GradScaler`` divides gradients in place: it needs formats with room for the quotients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lptensor.base import Format

_ENOUGH = 2.0**-100  # of the smallest number: bfloat16 and what has fp32's exponents, as torch has it of dtypes


def unscaled(run: Callable[..., Any]) -> Callable[..., Any]:
    """The op, refused where small quotients would vanish again, as they did before the loss was scaled."""

    def checked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for x in args[0]:
            format: Format | None = getattr(x, "format", None)
            grid = getattr(format, "grid", None)  # blocks find a scale of their own
            if grid is not None and grid.smallest > _ENOUGH:
                raise ValueError(
                    f"GradScaler divides gradients in place, and {format!r} would lose what scaling the loss has "
                    "saved; lptensor.training.LossScaler, used alike, divides them in fp32"
                )
        return run(args, kwargs)

    return checked
