"""Flexpoint: the exponent of a tensor is predicted from the magnitudes of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.base import check_int, check_number
from lptensor.direction import recomputed
from lptensor.formats import FixedPoint
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round as lp_round
from lptensor.rounding import Mode, Rounding, as_rounding, show_rounding


class Flexpoint(nn.Module):
    """Rounds to integers of ``bits`` bits times 2**exponent, predicted before the values are known.

    Autoflex (Koester et al., 1711.02213, algorithm 2): from the largest integer G of this call, and
    its scale k, G k enters a history of ``history`` magnitudes; the next exponent is
    ceil(log2 c) - bits + 1 with c = alpha (max + beta std + gamma k) of the history. Where G is
    2**(bits - 1) - 1 or more it counts as overflow: the history is cleared and 2 G k enters it. The
    first call, which has no history, takes ceil(log2 max|x|) - bits + 2. std is the population's.

    Only training mode predicts. The gradient passes straight through. Infinities saturate and count
    as overflow; NaN stays, and a call with NaN predicts nothing, as does one of zeros. Where a checkpoint
    recomputes activations, the exponent is that of the latest call, and nothing is predicted.

    The state is two buffers: ``exponent`` and ``magnitudes`` (float64, latest first, -1 for none).

    Args:
        bits: 3 to 24; 16 in flex16+5.
        history, alpha, beta, gamma: the paper's values.
        rounding: as for ``round``.

    Raises:
        TypeError: bits or a history that is not an integer, a factor that is not a number.
        ValueError: bits outside 3 to 24, a history below 1, an alpha that is not positive, a negative beta or
            gamma.

    >>> quantize = Flexpoint(8)
    >>> quantize(torch.tensor([1.0, 0.3])).tolist(), int(quantize.exponent)
    ([1.0, 0.296875], -4)
    """

    exponent: Tensor
    magnitudes: Tensor
    _latest: int | None = None  # the exponent of the latest call in training mode

    def __init__(
        self,
        bits: int = 16,
        history: int = 16,
        alpha: float = 2.0,
        beta: float = 3.0,
        gamma: float = 100.0,
        rounding: Rounding | Mode | str = "nearest",
    ) -> None:
        super().__init__()
        self.bits = check_int("bits", bits, 3, 24)
        history = check_int("history", history, 1, 2**20)
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not 0 <= check_number(name, value) < math.inf or (name == "alpha" and value == 0):
                sign = "positive" if name == "alpha" else "not negative"
                raise ValueError(f"{name} must be finite and {sign}, got {value!r}")
        self.alpha, self.beta, self.gamma = float(alpha), float(beta), float(gamma)
        self.rounding = as_rounding(rounding)
        self.register_buffer("exponent", torch.tensor(_UNKNOWN))
        self.register_buffer("magnitudes", torch.full((history,), -1.0, dtype=torch.float64))

    @of_values
    def forward(self, x: Tensor) -> Tensor:
        """``x``, float32 or float64 of any shape, rounded; in training the next exponent is predicted from it."""
        again = self.training and recomputed()
        exponent = self._latest if again and self._latest is not None else int(self.exponent)
        if exponent == _UNKNOWN:
            largest = float(x.detach().abs().amax()) if x.numel() else 0.0
            usable = 0 < largest < math.inf
            exponent = _held(math.ceil(math.log2(largest)) - self.bits + 2) if usable else 1 - self.bits
        format = FixedPoint(self.bits, -exponent)
        check_roundable(x, format)
        values: Tensor = lp_round(x, format, self.rounding)
        if self.training and not again:
            self._latest = exponent
            if x.numel():
                self._predict(values.detach(), exponent)
        return values

    @torch.no_grad()
    def _predict(self, values: Tensor, exponent: int) -> None:
        scale = math.ldexp(1.0, exponent)
        largest = float(values.abs().amax())
        if math.isnan(largest) or largest == 0:
            return
        if largest / scale >= 2 ** (self.bits - 1) - 1:
            self.magnitudes.fill_(-1.0)
            largest *= 2
        self.magnitudes.copy_(torch.roll(self.magnitudes, 1))
        self.magnitudes[0] = largest
        known = self.magnitudes[self.magnitudes >= 0]
        spread = float(known.std(correction=0))
        top = self.alpha * (float(known.max()) + self.beta * spread + self.gamma * scale)
        self.exponent.fill_(_held(math.ceil(math.log2(top)) - self.bits + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(_compat.moving(fn, torch.int64), recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        given = f"bits={self.bits}, history={len(self.magnitudes)}, alpha={self.alpha}, beta={self.beta}"
        return f"{given}, gamma={self.gamma}, rounding={show_rounding(self.rounding)}"


_UNKNOWN = 2**31  # no exponent yet


def _held(exponent: int) -> int:
    """An exponent whose grid fp32 holds."""
    return max(-120, min(exponent, 100))
