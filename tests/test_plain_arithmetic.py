"""The CPU's kernels compute as IEEE 754 does by default, whatever rounding or traps the program has chosen."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from lptensor import (
    BF16,
    DYNAMIC8,
    E4M3,
    FP16,
    INT8,
    NVFP4,
    Accumulator,
    BlockFloatingPoint,
    Channel,
    CurrentRange,
    Posit,
    Scaled,
    _native,
)
from lptensor._native_census import CensusStruct, UpdatesStruct, census, updates
from lptensor._native_gemm import gemm
from lptensor.ops import round as lp_round
from lptensor.rounding import as_rounding
from rounders import NATIVE_BUILDS, chosen

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="the numbers are glibc's for x86-64"
    ),
]

DOWN, UP, TO_ZERO = 0x400, 0x800, 0xC00  # fenv.h
INVALID, DIVIDED, OVERFLOWN = 0x01, 0x04, 0x08


@contextlib.contextmanager
def rounding_to(side: int) -> Iterator[None]:
    math = ctypes.CDLL("libm.so.6")
    assert math.fesetround(side) == 0
    try:
        yield
    finally:
        math.fesetround(0)


@contextlib.contextmanager
def traps() -> Iterator[None]:
    math = ctypes.CDLL("libm.so.6")
    math.feenableexcept(INVALID | DIVIDED | OVERFLOWN)
    try:
        yield
    finally:
        math.fedisableexcept(INVALID | DIVIDED | OVERFLOWN)


def elements(x: Tensor) -> list[bytes]:
    found = []
    for format in (E4M3, BF16, DYNAMIC8, Posit(16)):
        for mode in ("nearest", "stochastic"):
            y = torch.empty_like(x)
            kernel = getattr(_native, format.lowered.loop)
            kernel(x, y, format.lowered, as_rounding(mode), (5, 6))
            found.append(y.numpy().tobytes())
    return found


def blocks(x: Tensor) -> list[bytes]:
    found = []
    for format in (NVFP4, BlockFloatingPoint(8, dim=0), Scaled(INT8, CurrentRange(Channel(0)))):
        y = torch.empty_like(x)
        _native.round_blocks(x, y, format.lowered, format.block_shape(x.shape), as_rounding("stochastic"), (5, 6))
        found.append(y.numpy().tobytes())
    return found


def turned(x: Tensor) -> list[bytes]:
    """Of tensors whose axes lie in another order."""
    found = []
    for format in (E4M3, DYNAMIC8, Posit(16), NVFP4):
        y, draws = x.t().clone(), torch.Generator().manual_seed(1)
        lp_round(y, format, "stochastic", generator=draws, out=y)
        found.append(y.numpy().tobytes())
    return found


def products(x: Tensor) -> list[bytes]:
    a, b = x[None, :40].contiguous(), x.t()[None, :, :30].contiguous()
    found = []
    for acc in (Accumulator(BF16), Accumulator(FP16, order="kahan"), Accumulator(BF16, order="pairwise")):
        y = torch.empty(1, 40, 30, dtype=x.dtype)
        gemm(a, b, y, acc, None, (1, 2), False)
        found.append(y.numpy().tobytes())
    return found


def counts(x: Tensor) -> list[bytes]:
    seen, moved = CensusStruct(), UpdatesStruct()
    census(x, HALVES[x.dtype], seen)
    updates(x, HALVES[x.dtype], x, moved)
    return [bytes(seen), bytes(moved)]


X = torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
X[3] *= 2.0**-140
HALVES = {dtype: lp_round(X.to(dtype), FP16) for dtype in (torch.float32, torch.float64)}


PROGRAMS = {
    "rounds down": partial(rounding_to, DOWN),
    "rounds up": partial(rounding_to, UP),
    "rounds to zero": partial(rounding_to, TO_ZERO),
    "traps": traps,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kernels", [elements, blocks, turned, products, counts])
@pytest.mark.parametrize("build", NATIVE_BUILDS)
def test_kernels_do_not_see_the_arithmetic_of_the_program(
    build: str, kernels: Callable[[Tensor], list[bytes]], program: str
) -> None:
    with chosen(build):
        for dtype in (torch.float32, torch.float64):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                wanted = kernels(X.to(dtype))
                x = X.to(dtype)
                with PROGRAMS[program]():
                    got = kernels(x)
                assert got == wanted
