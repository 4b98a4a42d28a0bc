"""What ``compute=torch.float64`` costs beside plain fp32: `python tests/benchmarks/float64.py`.

Processor time of one thread, tensors of 256 x 256; the step is that of SGD with momentum on ten of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import memory_kept, ratio
from rich.console import Console
from rich.table import Table
from torch import nn

from lptensor import BF16, Arithmetic

PLAIN, SINGLE, DOUBLE = None, Arithmetic(BF16), Arithmetic(BF16, compute=torch.float64)
OPS: dict[str, Callable[[Any, Any], object]] = {
    "x + y": lambda x, y: x + y,
    "x * y": lambda x, y: x * y,
    "x * 0.9": lambda x, y: x * 0.9,
    "x / y": lambda x, y: x / y,
    "x @ y": lambda x, y: x @ y,
    "x.exp()": lambda x, y: x.exp(),
}


def made(arithmetic: Arithmetic | None, count: int) -> list[Any]:
    torch.manual_seed(0)
    xs = [torch.randn(256, 256) for _ in range(count)]
    return xs if arithmetic is None else [x.to_lp(arithmetic) for x in xs]  # type: ignore[attr-defined]


def stepping(arithmetic: Arithmetic | None) -> Callable[[], object]:
    parameters = [nn.Parameter(x) for x in made(arithmetic, 10)]
    for p in parameters:
        p.grad = p.detach().clone()
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    table = Table("", "fp32 compute, times plain", "float64 compute, times plain")

    def row(name: str, work: Callable[[Arithmetic | None], Callable[[], object]]) -> None:
        ratios = (ratio("", name, work(way), work(PLAIN), turns, 1.0, None) for way in (SINGLE, DOUBLE))
        table.add_row(name, *map(str, ratios))

    def on(op: Callable[[Any, Any], object], arithmetic: Arithmetic | None) -> Callable[[], object]:
        x, y = made(arithmetic, 2)
        return lambda: op(x, y)

    with memory_kept(torch.empty(2**22)):
        for name, op in OPS.items():
            row(name, lambda arithmetic, op=op: on(op, arithmetic))  # type: ignore[misc]
        row("optimizer.step()", stepping)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
