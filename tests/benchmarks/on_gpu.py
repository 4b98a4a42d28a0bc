"""How long rounding takes beside a copy on a CUDA device: `make bench`, or `python tests/benchmarks/on_gpu.py`.

Each figure is the time of `y.copy_(x)` over that of rounding `x` into `y`, both measured by events on
the stream, in turns: 1 is the speed of the device's memory. Medians and quartiles of the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rounding import Work, rounding
from torch import Tensor

import lptensor as lp
from lptensor import E4M3, MX, NF4, NVFP4, BlockFloatingPoint, FixedPoint, Posit

TARGETS = {  # what the kernels are built for; a miss wants a reason: bytes moved, occupancy, instructions
    "E4M3 to nearest": 0.9,
    "E4M3 stochastic": 0.9,
    "MXFP8 E4M3, last axis": 0.9,
    "MXFP8 E4M3, first axis": 0.7,
}
ROWS: dict[str, Work] = {
    "E4M3 to nearest": rounding(E4M3),
    "E4M3 toward zero": rounding(E4M3, "toward_zero"),
    "E4M3 stochastic": rounding(E4M3, "stochastic"),
    "FixedPoint(8, 4) to nearest": rounding(FixedPoint(8, 4)),
    "MXFP8 E4M3, last axis": rounding(MX(E4M3)),
    "MXFP8 E4M3, last axis, stochastic": rounding(MX(E4M3), "stochastic"),
    "MXFP8 E4M3, first axis": rounding(MX(E4M3, axis=0)),
    "MXFP8 E4M3, tiles of 32 by 32": rounding(MX(E4M3, (32, 32))),
    "BFP8, one exponent for the tensor": rounding(BlockFloatingPoint(8)),
    "NVFP4": rounding(NVFP4),
    "NF4": rounding(NF4),
    "Posit(8)": rounding(Posit(8)),
}


def seconds(work: Work, x: Tensor, y: Tensor, repeats: int) -> float:
    """The device's time for one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work(x, y)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument(
        "--elements", type=int, default=1 << 28, help="of the tensor, float32; far more than caches hold"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    x = torch.randn(options.elements // 4096, 4096, device="cuda")
    y = torch.empty_like(x)

    def copy(x: Tensor, y: Tensor) -> object:
        return y.copy_(x)

    device, figures = torch.cuda.get_device_name(), {}
    bandwidth = 2 * x.nbytes / min(seconds(copy, x, y, 5) for _ in range(5)) / 1e9
    title = f"copy / rounding, {x.numel() >> 20}M float32, {device}, copy at {bandwidth:.0f} GB/s, {lp.backend('cuda')}"
    table = Table("work", "ratio", "target", title=title, title_justify="left")
    for name, work in ROWS.items():
        work(x, y), copy(x, y)
        turns = [seconds(copy, x, y, 5) / seconds(work, x, y, 5) for _ in range(options.turns)]
        low, middle, high = figures[name] = statistics.quantiles(turns, n=4)
        table.add_row(name, f"{middle:.3f} ({low:.3f} to {high:.3f})", str(TARGETS.get(name, "")))
    Console(width=120).print(table)
    if options.json:
        machine = {"device": device, "copy_gb_s": bandwidth, "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "quartiles": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
