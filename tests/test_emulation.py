"""The CUDA kernels, run on the host thread by thread, give the bits of the CPU's."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backends import flushed_denormals, random_bits
from emulation import built, emulated
from lptensor import (
    BF16,
    E2M1,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E8M0,
    FP16,
    HIF8,
    INT4,
    INT8,
    MX,
    MXFP8_E4M3,
    MXINT8,
    NF4,
    NVFP4,
    P3109,
    Arithmetic,
    BlockFloatingPoint,
    FixedPoint,
    FloatingPoint,
    Format,
    HiFloat8,
    Posit,
    TwoLevel,
    _compat,
    _cuda,
    _cuda_gemm,
    _native,
    _nvrtc,
    backend,
    convert,
    finfo,
    ops,
)
from lptensor.accumulator import Accumulator
from lptensor.blocks import BlockFormat, Scaled
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic, as_rounding
from lptensor.scaling import CurrentMaximum, CurrentRange, Tile
from rounders import assert_same_bits

pytestmark = pytest.mark.native  # to compare with

DTYPES = [torch.float32, torch.float64]
KEY = (0x0123456789ABCDEF, 2**40 + 5)

# Of each arm of the arithmetic one; codebooks and posits too.
FORMATS: list[Format] = [
    E4M3,
    E5M2,
    BF16,
    E8M0,
    FixedPoint(8, 4),
    FixedPoint(24, 30),
    FloatingPoint(4, 3, subnormals=False),
    FloatingPoint(4, 3, bias=140),
    FloatingPoint(4, 3, signed=False, specials="none"),
    P3109(8, 3),
    P3109(8, 3, overflow="propagate"),
    NF4,
    HIF8,
    HiFloat8("propagate"),
    Posit(8),
    Posit(16, 1),
]
BLOCKS: list[BlockFormat] = [
    MXFP8_E4M3,
    MXINT8,
    MX(E2M1, 8, scale_rule="rceil"),
    MX(E5M2, infinite="saturate"),
    MX(E4M3, 4),
    MX(E4M3, axis=0),
    MX(E4M3, 5, axis=1),
    MX(E2M1, (4, 6)),
    MX(E2M1, (2, 3, 4)),
    NVFP4,
    TwoLevel(E2M1, (16, 16)),
    TwoLevel(E2M1, axis=0, reciprocal=True, floor=2.0**-6, infinite="saturate"),
    Scaled(E4M3, CurrentMaximum(Tile((1, 128)))),
    Scaled(INT4, CurrentMaximum(Tile((1, 32)), top=7.5)),
    Scaled(INT8, CurrentRange()),
    Scaled(INT4, CurrentRange(Tile((1, 128)), preserve_zero=False)),
    Scaled(FixedPoint(4, 0, signed=False), CurrentRange(Tile((5,), (1,)), preserve_zero=False)),
    Scaled(INT8, CurrentRange(Tile((2, 3)), reciprocal=True)),
    BlockFloatingPoint(8),
    BlockFloatingPoint(8, dim=0),
    BlockFloatingPoint(8, dim=1),
    BlockFloatingPoint(4, block_size=100, overflow="bump"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(tmp_path_factory)


def call(kernels: Any, x: torch.Tensor, y: torch.Tensor, format: Format, rule: Rounding, key: Any) -> None:
    lowered = format.lowered
    shape = (format.block_shape(x.shape),) if isinstance(format, BlockFormat) else ()
    getattr(kernels, lowered.loop)(x, y, lowered, *shape, rule, key)


def assert_same_as_cpu(
    library: Any, x: torch.Tensor, format: Format, rounding: Rounding | Mode | str, **how: Any
) -> None:
    rule = as_rounding(rounding)
    key = KEY if rule.stochastic else None
    ours, cpus = torch.full_like(x, 7.0), torch.full_like(x, 9.0)
    with emulated(library, **how):
        call(_cuda, x, ours, format, rule, key)
    call(_native, x, cpus, format, rule, key)
    assert_same_bits(ours, cpus, f"{format!r} {rule!r} {x.dtype} {tuple(x.shape)}")


def numbers(shape: tuple[int, ...], dtype: torch.dtype, lowest: int = -40, highest: int = 40) -> torch.Tensor:
    """Numbers of many magnitudes, an eighth of them zero."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, dtype=dtype, generator=generator)
    powers = torch.randint(lowest, highest, shape, generator=generator).to(dtype)
    kept = torch.rand(shape, generator=generator) > 0.125
    return x * torch.exp2(powers) * kept


# -- formats whose elements know nothing of each other -----------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
def test_a_million_numbers_of_every_kind_round_as_on_the_cpu(library: Any, mode: Mode, dtype: torch.dtype) -> None:
    assert_same_as_cpu(library, random_bits(1_000_003, dtype), E4M3, mode)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_every_scalar_format_rounds_as_on_the_cpu(library: Any, format: Format, mode: Mode, dtype: torch.dtype) -> None:
    x = torch.cat([random_bits(20_000, dtype), numbers((20_000,), dtype, -12, 12)])
    assert_same_as_cpu(library, x, format, mode)


@pytest.mark.parametrize("bits", [1, 8, 31])
@pytest.mark.parametrize("beyond", Beyond)
@pytest.mark.parametrize(
    "format", [E5M2, NF4, HIF8, Posit(8), MXFP8_E4M3, MX(E4M3, axis=0), MX(E4M3, 5), NVFP4], ids=repr
)
def test_few_random_bits_decide_as_on_the_cpu(library: Any, format: Format, beyond: Beyond, bits: int) -> None:
    x = numbers((64, 320), torch.float32, -8, 24)
    for variant in ("plain", "half_offset", "pre_rounded"):
        assert_same_as_cpu(library, x, format, Stochastic(bits, variant, beyond))


@pytest.mark.parametrize("bits", [3, 32])
@pytest.mark.parametrize(
    "format",
    [E4M3, E5M2, BF16, FP16, FixedPoint(8, 4), FloatingPoint(4, 3, specials="fnuz"), FloatingPoint(2, 1, bias=-30)],
    ids=repr,
)
def test_warps_without_and_with_an_odd_one_draw_as_on_the_cpu(library: Any, format: Format, bits: int) -> None:
    """128 numbers from the smallest value to the largest, then some with a zero, a smaller or a larger one."""
    info = finfo(format)
    least, most = float(info.smallest_subnormal), float(info.max)
    g = torch.Generator().manual_seed(5)
    x = torch.exp2(torch.empty(400, 128).uniform_(math.log2(least), math.log2(most), generator=g))
    x = x.clamp(least, most) * torch.randint(0, 2, x.shape, generator=g).mul(2).sub(1)
    beyond = min(1.5 * most, torch.finfo().max)
    ends = [least, most, -least, -most]
    odd = [
        0.0,
        -0.0,
        least * (1 - 2.0**-24),
        least * 0.75,
        -least * 2.0**-6,
        beyond / 1.4,
        -beyond,
        math.inf,
        -math.inf,
        math.nan,
    ]
    for k, value in enumerate([*ends, *odd]):
        rows = range(16 + 8 * k, 24 + 8 * k)
        for row in rows:
            x[row, (37 * row + 11) % 128] = value
    x[300:310, ::2], x[310:320, ::2] = 0.0, -0.0
    assert_same_as_cpu(library, x.view(-1)[:-5], format, Stochastic(bits))


@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tails_and_places_in_memory_are_kept_apart(library: Any, dtype: torch.dtype, rounding: str) -> None:
    """All sizes around those of packs, groups and chunks, from every place of a pack to every other."""
    rule = as_rounding(rounding)
    key = KEY if rule.stochastic else None
    sizes = sorted({size for edge in (0, 16, 128, 1024, 2048) for size in range(edge - 5, edge + 6) if size > 0})
    values, ends = random_bits(4096, dtype, seed=1), range(16 // values_size(dtype))
    for size, start, to in itertools.product(sizes, ends, ends):
        x, y = values[start : start + size], torch.full((size + 16,), 7.0, dtype=dtype)
        expected = torch.empty_like(x)
        with emulated(library):
            call(_cuda, x, y[to : to + size], E4M3, rule, key)
        call(_native, x, expected, E4M3, rule, key)
        assert_same_bits(y[to : to + size], expected, f"{size} from {start} to {to}")
        assert (y[:to] == 7).all() and (y[to + size :] == 7).all()


def values_size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


@pytest.mark.parametrize("rule", [*map(Rounding, Mode), Stochastic(5, beyond="probability")], ids=repr)
@pytest.mark.parametrize("format", [E4M3, BF16, FloatingPoint(4, 3, subnormals=False)], ids=repr)
def test_many_tensors_round_where_they_lie(library: Any, format: Format, rule: Rounding) -> None:
    """More of them than a launch takes, with none, one and many chunks of elements, from every place of a pack."""
    memory, at = random_bits(500_000, torch.float32), 0
    sizes = [0, 1, 2, 3, 5, 1023, 1024, 1025, 4, 2047, 2048, 2049, 4100, 0]
    spans = []
    for k in range(260):
        spans.append(slice(at, at + sizes[k % len(sizes)]))
        at = spans[-1].stop + k % 5
    assert at < memory.numel()
    keys = [(3 * k + 2**40, 7 * k) for k in range(len(spans))] if rule.stochastic else [None] * len(spans)
    expected = memory.clone()
    for span, key in zip(spans, keys, strict=True):
        call(_native, expected[span], expected[span], format, rule, key)
    words = [word for key in keys if key for word in key]
    for given in (words, torch.tensor(words)) if rule.stochastic else (None,):
        there = memory.clone()
        with emulated(library):
            _cuda.round_grids([there[span] for span in spans], format.lowered, rule, given)
            _cuda.round_grids([there[:0]], format.lowered, rule, given)
        assert_same_bits(there, expected)


@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), *BLOCKS], ids=repr)
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
def test_in_place(library: Any, format: Format, rounding: str) -> None:
    rule = as_rounding(rounding)
    key = KEY if rule.stochastic else None
    x = numbers((40, 257), torch.float32)
    expected = torch.empty_like(x)
    call(_native, x, expected, format, rule, key)
    with emulated(library):
        call(_cuda, x, x, format, rule, key)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("order", ["forwards", "backwards", "ahead"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize(
    "format",
    [E4M3, NF4, MXFP8_E4M3, MX(E4M3, 4), MX(E4M3, axis=0), MX(E2M1, 5), BlockFloatingPoint(8, dim=0)],
    ids=repr,
)
def test_few_thread_blocks_stride_and_the_order_of_threads_is_free(
    library: Any, format: Format, rounding: str, blocks: int, order: str
) -> None:
    assert_same_as_cpu(library, numbers((12, 2048), torch.float32), format, rounding, blocks=blocks, order=order)


# -- blocks ------------------------------------------------------------------------------------------

# Whole rows of blocks, short last ones, columns, few and large blocks that several teams share.
SHAPES = [
    (1,),
    (2048,),
    (2000,),
    (5000,),
    (64, 96),
    (7, 50),
    (130, 520),
    (3, 70, 33),
    (2, 3, 4, 65),
    (20_000,),
    (300, 40),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", BLOCKS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_round_as_on_the_cpu(library: Any, shape: tuple[int, ...], format: Format, dtype: torch.dtype) -> None:
    samples = [numbers(shape, dtype), numbers(shape, dtype, -149, -100)]
    if dtype == torch.float64:
        samples.append(numbers(shape, dtype, -1074, -900))
    for x, rounding in itertools.product(samples, ["nearest", "up", "stochastic", "stochastic_equal"]):
        assert_same_as_cpu(library, x, format, rounding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", BLOCKS, ids=repr)
def test_blocks_with_nans_infinities_and_zeros(library: Any, format: Format, dtype: torch.dtype) -> None:
    x = numbers((96, 160), dtype)
    for row, special in enumerate([torch.nan, torch.inf, -torch.inf, 0.0, -0.0]):
        x[17 * row, 37:] = special
        x[17 * row + 1, ::40] = special
    for rounding in ("nearest", "down", "stochastic"):
        assert_same_as_cpu(library, x, format, rounding)


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("format", [MXFP8_E4M3, MX(E4M3, axis=0), NVFP4, BlockFloatingPoint(8, dim=0)], ids=repr)
def test_blocks_in_every_mode(library: Any, format: Format, mode: Mode) -> None:
    assert_same_as_cpu(library, numbers((128, 1024), torch.float32), format, mode)


@pytest.mark.parametrize("format", [MX(element) for element in (E4M3, E5M2, E2M1, INT8)], ids=repr)
def test_what_lies_around_the_smallest_value_of_a_block_draws_as_on_the_cpu(library: Any, format: MX) -> None:
    """Four elements none of which lies below it take a shorter way."""
    grid, top = format.element.grid, torch.tensor(format.element.grid.max)
    smallest = torch.tensor(2.0 ** (grid.emin - grid.precision + 1)).view(torch.int32)
    beside = (smallest + torch.arange(-3, 4).repeat_interleave(4)).int().view(torch.float32)
    block = torch.cat([top[None], beside, -beside[9:11], torch.zeros(1)])
    rows = block * 2.0 ** torch.arange(-9, 9).repeat(256)[:, None]
    assert_same_as_cpu(library, torch.cat([rows, -rows]), format, "stochastic")


@pytest.mark.parametrize("format", [MXFP8_E4M3, NVFP4, BlockFloatingPoint(8)], ids=repr)
def test_blocks_that_begin_and_end_anywhere_in_memory(library: Any, format: Format) -> None:
    x = numbers((4104,), torch.float32)
    for start, size in itertools.product(range(4), (4096, 4099)):
        x[start + size] = 1e30  # what follows is no part of the last block
        assert_same_as_cpu(library, x[start : start + size], format, "nearest")
        x[start + size] = 0.0


# Tiles and runs that a team takes: held by its threads or read twice, rows of whole packs and not, more or fewer than
# its lanes, blocks that several teams share, and slabs of rows.
TILES: list[tuple[BlockFormat, tuple[int, ...]]] = [
    (MX(E4M3, (32, 32)), (70, 104)),
    (MX(E2M1, (8, 8)), (33, 52)),
    (MX(E4M3, (24, 20)), (50, 72)),
    (MX(E2M1, (4, 6)), (50, 33)),
    (MX(E2M1, (3, 260)), (7, 600)),
    (MX(E2M1, (3, 1100)), (7, 2300)),
    (MX(E2M1, (2, 3, 4)), (5, 7, 18)),
    (MX(E2M1, (2, 30, 44)), (3, 64, 90)),
    (Scaled(E4M3, CurrentMaximum(Tile((128, 128)))), (200, 260)),
    (Scaled(E4M3, CurrentMaximum(Tile((1, 128)))), (5, 300)),
    (TwoLevel(E2M1, (16, 16)), (40, 72)),
    (NVFP4, (3, 1001)),
    (MX(E4M3, 100), (1501,)),
    (BlockFloatingPoint(8), (3, 13_001)),
    (BlockFloatingPoint(8, dim=0), (3, 9000)),
    (BlockFloatingPoint(8, dim=1), (40, 3, 260)),
    (BlockFloatingPoint(8, dim=1), (2, 3, 9000)),
]


@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize(("format", "shape"), TILES, ids=str)
def test_tiles_and_runs_from_any_place_to_any_other(
    library: Any, format: BlockFormat, shape: tuple[int, ...], rounding: str
) -> None:
    rule = as_rounding(rounding)
    key = KEY if rule.stochastic else None
    x = numbers((math.prod(shape) + 4,), torch.float32, -8, 8)
    for (start, to), order in zip(
        itertools.product(range(4), (0, 3)), itertools.cycle(["forwards", "backwards", "ahead"])
    ):
        for place in {start, to}:
            here, y = x[start : start + math.prod(shape)].view(shape), torch.full((x.numel() + 4,), 7.0)
            expected, there = torch.empty_like(here), y[place : place + here.numel()]
            call(_native, here, expected, format, rule, key)
            with emulated(library, order=order, blocks=5 if to else 2**40):
                call(_cuda, here, there.view(shape), format, rule, key)
            assert_same_bits(there.view(shape), expected, f"from {start} to {place}")
            assert (y[:place] == 7).all() and (y[place + here.numel() :] == 7).all()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("format", "shape"), TILES, ids=str)
def test_tiles_and_runs_in_place(library: Any, format: BlockFormat, shape: tuple[int, ...], rounding: str) -> None:
    rule = as_rounding(rounding)
    key = KEY if rule.stochastic else None
    x = numbers(shape, torch.float32, -8, 8)
    x.view(-1)[::97], x.view(-1)[5::1013] = 0.0, torch.nan
    expected = torch.empty_like(x)
    call(_native, x, expected, format, rule, key)
    with emulated(library, order="ahead"):
        call(_cuda, x, x, format, rule, key)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    "format",
    [
        NVFP4,
        TwoLevel(E2M1, (4, 8)),
        TwoLevel(E2M1, axis=0, floor=2.0**-6),
        TwoLevel(E2M1, reciprocal=True),
        TwoLevel(E2M1, infinite="saturate"),
        TwoLevel(E4M3FNUZ, 2, reciprocal=True),
        TwoLevel(FixedPoint(4, 3), 2),
        MX(FloatingPoint(2, 3, specials="none", subnormals=False), 4),
        MX(FloatingPoint(2, 7, specials="fnuz", subnormals=False), 32),
        Scaled(E4M3, CurrentMaximum(Tile((1, 32)))),
        Scaled(E5M2, CurrentMaximum(Tile((4, 32)))),
        Scaled(FloatingPoint(8, 7), CurrentMaximum(Tile((1, 32)))),
    ],
    ids=repr,
)
def test_quotients_of_all_magnitudes_are_those_of_the_cpu(library: Any, format: BlockFormat, rounding: str) -> None:
    """Around both ends of fp32, and where a shorter division takes the place of the machine's."""
    for power in (*range(-149, -120, 5), *range(-60, 61, 6), *range(115, 127, 2)):
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(power + 200)) * 2.0**power
        x[:, 20:32] *= torch.exp2(-torch.arange(32.0))[:, None]
        x[4:8], x[9, 40], x[10, 41] = 0.0, -0.0, torch.inf
        assert_same_as_cpu(library, x, format, rounding)


@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize(
    "format",
    [
        Scaled(INT8, CurrentRange(Tile((1, 24)), reciprocal=True)),
        Scaled(INT4, CurrentRange(Tile((2, 3)), preserve_zero=False)),
        Scaled(INT8, CurrentRange(Tile((4,), (0,)), preserve_zero=False)),
        Scaled(FixedPoint(8, 140), CurrentRange(Tile((1, 24)), preserve_zero=False)),  # whose steps are subnormal
    ],
    ids=repr,
)
def test_ranges_beyond_fp32_are_those_of_the_cpu(library: Any, format: BlockFormat, rounding: str) -> None:
    x = torch.randn(48, 96, generator=torch.Generator().manual_seed(6))
    x[:, :48] = x[:, :48].clamp(-3, 3) * 2.0**126  # beside tiles that are nothing of the kind
    x[:, :48] = x[:, :48].clamp(-torch.finfo().max, torch.finfo().max)
    x[:, 72:] *= 2.0**-30
    assert_same_as_cpu(library, x, format, rounding, blocks=1)  # which goes around more than once


# -- the way there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Stochastic(), Stochastic(5)], ids=repr)
@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), MXFP8_E4M3, MX(E4M3, axis=0), MX(E2M1, 5)], ids=repr)
def test_a_key_that_lies_on_the_device_is_the_same_key(library: Any, format: Format, rule: Rounding) -> None:
    x = numbers((50, 64), torch.float32)
    results = [torch.empty_like(x) for _ in range(2)]
    with emulated(library):
        for y, key in zip(results, (KEY, torch.tensor(KEY)), strict=True):
            call(_cuda, x, y, format, rule, key)
    assert_same_bits(*results)


def test_a_machine_that_flushes_subnormals_rounds_scalars_to_the_same_bits(library: Any) -> None:
    x = random_bits(100_000, torch.float32)
    with flushed_denormals():
        for mode in Mode:
            assert_same_as_cpu(library, x, FloatingPoint(4, 3, bias=140), mode)


def test_an_error_code_is_raised_with_its_name() -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            return (lambda code: b"CUDA driver version is insufficient") if name == "lpt_cuda_error" else lambda *a: 35

    x = torch.zeros(3)
    message = "CUDA error 35: CUDA driver version is insufficient"
    for work in (
        lambda: _cuda.round_grid(x, x, E4M3.grid, Rounding(), None),
        lambda: _cuda.round_grids([x, x], E4M3.grid, Rounding(), None),
    ):
        with emulated(Failing()), pytest.raises(RuntimeError, match=message):
            work()


def test_another_device_is_the_current_one_within_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [1]

    @contextlib.contextmanager
    def device(given: torch.device) -> Iterator[None]:
        before, current[0] = current[0], given.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    for index in (0, 1, 2):
        with _cuda.guard(torch.device("cuda", index)):
            assert current == [index]
        assert current == [1]


def test_a_tensor_is_worked_on_on_its_device_and_the_stream_that_is_current_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_compat, "current_raw_stream", lambda device: 1000 + device)
    x: Any = SimpleNamespace(device=torch.device("cuda", 3))
    assert _cuda.where(x) == (3, 1003)


@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), MXFP8_E4M3, NVFP4, None, "many"], ids=repr)
def test_every_call_is_made_for_the_device_and_the_stream_of_its_tensor(
    monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    guarded: list[Any] = []
    calls: list[Any] = []

    @contextlib.contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        guarded.append(device)
        yield
        guarded.pop()

    class Recording:
        def __getattr__(self, name: str) -> Any:
            if name == "lpt_cuda_scratch":
                return lambda layout: 1
            return lambda *given: calls.append((*given[-2:], *guarded)) or 0

    x = torch.ones(1, 32, 32)
    for name, value in {"guard": guard, "where": lambda x: (3, 77), "library": Recording, "capturing": bool}.items():
        monkeypatch.setattr(_cuda, name, value)
    if format is None:
        _cuda_gemm.gemm(x, x, x, Accumulator(BF16), None, None, False)
    elif format == "many":
        _cuda.round_grids([x, x], E4M3.grid, Rounding(), None)
    else:
        call(_cuda, x, x, format, Rounding(), None)
    assert calls == [(3, 77, x.device)]


def test_a_library_of_another_version_is_refused(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "ABI_VERSION", -1)
    with pytest.raises(ImportError, match="another version"):
        _cuda.load(library._name)


def test_tensors_on_a_gpu_get_the_cuda_library_and_others_do_not(library: Any) -> None:
    with emulated(library):
        assert ops._kernels(torch.device("cuda", 0)) is _cuda and backend("cuda:0").startswith("cuda: ")
        assert ops._kernels(torch.device("cpu")) is _native and ops._kernels(torch.device("meta")) is None


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), MXFP8_E4M3], ids=repr)
def test_round_draws_and_arranges_for_the_cuda_library_as_for_the_cpus(
    library: Any, monkeypatch: pytest.MonkeyPatch, format: Format, rounding: str
) -> None:
    x = torch.randn(30, 40).t()
    expected = ops.round(x, format, rounding, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(ops, "_kernels", lambda device: _cuda)
    with emulated(library):
        assert_same_bits(ops.round(x, format, rounding, generator=torch.Generator().manual_seed(1)), expected)
        ops.round(x, format, rounding, generator=torch.Generator().manual_seed(1), out=x)
    assert_same_bits(x, expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [BF16, E4M3, NF4], ids=repr)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(torch.optim.AdamW, eps=0.25)], ids=["SGD", "AdamW"])
def test_lists_of_an_optimizer_round_as_on_the_cpu(
    library: Any, monkeypatch: pytest.MonkeyPatch, optimizer: Any, format: Format, rounding: str
) -> None:
    by_list: list[int] = []

    def steps() -> list[torch.Tensor]:
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
        net.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
        net = convert(net, Arithmetic(format, backward=E5M2, rounding=rounding))
        optim = optimizer(net.parameters(), lr=0.125, foreach=True, weight_decay=0.25)
        for p in net.parameters():
            p.grad = p.detach() * 3
        for _ in range(3):
            optim.step()
        return [p._inner for p in net.parameters()]

    expected = steps()
    round_grids = _cuda.round_grids
    monkeypatch.setattr(ops, "_kernels", lambda device: _cuda)
    monkeypatch.setattr(_cuda, "round_grids", lambda xs, *rest: (by_list.append(len(xs)), round_grids(xs, *rest)))
    with emulated(library):
        ours = steps()
    assert set(by_list) == (set() if format is NF4 else {6})  # of seven tensors one is empty
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)


def test_backend_says_what_rounds_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "library", lambda: None)
    monkeypatch.setattr(_nvrtc, "library", lambda: None)
    assert "nvcc" in backend("cuda") and backend("cuda").startswith("torch: ")
    assert backend("meta").startswith("torch: ") and "meta" in backend("meta")


def test_while_a_graph_is_captured_keys_are_drawn_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = SimpleNamespace(is_cuda=True, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert isinstance(ops.call_key(there, None), tuple)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    key = ops.call_key(there, None)
    assert isinstance(key, torch.Tensor) and key.dtype == torch.int64 and key.shape == (2,)
    assert not torch.equal(ops.call_key(there, None), key)
    with pytest.raises(RuntimeError, match="cannot draw from a CPU generator"):
        ops.call_key(there, torch.Generator())
    monkeypatch.setattr(ops, "call_key", lambda x, generator: key)
    monkeypatch.setattr(ops, "_kernels", lambda device: None)
    with pytest.raises(RuntimeError, match="needs lptensor's CUDA library"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "warn_missing", lambda: None)
        ops.round(torch.ones(3), E4M3, "stochastic")
