"""How torch.compile's code generator writes a rounding: as steps of its own loops, or as a call of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lptensor import _compat
from lptensor.carriers import CARRIERS, Carrier
from lptensor.fused import fusible, rounded
from lptensor.text import read


class _Steps:
    """The algebra of ``fused.rounded`` in inductor's operations on the elements of a loop."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier, self.ops = carrier, _compat.inductor_operations()

    def number(self, value: int) -> Any:
        return self.ops.constant(value, self.carrier.integer)

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        return self.ops.where(condition, yes, no)

    def least(self, a: Any, b: Any) -> Any:
        return self.ops.minimum(a, b)

    def greatest(self, a: Any, b: Any) -> Any:
        return self.ops.maximum(a, b)

    def right(self, a: Any, shift: Any) -> Any:
        return self.ops.bitwise_right_shift(a, shift)

    def converted(self, a: Any) -> Any:
        return self.bits(self.ops.to_dtype(a, self.carrier.dtype, src_dtype=self.carrier.integer))

    def plus(self, a: Any, b: Any) -> Any:
        return self.bits(self.ops.add(self.value(a), self.value(b)))

    def minus(self, a: Any, b: Any) -> Any:
        return self.bits(self.ops.sub(self.value(a), self.value(b)))

    def bits(self, x: Any) -> Any:
        return self.ops.to_dtype_bitcast(x, self.carrier.integer, self.carrier.dtype)

    def value(self, u: Any) -> Any:
        return self.ops.to_dtype_bitcast(u, self.carrier.dtype, self.carrier.integer)


def element_function(rule: str, dtype: torch.dtype) -> Callable[[Any], Any] | None:
    """What happens to one element of a loop, or None where the kernel is to be called."""
    format, rounding, *_ = read(rule)
    if not fusible(format, rounding):
        return None
    carrier = CARRIERS[dtype]

    def one(x: Any) -> Any:
        steps = _Steps(carrier)
        return steps.value(rounded(steps.bits(x), format.lowered, rounding, carrier, steps))

    return one
