"""How long rounding takes beside a copy on a CUDA device: `make bench`, or `python tests/benchmarks/on_gpu.py`.

Each figure is the time of `y.copy_(x)` over that of rounding `x` into `y`, both measured by events on
the stream, in turns: 1 is the speed of the device's memory. Medians and quartiles of the turns. Products
with an accumulator are measured beside `torch.mm` in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from measure import Figure, as_json
from rich.console import Console
from rich.table import Table
from rows import Row, Work, rounding
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
    Row("NVFP4", rounding(NVFP4)),
    Row("NF4", rounding(NF4)),
    Row("Posit(8)", rounding(Posit(8))),
)
PRODUCTS = tuple(
    Row(f"product in {acc!r}", lambda x, y, acc=acc: gemm(x, y, acc), 0.1)
    for acc in (
        *(Accumulator(sum, compute=compute) for sum in (FP16, BF16, E5M2) for compute in ("fp32", "exact")),
        Accumulator(BF16, chunk=32),
    )
)


def seconds(work: Work, x: Tensor, y: Tensor, repeats: int = 5) -> float:
    """The device's time for one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work(x, y)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def copy(x: Tensor, y: Tensor) -> object:
    return y.copy_(x)


def figure(row: Row, x: Tensor, y: Tensor, turns: int, base: Work = copy) -> Figure:
    row.work(x, y), base(x, y)  # tables and code reach the device
    ratios = [seconds(base, x, y) / seconds(row.work, x, y) for _ in range(turns)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Figure("on a GPU", row.name, low, median, high, row.target)


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
    speed = 2 * x.nbytes / min(seconds(copy, x, y) for _ in range(5)) / 1e9
    machine = {"device": torch.cuda.get_device_name(), "copy_gb_s": round(speed), "kernels": lp.backend("cuda")}
    title = ", ".join(
        (f"copy / rounding, {x.numel() >> 20}M float32, and torch.mm / product", *map(str, machine.values()))
    )
    table = Table("work", "ratio", "target", title=title, title_justify="left")
    figures = [figure(row, x, y, options.turns) for row in ROWS]
    a, b = (torch.randn(options.side, options.side, device="cuda") for _ in range(2))
    figures += [figure(row, a, b, options.turns, torch.mm) for row in PRODUCTS]
    for row in figures:
        table.add_row(row.name, str(row), f"{row.target or ''}{' missed' if row.missed else ''}")
    Console(width=120).print(table)
    if options.json:
        text = json.dumps({"machine": machine, "figures": as_json(figures)}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
