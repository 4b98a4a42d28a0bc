"""Plain values out of parameters and into them, whether they are LPTensors or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lptensor.ops import round as lp_round
from lptensor.quantizer import Quantize, Step
from lptensor.tensor import LPTensor, enter


def listed(groups: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """The parameters (or their numbers) in an optimizer's groups, in order."""
    return (p for group in groups for p in group["params"])


def values(x: Tensor) -> Tensor:
    """The values where they lie, as a plain tensor."""
    return (x._inner if isinstance(x, LPTensor) else x).detach()


def read(x: Tensor) -> Tensor:
    """A plain copy of the values."""
    return values(x).clone()


def write(x: Tensor, values: Tensor) -> None:
    """Write plain values. An LPTensor rounds them, as a gradient or not: also if the step runs in the backward pass."""
    if isinstance(x, LPTensor):
        x._inner.copy_(enter(values, x._arithmetic, x._gradient)._inner)
    else:
        x.copy_(values)


def restore(x: Tensor, values: Tensor) -> None:
    """Write plain values as they are: those that were read of ``x``, or rounded as it would round them.

    Rounding them once more is no identity in every format: scales that are found anew may be others.
    """
    (x._inner if isinstance(x, LPTensor) else x).copy_(values)


def round_values(x: Tensor, rule: Step) -> None:
    """Write what ``rule`` makes of the values of ``x``: where they lie, if it rounds a plain tensor to a format."""
    quantize = rule.quantize
    if type(x) is Tensor and isinstance(quantize, Quantize) and quantize.forward_number is not None:
        lp_round(x.detach(), quantize.forward_number, quantize.forward_rounding, out=x.detach())
    else:
        write(x, rule(read(x)))
