"""How many digits of a result can be trusted: the same computation many times, rounded at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lptensor.arithmetic import Arithmetic
from lptensor.base import check_bool, check_int
from lptensor.formats import FP32
from lptensor.study.losses import check_callable
from lptensor.study.places import values_of
from lptensor.tensor import LPTensor


class Replicas(NamedTuple):
    """What ``replicas`` found, elementwise; float64, of the shape of one result.

    >>> from lptensor import BF16
    >>> _ = torch.manual_seed(0)
    >>> found = replicas(lambda x: x / 3, torch.tensor([3.0, 1.0]).to_lp(BF16, "stochastic"))
    >>> found.samples.shape, found.digits[0].item(), found.trusted < 4
    (torch.Size([16, 2]), inf, True)
    """

    samples: Tensor  # a result for each replica, along a first axis
    mean: Tensor
    deviation: Tensor  # of one result, from n - 1 degrees of freedom
    digits: Tensor  # decimal, of one result

    @property
    def trusted(self) -> float:
        """The fewest digits of any element."""
        return float(self.digits.min()) if self.digits.numel() else math.inf


def replicas(f: Callable[..., Any], *args: Any, count: int = 16, at_once: bool = True) -> Replicas:
    """Run ``f(*args)`` ``count`` times with the stochastic rounding of its arguments, and compare the results.

    A single result has -log10(deviation / |mean|) significant digits (Parker, Monte Carlo arithmetic, 1997;
    Sohier et al., ACM TOMS 47(2), 2021): infinite where no replica moved, 0 where they only agree in size
    or not at all. The inputs are taken as exact. Where all replicas give NaN, digits are NaN.

    Args:
        f: a function of tensors that returns one tensor.
        args: LPTensors with stochastic rounding among them; of others every replica gets the same.
        count: replicas, at least 2; the digits are uncertain by about 0.43 / sqrt(2 * count).
        at_once: run all in one call, along an axis that ``torch.vmap`` adds; False runs one after the
            other, for what vmap cannot (``.item()``, in-place writes to what is not batched).

    Raises:
        TypeError: no argument rounds stochastically (FP32 does with ``compute=torch.float64``), f is no function, or
            returns no tensor.
        ValueError: count below 2.

    >>> from lptensor import BF16
    >>> x = torch.tensor([1.0]).to_lp(BF16, "stochastic")
    >>> _ = torch.manual_seed(0)
    >>> replicas(lambda x: x * 2, x).trusted, replicas(lambda x: (x / 3 + 100) - 100, x).trusted < 1
    (inf, True)
    """
    at_once = check_bool("at_once", at_once)
    count = check_int("count", count, 2, 2**31, ", as a spread is that of several")
    check_callable("f", f, "one tensor")
    if not any(isinstance(x, LPTensor) and _draws(x.arithmetic) for x in args):
        raise TypeError(
            'no argument rounds stochastically; make one with x.to_lp(format, "stochastic"), of FP32, which leaves '
            'fp32 as it is, with x.to_lp(Arithmetic(FP32, rounding="stochastic", compute=torch.float64))'
        )
    with torch.no_grad():
        found = _at_once(f, args, count) if at_once else torch.stack([_single(f, args) for _ in range(count)])
    samples = found.double()
    mean, deviation = samples.mean(0), samples.std(0)
    still = (samples == samples[:1]).all(0)
    deviation = torch.where(still, 0.0, deviation)
    digits = torch.where(still, math.inf, torch.log10(mean.abs() / deviation).clamp(min=0.0))
    digits = torch.where(digits.isnan(), 0.0, digits)  # some replicas are infinite or NaN, and others are not
    return Replicas(samples, mean, deviation, torch.where(samples.isnan().all(0), math.nan, digits))


def _draws(arithmetic: Arithmetic) -> bool:
    return arithmetic.rounding.stochastic and not (arithmetic.direct and arithmetic.forward in (None, FP32))


def _single(f: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
    # Copies of their own, so that f may write into them; what it returns may be one, or memory that it uses again.
    return _plain(f(*(x.detach().clone() if isinstance(x, Tensor) else x for x in args))).clone()


def _at_once(f: Callable[..., Any], args: tuple[Any, ...], count: int) -> Tensor:
    low = [isinstance(x, LPTensor) for x in args]
    # Copies of their own, so that f may write into them.
    given = [
        torch.stack([x.detach()] * count) if is_low else x.detach() if isinstance(x, Tensor) else x
        for x, is_low in zip(args, low, strict=True)
    ]
    axes = tuple(0 if is_low else None for is_low in low)
    return _plain(torch.vmap(f, in_dims=axes, randomness="different")(*given))


def _plain(result: Any) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(f"f must return one tensor, got {type(result).__name__}")
    return values_of(result).detach()
