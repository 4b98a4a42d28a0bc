"""Scalar number formats: which values exist, and what happens outside them."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

from lptensor.base import (
    CARRIER_MAX,
    Format as Format,
    ScalarFormat as ScalarFormat,
    as_int,
    check_bool,
    check_carried,
    check_int,
    set_int,
)
from lptensor.grid import Grid as Grid, Overflow as Overflow, Subnormals as Subnormals
from lptensor.layout import Layout
from lptensor.names import row

_WIDTHS = {4: (2, 1), 6: (3, 2), 8: (5, 2), 16: (5, 10), 32: (8, 23)}
_SPECIALS = ("ieee", "fn", "fnuz", "none")
_DEFAULT_OVERFLOW = {"ieee": "inf", "fn": "nan", "fnuz": "nan", "none": "saturate"}


@dataclass(frozen=True, init=False, repr=False)
class FloatingPoint(ScalarFormat):
    """Binary floating point with ``exp`` exponent bits and ``man`` stored mantissa bits.

    One positional argument is the width in bits (4, 6, 8, 16 or 32), two are exp and man.
    The defaults are IEEE 754's: bias 2**(exp-1) - 1, subnormals, infinities, NaN, -0.

    Args:
        size: the width, or exp and man; by name ``bit``, or ``exp`` (1 to 8) and ``man`` (0 to 23).
        bias: value of the exponent code 0 is 2**(1 - bias); fnuz formats default to one more. As a field it is a
            number, which ``dataclasses.replace`` keeps whatever exp becomes.
        subnormals: True for gradual underflow; False for zero and normals only, their midpoint
            going up; "flush" takes every input below the smallest normal to zero.
        specials: "ieee" has infinities and NaNs in the top exponent; "fn" only NaN, in the top
            code (OCP OFP8 E4M3); "fnuz" only NaN, in the code of -0; "none" has neither, which
            makes the floats of QPyTorch.
            Default: "ieee", and "none" for the widths 4 and 6, which are E2M1 and E3M2 of OCP MX.
        overflow: "inf", "nan" or "saturate" for what rounds beyond the largest value, infinities
            included; "propagate" (ieee alone) saturates too, but leaves infinities as they are, those among
            them that fp32 made of a result beyond its own range. Default: "inf" for ieee, "nan" for fn and
            fnuz, "saturate" for none.
        signed: without a sign bit, negatives become NaN (the smallest value if saturating).
        zero: False (E8M0) makes the exponent code 0 a normal one; zero then becomes NaN, and what
            lies below the smallest value becomes that value in every rounding mode.

    NaN propagates, also in formats without a code for it. -0 is kept unless the format lacks it.

    Raises:
        TypeError, ValueError: parameters out of range, or values that fp32 cannot carry.

    >>> FloatingPoint(8) == FloatingPoint(5, 2)
    True
    >>> FloatingPoint(4, 3, specials="fn", overflow="saturate").max
    448.0
    >>> FloatingPoint(exp=8, man=7)
    BF16
    """

    _: KW_ONLY  # by position the constructor takes a width, or exp and man
    exp: int
    man: int
    bias: int
    subnormals: bool | str = True
    specials: str = "ieee"
    overflow: str = "inf"
    signed: bool = True
    zero: bool = True
    kind = "float"

    def __init__(
        self,
        *size: int,
        bit: int | None = None,
        exp: int | None = None,
        man: int | None = None,
        bias: int | None = None,
        subnormals: bool | str = True,
        specials: str | None = None,
        overflow: str | None = None,
        signed: bool = True,
        zero: bool = True,
    ) -> None:
        by_width = bit is not None or len(size) == 1 and man is None
        exp, man = _size(size, bit, exp, man)
        if specials is None:
            specials = "none" if by_width and 1 + exp + man in (4, 6) else "ieee"
        if specials not in _SPECIALS:
            raise ValueError(f"specials must be one of {', '.join(_SPECIALS)}, got {specials!r}")
        if not isinstance(subnormals, bool) and subnormals != "flush":  # 0 and 1 would compare equal
            raise ValueError(f'subnormals must be True, False or "flush", got {subnormals!r}')
        overflow = _DEFAULT_OVERFLOW[specials] if overflow is None else overflow
        every = {"ieee": ("inf", "saturate", "propagate", "nan"), "none": ("saturate",)}
        allowed = every.get(specials, ("nan", "saturate"))
        if overflow not in allowed:
            raise ValueError(f"overflow with specials={specials!r} must be {' or '.join(allowed)}, got {overflow!r}")
        signed, zero = check_bool("signed", signed), check_bool("zero", zero)
        exp = check_int("exp", exp, 1, 8, ", as float32 carries the values")
        man = check_int("man", man, 0, 23, ", as float32 carries the values")
        if specials == "ieee" and (exp == 1 or man == 0):
            lost = "exp=1 leaves no normal numbers" if exp == 1 else "man=0 leaves no NaN"
            raise ValueError(f'{lost} under specials="ieee"; use specials="fn", "fnuz" or "none"')
        if specials == "fn" and exp == 1 and man == 0:
            raise ValueError('exp=1, man=0 leaves only zero and NaN under specials="fn"; use specials="none"')
        if specials == "fnuz" and not signed:
            raise ValueError('specials="fnuz" puts NaN in the code of -0, which an unsigned format lacks; use "fn"')
        if specials == "fnuz" and not zero:
            raise ValueError('specials="fnuz" puts NaN in the code of -0, which a format without zero lacks; use "fn"')
        if not zero and subnormals is not False:
            raise ValueError("a format without zero has no subnormals; say subnormals=False")
        bias = check_int("bias", _usual_bias(exp, specials) if bias is None else bias, -127, 255)
        for name, value in dict(
            exp=exp,
            man=man,
            bias=bias,
            subnormals=subnormals,
            specials=specials,
            overflow=overflow,
            signed=signed,
            zero=zero,
        ).items():
            object.__setattr__(self, name, value)
        check_carried(self, self.grid)

    @cached_property
    def grid(self) -> Grid:
        """The values and what lies outside of them, as plain numbers."""
        top_code = 2**self.exp - 1 - (self.specials == "ieee")
        codes_lost = int(self.specials == "fn")  # the top code is NaN
        significand = 2 ** (self.man + 1) - 1 - codes_lost
        if significand < 2**self.man:  # man=0: NaN takes the whole top exponent
            top_code, significand = top_code - 1, 2 ** (self.man + 1) - 1
        emax = top_code - self.bias
        top = math.ldexp(significand, emax - self.man)
        subnormals = {True: Subnormals.GRADUAL, False: Subnormals.NONE, "flush": Subnormals.FLUSH}
        return Grid(
            precision=self.man + 1,
            emin=int(self.zero) - self.bias,
            emax=emax,
            max=top,
            min=-top if self.signed else 0.0,
            overflow=Overflow[self.overflow.upper()],
            subnormals=subnormals[self.subnormals],
            zero=self.zero,
            negative_zero=self.signed and self.specials != "fnuz",
        )

    @cached_property
    def layout(self) -> Layout:
        """Where the values lie among the codes."""
        magnitude_bits = self.exp + self.man
        bits, ones = int(self.signed) + magnitude_bits, 2**magnitude_bits - 1
        if self.specials == "ieee":  # the quiet NaN: IEEE 754-2019 6.2.1
            inf = (2**self.exp - 1) << self.man
            return Layout(bits, top=inf - 1, inf=inf, nan=inf | 1 << (self.man - 1))
        if self.specials == "fn":
            return Layout(bits, top=ones - 1, nan=ones)
        return Layout(bits, top=ones, nan=ones + 1 if self.specials == "fnuz" else None)

    def spelled(self) -> str:
        """The call that makes the format: its widths, and what is not as these alone would have it."""
        defaults = dict(
            bias=_usual_bias(self.exp, self.specials),
            subnormals=True,
            specials="ieee",
            overflow=_DEFAULT_OVERFLOW[self.specials],
            signed=True,
            zero=True,
        )
        shown = [f"{name}={value!r}" for name, d in defaults.items() if (value := getattr(self, name)) != d]
        return f"FloatingPoint({', '.join([f'exp={self.exp}', f'man={self.man}', *shown])})"


def _usual_bias(exp: int, specials: str) -> int:
    bias: int = 2 ** (exp - 1) - (specials != "fnuz")
    return bias


def _size(size: tuple[int, ...], bit: int | None, exp: int | None, man: int | None) -> tuple[int, int]:
    """exp and man from the ways that FloatingPoint lets one say them."""
    if len(size) > 2:
        raise TypeError(f"FloatingPoint takes a width, or exp and man, got {size}; the rest goes by name")
    if len(size) == 1:
        if bit is not None or exp is not None:
            raise TypeError(f"FloatingPoint got the size twice: {size[0]} and {bit or exp}")
        bit, size = (size[0], ()) if man is None else (None, (size[0], man))
    if len(size) == 2:
        if bit is not None or exp is not None or (man is not None and man is not size[1]):
            raise TypeError(f"FloatingPoint got the size twice: {size} and {bit or exp or man}")
        exp, man = size
    if bit is not None:
        if exp is not None or man is not None:
            raise TypeError("FloatingPoint takes either bit or exp and man, got both")
        width = as_int(bit)
        if width is None:
            raise TypeError(f"a width must be an integer, one of {sorted(_WIDTHS)}, got {bit!r}")
        if width not in _WIDTHS:
            raise ValueError(
                f"a width of {width} bits is not settled; known: {sorted(_WIDTHS)}; give exp= (to 8) and man= (to 23)"
            )
        return _WIDTHS[width]
    if exp is None or man is None:
        raise TypeError("FloatingPoint needs a width, or both exp and man")
    return exp, man


@dataclass(frozen=True, repr=False)
class FixedPoint(ScalarFormat):
    """Fixed point with ``wl`` bits in all, ``fl`` of them behind the binary point.

    Two's complement: the values are k * 2**-fl with -2**(wl-1) <= k < 2**(wl-1); there is no -0.
    ``fl`` may be negative or larger than ``wl``. Infinities and results out of range saturate,
    unless ``clamp=False`` lifts the limits; where ``|x|`` is so large that every fp32 is a multiple
    of 2**-fl, x is unchanged. NaN propagates.

    Args:
        wl: word length: 1 to 25 bits (24 if unsigned) on float32 tensors, to 53 on float64 ones.
        fl: bits behind the point, -126 to 149: the values are 2**-fl apart.
        clamp: hold results in range.
        symmetric: drop the most negative value, so that -max is the smallest.
        signed: False for 0 <= k < 2**wl; negatives then become zero, or NaN if nothing clamps.

    Raises:
        TypeError: widths that are not integers, switches that are not booleans.
        ValueError: wl outside 1 to 53, fl outside -126 to 149, clamped values beyond the largest fp32, symmetric
            with one bit.

    >>> FixedPoint(8, 4).max, FixedPoint(8, 4).min
    (7.9375, -8.0)
    >>> FixedPoint(8, 4, symmetric=True).min
    -7.9375
    """

    wl: int
    fl: int
    clamp: bool = True
    symmetric: bool = False
    signed: bool = True
    kind, kind_source = "fixed", "two's complement"

    def __post_init__(self) -> None:
        set_int(self, "wl", 1, 53, why=" (53 bits is what a float64 carrier holds)")
        set_int(self, "fl", -126, 149, why=" (2**-149 is the smallest fp32)")
        for name in ("clamp", "symmetric", "signed"):
            check_bool(name, getattr(self, name))
        if self.signed and self.symmetric and self.wl == 1:
            raise ValueError("FixedPoint(wl=1, symmetric=True) holds nothing but zero; use wl of 2 or more")
        if self.clamp and self.wl - self.fl > 128:
            raise ValueError(f"{self!r} reaches beyond the largest fp32 {CARRIER_MAX:g}")

    @cached_property
    def grid(self) -> Grid:
        """The values and what lies outside of them, as plain numbers."""
        magnitude = self.wl - int(self.signed)
        emax = magnitude - 1 - self.fl
        top = math.ldexp(2**magnitude - 1, -self.fl) if self.clamp else math.inf
        bottom = -top if self.symmetric or not self.clamp else -math.ldexp(2**magnitude, -self.fl)
        return Grid(
            precision=magnitude,
            emin=emax,
            emax=emax,
            max=top,
            min=bottom if self.signed else 0.0,
            overflow=Overflow.SATURATE if self.clamp else Overflow.INF,
            negative_zero=False,
        )

    @cached_property
    def layout(self) -> Layout:
        """Where the values lie among the codes."""
        return Layout(self.wl, top=2 ** (self.wl - int(self.signed)) - 1, twos_complement=True)


IEEE_754 = "IEEE 754-2019, table 3.5"
OCP_FP8 = "OCP OFP8 v1.0, section 5"
OCP_MX = "OCP Microscaling Formats (MX) v1.0, section 5"
FNUZ = "arXiv 2206.02915"

# Named rows. Overflow is that of the types of the same name in ml_dtypes; E4M3 saturates, as OCP OFP8 allows.
FP32 = row("FP32", FloatingPoint(8, 23), f"{IEEE_754} (binary32)", "Single precision, the carrier of all others here.")
TF32 = row(
    "TF32",
    FloatingPoint(8, 10),
    "NVIDIA A100 whitepaper, 2020",
    "What NVIDIA's tensor cores make of fp32 matrices: the range of FP32, the precision of FP16.",
)
BF16 = row("BF16", FloatingPoint(8, 7), "arXiv 1905.12322", "The upper half of FP32.")
FP16 = row("FP16", FloatingPoint(5, 10), f"{IEEE_754} (binary16)", "Half precision.")
E5M2 = row("E5M2", FloatingPoint(5, 2), OCP_FP8, "FP16 without its last eight bits, for gradients.")
E4M3 = row(
    "E4M3",
    FloatingPoint(4, 3, specials="fn", overflow="saturate"),
    OCP_FP8,
    "For weights and activations: one code for NaN, and infinities given up for a larger range.",
)
E5M2FNUZ = row(
    "E5M2FNUZ",
    FloatingPoint(5, 2, specials="fnuz"),
    FNUZ,
    "As E5M2 without infinities and -0, the bias one higher.",
)
E4M3FNUZ = row("E4M3FNUZ", FloatingPoint(4, 3, specials="fnuz"), FNUZ, "As E4M3 with one zero, the bias one higher.")
E4M3B11FNUZ = row(
    "E4M3B11FNUZ",
    FloatingPoint(4, 3, specials="fnuz", bias=11),
    "float8_e4m3b11fnuz of ml_dtypes",
    "E4M3FNUZ moved down by three binades.",
)
E3M4 = row("E3M4", FloatingPoint(3, 4), "float8_e3m4 of ml_dtypes", "More precision, less range than E4M3.")
E3M2 = row("E3M2", FloatingPoint(3, 2, specials="none"), OCP_MX, "The wider of the two six-bit elements of MX.")
E2M3 = row("E2M3", FloatingPoint(2, 3, specials="none"), OCP_MX, "The finer of the two six-bit elements of MX.")
E2M1 = row("E2M1", FloatingPoint(2, 1, specials="none"), OCP_MX, "The four-bit element of MX and NVFP4.")
E8M0 = row(
    "E8M0",
    FloatingPoint(8, 0, specials="fn", signed=False, zero=False, subnormals=False),
    OCP_MX,
    "The scale of MX blocks: powers of two and nothing else. What is positive and smaller than 2^-127 becomes "
    "2^-127; zero becomes NaN.",
)
INT8 = row("INT8", FixedPoint(8, 0), "two's complement", "Eight-bit integers.")
INT4 = row("INT4", FixedPoint(4, 0), "two's complement", "Four-bit integers.")
