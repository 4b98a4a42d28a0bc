"""Stochastic rounding of tensors whose axes lie in another order: random words go by the count of elements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from allocations import allocations
from backends import BUILDS, DTYPES, run, same_bits, threads
from lptensor import _native, ops
from lptensor.blocks import MX, NVFP4, BlockFloatingPoint, BlockFormat
from lptensor.codebooks import NF4, LogNumber
from lptensor.formats import E4M3, FixedPoint, FloatingPoint, Format
from lptensor.posits import Posit
from lptensor.rounding import Stochastic

pytestmark = pytest.mark.native

# Shapes as they count, and the order in which their axes lie in memory.
LAYOUTS = {
    "one square of registers and a rest": ((11, 13), (1, 0)),
    "less than a square": ((3, 2), (1, 0)),
    "tiles of parts of rows": ((70, 300), (1, 0)),
    "rows of whole groups": ((129, 256), (1, 0)),
    "few rows, very long": ((3, 9000), (1, 0)),
    "few columns, very long": ((9000, 3), (1, 0)),
    "more columns than a tile, few matrices": ((3, 7, 33, 7), (0, 2, 3, 1)),
    "images": ((2, 24, 20, 20), (0, 2, 3, 1)),
    "small matrices, several in a tile": ((900, 5, 7), (0, 2, 1)),
    "volumes": ((2, 3, 4, 5, 6), (0, 2, 3, 4, 1)),
    "rows of two axes": ((6, 5, 40), (2, 0, 1)),
    "axes of one": ((1, 6, 1, 50), (3, 0, 1, 2)),
}


def laid_out(shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn([shape[d] for d in order], dtype=dtype) * 10
    return x.permute([order.index(d) for d in range(len(shape))])


def assert_words_of_a_contiguous_copy(x: Tensor, format: Format) -> None:
    want = run("reference", x.contiguous(), format, "stochastic", seed=5)
    for build in BUILDS:
        for count in (1, 2):
            with threads(count):
                got = run(build, x, format, "stochastic", seed=5)
            assert got.stride() == x.stride()
            assert same_bits(got.contiguous(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", [E4M3, FixedPoint(8, 2), LogNumber(8), Posit(8)], ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_elements_get_the_words_of_a_contiguous_copy(layout: str, format: Format, dtype: torch.dtype) -> None:
    assert_words_of_a_contiguous_copy(laid_out(*LAYOUTS[layout], dtype), format)


# Blocks in rows, in columns, across both, and more than a tile holds; the last of an axis is short.
BLOCKS: dict[str, BlockFormat] = {
    "along the last axis": MX(E4M3),
    "along the last axis, with short ones": NVFP4,
    "along the first axis": MX(E4M3, axis=0, block_size=4),
    "along the axis before": replace(NVFP4, axis=-2),
    "along the second axis": MX(FixedPoint(8, 6), axis=1, block_size=48),
    "longer than groups": replace(NVFP4, axis=1, block_size=160),
    "longer than a tile": MX(FloatingPoint(4, 3, subnormals="flush"), block_size=5000),
    "tiles": MX(E4M3, block_size=(8, 16)),
    "one": BlockFloatingPoint(8),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_get_the_words_of_a_contiguous_copy(layout: str, blocks: str, dtype: torch.dtype) -> None:
    assert_words_of_a_contiguous_copy(laid_out(*LAYOUTS[layout], dtype), BLOCKS[blocks])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_they_do_as_well(layout: str) -> None:
    x = laid_out(*LAYOUTS[layout], torch.float32)
    want = run("reference", x.contiguous(), NF4, Stochastic(9), seed=2)
    ops.round(x, NF4, Stochastic(9), generator=torch.Generator().manual_seed(2), out=x)
    assert same_bits(x.contiguous(), want)


def test_matrices_are_found_in_strides() -> None:
    for shape, order in LAYOUTS.values():
        x = laid_out(shape, order, torch.float32)
        found = _native.matrices_of(x.shape, x.stride())
        places = torch.arange(x.numel()).view(found.count, found.columns, found.rows).transpose(1, 2)
        assert torch.equal(places.flatten(), torch.arange(x.numel()).as_strided(x.shape, x.stride()).flatten())
    in_order, turned, gaps = torch.empty(4, 5), torch.empty(2, 3, 4).permute(2, 1, 0), torch.empty(6, 6)[:, ::2].t()
    for x in (in_order, turned, gaps):
        assert _native.matrices_of(x.shape, x.stride()) is None


@pytest.mark.parametrize("layout", ["tiles of parts of rows", "images"])
@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), MX(E4M3), replace(NVFP4, axis=1)], ids=repr)
def test_they_are_rounded_where_they_lie(layout: str, format: Format) -> None:
    x = laid_out(*LAYOUTS[layout], torch.float32)
    ops.round(x, format, "stochastic", out=x)  # tables are made once
    key = 16  # bytes of seed and offset
    assert max(allocations(lambda: ops.round(x, format, "stochastic", out=x)), default=0) <= key < math.prod(x.shape)
