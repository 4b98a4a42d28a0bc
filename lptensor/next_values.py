"""nextafter, which goes to the next value of a dtype: here it is the format's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lptensor.arguments import join
from lptensor.base import Format
from lptensor.neighbours import next as next_value


def to_next_value(run: Callable[..., Any]) -> Callable[..., Any]:
    """``nextafter`` among the values of the format, as IEEE 754-2019 5.3.1 goes up and down."""

    def stepped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        low = [x for x in args if hasattr(x, "_arithmetic")]
        there = _beside(args, join(low).forward)
        return run((type(low[0])(there, join(low)), there), kwargs)  # where nextafter stays

    return stepped


def to_next_value_in_place(run: Callable[..., Any]) -> Callable[..., Any]:
    """``nextafter_`` likewise."""

    def stepped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not hasattr(args[0], "_arithmetic"):  # a plain tensor steps among its own values
            return run(args, kwargs)
        return args[0].copy_(_beside(args, args[0].format))

    return stepped


def _beside(args: tuple[Any, ...], format: Format | None) -> Tensor:
    x, toward = torch.broadcast_tensors(*(getattr(x, "_inner", x).double() for x in args))
    if format is None:
        return torch.nextafter(x.float(), toward.float())
    up, down = next_value(x, format), next_value(x, format, up=False)
    beside = torch.where(toward > x, up, torch.where(toward < x, down, toward))
    return torch.where(x.isnan(), x, beside).float()
