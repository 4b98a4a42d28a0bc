"""How a weight takes a step in its own format: rounded, or with what rounding lost kept beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from lptensor import _native, observe
from lptensor.formats import Format, Grid
from lptensor.ops import round_fresh
from lptensor.quantizer import Step, quantizer
from lptensor.rounding import Rounding

Compensated: TypeAlias = Callable[[Tensor, Tensor, Tensor, Format], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Update:
    """A rule by which weights take their steps; None is the name of QPyTorch's."""

    name: str | None
    rounding: str = "nearest"  # of the sum of a weight and its step, where a format is named
    kept: str | None = None  # under this name state_dicts hold what is kept of a weight beside it
    compensated: Compensated | None = None  # the step that keeps it


def as_update(update: str | None, weight_quant: object, acc_quant: object) -> Update:
    """The rule that ``update`` names; refuses one that is unknown, or that contradicts the quantizers."""
    if update not in list(UPDATES):
        *names, last = map(repr, UPDATES)
        raise ValueError(f"update must be one of {', '.join(names)} or {last}, got {update!r}")
    if UPDATES[update].kept is not None and acc_quant is not None:
        raise ValueError(f"update={update!r} keeps what rounding loses itself; leave acc_quant out")
    if update is not None and weight_quant is not None and not isinstance(weight_quant, Format):
        raise ValueError(f"update={update!r} rounds to a format, got weight_quant={weight_quant!r}")
    return UPDATES[update]


def by_update(update: Update, rule: Step | None) -> Step | None:
    """A rule that names a format, rounding to it as ``update`` says."""
    if rule is None or rule.format is None:
        return rule
    return replace(rule, quantize=quantizer(rule.format, forward_rounding=update.rounding))


def kahan(weight: Tensor, compensation: Tensor, update: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """The weight and its compensation c after one update: y = u - c, s = w + y, c = (s - w) - y.

    Kahan's summation as Zamirai et al. (2010.06192) use it: each of the four operations rounds to
    nearest in ``format``, on which the weight and the compensation lie; w - c stands for the sum.
    Any shape and dtype that ``round`` takes; NaN and infinities spread to both results.
    """
    if _compiled(weight, format):
        return _native.compensate("kahan", *_contiguous(weight, compensation, update), format.lowered)
    w, c, u = weight.double(), compensation.double(), update.double()
    y = _nearest(u - c, format)
    s = _nearest(w + y, format)
    c = _nearest(_nearest(s - w, format) - y, format)
    return s.to(weight.dtype), c.to(weight.dtype)


def grow(weight: Tensor, residual: Tensor, update: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """The expansion (weight, residual) after one update, w + r standing for the sum.

    Collage's Grow (2405.03637): (s, e) = Fast2Sum(w, u), (w, r) = Fast2Sum(s, r + e), every operation
    rounded to nearest in ``format``, and the update before them. Of each two summands the larger
    comes first, so that e is the exact error of s, as long as nothing overflows or underflows.
    """
    if _compiled(weight, format):
        return _native.compensate("expansion", *_contiguous(weight, residual, update), format.lowered)
    w, r, u = weight.double(), residual.double(), _nearest(update.double(), format)
    s, e = _fast_two_sum(w, u, format)
    w, r = _fast_two_sum(s, _nearest(r + e, format), format)
    return w.to(weight.dtype), r.to(weight.dtype)


_ROWS = (
    Update("nearest"),
    Update("stochastic", rounding="stochastic"),
    Update("kahan", kept="weight_compensation", compensated=kahan),
    Update("mcf", kept="weight_residual", compensated=grow),
    Update(None, rounding="stochastic"),
)
UPDATES = {row.name: row for row in _ROWS}


def _compiled(weight: Tensor, format: Format) -> bool:
    """Whether csrc/updates.h computes the same, in one pass; not where somebody looks at each rounding."""
    plain = type(weight) is Tensor and weight.is_cpu and weight.dtype in (torch.float32, torch.float64)
    return plain and type(format.lowered) is Grid and not observe.anyone and _native.library() is not None


def _contiguous(weight: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (x.to(weight.dtype).contiguous() for x in others)
    return weight.contiguous(), first, second


def _fast_two_sum(a: Tensor, b: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Dekker's: the rounded sum, and its error."""
    larger = a.abs() >= b.abs()
    a, b = torch.where(larger, a, b), torch.where(larger, b, a)
    s = _nearest(a + b, format)
    return s, _nearest(b - _nearest(s - a, format), format)


def _nearest(x: Tensor, format: Format) -> Tensor:
    # In float64 the sum of two numbers of up to 25 bits rounds to the format as the exact sum does (Figueroa 1995).
    return round_fresh(x, format, Rounding())
