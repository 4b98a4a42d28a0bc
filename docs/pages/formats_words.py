"""The words of docs/formats.md that no row holds, and its examples of formats without a name."""

from __future__ import annotations

from lptensor.blocks import BlockFloatingPoint
from lptensor.codebooks import LogNumber
from lptensor.formats import FixedPoint, Format
from lptensor.p3109 import P3109
from lptensor.posits import Posit

HEAD = """
# Formats

<!-- `make pages` writes this page and its pictures from the formats themselves: change it there. -->

A *format* is a set of representable values, and says what becomes of values outside its range. It knows nothing of
tensors or of rounding modes. This page lists the formats that have a name, and some of those that a constructor
makes.

## How formats are named

A name stands for a call: `E4M3` is `FloatingPoint(4, 3, specials="fn", overflow="saturate")`. *E* counts
exponent bits and *M* stored mantissa bits; the sign takes one more. (Papers and some tables here write all three: 1-6-9
is `FloatingPoint(6, 9)`.) A suffix says which codes are given to
specials: without one, as in IEEE 754; `FN`, finite numbers and NaN but no infinities; `UZ`, an
unsigned zero, with NaN in the code of -0. `B11` is an exponent bias of 11. Four names keep the meaning that OCP
gave them instead: `E4M3` is an FN format, and `E3M2`, `E2M3` and `E2M1` have no specials at all.

```python
>>> from lptensor import *
>>> FloatingPoint(8)                       # a width: 4, 6, 8, 16 or 32 bits
E5M2
>>> FloatingPoint(4, 3) == E4M3            # exponent and mantissa bits, with IEEE's infinities and NaNs
False
>>> FloatingPoint(4, 3).max, E4M3.max      # which cost E4M3's top binade
(240.0, 448.0)
>>> FixedPoint(8, 4), Posit(16), LogNumber(8, gamma=4)
(FixedPoint(wl=8, fl=4), Posit(nbits=16), LogNumber(bits=8, gamma=4))
>>> P3109(8, 3).max                        # width and precision
49152.0
>>> Codebook([-1.0, -0.25, 0.0, 0.25, 1.0])
Codebook([-1.0, -0.25, 0.0, 0.25, 1.0])

```

The same in code:

```python
>>> import torch, lptensor
>>> from lptensor.study import bit_layout, format_table, number_line
>>> lptensor.finfo(FP16).eps == 2.0**-10
True
>>> E2M1.values().tolist()[7:]
[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
>>> lptensor.encode(torch.tensor([0.7, 0.8]), E4M3).tolist()                 # bit patterns, of rounded values
[51, 53]
>>> lptensor.decode(torch.arange(2**E2M1.bits), E2M1).tolist()[6:10]         # every code
[4.0, 6.0, -0.0, -0.5]
>>> [row["code"] for row in bit_layout(E4M3, 0.75)]
['0', '0110', '100']
>>> [(row["code"], row["value"], row["kind"]) for row in number_line(E2M1, 0, 1)]
[(0, 0.0, 'zero'), (1, 0.5, 'subnormal'), (2, 1.0, 'normal')]
>>> [row["values"] for row in format_table([E4M3, E5M2])]
[253, 247]

```

`plot_bit_layout(rows, ax)` and `plot_number_line(rows, ax)` draw such rows; they need matplotlib
(`pip install 'lptensor[study]'`).

## Range and precision

*p* is the precision: significant bits, the hidden one included. *emin* and *emax* are the exponents of the
smallest normal and the largest value; if values are evenly spaced they are equal, and there are no normal numbers.
*smallest* is the smallest positive value, *eps* the distance from 1 to the next value. *values* counts finite
values, zero once. *binades* is log2 of largest over smallest, and *dB* the same as 20 log10. The precision of
posits and of lists of values varies. A block format's row describes its elements before they are scaled.
"""

NUMBERS = """
## Specials, overflow, sources

*specials* lists what has a code besides plain numbers, and which plain numbers have none. *overflow* is what
results beyond the largest value become when they are rounded to nearest, infinities included (in blocks an
infinity makes the block NaN, and in posits it becomes NaN); the directed modes overflow as IEEE 754 says. A format
without a code for NaN still carries NaN through arithmetic, so that an error does not pass for a number;
`lptensor.encode` refuses it.
"""

# A section's title and its words, by kind, in the order of the page.
KINDS = {
    "float": (
        "Floating point",
        """A code is sign, exponent, mantissa. With the exponent code E > 0 it stands for
(-1)^sign * 2^(E - bias) * 1.mantissa; with E = 0, for the subnormals (-1)^sign * 2^(1 - bias) * 0.mantissa, which
keep the spacing of the smallest binade down to zero.

In the pictures, the bits are those of the value beside them. On a number line normals are blue and stand on the
line, subnormals are orange and hang below it, zero is a circle. The mark at an end says what lies beyond: a
square, the largest value again; a triangle, infinity; a cross, NaN.""",
    ),
    "fixed": (
        "Fixed point and integers",
        """`FixedPoint(wl, fl)` has the values k * 2^-fl, k being a `wl`-bit integer in two's complement; there is one
zero and no NaN code. `symmetric=True` drops the most negative value, `signed=False` the sign, `clamp=False` the
limits.""",
    ),
    "P3109": (
        "IEEE P3109",
        """`P3109(k, p)` has `k` bits and a precision of `p`; the bias is 2^(k - p - 1), so that 1.0 lies in the middle
of the codes. There is one zero and one NaN, in the code of -0 (unsigned: in the last one). `extended=False`
gives the codes of the infinities to numbers, `signed=False` doubles the exponents. The standard's saturation modes
are `overflow="saturate"` (SatFinite), `"propagate"` (SatPropagate) and `"inf"` (OvfInf).""",
    ),
    "posit": (
        "Posits",
        """`Posit(nbits, es)` spends bits where numbers are common: the regime, a run of equal bits, says how many
times 2^(2^es) the number is away from 1, and what it leaves goes to the exponent and the fraction. So precision
tapers away from 1. The one special is NaR, which stands for NaN and infinity; -0 does not exist; to nearest,
nothing but zero rounds to zero. Negative codes are the two's complement of positive ones. Each picture shows how
the fields move.""",
    ),
    "HiF8": (
        "HiFloat8",
        """A prefix code after the sign, the dot field, says how many bits the exponent has: 11 four, 10 three, 01
two, 001 one, 0001 none, and 0000 that what follows counts the powers of two from 2^-22 to 2^-16. The exponent is
sign and magnitude without the leading bit of this. The mantissa has the bits that are left: 3 with exponents from
-3 to 3, 2 to +-7 and 1 to +-15. The code of -0 is NaN, those of +-1.5 * 2^15 are the infinities.
`HiFloat8(overflow="saturate")` takes what lies beyond 2^15 to 2^15, and `"propagate"` all of that but infinities.
TA, the paper's rounding to nearest with ties away from zero, is `"nearest_away"`; `"nearest"` goes to the even code.
The paper's hybrid of TA and stochastic rounding is not available.""",
    ),
    "log": (
        "Logarithmic numbers",
        """`LogNumber(bits, gamma)` has the values +-2^((j - bias) / gamma), each the nearest fp32 number, and zero:
the relative distance of neighbours is the same everywhere. Rounding to nearest is nearest in the logarithm. A
product of two values is computed from their fp32 numbers and may lie just beside a third, to which rounding to
nearest takes it, but not rounding in a direction. A code counts the values in ascending order.""",
    ),
    "codebook": (
        "Codebooks",
        """A `Codebook` is any ascending list of values, and a code is the index of a value. There is no -0
and no code for NaN; beyond both ends it saturates.""",
    ),
    "block": (
        "Block formats",
        """The elements of a block share a scale, which comes from the largest magnitude among them. The pictures show
the scale of a block, then one element, and the values of an element before they are scaled. `lptensor.round`
gives scaled values; with a block in each row, their parts are

```python
>>> x = torch.tensor([0.1, -2.7, 33.0, 4.0]).repeat(2, 8)
>>> scales = lptensor.scales(x, MXFP4)
>>> scales.tolist(), lptensor.encode(lptensor.round(x, MXFP4) / scales, E2M1)[0, :4].tolist()
([[8.0], [8.0]], [0, 9, 6, 1])

```""",
    ),
}

# Formats without a name, one or a few for each kind that a constructor makes, and what each is for.
EXAMPLES: dict[Format, str] = {
    FixedPoint(8, 4): "Four bits before the point, the sign among them, and four behind.",
    P3109(8, 3): "Nearly the range of E5M2, and one binade below it.",
    P3109(8, 4): "Near E4M3FNUZ, with infinities.",
    P3109(8, 5): "Near E3M4.",
    Posit(8): "From 2^-24 to 2^24, with three fraction bits next to 1.",
    Posit(16): "From 2^-56 to 2^56, with eleven fraction bits next to 1.",
    LogNumber(8): "Eight steps to the binade, as in LNS-Madam.",
    BlockFloatingPoint(8): "Sign and magnitude integers under one exponent for the whole tensor; "
    "`dim` and `block_size` make more blocks.",
}
