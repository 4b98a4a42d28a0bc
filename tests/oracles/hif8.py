"""HiF8 (arXiv 2409.16626) as the package en_dtypes has it, and its neighbours by exact rationals.

``python tests/oracles/hif8.py`` writes hif8.json anew, for which it converts every float32 with en_dtypes 0.0.4:
that is compiled for Linux on x86 and Python 3.7 to 3.12, so that the tests read the file instead.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

_FILE = Path(__file__).with_suffix(".json")
_FOUND = json.loads(_FILE.read_text()) if _FILE.exists() else {"values": [], "first": {}}

VALUES = [float.fromhex(text) for text in _FOUND["values"]]  # what each code stands for
FIRST = {int(code): int(bits, 16) for code, bits in _FOUND["first"].items()}  # the first positive float32 that it takes
INFINITE, NAN, MAX, NEXT = 0x6F, 0x80, 2.0**15, Fraction(3 * 2**14)  # the infinity's code is that of 1.5 * 2**15

# The positive values and what comes next, ascending, with their codes.
_LADDER = sorted((Fraction(v), code) for code, v in enumerate(VALUES[:128]) if math.isfinite(v)) + [(NEXT, INFINITE)]
_RUNGS = [value for value, _ in _LADDER]
_BACK = ("toward_zero", "odd")


def rounded(x: float, mode: str, overflow: str = "inf") -> float:
    """x in a mode that draws nothing; an overflow goes by IEEE 754-2019 7.4."""
    if math.isnan(x):
        return x
    sign, magnitude, infinite = math.copysign(1.0, x), abs(x), math.nan if overflow == "nan" else math.inf
    if math.isinf(x):
        return sign * (MAX if overflow == "saturate" else infinite)
    back = mode in (*_BACK, "up" if x < 0 else "down") or overflow in ("saturate", "propagate")
    value = _magnitude(min(Fraction(magnitude), NEXT), mode, x < 0)
    return 0.0 if value == 0 else sign * (float(value) if value < NEXT else MAX if back else infinite)


def around(magnitude: Fraction) -> tuple[Fraction, Fraction]:
    """The neighbours of a magnitude below NEXT."""
    at = bisect_right(_RUNGS, magnitude) - 1
    return _RUNGS[at], _RUNGS[at + 1]


def _magnitude(a: Fraction, mode: str, negative: bool) -> Fraction:
    at = bisect_right(_RUNGS, a) - 1
    (low, low_code) = _LADDER[at]
    if a == low:
        return low
    (high, high_code) = _LADDER[at + 1]
    assert (low_code + high_code) % 2 == 1, "of two neighbours one is even"
    up = {
        "toward_zero": False,
        "down": negative,
        "up": not negative,
        "odd": high_code % 2 == 1,
        "nearest": a - low > high - a or a - low == high - a and high_code % 2 == 0,
        "nearest_away": a - low >= high - a,
        "nearest_up": a - low > high - a or a - low == high - a and not negative,
    }[mode]
    return high if up else low


def _convert() -> dict[str, Any]:
    from en_dtypes import hifloat8  # type: ignore[import-not-found]

    values = np.arange(256, dtype=np.uint8).view(hifloat8).astype(np.float32)
    first: dict[int, int] = {}
    for start in range(0, 0x7F800001, 2**24):
        bits = np.arange(start, min(start + 2**24, 0x7F800001), dtype=np.uint32)
        codes = bits.view(np.float32).astype(hifloat8).view(np.uint8)
        mirrored = (bits | 0x80000000).view(np.float32).astype(hifloat8).view(np.uint8)
        assert np.array_equal(mirrored, np.where(codes == 0, 0, codes | 0x80)), "the sign is one bit"
        assert (values[codes[1:]] >= values[codes[:-1]]).all(), "larger numbers become no smaller ones"
        for at in np.flatnonzero(np.diff(codes, prepend=codes[0] ^ 1)):
            first.setdefault(int(codes[at]), start + int(at))
    assert np.array([np.nan, -np.nan], np.float32).astype(hifloat8).view(np.uint8).tolist() == [NAN] * 2
    return {"values": [float(v).hex() for v in values], "first": {code: hex(at) for code, at in first.items()}}


if __name__ == "__main__":
    _FILE.write_text(json.dumps(_convert(), indent=0) + "\n")
