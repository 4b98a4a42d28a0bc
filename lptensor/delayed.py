"""Delayed scaling: a module that rounds under a scale made from the magnitudes it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.base import no_format
from lptensor.direction import recomputed
from lptensor.formats import FloatingPoint, Grid, Overflow, ScalarFormat
from lptensor.of_values import of_values
from lptensor.ops import StraightThrough, check_roundable, round as lp_round
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.scaling import DelayedMaximum


class DelayedScaling(nn.Module):
    """Rounds to a scalar format under the scale that earlier calls have left behind.

    A call gives R(x * scale) * (1 / scale), R saturating, each product rounded in the dtype of x and
    1 / scale in fp32. In training mode it then records max|x| and makes the scale of the next call,
    in fp32 (Transformer Engine's order): max / amax / 2**margin, max being the format's largest
    value and amax the largest or latest of the history; an infinite scale becomes the largest
    fp32. Where amax is zero, infinite or NaN the scale stays as it was; it begins at 1. In
    evaluation mode nothing is recorded.

    The gradient passes straight through. NaN stays NaN, infinities saturate, and -0 is kept if the format has it.

    The state is two fp32 buffers, ``amax_history`` (latest first) and ``scale``, so that a state_dict
    carries it and a resumed run repeats its bits; ``.half()`` and the like leave their dtype alone.
    Where a checkpoint recomputes activations, the scale is that of the latest call, and nothing is recorded: one
    call in a forward pass repeats its bits.

    Args:
        format: a scalar format with a largest value.
        scaling: ``DelayedMaximum(history, margin, amax)``; by default ``DelayedMaximum()``.
        rounding: as for ``round``; "nearest" by default.

    Raises:
        TypeError: no scalar format, or no ``DelayedMaximum``.
        ValueError: a format without a largest value, an unknown rounding.

    >>> from lptensor import E4M3
    >>> quantize = DelayedScaling(E4M3, DelayedMaximum(history=2))
    >>> quantize(torch.tensor([0.001, 0.75])).tolist(), quantize.scale.item()
    ([0.001953125, 0.75], 597.3333129882812)
    """

    amax_history: Tensor
    scale: Tensor
    _latest: Tensor | None = None  # the scale of the latest call in training mode

    def __init__(
        self,
        format: ScalarFormat,
        scaling: DelayedMaximum | None = None,
        rounding: Rounding | Mode | str = "nearest",
    ) -> None:
        super().__init__()
        scaling = DelayedMaximum() if scaling is None else scaling
        if not isinstance(format, ScalarFormat):
            raise TypeError(f"delayed scaling takes a scalar format such as E4M3, got {no_format(format)}")
        if not isinstance(scaling, DelayedMaximum):
            raise TypeError(
                f"expected DelayedMaximum(...), got {scaling!r}; Scaled() takes the scalings without a state"
            )
        if not 0 < format.grid.max < float("inf"):
            raise ValueError(f"delayed scaling needs a format with a largest value, which {format!r} lacks")
        self.format, self.scaling, self.rounding = format, scaling, as_rounding(rounding)
        self.register_buffer("amax_history", torch.zeros(scaling.history, dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    @of_values
    def forward(self, x: Tensor) -> Tensor:
        """``x``, float32 or float64 of any shape, rounded under the scale; in training its maximum is remembered."""
        check_roundable(x, self.format)
        again = self.training and recomputed()
        scale = self._latest if again and self._latest is not None else self.scale.clone()
        values: Tensor = _UnderScale.apply(x, scale, self.format, self.rounding)  # type: ignore[no-untyped-call]
        if self.training and not again:
            self._latest = scale
            self.record(x)
        return values

    @torch.no_grad()
    def record(self, x: Tensor) -> None:
        """Enter max|x| in the history, and make the scale of the next call."""
        amax = x.detach().abs().amax().to(torch.float32) if x.numel() else torch.zeros_like(self.scale)
        self.amax_history.copy_(torch.roll(self.amax_history, 1))
        self.amax_history[0] = amax
        amax = self.amax_history.amax() if self.scaling.amax == "max" else self.amax_history[0]
        scale = torch.full_like(amax, self.format.grid.max) / amax / 2.0**self.scaling.margin
        usable = (amax > 0) & amax.isfinite()
        self.scale.copy_(torch.where(usable, scale.clamp(max=torch.finfo(torch.float32).max), self.scale))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(_compat.moving(fn, torch.int32), recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The format, the scaling and the rounding, for ``print``."""
        return f"{self.format!r}, {self.scaling!r}, {self.rounding!r}"


class _UnderScale(StraightThrough):
    """R(x * scale) / scale."""

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, scale: Tensor, format: ScalarFormat, rounding: Rounding) -> Tensor:
        inverse = (1.0 / scale).to(x.dtype)
        return lp_round(x.detach() * scale.to(x.dtype), _saturating(format), rounding).mul_(inverse)


@dataclass(frozen=True)
class _Saturating(ScalarFormat):
    """A scalar format that saturates, whatever its own overflow."""

    format: ScalarFormat

    @cached_property
    def grid(self) -> Grid:
        return self.format.grid._replace(overflow=Overflow.SATURATE)


@lru_cache(maxsize=256)
def _saturating(format: ScalarFormat) -> ScalarFormat:
    """The same values under a name that others know, where there is one."""
    if format.grid.overflow is Overflow.SATURATE:
        return format
    return replace(format, overflow="saturate") if isinstance(format, FloatingPoint) else _Saturating(format)
