"""What low precision costs on a CUDA device: `make bench`, or `python tests/benchmarks/on_gpu.py`.

All is measured by events on the stream, in turns: medians and quartiles of the turns' ratios. Of rounding it is
the time of `y.copy_(x)` over that of rounding `x` into `y`, so that 1 is the speed of the device's memory; of
products with an accumulator that of `torch.mm` in fp32 over theirs. Of compiled code and of steps of training it
is their time over that of the plain work.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import compiled
import models
import torch
from measure import Figure, as_json
from rich.console import Console
from rich.table import Table
from rows import ZERO_POINTS, Row, Work, rounding
from torch import Tensor

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, FP16, MX, NF4, NVFP4, BlockFloatingPoint, FixedPoint, Posit
from lptensor.accumulator import Accumulator
from lptensor.gemm import gemm

# A row that misses its target wants a reason: bytes moved, occupancy, instructions.
ROWS = (
    Row("E4M3 to nearest", rounding(E4M3), 0.9),
    Row("E4M3 toward zero", rounding(E4M3, "toward_zero"), 0.9),
    Row("E4M3 stochastic", rounding(E4M3, "stochastic"), 0.9),
    Row("FixedPoint(8, 4) to nearest", rounding(FixedPoint(8, 4)), 0.9),
    Row("MXFP8 E4M3, last axis", rounding(MX(E4M3)), 0.9),
    Row("MXFP8 E4M3, last axis, stochastic", rounding(MX(E4M3), "stochastic")),
    Row("MXFP8 E4M3, first axis", rounding(MX(E4M3, axis=0)), 0.7),
    Row("MXFP8 E4M3, tiles of 32 by 32", rounding(MX(E4M3, (32, 32)))),
    Row("BFP8, one exponent for the tensor", rounding(BlockFloatingPoint(8))),
    Row("MXFP8 E4M3, tiles of 128 by 128", rounding(MX(E4M3, (128, 128)))),
    Row("NVFP4", rounding(NVFP4)),
    Row("INT4 with zero points, groups of 32", rounding(ZERO_POINTS)),
    Row("NF4", rounding(NF4)),
    Row("Posit(8)", rounding(Posit(8))),
)
PRODUCTS = tuple(
    Row(f"product in {acc!r}", lambda x, y, acc=acc: gemm(x, y, acc), 0.1)
    for acc in (
        *(Accumulator(sum, compute=compute) for sum in (FP16, BF16, E5M2, E4M3) for compute in ("fp32", "exact")),
        Accumulator(BF16, chunk=32),
    )
)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The time between the beginning and the end of one call on the device's stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def copy(x: Tensor, y: Tensor) -> object:
    return y.copy_(x)


def ratio(
    group: str,
    name: str,
    work: Callable[[], object],
    base: Callable[[], object],
    turns: int,
    target: float | None,
    at_most: bool = False,
) -> Figure:
    """Time of ``work`` over that of ``base``."""
    for _ in range(3):
        work(), base()  # tables and code reach the device, and memory is there
    low, median, high = statistics.quantiles([seconds(work) / seconds(base) for _ in range(turns)], n=4)
    return Figure(group, name, low, median, high, target, at_most)


def figure(row: Row, x: Tensor, y: Tensor, turns: int, base: Work = copy) -> Figure:
    return ratio("on a GPU", row.name, lambda: base(x, y), lambda: row.work(x, y), turns, row.target)


def compiled_sums(elements: int, turns: int) -> Iterator[Figure]:
    a, b = (torch.randn(elements, device="cuda") for _ in range(2))
    for name, (format, mode) in compiled.FORMATS.items():
        torch._dynamo.reset()
        work = torch.compile(lambda a, b, f=format, m=mode: lp.round(a + b, f, m))
        base = torch.compile(lambda a, b: a + b)
        yield ratio("compiled", f"round(a + b), {name}", lambda: work(a, b), lambda: base(a, b), turns, None)  # noqa: B023


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The same step as a CUDA graph, of which the processor knows nothing but that it runs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is made once (momenta, tables) is there before
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(_kept: Callable[[], object] = step) -> None:  # the graph reads what the step holds
        graph.replay()

    return replay


def training(turns: int) -> Iterator[Figure]:
    """Steps of networks that keep a device waiting unless they are captured, and of one that does not."""
    with torch.device("cuda"):
        for network in models.NETWORKS:
            for how, taken in (("", lambda step: step), (", captured", captured)):
                plain = taken(models.training(network, None))
                for name, (way, target) in models.WAYS.items():
                    # What torch chooses by itself for plain parameters of a GPU.
                    step = taken(models.training(network, way, foreach=True))
                    yield ratio("training", f"{network.name}{how}: {name}", step, plain, turns, target, at_most=True)
        for name, arithmetic in compiled.MODELS.items():
            for compiles in (False, True):
                torch._dynamo.reset()
                step, plain = (compiled.step(kind, compiles, 4096, 4096) for kind in (arithmetic, None))
                how = "compiled" if compiles else "eager"
                yield ratio("training", f"three layers, 4096 wide, batch 4096, {how}: {name}", step, plain, turns, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--elements", type=int, default=1 << 28, help="of the tensor, float32: more than caches hold")
    parser.add_argument("--side", type=int, default=4096, help="of the matrices that are multiplied")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure there")
        return
    x = torch.randn(options.elements // 4096, 4096, device="cuda")
    y = torch.empty_like(x)
    speed = 2 * x.nbytes / min(seconds(lambda: copy(x, y)) for _ in range(5)) / 1e9
    machine = {"device": torch.cuda.get_device_name(), "copy_gb_s": round(speed), "kernels": lp.backend("cuda")}
    print(", ".join(map(str, machine.values())))
    figures: list[Figure] = []

    def show(title: str, rows: Iterator[Figure]) -> None:
        table = Table("work", "ratio", "target", title=title, title_justify="left")
        try:
            for row in rows:
                table.add_row(row.name, str(row), f"{row.target or ''}{' missed' if row.missed else ''}")
                figures.append(row)
        finally:  # what a device took minutes for is seen even where the next row fails
            Console(width=120).print(table)

    show(f"copy / rounding, {x.numel() >> 20}M float32", (figure(row, x, y, options.turns) for row in ROWS))
    a, b = (torch.randn(options.side, options.side, device="cuda") for _ in range(2))
    show("torch.mm / product", (figure(row, a, b, options.turns, torch.mm) for row in PRODUCTS))
    show("time / time of the plain work, compiled", compiled_sums(options.elements // 4, options.turns))
    show("a step of training, time / time in fp32", training(options.turns))
    if options.json:
        text = json.dumps({"machine": machine, "figures": as_json(figures)}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
