"""Random formats and numbers for the laws; validity is judged by the oracle, not by lptensor."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import assume, strategies as st

from oracles import exact

OVERFLOWS = {
    "ieee": ("inf", "saturate", "propagate", "nan"),
    "fn": ("nan", "saturate"),
    "fnuz": ("nan", "saturate"),
    "none": ("saturate",),
}


@st.composite
def float_parameters(draw: Any, max_exp: int = 8, max_man: int = 23) -> dict[str, Any]:
    """Keyword arguments of a FloatingPoint that fp32 carries."""
    exp, man = draw(st.integers(1, max_exp)), draw(st.integers(0, max_man))
    specials = draw(st.sampled_from(sorted(OVERFLOWS)))
    assume(not (specials == "ieee" and (exp == 1 or man == 0)))
    assume((exp, man, specials) != (1, 0, "fn"))
    overflow = draw(st.sampled_from(OVERFLOWS[specials]))
    signed = True if specials == "fnuz" else draw(st.booleans())
    subnormals = draw(st.sampled_from((True, True, False, "flush")))
    zero = subnormals is not False or specials == "fnuz" or draw(st.booleans())
    middle = 2 ** (exp - 1) - 1
    bias = draw(st.one_of(st.just(middle), st.integers(middle - 20, middle + 20), st.integers(-127, 255)))
    assume(-127 <= bias <= 255)
    made = exact.Float(exp, man, bias, subnormals, specials, overflow, signed, zero)
    assume(made.has_normals() and made.fits_fp32())
    return dict(vars(made))


@st.composite
def fixed_parameters(draw: Any, max_wl: int = 24) -> dict[str, Any]:
    """Keyword arguments of a FixedPoint that an fp32 number carries."""
    wl, signed, clamp, symmetric = (
        draw(st.integers(1, max_wl)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    fl = draw(st.one_of(st.integers(-8, wl + 8), st.integers(-126, 149)))
    assume(not (signed and symmetric and wl == 1))
    assume(wl - fl <= 128 or not clamp)
    return dict(wl=wl, fl=fl, clamp=clamp, symmetric=symmetric, signed=signed)


def numbers_near(values: Any) -> st.SearchStrategy[float]:
    """fp32 numbers: any bits at all, and values, midpoints and their neighbours of the given set."""
    anything = st.integers(0, 2**32 - 1).map(lambda u: float(np.uint32(u).view(np.float32))).filter(lambda x: x == x)
    return st.one_of(anything, *([] if values is None else [near(values)]))


@st.composite
def near(draw: Any, values: Any) -> float:
    """A carrier number on, half way between, or just beside two neighbours."""
    u = draw(st.integers(1, 0x7F7FFFFF))
    gap = values.gap(exact.Fraction(float(np.uint32(u).view(np.float32))))
    target = draw(st.sampled_from((gap.low, gap.high, (gap.low + gap.high) / 2)))
    assume(target <= exact.FP32_MAX)
    code = int(np.float32(float(target)).view(np.uint32))
    code = min(max(code + draw(st.sampled_from((0, 1, -1))), 0), 0x7F7FFFFF)
    x = float(np.uint32(code).view(np.float32))
    return -x if draw(st.booleans()) else x


def small_floats() -> list[exact.Float]:
    """Every choice of specials, overflow, subnormals, sign and zero for exp + man up to 5 bits."""
    made: list[exact.Float] = []
    for exp, man, specials in itertools.product(range(1, 5), range(0, 5), OVERFLOWS):
        if exp + man > 5 or specials == "ieee" and (exp == 1 or man == 0) or (exp, man, specials) == (1, 0, "fn"):
            continue
        for overflow, subnormals, signed in itertools.product(
            OVERFLOWS[specials], (True, False, "flush"), (True, False)
        ):
            if specials == "fnuz" and not signed:
                continue
            for zero in (True, False) if subnormals is False and specials != "fnuz" else (True,):
                bias = (7 * exp + 3 * man + len(made)) % 11 - 3
                values = exact.Float(exp, man, bias, subnormals, specials, overflow, signed, zero)
                if values.has_normals():
                    made.append(values)
    return made
