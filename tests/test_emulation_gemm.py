"""The CUDA kernels of sums of products, run on the host thread by thread, give the bits of the CPU's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import lptensor
from emulation import built, emulated
from lptensor import _cuda, _cuda_gemm, _native, _native_gemm, gemm as gemm_module
from lptensor.accumulator import Accumulator
from lptensor.formats import BF16, E2M1, E4M3, E5M2, FP16, FP32, FixedPoint, FloatingPoint
from lptensor.gemm import cumsum, gemm, reduce
from lptensor.hardware_sums import integer_accumulator, tensor_core
from lptensor.reference import philox
from lptensor.rounding import Mode, Stochastic
from oracles.exact import MODES
from oracles.table import table_of
from rounders import assert_same, assert_same_bits, judge
from test_gemm import KEY, accumulators, operands
from test_gemm_tiles import TILED

pytestmark = pytest.mark.native  # to compare with

# Devices round to two of these themselves; the others are their neighbours.
EIGHT_BITS = (E4M3, E5M2, FloatingPoint(4, 3), FloatingPoint(5, 2, overflow="saturate"), FloatingPoint(4, 2))

# Outputs in order that fp32 alone can form, on tiles: every way to round, with products, chunks and fp32 inside.
IN_TILES = (
    Accumulator(FP32),
    Accumulator(FP32, chunk=16, inner=FP32),
    *(
        Accumulator(sum, product, compute=compute)
        for sum in (FP16, BF16)
        for product in (None, E5M2, BF16)
        for compute in ("exact", "fp32")
    ),
    *(
        Accumulator(sum, chunk=chunk, inner=inner, compute=compute)
        for sum, chunk in ((FP16, 5), (BF16, 16), (FloatingPoint(6, 9, overflow="saturate"), 35))
        for inner in (None, FP32)
        for compute in ("exact", "fp32")
    ),
    # formats that have no way of their own
    *(
        Accumulator(sum, chunk=chunk, compute=compute, rounding=mode)
        for sum in (FloatingPoint(5, 7, overflow="nan"), FloatingPoint(8, 5))
        for chunk in (1, 5)
        for compute in ("exact", "fp32")
        for mode in ("nearest", "up")
    ),
    # an inner mode of its own
    Accumulator(FP16, chunk=5, rounding="up", inner=Accumulator(FP16, rounding="toward_zero")),
    Accumulator(BF16, chunk=5, rounding="odd", inner=Accumulator(BF16, rounding="down", compute="fp32")),
    Accumulator(BF16, chunk=5, rounding="down", inner=Accumulator(BF16)),
    # other orders, and drawn sums
    *(
        Accumulator(sum, order=order, compute=compute, rounding=mode)
        for sum in (FP16, BF16, E4M3, FloatingPoint(8, 6))
        for order in ("kahan", "pairwise")
        for compute, mode in (("exact", "nearest"), ("fp32", "nearest"), ("exact", "odd"), ("fp32", "up"))
    ),
    *(Accumulator(FP32, order=order) for order in ("kahan", "pairwise")),
    *(
        Accumulator(sum, compute=compute, rounding=rounding)
        for sum in (FP16, BF16, E4M3, E5M2, FloatingPoint(5, 15, overflow="nan"))
        for compute in ("exact", "fp32")
        for rounding in (Stochastic(), Stochastic(5))
    ),
    # fp32 in directions, and to odd
    *(
        Accumulator(FP32, rounding=mode, **more)
        for mode in ("toward_zero", "up", "down", "odd")
        for more in ({}, {"chunk": 7}, {"order": "kahan"}, {"order": "pairwise"})
    ),
    *(Accumulator(FP32, rounding=mode, compute="fp32") for mode in ("nearest_away", "stochastic", "up")),
    # fp32 inside chunks, and anything outside
    *(
        Accumulator(sum, chunk=chunk, inner=FP32, rounding=rounding, compute=compute, wrap=wrap)
        for sum, chunk, rounding, compute, wrap in (
            (FP16, 30, "stochastic", "exact", False),
            (BF16, 5, Stochastic(7), "fp32", False),
            (FP32, 7, "down", "exact", False),
            (FP32, 16, "nearest_away", "exact", False),
            (E4M3, 7, "up", "fp32", False),
            (FloatingPoint(8, 22), 3, "nearest", "exact", False),  # fp32 has too few bits to tell its ties
            (FloatingPoint(5, 4, subnormals="flush"), 20, "nearest", "exact", False),
            (FixedPoint(12, 6), 4, "nearest", "exact", False),
            (FixedPoint(10, 4), 9, "odd", "exact", True),
        )
    ),
    # fixed point
    Accumulator(FixedPoint(22, 12, symmetric=True)),  # the widest that is added in fp32
    Accumulator(FixedPoint(12, 6)),
    Accumulator(FixedPoint(8, 140)),
    Accumulator(FixedPoint(16, 6), compute="fp32"),
    *(Accumulator(FixedPoint(14, 5), chunk=7, compute=compute) for compute in ("exact", "fp32")),
    Accumulator(FixedPoint(10, 4), chunk=5, inner=Accumulator(FixedPoint(12, 6))),
    *(
        Accumulator(sum, rounding=mode, chunk=chunk, compute=compute)
        for sum, chunk, compute in (
            (FixedPoint(22, 12, symmetric=True), 1, "exact"),
            (FixedPoint(8, 140), 1, "fp32"),
            (FixedPoint(12, 6), 1, "exact"),
            (FixedPoint(14, 5), 7, "exact"),
            (FixedPoint(10, 4), 5, "fp32"),
        )
        for mode in ("toward_zero", "up", "down", "odd")
    ),
    # fixed point that wraps
    integer_accumulator(16),
    integer_accumulator(2),
    integer_accumulator(22),  # no room below the lowest number
    Accumulator(FixedPoint(14, 5), chunk=7, wrap=True),
    Accumulator(FixedPoint(12, 6), chunk=5, wrap=True, inner=Accumulator(FixedPoint(6, 2), wrap=True)),
    *(
        Accumulator(FixedPoint(10, 4), rounding=mode, wrap=True, chunk=chunk, compute=compute)
        for mode, chunk, compute in (
            ("nearest", 1, "fp32"),
            ("nearest", 3, "fp32"),
            ("toward_zero", 1, "exact"),
            ("odd", 5, "exact"),
            ("up", 1, "fp32"),
            ("down", 3, "fp32"),
        )
    ),
    # fixed point that is drawn
    *(
        Accumulator(sum, rounding=rounding, compute=compute, wrap=wrap)
        for sum, rounding, compute, wrap in (
            (FixedPoint(16, 8), "stochastic", "exact", False),
            (FixedPoint(8, 120), Stochastic(3), "exact", False),  # what fp32 leaves has its smallest numbers
            (FixedPoint(22, 10), "stochastic", "fp32", False),
            (FixedPoint(22, 12), Stochastic(9), "exact", True),
            (FixedPoint(8, 4), "stochastic", "fp32", True),
        )
    ),
    # cut off below the largest exponent
    *(tensor_core(name) for name in ("volta", "ampere", "hopper", "hopper_fp8")),
    Accumulator(BF16, order="aligned", chunk=3, alignment=40, rounding="toward_zero"),
    Accumulator(FP16, order="aligned", chunk=1, alignment=0, rounding="odd"),
    Accumulator(E4M3, order="aligned", chunk=20, alignment=9, rounding="stochastic", operands=(E2M1, None)),
    tensor_core("blackwell_fp8", (None, E2M1)),
    Accumulator(FixedPoint(10, 4), order="aligned", chunk=32, alignment=12, wrap=True),
    # formats that devices round to themselves, and their neighbours
    *(
        Accumulator(sum, compute=compute)
        for sum in (FloatingPoint(5, 10, overflow="saturate"), FloatingPoint(8, 6), *EIGHT_BITS)
        for compute in ("exact", "fp32")
    ),
)
OTHERS = (
    *(Accumulator(E4M3, rounding=mode) for mode in Mode),
    *(Accumulator(FP16, order=order) for order in ("kahan", "pairwise", "exact")),
    *(Accumulator(sum, order="kahan", rounding="nearest_up") for sum in (FP32, BF16, FP16)),
    *(Accumulator(FP16, E5M2, 3, order, "stochastic") for order in ("sequential", "kahan", "pairwise", "exact")),
    Accumulator(BF16, chunk=4, inner=Accumulator(FP16, rounding="stochastic")),
    Accumulator(BF16, chunk=4, order="kahan", inner=Accumulator(FP16, order="pairwise", compute="fp32")),
    Accumulator(FP16, chunk=6, inner=Accumulator(FP16, compute="fp32")),
    Accumulator(FP16, order="aligned", chunk=33, alignment=12, rounding="toward_zero"),
    Accumulator(FP16, order="aligned", chunk=4),
    Accumulator(E4M3, order="aligned", chunk=33, rounding="stochastic"),
    Accumulator(FloatingPoint(4, 3, specials="fnuz"), chunk=2),
    Accumulator(FloatingPoint(5, 4, subnormals="flush")),
    Accumulator(FixedPoint(20, 12)),
    Accumulator(FP16, rounding=Stochastic(3, "pre_rounded", "probability")),
    integer_accumulator(24),
    integer_accumulator(12, "saturate"),
    *(Accumulator(FloatingPoint(5, 2, overflow="propagate"), rounding=mode) for mode in Mode),
    Accumulator(FloatingPoint(5, 10, overflow="propagate"), chunk=5, inner=FP32),
    Accumulator(FP16, FloatingPoint(5, 2, overflow="propagate")),
)
# One output a thread, with operands of 2**n k at a time in shared memory.
BY_OUTPUT = (
    Accumulator(FP16, order="exact"),
    integer_accumulator(24),
    Accumulator(FP16, E5M2, 3, "kahan", "stochastic"),
    Accumulator(FP16, order="aligned", chunk=50, alignment=12, rounding="toward_zero", operands=(E2M1, E4M3)),
    Accumulator(FP16, order="aligned", chunk=50, alignment=12, rounding="toward_zero", operands=(E4M3, E2M1)),
)
SHAPES = ((70, 35, 66), (16, 17, 129), (64, 16, 64), (17, 1, 16), (20, 0, 20), (3, 50, 5), (1, 33, 130), (130, 7, 1))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(tmp_path_factory)


def with_specials(x: Tensor) -> Tensor:
    """The same with a NaN, infinities, zeros, and the largest and smallest numbers here and there."""
    info = torch.finfo(x.dtype)
    specials = [math.nan, math.inf, -math.inf, 0.0, -0.0, info.max, -info.max, info.tiny, -info.smallest_normal / 8]
    x = x.clone()
    for i, value in enumerate(specials):
        x.view(-1)[i * 37 + 5 :: 401] = value
    return x


def assert_same_as_cpu(
    library: Any, a: Tensor, b: Tensor, c: Tensor | None, acc: Accumulator, running: bool = False, **how: Any
) -> None:
    shape = (*a.shape, b.shape[2]) if running else (*a.shape[:2], b.shape[2])
    ours, cpus = torch.full(shape, 7.0, dtype=a.dtype), torch.full(shape, 9.0, dtype=a.dtype)
    with emulated(library, **how):
        _cuda_gemm.gemm(a, b, ours, acc, c, KEY, running)
    _native_gemm.gemm(a, b, cpus, acc, c, KEY, running)
    assert_same_bits(ours, cpus, f"{acc!r} {a.dtype} {tuple(a.shape)} by {tuple(b.shape)}")


@pytest.mark.parametrize("acc", [*IN_TILES, *TILED, *OTHERS], ids=repr)
def test_products_have_the_bits_of_the_cpu(library: Any, acc: Accumulator) -> None:
    for m, k, n in SHAPES:
        a, b, c = (t[None] for t in operands(m, m, k, n, 4))
        assert_same_as_cpu(library, a, b, with_specials(c), acc)
        a, b, _ = (t[None] for t in operands(m, m, k, n, 60))
        assert_same_as_cpu(library, with_specials(a), with_specials(b), None, acc)


@pytest.mark.parametrize("acc", IN_TILES, ids=repr)
def test_what_is_meant_for_tiles_is_done_there(library: Any, acc: Accumulator) -> None:
    a, b, c = (t[None] for t in operands(2, 20, 5, 20, 4))
    library.lpt_emulate_launched()
    assert_same_as_cpu(library, a, b, c, acc)
    inner = acc.inside
    mixed = inner.compute != acc.compute or (inner.rounding.name == "nearest") != (acc.rounding.name == "nearest")
    in_elements = mixed and (inner.sum != FP32 or inner.rounding.name != "nearest")
    assert in_elements != (b"lpt_gemm_tile" in library.lpt_emulate_launched())


@pytest.mark.parametrize("acc", [*IN_TILES, *OTHERS], ids=repr)
def test_sums_near_the_ends_of_fp32_have_the_bits_of_the_cpu(library: Any, acc: Accumulator) -> None:
    a, b, c = (t[None] for t in operands(1, 20, 33, 18, 0))
    for low, high in ((2.0**-80, 2.0**-69), (2.0**62, 2.0**66), (2.0**-8, 2.0**-8)):
        assert_same_as_cpu(library, a * low, b * high, c * (low * high), acc)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize(
    "sum",
    [E5M2, FloatingPoint(6, 3), FP16, BF16, E4M3, FloatingPoint(4, 3), FloatingPoint(5, 2, overflow="propagate")],
    ids=repr,
)
def test_sums_that_overflow_have_the_bits_of_the_cpu(
    library: Any, sum: FloatingPoint, compute: str, chunk: int, mode: str
) -> None:
    """Formats like IEEE 754's leave it to fp32's own overflow; others compare."""
    acc = Accumulator(sum, compute=compute, chunk=chunk, rounding=mode)
    most = math.frexp(lptensor.finfo(sum).max)[1]
    a, b, c = (t[None] for t in operands(3, 35, 40, 60, 3))  # one tile
    for exponent in range(most - 12, most, 4):  # of few sums, and of nearly all
        low, high = 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2)
        assert_same_as_cpu(library, a * low, b * high, c * 2.0**exponent, acc)
        assert_same_as_cpu(library, with_specials(a * low), b * high, with_specials(c * 2.0**exponent), acc)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("compute", ["exact", "fp32"])
def test_draws_in_fixed_point_that_fp32_leaves_open(library: Any, compute: str, wrap: bool) -> None:
    """Sums that a word takes up just so, or not quite: what lies above the number below is about one less the word."""
    n, acc = 64, Accumulator(FixedPoint(12, 4), rounding="stochastic", compute=compute, wrap=wrap)
    drawn = philox(torch.arange(n * n), KEY)[1].view(n, n).diagonal().double() * 2.0**-32  # of the first product
    for sign in (1, -1):
        for digits in range(-6, 7):
            x = (sign * (1 - drawn + digits * 2.0**-25) / 16).float()
            a, b = torch.stack([x, x * 2.0**-23], 1), torch.stack([torch.ones(n), torch.linspace(-1, 1, n).sign()])
            assert_same_as_cpu(library, a[None, :, :1] * (1 + 2.0**-23), b[None, :1] * (1 - 2.0**-22), None, acc)
            assert_same_as_cpu(library, a[None], b[None], None, acc)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("sum", [*EIGHT_BITS, FloatingPoint(4, 3, specials="fn"), FloatingPoint(8, 3)], ids=repr)
def test_every_value_and_midpoint_is_summed_as_exact_rationals(
    library: Any, sum: FloatingPoint, compute: str, mode: str
) -> None:
    table = table_of(judge(sum))
    x = torch.from_numpy(table.points())
    y = torch.empty(1, len(x), 17)
    with emulated(library):
        acc = Accumulator(sum, compute=compute, rounding=mode)
        library.lpt_emulate_launched()
        _cuda_gemm.gemm(x[None, :, None], torch.ones(1, 1, 17), y, acc, torch.full_like(y, -0.0), KEY, False)
        tiled = mode not in ("nearest_away", "nearest_up") or mode == "nearest_away" and sum.exp == 8
        assert tiled == (b"lpt_gemm_tile" in library.lpt_emulate_launched())
    for column in y[0].T:
        assert_same(column, table.round(x.double().numpy(), mode), x)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_accumulator_adds_as_on_the_cpu(library: Any, data: st.DataObject) -> None:
    acc = data.draw(accumulators(tuple(mode.name.lower() for mode in Mode)).filter(_cuda_gemm.fits))
    m, k, n = (data.draw(st.integers(low, 40)) for low in (1, 0, 1))
    seed, spread, addend = data.draw(st.tuples(st.integers(0, 2**32), st.sampled_from((0, 2, 9)), st.booleans()))
    a, b, c = (t[None] for t in operands(seed, m, k, n, spread))
    assert_same_as_cpu(library, a, b, c if addend else None, acc)


@pytest.mark.parametrize(
    "acc",
    [acc for acc in (*TILED, *OTHERS) if acc.compute == "exact" and acc.inside.compute == "exact"],
    ids=repr,
)
def test_float64_operands_give_the_bits_of_the_cpu(library: Any, acc: Accumulator) -> None:
    for m, k, n in ((5, 40, 33), (300, 3, 1)):
        a, b, c = (t[None] * (1 + 2.0**-50) for t in operands(2, m, k, n, 9, torch.float64))
        assert_same_as_cpu(library, a, b, c, acc)
        assert_same_as_cpu(library, with_specials(a), with_specials(b), with_specials(c), acc)
        assert_same_as_cpu(library, a * 2.0**-500, b * 2.0**-520, None, acc)


@pytest.mark.parametrize(
    "acc",
    [
        Accumulator(FP16),
        Accumulator(BF16, chunk=5),
        Accumulator(FP16, order="kahan"),
        Accumulator(FP16, order="pairwise"),
        Accumulator(FP16, rounding="stochastic"),
        *BY_OUTPUT,
    ],
    ids=repr,
)
def test_any_strides(library: Any, acc: Accumulator) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 70, 37, generator=g), torch.randn(2, 37, 66, generator=g)
    c = torch.randn(2, 70, 66, generator=g)
    assert_same_as_cpu(library, a.mT.contiguous().mT, b.mT.contiguous().mT, c.mT.contiguous().mT, acc)
    assert_same_as_cpu(library, a[:1].expand(2, 70, 37), b[:, ::2].repeat(1, 2, 1)[:, :37], c[:, :1].expand_as(c), acc)
    assert_same_as_cpu(library, a[:, ::3, 1::2], b[:, 1::2, 5::2], c[:, ::3, 5::2], acc)


@pytest.mark.parametrize("order", ["forwards", "backwards", "ahead"])
@pytest.mark.parametrize(
    "acc",
    [
        Accumulator(FP16),
        Accumulator(BF16, chunk=7),
        Accumulator(E4M3, rounding="up"),
        Accumulator(E4M3, order="pairwise"),
        Accumulator(E4M3, rounding="stochastic"),
        *BY_OUTPUT,
    ],
)
def test_few_thread_blocks_stride_and_the_order_of_threads_is_free(library: Any, acc: Accumulator, order: str) -> None:
    a, b, c = (t.expand(2, -1, -1) for t in operands(4, 100, 50, 140, 3))
    assert_same_as_cpu(library, a, b, c, acc, blocks=2, order=order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("acc", BY_OUTPUT, ids=repr)
def test_thread_blocks_of_any_shape_and_of_many_matrices(library: Any, acc: Accumulator, dtype: torch.dtype) -> None:
    for batch, m, k, n in (
        (300, 1, 9, 1),
        (5, 20, 130, 3),
        (3, 2, 70, 130),
        (2, 1, 20, 270),
        (70, 2, 5, 3),
        (2, 17, 65, 33),
    ):
        a, b, c = operands(7, batch * m, k, n, 4, dtype)
        a, b = a.view(batch, m, k), torch.randn(batch, n, k, dtype=dtype, generator=torch.Generator().manual_seed(1)).mT
        assert_same_as_cpu(library, a, b, c.view(batch, m, n), acc)
        assert_same_as_cpu(library, a.mT.contiguous().mT, b.contiguous(), None, acc, blocks=2, order="ahead")


@pytest.mark.parametrize("acc", [Accumulator(BF16), Accumulator(E4M3, rounding="stochastic")], ids=repr)
def test_running_sums(library: Any, acc: Accumulator) -> None:
    a, b, _ = (t[None] for t in operands(4, 20, 30, 40, 3))
    assert_same_as_cpu(library, a, b, None, acc, running=True)


def test_a_key_that_lies_on_the_device_is_the_same_key(library: Any) -> None:
    a, b, _ = (t[None] for t in operands(4, 20, 30, 40, 3))
    results = [torch.empty(1, 20, 40) for _ in range(2)]
    with emulated(library):
        for y, key in zip(results, (KEY, torch.tensor(KEY)), strict=True):
            _cuda_gemm.gemm(a, b, y, Accumulator(BF16, rounding="stochastic"), None, key, False)
    assert_same_bits(*results)


@pytest.mark.parametrize("acc", [Accumulator(FP16), Accumulator(BF16, rounding="stochastic")], ids=repr)
def test_functions_arrange_for_the_cuda_library_as_for_the_cpus(
    library: Any, monkeypatch: pytest.MonkeyPatch, acc: Accumulator
) -> None:
    a, b, c = operands(4, 30, 40, 20, 3)
    calls = (
        lambda g: gemm(a.expand(2, 3, 30, 40), b, acc, c[:, :1], generator=g),
        lambda g: gemm(a, b[:, :1], acc, generator=g),
        lambda g: reduce(a, 0, acc, generator=g),
        lambda g: cumsum(a, 1, acc, generator=g),
        lambda g: gemm(a[:, :0], b[:0], acc, c, generator=g),
    )
    expected = [call(torch.Generator().manual_seed(1)) for call in calls]
    monkeypatch.setattr(gemm_module, "_kernels", lambda device, acc: _cuda_gemm)
    with emulated(library):
        for call, wanted in zip(calls, expected, strict=True):
            assert_same_bits(call(torch.Generator().manual_seed(1)), wanted)


def test_tensors_on_a_gpu_get_the_cuda_library_where_it_nests_deep_enough(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = torch.device("cuda", 0)
    deep = Accumulator(BF16, chunk=4, inner=Accumulator(FP16, chunk=2))
    with emulated(library):
        assert gemm_module._kernels(there, Accumulator(BF16, chunk=4)) is _cuda_gemm
        assert gemm_module._kernels(there, tensor_core("ampere")) is _cuda_gemm
        assert gemm_module._kernels(there, deep) is None
        assert gemm_module._kernels(torch.device("meta"), Accumulator(BF16)) is None
        assert gemm_module._kernels(torch.device("cpu"), deep) is _native_gemm
    monkeypatch.setattr(_cuda, "library", lambda: None)
    assert gemm_module._kernels(there, Accumulator(BF16)) is None


def test_a_key_of_a_graph_needs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm_module, "_kernels", lambda device, acc: None)
    monkeypatch.setattr(_native, "warn_missing", lambda: None)
    monkeypatch.setattr("lptensor.ops.call_key", lambda x, generator: torch.tensor(KEY))
    with pytest.raises(RuntimeError, match="in a CUDA graph needs lptensor's CUDA library"):
        gemm(torch.ones(2, 2), torch.ones(2, 2), Accumulator(BF16, rounding="stochastic"))


def test_an_error_code_is_raised_with_its_name() -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            return (lambda code: b"CUDA driver version is insufficient") if name == "lpt_cuda_error" else lambda *a: 35

    x = torch.zeros(1, 3, 3)
    message = "lpt_cuda_gemm_f32 failed on cpu with CUDA error 35: CUDA driver"
    with emulated(Failing()), pytest.raises(RuntimeError, match=message):
        _cuda_gemm.gemm(x, x, x.clone(), Accumulator(BF16), None, None, False)
