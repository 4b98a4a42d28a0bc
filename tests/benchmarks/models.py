"""What training whole networks in low precision costs, eagerly: `python tests/benchmarks/models.py`.

A residual network on 32x32 images and a transformer of four layers of width 256: the processor time (one thread, in
memory that was used before) and the peak memory of a training step, converted and lowered, over the plain network's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import Figure, as_json, machine, memory_kept, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import lptensor as lp

sys.path.insert(0, str(Path(__file__).parents[1]))
from allocations import peak
from lptensor import BF16, E4M3, E5M2, Arithmetic

Step = Callable[[], Any]


class Block(nn.Module):
    """Two convolutions with a way around them (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inside, outside, 3, stride, 1), nn.Conv2d(outside, outside, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))
        self.bends = nn.ModuleList(nn.ReLU() for _ in range(2))
        self.around = nn.Conv2d(inside, outside, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.bends[0](self.norms[0](self.first(x)))))
        result: Tensor = self.bends[1](y + self.around(x))
        return result


def residual() -> nn.Module:
    widths = ((32, 32, 1), (32, 64, 2), (64, 128, 2))
    blocks = [Block(*width) for width in widths]
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), *blocks, *tail)


class Transformer(nn.Module):
    """Four encoder layers over sequences of 64 vectors, and a mean."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(x).mean(1))
        return y


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETWORKS = (
    Network("residual network, 32x32, batch 32", residual, (32, 3, 32, 32)),
    Network("transformer, width 256, 16 x 64", Transformer, (16, 64, 256)),
)


class Lowered(NamedTuple):
    """A way of training: these layers' outputs rounded to E4M3, and their gradients to E5M2."""

    layers: tuple[str, ...]
    rounding: str


BOTH = Arithmetic(E4M3, backward=E5M2)
WAYS: dict[str, tuple[Any, float | None]] = {  # and what a step takes at most, times the plain one
    "convert, E4M3, gradients E5M2": (BOTH, 1.5),
    "convert, BF16": (BF16, 1.5),
    "convert, E4M3, stochastic": (Arithmetic(E4M3, rounding="stochastic"), 1.5),
    "lower conv and linear, to nearest": (Lowered(("conv", "linear"), "nearest"), 1.15),
    "lower conv and linear, stochastic": (Lowered(("conv", "linear"), "stochastic"), 1.15),
    "lower all layers, to nearest": (Lowered(("all",), "nearest"), 1.15),
    "lower all layers, stochastic": (Lowered(("all",), "stochastic"), 1.15),
}
TIME, MEMORY, MOST = "time", "memory", 1.1


def training(network: Network, way: Any, foreach: bool | None = None) -> Step:
    """Makes steps of SGD: on the plain network for None, on a lowered or else a converted one."""
    torch.manual_seed(0)
    model, x, labels = network.make(), torch.randn(network.shape), torch.randint(0, 10, network.shape[:1])
    if isinstance(way, Lowered):
        lp.lower(model, way.layers, E4M3, E5M2, way.rounding, way.rounding)
    elif way is not None:
        model, x = lp.convert(model, way), x.to_lp(way)  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, foreach=foreach)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def held(network: Network, way: Any) -> int:
    """The most bytes that a network and two steps of its training hold."""

    def run() -> Step:
        step = training(network, way)
        step(), step()
        return step

    return peak(run)


def figures_of(network: Network, turns: int) -> list[Figure]:
    plain, least = training(network, None), held(network, None)
    figures = []
    for name, (way, target) in WAYS.items():
        step = training(network, way)
        figures.append(ratio(f"{network.name}: {TIME}", name, step, plain, turns, 1.0, target, at_most=True))
        more = held(network, way) / least
        figures.append(Figure(f"{network.name}: {MEMORY}", name, more, more, more, MOST, at_most=True))
    return figures


def roundings(network: Network) -> str:
    """What a converted network does in a step."""
    step = training(network, BOTH)
    with lp.trace() as seen:
        step()
    return f"{network.name}: {len(seen)} ops on LPTensors in a step, {seen.count().total()} roundings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    with memory_kept(torch.empty(2**22)):
        figures = [figure for network in NETWORKS for figure in figures_of(network, options.turns)]
    for quantity in (TIME, MEMORY):
        table = Table(
            "way", *(n.name for n in NETWORKS), "target", title=f"{quantity} / that of fp32", title_justify="left"
        )
        for name in WAYS:
            mine = [f for f in figures if f.name == name and f.group.endswith(quantity)]
            cells = (str(f) if quantity == TIME else f"{f.median:.3f}" for f in mine)
            table.add_row(name, *cells, f"{mine[0].target:g}")
        console.print(table)
    for network in NETWORKS:
        console.print(roundings(network))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "figures": as_json(figures)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
