"""What a step of an ``OptimLP`` costs beside the bare optimizer's: `python tests/benchmarks/updates.py`.

Processor time of one thread, a million plain parameters in six tensors, SGD with momentum.
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

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, FP16, OptimLP

SHAPES = ((640, 1024), (256, 640), (10, 256), (1024,), (640,), (256,))
WAYS: dict[str, dict[str, Any]] = {
    "weight_quant=E4M3": dict(weight_quant=E4M3),
    "weight, grad, momentum and acc_quant": dict(
        weight_quant=E4M3, grad_quant=E5M2, momentum_quant=BF16, acc_quant=FP16
    ),
    **{f"update={name!r}": dict(weight_quant=BF16, update=name) for name in ("nearest", "stochastic", "kahan", "mcf")},
}


def stepping(way: dict[str, Any] | None) -> Callable[[], object]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(lp.round(torch.randn(shape), BF16)) for shape in SHAPES]
    for p in parameters:
        p.grad = torch.randn_like(p) * 1e-3
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    return (optimizer if way is None else OptimLP(optimizer, **way)).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    table = Table("OptimLP(SGD, ...)", "times SGD's step")
    with memory_kept(torch.empty(2**22)):
        for name, way in WAYS.items():
            table.add_row(name, str(ratio("", name, stepping(way), stepping(None), turns, 1.0, None)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
