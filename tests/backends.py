"""Formats that are no grid, rounded by each implementation in turn, and floats worth rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from lptensor import ops
from lptensor.formats import Format
from lptensor.rounding import Rounding, as_rounding
from oracles.philox import word_of_element
from rounders import NATIVE_BUILDS as BUILDS, chosen as chosen

DTYPES = (torch.float32, torch.float64)
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


BACKENDS = ["reference", *BUILDS]


def run(backend: str, x: torch.Tensor, format: Format, rounding: Rounding | str, seed: int = 0) -> torch.Tensor:
    """``x`` rounded by the reference or by one build of the kernels; one seed means one key."""
    rule, generator = as_rounding(rounding), torch.Generator().manual_seed(seed)
    if backend == "reference":
        key = ops.draw_key(generator) if rule.stochastic else None
        return ops._reference(x, format, format.lowered, rule, key)
    with chosen(backend):
        return ops.round(x, format, rule, generator=generator)


def words_of_seed(seed: int, n: int) -> list[int]:
    """The random words of the first elements that ``run`` rounds: a key is a generator's first two numbers."""
    key = torch.empty(2, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed)).tolist()
    return [word_of_element(i, *key) for i in range(n)]


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """A machine that takes subnormal numbers for zero, on input and on output."""
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(_INTEGERS[a.dtype]), b.view(_INTEGERS[b.dtype]))


def with_neighbours(points: list[float], dtype: torch.dtype) -> torch.Tensor:
    """Numbers in a dtype, both signs, each with the floats next to it, and the specials of the dtype but NaN."""
    kind = np.float32 if dtype == torch.float32 else np.float64
    limits = np.finfo(kind)
    ends = [0.0, limits.smallest_subnormal, limits.smallest_normal, limits.max, np.inf]
    with np.errstate(over="ignore"):
        x = np.concatenate([np.asarray(points, np.float64).astype(kind), np.asarray(ends, kind)])
        x = np.concatenate([x, np.nextafter(x, kind(np.inf)), np.nextafter(x, kind(-np.inf))])
    return torch.from_numpy(np.unique(np.concatenate([x, -x])))


def random_bits(n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Uniform bit patterns: every exponent, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    wide = _INTEGERS[dtype]
    limits = torch.iinfo(wide)
    high = limits.max if wide == torch.int64 else limits.max + 1
    return torch.randint(limits.min, high, (n,), dtype=wide, generator=generator).view(dtype)
