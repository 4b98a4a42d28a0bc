"""What an op on a small LPTensor costs beside the same op on a plain tensor: `python tests/benchmarks/dispatch.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lptensor import E4M3

ROWS: dict[str, Callable[[Tensor], object]] = {
    "x + x": lambda x: x + x,
    "x @ x": lambda x: x @ x,
    "x.relu()": lambda x: x.relu(),
    "x.view(256)": lambda x: x.view(256),
    "x.add_(0)": lambda x: x.add_(0),
    "x.sum(0)": lambda x: x.sum(0),
}


def microseconds(work: Callable[[Tensor], object], x: Tensor, calls: int = 1000) -> float:
    start = time.thread_time()  # other programs' turns are no part of it
    for _ in range(calls):
        work(x)
    return (time.thread_time() - start) / calls * 1e6


def main() -> None:
    torch.set_num_threads(1)
    plain = torch.randn(16, 16)
    lp = plain.to_lp(E4M3)  # type: ignore[attr-defined]
    table = Table(
        "op on 16x16", "plain, us", "LPTensor, us", title="median (quartiles) of 15 turns", title_justify="left"
    )
    for name, work in ROWS.items():
        microseconds(work, plain), microseconds(work, lp)  # warm up
        turns = [(microseconds(work, plain), microseconds(work, lp)) for _ in range(15)]
        cells = []
        for times in zip(*turns, strict=True):
            low, middle, high = quantiles(times, n=4)
            cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
        table.add_row(name, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
