"""How much longer training takes while it is recorded: `python tests/benchmarks/record.py`.

Steps of the networks of models.py and of the demo's, recorded and not, in turns: processor time of one thread.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from measure import Figure, memory_kept
from models import NETWORKS, Lowered, Network
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

import lptensor as lp
from lptensor import BF16, E4M3, E5M2, MXFP8_E4M3, Arithmetic
from lptensor.demo.net import digit_net
from lptensor.study import record

DEMO = Network("demo's network, 8x8, batch 64", digit_net, (64, 1, 8, 8))
BOTH = {"forward": E4M3, "backward": E5M2}
CONVERTED, LOWERED = Arithmetic(E4M3, backward=E5M2), Lowered(("conv", "linear"), "stochastic")
# A way of training, and what a recording of it is asked.
ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "converted": (CONVERTED, {}),
    "converted, stochastic": (replace(CONVERTED, rounding="stochastic"), {}),
    "converted to MXFP8": (Arithmetic(MXFP8_E4M3), {}),
    "lowered, with OptimLP": (LOWERED, {}),
    "plain, asked E4M3 and E5M2": (None, BOTH),
    "plain, asked, stochastic": (None, {**BOTH, "rounding": "stochastic"}),
    "plain, asked BF16": (None, {"forward": BF16}),
    "plain, asked MXFP8": (None, {"forward": MXFP8_E4M3}),
}
TARGET = 1.5


def training(network: Network, way: Any) -> tuple[Any, Any, Callable[[], None]]:
    """A model, its optimizer, and a step of both."""
    torch.manual_seed(0)
    model, x, labels = network.make(), torch.randn(network.shape), torch.randint(0, 10, network.shape[:1])
    if isinstance(way, Lowered):
        lp.lower(model, way.layers, E4M3, E5M2, way.rounding, way.rounding)
    elif way is not None:
        model, x = lp.convert(model, way), x.to_lp(way)  # type: ignore[attr-defined]
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    if isinstance(way, Lowered):
        optimizer = lp.OptimLP(optimizer, weight_quant=E4M3, grad_quant=E5M2, acc_quant=BF16)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimizer.step()

    return model, optimizer, step


def seconds(step: Callable[[], None], steps: int) -> float:
    step()  # what the first one sets up is no part
    gc.collect()
    start = time.thread_time()
    for _ in range(steps):
        step()
    return time.thread_time() - start


def figure(network: Network, name: str, turns: int) -> Figure:
    way, asked = ROWS[name]
    model, optimizer, step = training(network, way)
    steps = max(1, int(0.2 / seconds(step, 1)))
    ratios = []
    for _ in range(turns):
        bare = seconds(step, steps)
        with record(model, optimizer, **asked):
            ratios.append(seconds(step, steps) / bare)
    return Figure(network.name, name, *statistics.quantiles(ratios, n=4), TARGET, at_most=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    networks = (DEMO, *NETWORKS)
    title = f"a recorded step / the same step, median (quartiles) of {turns} turns; target {TARGET:g}"
    table = Table("training", *(network.name for network in networks), title=title, title_justify="left")
    with memory_kept(torch.empty(2**22)):
        for name in ROWS:
            table.add_row(name, *(str(figure(network, name, turns)) for network in networks))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
