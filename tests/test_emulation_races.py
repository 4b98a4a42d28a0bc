"""No two threads of the CUDA kernels, run on the host, meet in memory without a barrier between, or leave tensors."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from emulation import emulated, watched
from lptensor import (
    BF16,
    E4M3,
    FP16,
    MX,
    MXFP8_E4M3,
    NF4,
    BlockFloatingPoint,
    FloatingPoint,
    Format,
    _cuda,
    _cuda_gemm,
    _native,
)
from lptensor.accumulator import Accumulator
from lptensor.rounding import Mode, Rounding, Stochastic
from test_emulation import BLOCKS, DTYPES, FORMATS, KEY, TILES, call, numbers
from test_emulation_gemm import IN_TILES, OTHERS
from test_gemm import operands
from test_gemm_tiles import TILED

pytestmark = [
    pytest.mark.native,  # whose compiler builds the kernels once more
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the library in memory by what Linux tells of it"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return watched(tmp_path_factory)


@contextlib.contextmanager
def tensors(library: Any) -> Iterator[None]:
    """The library knows the memory of each tensor whose address a call takes."""
    data_ptr = Tensor.data_ptr

    def given(x: Tensor) -> int:
        end = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
        if x.numel():
            library.lpt_watch_memory(data_ptr(x), end * x.element_size())
        return data_ptr(x)

    library.lpt_watch_memory(0, 0)
    for cached in (_cuda.table_struct, _native.table_struct):
        cached.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "data_ptr", given)
        yield
    library.lpt_watch_memory(0, 0)


def found(library: Any) -> str:
    told: bytes = library.lpt_watch_found()
    return told.decode()


def rounding(format: Format, shape: tuple[int, ...], rule: Rounding, dtype: torch.dtype = DTYPES[0]) -> None:
    """Into another tensor, and where it lies."""
    x = numbers(shape, dtype, -8, 8)
    for y in (torch.empty_like(x), x):
        call(_cuda, x, y, format, rule, KEY if rule.stochastic else None)


def rounding_lists(format: Format, rule: Rounding) -> None:
    xs = [numbers((size,), torch.float32) for size in (0, 3, 4100, 1, 2049)]
    words = [*KEY, *KEY, *KEY, *KEY, *KEY] if rule.stochastic else None
    _cuda.round_grids(xs, format.lowered, rule, words)


def product(acc: Accumulator, m: int, k: int, n: int, dtype: torch.dtype = DTYPES[0], running: bool = False) -> None:
    a, b, c = (t.expand(2, -1, -1) for t in operands(1, m, k, n, 4, dtype))
    y = torch.empty(*a.shape, n, dtype=dtype) if running else torch.empty(2, m, n, dtype=dtype)
    _cuda_gemm.gemm(a, b, y, acc, None if running else c, KEY, running)


def of_rounding() -> Iterator[Callable[[], None]]:
    for format, mode, dtype in itertools.product(FORMATS, Mode, DTYPES):
        yield partial(rounding, format, (3001,), Rounding(mode), dtype)
    for format, mode in itertools.product([E4M3, BF16, FloatingPoint(4, 3, subnormals=False)], Mode):
        yield partial(rounding_lists, format, Rounding(mode))
    rules = [Rounding(Mode.NEAREST), Rounding(Mode.UP), Stochastic()]
    shapes = [(2048,), (2000,), (64, 96), (3, 70, 33), (20_000,)]
    for format, rule, shape, dtype in itertools.product(BLOCKS, rules, shapes, DTYPES):
        yield partial(rounding, format, shape, rule, dtype)
    for (format, shape), rule in itertools.product(TILES, rules):
        yield partial(rounding, format, shape, rule)


def of_products() -> Iterator[Callable[[], None]]:
    for acc in {repr(acc): acc for acc in (*IN_TILES, *TILED, *OTHERS)}.values():
        yield partial(product, acc, 20, 40, 18)
    for acc in OTHERS:
        if acc.compute == acc.inside.compute == "exact":
            yield partial(product, acc, 5, 70, 9, torch.float64)
    for acc in (Accumulator(BF16), Accumulator(E4M3, order="kahan", rounding="stochastic")):
        yield partial(product, acc, 20, 30, 40, running=True)
        yield partial(product, acc, 70, 33, 66)


@pytest.mark.parametrize("all_work", [of_rounding, of_products])
def test_threads_meet_in_memory_only_where_a_barrier_is_between(library: Any, all_work: Any) -> None:
    """Every kernel; in thread blocks that stride over the work, so that one meets what it did before."""
    library.lpt_emulate_launched()
    for work in all_work():
        blocks = 2**40 if work.func is rounding_lists else 2
        with emulated(library, blocks=blocks), tensors(library):
            work()
        assert found(library) == "", work
    launched = {line.rsplit(" ", 1)[0] for line in library.lpt_emulate_launched().decode().splitlines()}
    is_product = all_work is of_products
    kernels = [name for name in library.lpt_emulate_kernels().decode().split() if ("gemm" in name) == is_product]
    assert kernels and set(kernels) <= launched, set(kernels) - launched


@contextlib.contextmanager
def without(library: Any, kind: int, turn: int) -> Iterator[None]:
    library.lpt_watch_without(kind, turn)
    yield
    library.lpt_watch_without(kind, -1)


BLOCK, WARP = 0, 1  # watch.h


@pytest.mark.parametrize("turn", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (partial(rounding, MXFP8_E4M3, (16_384,), Stochastic()), WARP),
        (partial(rounding, BlockFloatingPoint(8), (5, 9000), Rounding(Mode.NEAREST)), BLOCK),
        (partial(product, Accumulator(FP16), 40, 40, 40), BLOCK),
        (partial(product, Accumulator(E4M3, order="aligned", chunk=4, alignment=9), 40, 70, 40), BLOCK),
        (partial(product, Accumulator(FP16, order="exact"), 40, 140, 40), BLOCK),
    ],
)
def test_every_barrier_is_missed_where_it_is_left_out(library: Any, work: Any, kind: int, turn: int) -> None:
    """Two of them make a round of each of these kernels."""
    with emulated(library, blocks=1), without(library, kind, turn):
        work()
    assert found(library)


@pytest.mark.parametrize("format", [E4M3, NF4, MX(E4M3, axis=0)], ids=repr)
def test_what_two_thread_blocks_share_is_found(library: Any, format: Format) -> None:
    """A tensor rounded into one that lies upon its second half."""
    memory = numbers((9001,), torch.float32)
    x, y = memory[:6000].view(20, 300), memory[3001:].view(20, 300)
    with emulated(library):
        call(_cuda, x, y, format, Rounding(Mode.NEAREST), None)
    assert "of block 0" in found(library)


@pytest.mark.parametrize("format", [E4M3, NF4, MXFP8_E4M3, MX(E4M3, axis=0), BlockFloatingPoint(8)], ids=repr)
@pytest.mark.parametrize("short", ["reads", "writes"])
def test_what_lies_outside_of_tensors_is_found(library: Any, format: Format, short: str) -> None:
    """One of two rows is said to be longer than its memory."""
    x, y = numbers((2, 64), torch.float32), torch.empty(2, 64)
    with emulated(library), tensors(library), pytest.MonkeyPatch.context() as patch:
        given, of = Tensor.data_ptr, x if short == "reads" else y
        patch.setattr(Tensor, "data_ptr", lambda t: given(t.view(-1)[:-1]) if t is of else given(t))
        call(_cuda, x, y, format, Rounding(Mode.NEAREST), None)
    assert f"{short} outside of all tensors" in found(library)
