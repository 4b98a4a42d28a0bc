"""How long rounding takes beside a copy of the same tensor: `make bench`, or `python tests/benchmarks/rounding.py`.

Each figure is the time of `x.copy_()` over the time of the row, measured in turns in one process: 1 is the
speed of memory, and what disturbs the machine disturbs both. Medians and quartiles of the turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, MX, NF4, NVFP4, BlockFloatingPoint, FixedPoint, Posit

Work = Callable[[Tensor, Tensor], object]


def rounding(format: lp.Format, mode: str = "nearest") -> Work:
    return lambda x, y: lp.round(x, format, mode, out=y)


ROWS: dict[str, Work] = {
    "E4M3 to nearest": rounding(E4M3),
    "BF16 to nearest": rounding(BF16),
    "E4M3 toward zero": rounding(E4M3, "toward_zero"),
    "E4M3 stochastic": rounding(E4M3, "stochastic"),
    "FixedPoint(8, 4) to nearest": rounding(FixedPoint(8, 4)),
    "BFP8, blocks of 32": rounding(BlockFloatingPoint(8, block_size=32)),
    "MXFP8 E4M3, last axis": rounding(MX(E4M3)),
    "MXFP8 E4M3, first axis": rounding(MX(E4M3, axis=0)),
    "NVFP4": rounding(NVFP4),
    "NF4": rounding(NF4),
    "Posit(8)": rounding(Posit(8)),
    "torch: .to(bfloat16).float()": lambda x, y: y.copy_(x.to(torch.bfloat16)),
    "torch: .to(float8_e5m2).float()": lambda x, y: y.copy_(x.to(torch.float8_e5m2)),
    "E5M2 in torch operations": lambda x, y: lp.reference.round_grid(x[:256], E5M2.grid, lp.Rounding()),
}
SHARE = {"E5M2 in torch operations": 256 / 4096}  # rows that do a part of the work, being slow


def seconds(work: Work, x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    work(x, y)
    return time.perf_counter() - start


def ratios(work: Work, x: Tensor, y: Tensor, turns: int) -> list[float]:
    """Time of a copy over time of the work, turn by turn."""

    def copy(x: Tensor, y: Tensor) -> object:
        return y.copy_(x)

    seconds(work, x, y), seconds(copy, x, y)  # warm up
    return [seconds(copy, x, y) / seconds(work, x, y) for _ in range(turns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    x = torch.randn(4096, 4096)
    y = torch.empty_like(x)
    table = Table(title=f"copy / rounding, {x.numel() >> 20}M float32, {lp.backend()}", title_justify="left")
    table.add_column("work")
    figures: dict[str, dict[str, list[float]]] = {}
    for threads in (1, 2):
        table.add_column(f"{threads} thread{'s' * (threads > 1)}", justify="right")
        torch.set_num_threads(threads)
        for name, work in ROWS.items():
            turns = [r * SHARE.get(name, 1.0) for r in ratios(work, x, y, options.turns)]
            figures.setdefault(name, {})[str(threads)] = statistics.quantiles(turns, n=4)
    for name, by_threads in figures.items():
        table.add_row(name, *(f"{q[1]:.3f} ({q[0]:.3f} to {q[2]:.3f})" for q in by_threads.values()))
    Console(width=100).print(table)
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "quartiles": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
