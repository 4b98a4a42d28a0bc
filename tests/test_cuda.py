"""CUDA kernels on a device: the bits of the CPU's, on any stream and device, in graphs, beyond 2**31 elements."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from backends import random_bits
from lptensor import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    FP16,
    FP32,
    HIF8,
    INT4,
    INT8,
    MX,
    MXFP8_E4M3,
    NF4,
    NVFP4,
    BlockFloatingPoint,
    CurrentRange,
    FixedPoint,
    FloatingPoint,
    Format,
    Posit,
    Scaled,
    Tile,
    _cuda,
    backend,
    codes,
    round as lp_round,
)
from lptensor.accumulator import Accumulator
from lptensor.gemm import cumsum, gemm, reduce
from lptensor.hardware_sums import integer_accumulator, tensor_core
from lptensor.rounding import Mode, Stochastic
from oracles.table import table_of
from rounders import assert_same, assert_same_bits, judge

CSRC = Path(__file__).parents[1] / "csrc"
SCALARS = [E4M3, E5M2, FixedPoint(8, 4), NF4, HIF8, Posit(8)]
BLOCKS = [
    *(MXFP8_E4M3, MX(E4M3, axis=0), MX(E4M3, 24), NVFP4, MX(E4M3, (16, 16)), BlockFloatingPoint(8)),
    *(Scaled(INT8, CurrentRange()), Scaled(INT4, CurrentRange(Tile((1, 128)), preserve_zero=False))),
]


# -- what is compiled, without a device ------------------------------------------------------------------


@pytest.mark.nvcc
@pytest.mark.parametrize("format", [*SCALARS, *BLOCKS], ids=repr)
def test_without_a_device_the_library_loads_and_a_call_says_why_it_fails(
    monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    if torch.cuda.is_available():
        return  # the kernels would run, on addresses of the host: where there is a device, the gpu tests run them
    monkeypatch.setattr(_cuda, "where", lambda x: (0, 0))
    monkeypatch.setattr(_cuda, "guard", contextlib.nullcontext)
    monkeypatch.setattr(_cuda, "capturing", lambda: False)
    monkeypatch.setattr("lptensor.ops._kernels", lambda device: _cuda)
    x = torch.ones(32, 32)
    with pytest.raises(RuntimeError, match=r"lpt_cuda_round\w*_f32 failed on cpu with CUDA error \d+: .+"):
        lp_round(x, format)


@pytest.mark.nvcc
def test_backend_says_that_the_kernels_are_compiled() -> None:
    assert backend("cuda").startswith("cuda: ")


@pytest.mark.slow
@pytest.mark.nvcc
@pytest.mark.parametrize("device", [75, 80, 86, 89, 90, 100, 120])
def test_kernels_compile_for_every_device_and_hardly_spill_registers(device: int, tmp_path: Path) -> None:
    """Loops over elements spill nothing; those over blocks a few words around a call that is hardly ever made.

    Products spill four words at most, and outside the loop over k those that draw thirty.
    """
    for source in ("round", "codebooks", "blocks", "gemm"):
        done = subprocess.run(
            ["nvcc", "-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v", "-cubin", f"-arch=sm_{device}"]
            + ["-o", str(tmp_path / source), str(CSRC / f"{source}.cu")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        found = re.findall(r"properties for (\S+lpt_(\w+?)I\w*)\n.*?(\d+) bytes spill stores", done.stderr)
        fp32 = [
            (name, int(spilled)) for name, _, spilled in found if re.search(r"lpt_(gemm_tile|\w+?I(Li\d+E)?f)", name)
        ]
        most = {"blocks": 48, "gemm": 16}.get(source, 0)
        limits = [max(most, 120 if "drawn_steps" in name else 0) for name, _ in fp32]
        assert fp32 and all(spilled <= limit for (_, spilled), limit in zip(fp32, limits, strict=True)), fp32


# -- on a device -------------------------------------------------------------------------------------------


def on_gpu(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return lp_round(x.cuda(), *args, **kwargs).cpu()


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("format", [*SCALARS, *BLOCKS], ids=repr)
def test_a_device_rounds_to_the_bits_of_the_cpu(format: Format, mode: Mode, dtype: torch.dtype) -> None:
    numbers = torch.randn(1 << 20, dtype=dtype) * torch.exp2(torch.randint(-30, 30, (1 << 20,)).to(dtype))
    for x in (
        numbers.view(1024, 1024),
        random_bits(1_000_003, dtype),
        numbers[1:4099],
        numbers[:70_000].view(7, 100, 100),
    ):
        expected = lp_round(x, format, mode, generator=seeded())
        assert_same_bits(on_gpu(x, format, mode, generator=seeded()), expected, f"{tuple(x.shape)}")


@pytest.mark.gpu
@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_places_in_memory_in_place_and_strides(start: int, rounding: str) -> None:
    base = torch.randn(300, 301)
    for view in (lambda t: t.view(-1)[start:], lambda t: t[start:, 1:], lambda t: t.t(), lambda t: t[:, ::2]):
        x, there = base.clone(), base.cuda()
        expected = lp_round(view(x), E4M3, rounding, generator=seeded())
        assert_same_bits(lp_round(view(there), E4M3, rounding, generator=seeded()).cpu(), expected)
        lp_round(view(there), E4M3, rounding, generator=seeded(), out=view(there))
        assert_same_bits(view(there).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("format", [*SCALARS, *BLOCKS], ids=repr)
def test_rounding_runs_on_the_stream_that_is_current(format: Format) -> None:
    x = torch.randn(1024, 1024, device="cuda")
    expected = lp_round(x.cpu(), format)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lp_round(x.clone(), format)  # tables are there, and memory for this stream
        torch.cuda._sleep(100_000_000)  # rounding on another stream would not wait for what follows
        y = lp_round(x.clone(), format)
        assert not stream.query()  # nor has anything waited
    stream.synchronize()
    assert_same_bits(y.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_tensor_on_another_device_than_the_current_one() -> None:
    x = torch.randn(1000)
    assert_same_bits(lp_round(x.to("cuda:1"), E4M3).cpu(), lp_round(x, E4M3))
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("format", [*SCALARS, *BLOCKS], ids=repr)
def test_deterministic_rounding_in_a_graph(format: Format) -> None:
    x = torch.randn(512, 512, device="cuda")
    y = torch.empty_like(x)
    lp_round(x, format, out=y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lp_round(x, format, out=y)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert_same_bits(y.cpu(), lp_round(x.cpu(), format))


@pytest.mark.gpu
@pytest.mark.parametrize("format", [E4M3, NF4, MXFP8_E4M3], ids=repr)
def test_every_replay_of_a_graph_draws_anew_and_a_seed_repeats_them(format: Format) -> None:
    x = torch.randn(512, 512, device="cuda")
    y = torch.empty_like(x)
    lp_round(x, format, "stochastic", out=y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lp_round(x, format, "stochastic", out=y)
    runs = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.cuda.manual_seed(seed)
        graph.replay()
        runs.append(y.cpu())
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])
    down, up = lp_round(x.cpu(), format, "down"), lp_round(x.cpu(), format, "up")
    assert all(((run == down) | (run == up)).all() for run in runs)


@pytest.mark.gpu
def test_a_cpu_generator_in_a_graph_is_refused() -> None:
    x = torch.randn(8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="CPU generator"), torch.cuda.graph(graph):
        x.neg()  # of a graph without anything torch warns, and leaves its stream the current one
        lp_round(x, E4M3, "stochastic", generator=seeded())


@pytest.mark.gpu
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, MXFP8_E4M3, MX(E4M3, axis=0), NF4, Posit(8), BlockFloatingPoint(8)], ids=repr)
def test_more_than_two_to_the_31_elements(format: Format, rounding: str) -> None:
    x = torch.zeros(2**19 + 1, 4096, device="cuda")
    tail = torch.randn(4096, generator=seeded())
    x[-1] = tail.cuda()
    lp_round(x, format, rounding, out=x)
    if rounding == "nearest":
        assert_same_bits(x[-1:].cpu(), lp_round(tail[None], format))
    else:
        down, up = lp_round(tail[None], format, "down"), lp_round(tail[None], format, "up")
        assert ((x[-1:].cpu() == down) | (x[-1:].cpu() == up)).all()
    assert not x[:-1].any()


@pytest.mark.gpu
def test_products_are_computed_in_fp32_whatever_tf32_says() -> None:
    a, b = (torch.randn(256, 256, generator=seeded(s)) for s in (1, 2))
    exact = a.double() @ b.double()
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        low = a.cuda().to_lp(FP32) @ b.cuda().to_lp(FP32)  # type: ignore[attr-defined]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (low.dequantize().cpu().double() - exact).abs().max() < 1e-4  # TF32 is off by some 1e-2


ACCUMULATORS = [
    Accumulator(FP32),
    Accumulator(FP16),
    Accumulator(BF16, compute="fp32"),
    Accumulator(E5M2),
    Accumulator(E5M2, compute="fp32"),
    Accumulator(E4M3),
    Accumulator(E4M3, compute="fp32"),
    Accumulator(FloatingPoint(4, 3)),
    Accumulator(FloatingPoint(6, 3)),
    Accumulator(FP16, E5M2),
    Accumulator(BF16, chunk=32),
    Accumulator(FP16, chunk=7, inner=FP32),
    *(Accumulator(sum, rounding=mode) for sum in (BF16, E4M3, FP16) for mode in ("toward_zero", "up", "odd")),
    Accumulator(BF16, rounding="down", chunk=7, compute="fp32"),
    Accumulator(FP16, order="kahan", chunk=3, rounding="stochastic"),
    *(Accumulator(sum, order=order) for sum in (FP32, FP16, BF16, E4M3) for order in ("kahan", "pairwise")),
    *(Accumulator(sum, rounding=Stochastic(bits)) for sum in (FP16, BF16, E4M3) for bits in (7, 32)),
    Accumulator(BF16, rounding="stochastic", compute="fp32"),
    Accumulator(FP16, order="exact", chunk=4),
    Accumulator(BF16, E5M2, rounding=Stochastic(5)),
    Accumulator(BF16, chunk=4, inner=Accumulator(FP16, chunk=2)),
    integer_accumulator(16),
    *(Accumulator(FP32, rounding=mode) for mode in ("toward_zero", "down", "odd")),
    Accumulator(FP32, order="kahan", rounding="up"),
    Accumulator(FP16, chunk=30, inner=FP32, rounding="stochastic"),
    Accumulator(FixedPoint(10, 4), chunk=9, inner=FP32, wrap=True),
    *(tensor_core(name) for name in ("volta", "ampere", "hopper", "hopper_fp8")),
    Accumulator(E4M3, order="aligned", chunk=20, alignment=9, rounding="stochastic", operands=(E2M1, None)),
    Accumulator(FP16, order="aligned", chunk=4),
    tensor_core("blackwell_fp8", (None, E2M1)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("acc", ACCUMULATORS, ids=repr)
def test_accumulators_on_a_device_have_the_bits_of_the_cpu(acc: Accumulator, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and "fp32" in (acc.compute, acc.inside.compute):
        acc = Accumulator(FP16)
    for m, k, n in ((200, 150, 130), (16, 1000, 65), (3, 40, 500), (300, 40, 1), (5, 0, 7)):
        a, b, c = (torch.randn(2, *shape, dtype=dtype, generator=seeded()) for shape in ((m, k), (k, n), (m, n)))
        a[:, ::7, :1], b[:, :1, 1::5] = float("nan"), float("inf")  # of some rows and columns alone
        for x, y in (
            (a, b),
            (a * 64, b * 64),  # which is beyond the narrow formats
            (a.mT.contiguous().mT, b * 2.0**-70),
            (a * 2.0**-70, b.mT.contiguous().mT),
        ):
            expected = gemm(x, y, acc, c, seeded())
            assert_same_bits(gemm(x.cuda(), y.cuda(), acc, c.cuda(), seeded()).cpu(), expected, f"{m} {k} {n}")


@pytest.mark.gpu
@pytest.mark.parametrize("compute", ["exact", "fp32"])
@pytest.mark.parametrize("sum", [FP16, BF16, E4M3, E5M2, FloatingPoint(5, 2, overflow="saturate")], ids=repr)
def test_a_device_rounds_sums_at_every_border_as_exact_rationals(sum: FloatingPoint, compute: str) -> None:
    """Some formats by instructions of its own, two numbers at a time."""
    table = table_of(judge(sum))
    x, ones = torch.from_numpy(table.points()), torch.ones(1, 17)
    begun = torch.full((len(x), 17), -0.0)
    y = gemm(x[:, None].cuda(), ones.cuda(), Accumulator(sum, compute=compute), begun.cuda()).cpu()
    expected = table.round(x.double().numpy(), "nearest")
    for column in y.T:
        assert_same(column, expected, x)


@pytest.mark.gpu
def test_sums_on_a_device_have_the_bits_of_the_cpu() -> None:
    x = torch.randn(60, 70, generator=seeded())
    for acc in (Accumulator(BF16), Accumulator(E4M3, rounding="stochastic")):
        for add in (
            lambda t, acc=acc: reduce(t, 0, acc, generator=seeded()),
            lambda t, acc=acc: cumsum(t, 1, acc, generator=seeded()),
        ):
            assert_same_bits(add(x.cuda()).cpu(), add(x))


@pytest.mark.gpu
def test_products_in_a_graph_draw_anew_and_a_seed_repeats_them() -> None:
    acc = Accumulator(E4M3, rounding="stochastic")
    a, b = (torch.randn(64, 64, device="cuda") for _ in range(2))
    gemm(a, b, acc)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gemm(a, b, acc)
    runs = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.cuda.manual_seed(seed)
        graph.replay()
        runs.append(y.cpu())
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])


@pytest.mark.gpu
def test_codes_that_a_graph_or_another_stream_looks_up_are_there() -> None:
    bits = torch.arange(256, dtype=torch.uint8).repeat(1024)
    expected = codes.decode(bits, E4M3)
    codes._values_by_code.cache_clear()
    there, graph = bits.cuda(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes.decode(there, E4M3)
    assert_same_bits(codes.decode(there, E4M3).cpu(), expected)
    codes._values_by_code.cache_clear()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        codes.decode(there, E4M3)
    assert_same_bits(codes.decode(there, E4M3).cpu(), expected)


@pytest.mark.gpu
def test_memory_holds_no_copy_of_the_tensor() -> None:
    x = torch.randn(1 << 24, device="cuda")
    for format, rounding in itertools.product(
        [E4M3, MXFP8_E4M3, NVFP4, BlockFloatingPoint(8)], ["nearest", "stochastic"]
    ):
        lp_round(x, format, rounding, out=x)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lp_round(x, format, rounding, out=x)
        assert torch.cuda.max_memory_allocated() - before < x.nbytes / 100
