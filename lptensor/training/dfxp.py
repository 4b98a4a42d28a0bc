"""Dynamic fixed point: the exponent follows the share of values that overflow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lptensor.base import check_int, check_number
from lptensor.direction import recomputed
from lptensor.formats import FixedPoint
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round as lp_round
from lptensor.rounding import Mode, Rounding, as_rounding, show_rounding


class DynamicFixedPoint(nn.Module):
    """Rounds to ``wl``-bit fixed point inside (-2**exponent, 2**exponent), an exponent that is updated now and then.

    Every ``interval`` calls in training mode (Courbariaux et al., 1412.7024, section 5): if more than
    ``max_overflow`` of the elements since the last time reached the largest magnitude, the exponent goes
    one up; else, if no more than that share reached half of it, one down. What reaches it counts, and
    the range is symmetric, as in the authors' code. Evaluation counts nothing. The gradient passes
    straight through; NaN stays, infinities saturate and overflow. Where a checkpoint recomputes
    activations, the exponent is that of the latest call, and nothing is counted.

    The state is three integer buffers, so that a state_dict carries it and a resumed run repeats its bits.

    Args:
        wl: word length, 2 to 24; 10 bits to compute and 12 for parameters in the paper.
        exponent: what to begin with, -100 to 100, where it stays.
        max_overflow: a share of the elements, from 0 to below 1.
        interval: calls between two updates; the paper has 10,000 samples.
        rounding: as for ``round``.

    Raises:
        TypeError: what is not an integer, or a share that is not a number.
        ValueError: wl outside 2 to 24, an exponent outside -100 to 100, an interval below 1, a max_overflow that is
            no share.

    >>> quantize = DynamicFixedPoint(4, interval=1)
    >>> quantize(torch.tensor([3.0])).item(), quantize.format
    (0.875, FixedPoint(wl=4, fl=2, symmetric=True))
    """

    exponent: Tensor
    overflows: Tensor
    seen: Tensor
    _latest: FixedPoint | None = None  # what the latest call in training mode rounded to

    def __init__(
        self,
        wl: int = 10,
        exponent: int = 0,
        max_overflow: float = 1e-4,
        interval: int = 100,
        rounding: Rounding | Mode | str = "nearest",
    ) -> None:
        super().__init__()
        if not 0 <= check_number("max_overflow", max_overflow) < 1:
            raise ValueError(f"max_overflow is a share of the elements, from 0 to below 1, got {max_overflow!r}")
        self.wl, self.max_overflow = check_int("wl", wl, 2, 24), float(max_overflow)
        self.interval = check_int("interval", interval, 1, 2**31)
        self.rounding = as_rounding(rounding)
        self.register_buffer("exponent", torch.tensor(check_int("exponent", exponent, -100, 100)))
        self.register_buffer("overflows", torch.zeros(2, dtype=torch.int64))  # of the range, of half of it
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))  # elements, calls

    @property
    def format(self) -> FixedPoint:
        """The format that the next call rounds to."""
        return FixedPoint(self.wl, self.wl - 1 - int(self.exponent), symmetric=True)

    @of_values
    def forward(self, x: Tensor) -> Tensor:
        """``x``, float32 or float64 of any shape, rounded to ``format``; in training what overflowed is counted."""
        again = self.training and recomputed()
        format = self._latest if again and self._latest is not None else self.format
        check_roundable(x, format)
        values = lp_round(x, format, self.rounding)
        if self.training and not again:
            self._latest = format
            self._record(values.detach().abs(), format.max)
        return values

    @torch.no_grad()
    def _record(self, magnitude: Tensor, largest: float) -> None:
        self.overflows += torch.stack([(magnitude >= largest).sum(), (magnitude >= largest / 2).sum()])
        self.seen += torch.tensor([magnitude.numel(), 1], device=self.seen.device)
        elements, calls = self.seen.tolist()
        if calls < self.interval:
            return
        allowed = self.max_overflow * elements
        above, above_half = self.overflows.tolist()
        if above > allowed:
            self.exponent.add_(1).clamp_(max=100)
        elif above_half <= allowed and elements:
            self.exponent.sub_(1).clamp_(min=-100)
        self.overflows.zero_()
        self.seen.zero_()

    def extra_repr(self) -> str:
        """The arguments, the exponent as it is now, for ``print``."""
        number = f"wl={self.wl}, exponent={int(self.exponent)}"
        rule = f"max_overflow={self.max_overflow}, interval={self.interval}"
        return f"{number}, {rule}, rounding={show_rounding(self.rounding)}"
