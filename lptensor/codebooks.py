"""Codebooks: formats that are a list of values, and the lists that papers have made known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from lptensor import _compat
from lptensor.base import CARRIER_MAX, check_bool, set_int, set_number
from lptensor.formats import Format
from lptensor.names import row
from lptensor.tables import Table, table_of

_SHOWN = 8  # values that the text of a codebook has room for


class TableFormat(Format):
    """A format whose values are listed; a code is the place of what it stands for in that list.

    Rounding to nearest takes ties to the even code. Beyond the ends, infinities included, it
    saturates in every mode, unless its ``table`` has other ends; NaN propagates. There is one zero: -0, and
    what rounds to zero from below, becomes +0. Between the two values around a missing zero, toward zero
    keeps the sign.
    Stochastic rounding goes away from zero with probability floor(2**32 f) / 2**32, or what its bits and
    variant make of f = (x - near) / (far - near), each step in float64: f is exact to 2**-51. ``near`` is
    the neighbour on the side of zero: the lower one of x > 0, the upper one of x < 0.
    """

    @property
    def table(self) -> Table:
        """The list of values."""
        raise NotImplementedError

    @property
    def overflow(self) -> str:
        """What results beyond the largest value become: "saturate", or what the ends of the ``table`` say."""
        ends = self.table.ends
        if ends is None:
            return "saturate"
        return "propagate" if ends.saturates else "nan" if math.isnan(ends.infinite) else "inf"

    @property
    def lowered(self) -> Table:
        """What a kernel gets of the format: its ``table``."""
        return self.table

    @property
    def max(self) -> float:
        """The largest value."""
        return self.table.values[-1]

    @property
    def min(self) -> float:
        """The smallest value: the most negative one."""
        return self.table.values[0]

    def values(self) -> Tensor:
        """All finite values, ascending, float64: where the list ascends, value i has the code i.

        >>> NF4.values()[7:9]
        tensor([0.0000, 0.0796], dtype=torch.float64)
        """
        return torch.tensor(self.table.values, dtype=torch.float64, device="cpu")

    @cached_property
    def _by_code(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each code stands for; that without NaN in ascending order, and the codes of this."""
        with _compat.real_tensors():  # what is made fake, while something traces, would stay so
            listed = torch.tensor(self.table.listed, dtype=torch.float64, device="cpu")
            ascending, codes = listed.sort(stable=True)  # NaN comes last
            count = len(listed) - int(listed.isnan().sum())
            return listed, ascending[:count], codes[: count + 1]  # and of the first NaN

    def values_of(self, codes: Tensor) -> Tensor:
        """The float64 values of integer codes, any shape; infinities and NaN where the list has them.

        Raises:
            ValueError: a code that no value has.
        """
        codes, listed = codes.long(), self._by_code[0]
        wrong = (codes < 0) | (codes >= len(listed))
        if wrong.any():
            raise ValueError(f"{self!r} has the codes 0 to {len(listed) - 1}, got {int(codes[wrong][0])}")
        return listed.to(codes.device)[codes]

    def codes_of(self, x: Tensor) -> Tensor:
        """The int64 codes of values that the format has, any shape; both zeros are the one zero.

        Of several codes for NaN it is the first.

        Raises:
            ValueError: a value that the format does not have, NaN and infinities among them.

        >>> NF4.codes_of(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([ 0,  7, 15])
        """
        _, values, codes = (t.to(x.device) for t in self._by_code)
        x = x.double()
        at = torch.searchsorted(values, x.contiguous()).clamp(max=len(values) - 1)
        wrong = values[at] != x
        if len(codes) > len(values):
            at, wrong = torch.where(x.isnan(), len(values), at), wrong & ~x.isnan()
        if wrong.any():
            raise ValueError(f"{x[wrong][0].item()!r} is not a value of {self!r}; round to the format first")
        return codes[at]

    def _has_all(self, values: Tensor) -> bool:
        return bool(torch.isin(values, self._by_code[1]).all())


@dataclass(frozen=True, repr=False)
class Codebook(TableFormat):
    """Any ascending list of finite values.

    The values are fp32 numbers: 0.1 stands for the float32 nearest to it. Rounding to nearest
    takes the closer value, ties go to the even code; what happens to NaN, infinities and -0 is the
    same for all lists, see ``TableFormat``.

    Args:
        values: numbers in ascending order (a sequence or a tensor), at most 2**16.
        name: what repr() says, which else has the values if they are few; no part of equality.

    Raises:
        TypeError: what is not a list of numbers.
        ValueError: no values, or too many; NaN, an infinity or a number beyond fp32; an equal or
            smaller value after another.

    >>> Codebook([-1.0, 0.0, 0.5, 2.0])
    Codebook([-1.0, 0.0, 0.5, 2.0])
    >>> Codebook(torch.arange(16.0)).bits
    4
    >>> from dataclasses import replace
    >>> replace(NF4, values=NF4.values()[7:])
    Codebook(9 values from 0 to 1)
    """

    # replace() passes on neither of them by itself: a list of other values has no name.
    given: tuple[float, ...] = field(init=False, metadata={"argument": "values"})
    name: str = field(init=False, compare=False, metadata={"argument": "name"})
    kind = "codebook"

    def __init__(self, values: Iterable[float] | Tensor, name: str = "") -> None:
        given = values.flatten().tolist() if isinstance(values, Tensor) else values
        listed = list(given) if isinstance(given, Iterable) else [None]
        if not all(isinstance(value, SupportsFloat) for value in listed):
            raise TypeError(f"a codebook lists numbers, such as [-1.0, 0.0, 0.5], got {values!r}")
        if not 1 <= len(listed) <= 2**16:
            raise ValueError(f"a codebook has 1 to {2**16} values, got {len(listed)}")
        rounded: list[float] = []
        for value in listed:
            if not math.isfinite(value) or abs(single(value)) > CARRIER_MAX:
                raise ValueError(f"the values of a codebook are finite fp32 numbers, got {value!r}")
            if rounded and single(value) <= rounded[-1]:
                what = "twice (in fp32)" if single(value) == rounded[-1] else f"after {rounded[-1]!r}"
                raise ValueError(f"a codebook lists distinct values in ascending order, got {value!r} {what}")
            rounded.append(single(value))
        if not isinstance(name, str):
            raise TypeError(f"the name of a codebook is text, got {name!r}")
        object.__setattr__(self, "given", tuple(rounded))
        object.__setattr__(self, "name", name)

    @cached_property
    def table(self) -> Table:
        """The list of values."""
        return table_of(self.given)

    @property
    def bits(self) -> int:
        """Width of one code."""
        return max(len(self.table.values) - 1, 1).bit_length()

    @cached_property
    def _hash(self) -> int:
        return hash(self.given)

    def __hash__(self) -> int:  # formats are dictionary keys on hot paths, and tuples do not keep their hash
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Codebook, (self.given, self.name)

    def __repr__(self) -> str:  # its own name before that of a row with the same values
        return self.name or super().__repr__()

    def spelled(self) -> str:
        """The name that was given to the list; else its values, or of many how many, and from where to where."""
        if self.name:
            return self.name
        if len(self.given) > _SHOWN:
            return f"Codebook({len(self.given)} values from {self.min:g} to {self.max:g})"
        return f"Codebook([{', '.join(str(np.float32(value)) for value in self.given)}])"


@dataclass(frozen=True, repr=False)
class LogNumber(TableFormat):
    """Logarithmic numbers: a sign and a fixed-point logarithm, +-base**((j - bias) / gamma).

    j runs from 0 to 2**(bits - 1) - 1, or from 1 where j = 0 is given away for zero. Each value is
    the float32 nearest to the power. Rounding to nearest is nearest in log2|x|, as in LNS-Madam
    (arXiv 2106.13914): between neighbours a < b of one sign the border is the geometric mean
    sqrt(a b), decided exactly. A product of values, computed from their fp32 numbers, may lie just
    beside the value that it is in logarithms: rounding in a direction then goes a whole step. Zero is
    as far as half the smallest magnitude, and a format without zero takes 0 to its smallest positive
    value. Stochastic rounding stays unbiased: linear in x.
    NaN propagates, infinities saturate and -0 counts as 0; codes count the values in ascending order.

    Args:
        bits: width of a code with its sign, 2 to 16.
        gamma: steps per factor of ``base``, 1 to 2**16; 8 in LNS-Madam.
        base: above 1, to 2**16.
        bias: the j that stands for 1.0; 2**(bits - 2), the middle, by default. LNS-Madam has 0. As a field it is a
            number, which ``dataclasses.replace`` keeps whatever bits become.
        zero: whether zero is a value.

    Raises:
        TypeError: what is not an integer, number or boolean.
        ValueError: parameters out of range, or values that are not distinct, normal fp32 numbers.

    >>> LogNumber(4, gamma=1).values()[7:]
    tensor([0.0000, 0.1250, 0.2500, 0.5000, 1.0000, 2.0000, 4.0000, 8.0000],
           dtype=torch.float64)
    """

    bits: int
    gamma: int = 8
    base: float = 2.0
    bias: int | None = None
    zero: bool = True
    kind, kind_source = "log", "LNS-Madam, arXiv 2106.13914"

    def __post_init__(self) -> None:
        set_int(self, "bits", 2, 16)
        set_int(self, "gamma", 1, 2**16)
        set_number(self, "base")
        if not 1 < self.base <= 2**16:
            raise ValueError(f"base must be above 1 and up to 65536, got {self.base!r}")
        check_bool("zero", self.zero)
        if self.bias is None:
            object.__setattr__(self, "bias", 2 ** (self.bits - 2))
        assert self.bias is not None
        set_int(self, "bias", -(2**20), 2**20)
        first, last = int(self.zero), 2 ** (self.bits - 1) - 1
        for j in (first, last):
            exponent = (j - self.bias) / self.gamma * math.log2(self.base)
            if not -126 <= exponent < 128:
                raise ValueError(f"{self!r} reaches 2**{exponent:g}, fp32 normals span 2**-126 to 2**128")
        positive = self._magnitudes()
        if positive[-1] > CARRIER_MAX or any(a >= b for a, b in itertools.pairwise(positive)):
            raise ValueError(f"{self!r} has values that are not distinct fp32 numbers; take a smaller gamma or range")

    def _magnitudes(self) -> list[float]:
        assert self.bias is not None
        js = range(int(self.zero), 2 ** (self.bits - 1))
        return [single(self.base ** ((j - self.bias) / self.gamma)) for j in js]

    @cached_property
    def table(self) -> Table:
        """The list of values."""
        positive = self._magnitudes()
        return table_of((*(-v for v in reversed(positive)), *(0.0,) * self.zero, *positive), geometric=True)

    def spelled(self) -> str:
        """The call that makes the format: the bits, and what is not at its default."""
        middle = self.bias == 2 ** (self.bits - 2)
        default = dict(gamma=8, base=2.0, bias=self.bias if middle else None, zero=True)
        shown = [f"{name}={getattr(self, name)!r}" for name, v in default.items() if getattr(self, name) != v]
        return f"LogNumber({', '.join([f'bits={self.bits}', *shown])})"


def single(x: float) -> float:
    """``x`` rounded to the nearest float32, ties to even; in integers, whatever the machine flushes.

    >>> single(0.1) == torch.tensor(0.1).item()
    True
    """
    quantum = max(math.frexp(x)[1] - 24, -149)
    return math.ldexp(round(math.ldexp(x, -quantum)), quantum)


def _normal_float_4() -> Codebook:
    """QLoRA's NF4 (arXiv 2305.14314, section 3): evenly spaced quantiles of N(0, 1), scaled to [-1, 1].

    Seven negative values, zero and eight positive ones. The outermost probability 1 - delta is the
    mean of those of 30 and 32 half-intervals, written with 7 digits in the authors' code, and the
    spacing is that of float32.
    """
    outermost, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in torch.linspace(outermost, 0.5, 9, dtype=torch.float32, device="cpu")[:-1].tolist()]
    negative = [
        -quantile(p) for p in torch.linspace(outermost, 0.5, 8, dtype=torch.float32, device="cpu")[:-1].tolist()
    ]
    values = torch.tensor([*negative, 0.0, *reversed(positive)], dtype=torch.float32, device="cpu")
    return Codebook(values / values.max(), "NF4")


def _dynamic_map(signed: bool, name: str) -> Codebook:
    """The 8-bit dynamic tree map of arXiv 2110.02861, section 1.3.

    After the sign, z zero bits scale by 10**-z, a one bit ends them, and the f bits left choose
    among 2**f equal parts of [0.1, 1], each standing for its middle. The codes without a one bit are
    0 and 1. Unsigned, the sign bit is one more for the fraction. The last bits are those of the authors'
    code with PyTorch's kernels for AVX2: borders from the nearer end (a fused multiply-add), their middles,
    and the products with 10**-z, each rounded to fp32.
    """
    positive, low = [], single(0.1)
    for zeros in range(7):
        parts = 2 ** (6 - zeros + (not signed))
        step = single((1.0 - low) / parts)
        last = (parts + 1) // 2  # from here on a border is counted from 1
        borders = [single(low + step * i if i < last else 1.0 - step * (parts - i)) for i in range(parts + 1)]
        middles = [single(a + b) / 2 for a, b in itertools.pairwise(borders)]
        positive += [single(single(10.0**-zeros) * middle) for middle in middles]
    negative = [-v for v in positive] if signed else []
    return Codebook(sorted([*negative, 0.0, *positive, 1.0]), name)


NF4 = row(
    "NF4",
    _normal_float_4(),
    "QLoRA, arXiv 2305.14314, section 3",
    "Quantiles of a normal distribution, scaled to [-1, 1]: for weights, under a scale for each block.",
)
DYNAMIC8 = row(
    "DYNAMIC8",
    _dynamic_map(signed=True, name="DYNAMIC8"),
    "arXiv 2110.02861, section 1.3",
    "A decimal exponent in unary, and a linear fraction in the bits it leaves: for optimizer states.",
)
UDYNAMIC8 = row(
    "UDYNAMIC8",
    _dynamic_map(signed=False, name="UDYNAMIC8"),
    "arXiv 2110.02861, section 1.3",
    "The same without a sign, for second moments.",
)
FP4_RADIX4 = row(
    "FP4_RADIX4",  # no mantissa, borders halfway, as there
    Codebook(sorted(s * 4.0**k for s in (-1, 0, 1) for k in (range(-3, 4) if s else [0])), "FP4_RADIX4"),
    "Sun et al., NeurIPS 2020 (Ultra-low precision 4-bit training)",
    "A sign and a power of four, 4^-3 to 4^3: for gradients.",
)
