"""What adds up: the formats, the order and the rounding of a sum of products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from lptensor.base import CARRIER_PRECISION, ScalarFormat, check_bool, no_format, set_int
from lptensor.formats import FixedPoint, Format
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.text import constant

# The numbers are those of enum lpt_order in csrc/gemm.h.
ORDERS = {"sequential": 0, "pairwise": 1, "kahan": 2, "exact": 3, "aligned": 4}
_COMPUTE = ("exact", "fp32")
_Operands = tuple[ScalarFormat | None, ScalarFormat | None]
LEAST_EXPONENT = -1022  # of float64's normal numbers: no operand has a smaller exponent
EXACT_PRECISION = 51  # of a sum rounded to odd in 53 bits, two more than are kept (Boldo and Melquiond 2008)


@constant
@dataclass(frozen=True, init=False, repr=False)
class Accumulator:
    """How the products of one output of a matrix product, or the terms of a sum, are added.

    R is rounding to ``sum``; s is the running sum, which starts at zero or at R of the addend; a b is
    the next product, with k ascending. The result does not depend on threads, tiles or device.

    ========== ==========================================================================================
    sequential s = R(s + a b); the sum is formed exactly and rounded once
    pairwise   neighbours are added, then the sums of neighbours, each rounded; products are rounded first
    kahan      compensated (Kahan 1965): y = R(a b - e), t = R(s + y), e = R(R(t - s) - y), s = t
    exact      all products and the addend are added exactly, and the sum is rounded once
    aligned    s and the next ``chunk`` products are added exactly, and rounded once: a fused dot product and add.
               With an ``alignment``, digits that lie more than so many places below the largest exponent are cut
               off before, as in tensor cores.
               A product's exponent is the sum of its factors'; a subnormal number has its format's smallest
    ========== ==========================================================================================

    NaN and infinities follow IEEE 754 and the format's overflow. A sum of zero is +0 unless both
    terms are -0. Stochastic rounding draws its words as a function of key, element and step.

    Args:
        sum: the format of the running sum: floating point or fixed point, signed, with zero.
        product: the format that each product is rounded to before it is added; None for no such step.
        chunk: how many terms are first added among themselves, from zero, before the chunks' sums are
            added (Wang et al. 2018). In the order "aligned", how many products are added at once.
        order: as above. The order inside chunks is the same, unless ``inner`` says otherwise.
        rounding: a name, a ``Mode`` or a ``Rounding``, for sums and products.
        compute: "exact", or "fp32" for the fast way: a fused multiply-add, product or sum in fp32,
            and then the rounding, so that values are rounded twice.
        inner: what adds up inside a chunk: an ``Accumulator``, or a format, which stands for one
            that adds in order and rounds to nearest. None: as outside.
        alignment: for the order "aligned", how many binary places below the largest exponent are kept, 0 to 40;
            None keeps all.
        operands: where there is an ``alignment``, the format that the factors of products are in, or a pair; it gives
            the exponent of their subnormal numbers. None means that no number is subnormal. Nothing is rounded
            to it. The terms of a sum are not factors, and gradients are in neither format. An ``Arithmetic`` fills in
            what its ``Gemm`` rounds to, and what an LPTensor is in. Where a ``Gemm`` rounds to blocks under powers
            of two, as of MX, these say it instead: a subnormal element has its format's smallest exponent, times
            its scale; up to 170 products are added at once then.
        wrap: what leaves the range of a ``FixedPoint`` sum comes in again at the other end, like integers in
            two's complement. This is exact while each product (in the order "exact" and fused, the sum)
            is below 2**52 steps of the format; an infinity becomes NaN.

        unscaled: the products are those of elements, as in hardware. A factor that a ``Gemm`` rounds to elements under
            scales takes part without these, and they multiply what was added up: the sum, or where this is said of
            ``inner`` that of each chunk. The scales must be the same all along such a sum. The product of two scales
            is rounded to the tensors' dtype; that times the sum, plus the addend or the running sum outside, is rounded
            once. An element with a zero point takes part as what it is above that. Sums without products have no
            elements and are left to PyTorch, but in ``lptensor.sum``.

    Raises:
        TypeError, ValueError: a field outside what is listed, or fields that do not go together; the message says
            what would.

    >>> from lptensor import BF16, FP32
    >>> Accumulator(BF16, chunk=32, inner=FP32)
    Accumulator(BF16, chunk=32, inner=Accumulator(FP32))
    """

    sum: ScalarFormat
    product: ScalarFormat | None = None
    chunk: int = 1
    order: str = "sequential"
    rounding: Rounding = Rounding()
    compute: str = "exact"
    inner: Accumulator | None = None
    alignment: int | None = None
    wrap: bool = False
    operands: _Operands | None = None
    unscaled: bool = False

    def __init__(
        self,
        sum: Format,
        product: Format | None = None,
        chunk: int = 1,
        order: str = "sequential",
        rounding: Rounding | Mode | str = "nearest",
        compute: str = "exact",
        inner: Accumulator | Format | None = None,
        alignment: int | None = None,
        wrap: bool = False,
        operands: Format | tuple[Format | None, Format | None] | None = None,
        unscaled: bool = False,
    ) -> None:
        if isinstance(inner, Format):
            inner = Accumulator(inner, product, compute=compute if order != "exact" else "exact")
        operands = (operands, operands) if isinstance(operands, Format) else operands
        operands = None if operands == (None, None) else operands
        for name, value in dict(
            sum=sum,
            product=product,
            chunk=chunk,
            order=order,
            rounding=as_rounding(rounding),
            compute=compute,
            inner=inner,
            alignment=alignment,
            wrap=wrap,
            operands=operands,
            unscaled=unscaled,
        ).items():
            object.__setattr__(self, name, value)
        _check_format("sum", sum, compute)
        if product is not None:
            _check_format("product", product, compute)
        set_int(self, "chunk", 1, 2**31 - 1, why="; 1 adds term by term")
        for name, known in (("order", ORDERS), ("compute", _COMPUTE)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if order in ("exact", "aligned") and compute != "exact":
            raise ValueError(f"order={order!r} has no fp32 steps, got compute={compute!r}; leave compute out")
        self._check_inner()
        self._check_aligned()
        check_bool("unscaled", unscaled)
        if not check_bool("wrap", wrap):
            return
        if not isinstance(sum, FixedPoint):
            raise ValueError(f"wrap=True needs a FixedPoint sum, got {sum!r}; floats overflow as their format says")
        if sum.symmetric:
            raise ValueError(f"wrap=True goes round all numbers of two's complement, got {sum!r}; say symmetric=False")

    def _check_inner(self) -> None:
        if self.inner is None:
            return
        if not isinstance(self.inner, Accumulator):
            raise TypeError(f"inner must be an Accumulator or a number format, got {self.inner!r}")
        if self.order == "aligned":
            raise ValueError(f'order="aligned" adds a chunk at once, got inner={self.inner!r}; leave inner out')
        if self.chunk == 1:
            raise ValueError(
                f"inner={self.inner!r} adds up inside a chunk, and chunk=1 has none; give a chunk of 2 or more"
            )
        if self.product not in (None, self.inner.product):
            raise ValueError(
                f"products are added inside chunks and have the format {self.inner.product!r} there, "
                f"got product={self.product!r}; give it to inner"
            )

    def _check_aligned(self) -> None:
        if self.order != "aligned":
            for name in ("alignment", "operands"):
                if getattr(self, name) is not None:
                    raise ValueError(f'{name} is for order="aligned", got order={self.order!r}; leave {name} out')
            return
        if self.alignment is not None:
            set_int(self, "alignment", 0, 40, why="; None keeps all places")
        elif self.operands is not None:
            raise ValueError(
                f"operands is for an alignment, got operands={self.operands!r} without one; give alignment= or leave "
                "operands out"
            )
        set_int(self, "chunk", 1, 512, why=' in the order "aligned"')
        if self.product is not None:
            raise ValueError(f'order="aligned" adds exact products, got product={self.product!r}; leave it out')
        if self.operands is None:
            return
        if not isinstance(self.operands, tuple) or len(self.operands) != 2:
            raise TypeError(f"operands must be a format of both factors, or a pair, got {self.operands!r}")
        for format in self.operands:
            if format is not None and not isinstance(format, ScalarFormat):
                raise TypeError(
                    f"operands are in floating-point or fixed-point formats, got {no_format(format)}; leave out others"
                )

    def of_factors(self, a: Format | None, b: Format | None) -> Accumulator:
        """The same for products of factors in these formats, where ``operands`` does not name others.

        Of formats other than ``ScalarFormat``, nothing is known.
        """
        return _of_factors(self, a, b)

    def naming(self, first: bool, second: bool) -> Accumulator:
        """The same where ``operands`` goes for these factors alone: a gradient, say, is in no format that it names."""
        return self._for_operands(lambda own: (own[0] if first else None, own[1] if second else None))

    @property
    def turned(self) -> Accumulator:
        """The same for products whose factors change places."""
        return self._for_operands(lambda own: (own[1], own[0]))

    def _for_operands(self, change: Callable[[_Operands], _Operands]) -> Accumulator:
        inner = self.inner and self.inner._for_operands(change)
        operands = change(self.operands or (None, None)) if self.alignment is not None else None
        operands = None if operands == (None, None) else operands
        same = inner is self.inner and operands == self.operands
        return self if same else replace(self, inner=inner, operands=operands)

    @property
    def asks(self) -> bool:
        """Whether it makes a difference what factors are in: where digits are cut off."""
        return self.alignment is not None or self.inner is not None and self.inner.asks

    @property
    def carrier(self) -> torch.dtype:
        """What tensors need to be of, to hold the sums."""
        held = [f.carrier for f in (self.sum, self.product) if f is not None]
        return max([*held, *([] if self.inner is None else [self.inner.carrier])], key=lambda dtype: dtype.itemsize)

    @property
    def adds_elements(self) -> bool:
        """Whether some sum in it is of elements without their scales."""
        return self.unscaled or self.inner is not None and self.inner.adds_elements

    @property
    def names_operands(self) -> bool:
        """Whether it makes a difference which factor is which."""
        return self.operands is not None or self.inner is not None and self.inner.names_operands

    @property
    def least_exponents(self) -> tuple[int, int, int]:
        """The smallest exponents of the sum and of the factors of products, which subnormal numbers count with."""
        a, b = self.operands or (None, None)
        return least_exponent(self.sum), least_exponent(a), least_exponent(b)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off of sums that are formed at once."""
        return self.order == "aligned" and self.alignment is None

    @property
    def places(self) -> int:
        """How many below the largest exponent are held: the alignment, or what a float64 sum has room for."""
        if self.whole:
            return EXACT_PRECISION - self.chunk.bit_length()
        return self.alignment or 0

    @property
    def nested(self) -> bool:
        """Whether something adds up inside chunks."""
        return self.chunk > 1 and self.order != "aligned"

    @property
    def inside(self) -> Accumulator:
        """What adds up inside a chunk."""
        return self.inner or replace(self, chunk=1)

    @property
    def stochastic(self) -> bool:
        """Whether any rounding in it draws random words."""
        return self.rounding.stochastic or self.inner is not None and self.inner.stochastic

    def check_carrier(self, dtype: torch.dtype) -> None:
        """Refuse tensors that cannot hold the sums."""
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"sums are formed of float32 and float64 tensors, got {dtype}; convert with .float() first")
        for name in ("sum", "product"):
            format = getattr(self, name)
            if format is not None and dtype == torch.float32 and format.carrier == torch.float64:
                raise ValueError(
                    f"{name}={format!r} needs more than float32's 24 bits; use float64 tensors, or in an Arithmetic "
                    "compute=torch.float64"
                )
        if dtype == torch.float64 and self.compute == "fp32":
            raise ValueError('compute="fp32" is for float32 tensors, got float64; leave compute out')
        if self.inner is not None:
            self.inner.check_carrier(dtype)

    def __reduce__(self) -> tuple[Any, ...]:  # by its parameters alone, so that a checkpoint stays readable
        return Accumulator, tuple(getattr(self, f.name) for f in fields(self))

    def __repr__(self) -> str:
        shown = [repr(self.sum)]
        for f in fields(self)[1:]:
            value = getattr(self, f.name)
            if value == f.default:
                continue
            if f.name == "rounding" and value == as_rounding(value.mode):
                value = value.name
            if f.name == "operands" and value[0] == value[1]:
                value = value[0]
            shown.append(f"{f.name}={value!r}")
        return f"Accumulator({', '.join(shown)})"


@lru_cache(maxsize=256)  # asked for at every product
def _of_factors(accumulator: Accumulator, a: Format | None, b: Format | None) -> Accumulator:
    first, second = (format if isinstance(format, ScalarFormat) else None for format in (a, b))
    return accumulator._for_operands(lambda own: (own[0] or first, own[1] or second))


torch.serialization.add_safe_globals([Accumulator])  # so that torch.load(weights_only=True) makes them


def least_exponent(format: ScalarFormat | None) -> int:
    """The exponent that subnormal numbers of a format count with; far below all others where there are none."""
    return LEAST_EXPONENT if format is None or isinstance(format, FixedPoint) else format.grid.emin


def _check_format(name: str, format: object, compute: str) -> None:
    if not isinstance(format, ScalarFormat):
        raise TypeError(
            f"{name} must be a floating-point or fixed-point format, such as FloatingPoint(16) or FixedPoint(16, 8), "
            f"got {no_format(format)}"
        )
    grid = format.grid
    if not grid.signed or not grid.zero:
        raise ValueError(f"{name} must have zero and negative numbers, got {format!r}; use a signed format")
    if math.isinf(grid.max):
        raise ValueError(
            f"{name} must have a largest value, got {format!r}; say clamp=True, with wrap=True too if it is to wrap"
        )
    if grid.precision > EXACT_PRECISION:
        raise ValueError(
            f"{name}={format!r} has {grid.precision} significant bits, exact sums are carried for up to "
            f"{EXACT_PRECISION}; use a narrower format"
        )
    if compute == "fp32" and grid.precision > CARRIER_PRECISION:
        raise ValueError(f'{name}={format!r} is wider than fp32, got compute="fp32"; leave compute out')
