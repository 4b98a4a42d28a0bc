"""What a random word decides, by Fitzgibbon and Felix, "On Stochastic Rounding with Few Random Bits" (2025)."""

from __future__ import annotations

import math
from fractions import Fraction


def goes_up(chance: Fraction, word: int, bits: int, variant: str) -> bool:
    """Whether the first ``bits`` of 32 random ones take a value up that lies this far between its neighbours."""
    if bits > 30:
        chance = Fraction(math.floor(chance * 2**32), 2**32)
    steps = chance * 2**bits
    kept = {
        "plain": math.floor(steps),
        "half_offset": math.floor(steps + Fraction(1, 2)),
        "pre_rounded": round(steps),
        "equal": 2 ** (bits - 1),
    }
    return kept[variant] + (word >> 32 - bits) >= 2**bits
