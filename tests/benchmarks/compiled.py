"""What rounding costs in compiled code: `python tests/benchmarks/compiled.py`.

The first table is the time of `round(a + b)` over that of `a + b`, both compiled; the second that of a
training step of a network, compiled in low precision, over the same step of the plain network, compiled.
The two take turns in one process; medians and quartiles of the turns' ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, MXFP8_E4M3, Arithmetic, FixedPoint

FORMATS: dict[str, Any] = {
    "E4M3": (E4M3, "nearest"),
    "BF16": (BF16, "nearest"),
    "FixedPoint(8, 4)": (FixedPoint(8, 4), "nearest"),
    "E4M3, toward zero": (E4M3, "toward_zero"),
    "E4M3, stochastic": (E4M3, "stochastic"),
    "MXFP8 E4M3": (MXFP8_E4M3, "nearest"),
}
MODELS: dict[str, Any] = {
    "BF16": BF16,
    "E4M3, gradients E5M2": Arithmetic(E4M3, backward=E5M2),
    "E4M3, stochastic": Arithmetic(E4M3, rounding="stochastic"),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(work: Callable[[], object], base: Callable[[], object], turns: int) -> str:
    for _ in range(2):
        work(), base()
    low, middle, high = quantiles([seconds(work) / seconds(base) for _ in range(turns)], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def sums(turns: int) -> Table:
    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    table = Table("round(a + b)", "time / time of a + b", title="16M float32, compiled", title_justify="left")
    for name, (format, mode) in FORMATS.items():
        torch._dynamo.reset()

        def rounded(a: Tensor, b: Tensor, format: Any = format, mode: Any = mode) -> Tensor:
            return lp.round(a + b, format, mode)

        work, base = torch.compile(rounded), torch.compile(lambda a, b: a + b)
        table.add_row(name, ratio(lambda: work(a, b), lambda: base(a, b), turns))  # noqa: B023
    return table


def step(arithmetic: Any, compiles: bool, width: int = 512, batch: int = 128) -> Callable[[], object]:
    """A step of SGD on three layers; the optimizer is left as it is."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
    model, x = nn.Sequential(*layers), torch.randn(batch, width)
    if arithmetic is not None:
        model, x = lp.convert(model, arithmetic), x.to_lp(arithmetic)  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def loss(x: Tensor) -> Tensor:
        result: Tensor = model(x).square().mean()
        return result

    forward = torch.compile(loss, fullgraph=True) if compiles else loss

    def run() -> None:
        optimizer.zero_grad()
        forward(x).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def training(turns: int) -> Table:
    table = Table(
        "network in",
        "compiled",
        "eager",
        title="a step of a 512-wide MLP, batch 128, time / time of fp32",
        title_justify="left",
    )
    for name, arithmetic in MODELS.items():
        cells = []
        for compiles in (True, False):
            torch._dynamo.reset()
            cells.append(ratio(step(arithmetic, compiles), step(None, compiles), turns))
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=100)
    console.print(sums(options.turns))
    console.print(training(options.turns))


if __name__ == "__main__":
    main()
