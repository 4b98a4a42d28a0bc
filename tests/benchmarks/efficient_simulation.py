"""What low precision costs as many kernels, as two and as one: `python tests/benchmarks/efficient_simulation.py`.

Many: the rounding written in torch operations, each of which reads and writes the tensor. Two: the fp32 op, then
lptensor's kernel on its result. One: compiled, with the rounding a part of the loop that computes. For `round(a + b)`,
and for a training step of three layers of width 512 with a batch of 128, as `lower` rounds it. All round to E4M3 to
nearest (gradients to E5M2), to the same bits, in memory that was used before. Processor time of one thread over that
of the plain eager work, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from measure import Figure, as_json, machine, memory_kept, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lptensor as lp
from lptensor import E4M3, E5M2, fused, ops, reference

Work = Callable[[], Any]
ELEMENT, STEP = "round(a + b), per element", "a training step, width 512"
MANY = {
    "many kernels: torch operations in float64 (reference.py)": reference.round_grid,
    "many kernels: torch operations on bits": fused.round_tensor,
}
TWO, ONE, PLAIN = "two kernels: the op, then lptensor's", "one kernel: compiled, fused", "no rounding, compiled"
COLORS = ("#9bbfdb", "#9bbfdb", "#1f5a8a", "#14324d", "#aaaaaa")


class _Count(TorchDispatchMode):
    """How many operations torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def count(work: Work) -> int:
    """The operations of ``work`` that are no views."""
    with _Count() as counter:
        work()
    return counter.calls


@contextlib.contextmanager
def rounding_by(function: Callable[..., Tensor]) -> Iterator[None]:
    """Every rounding of a plain tensor done by torch operations instead of a kernel."""

    def round_into(x: Tensor, y: Tensor, format: Any, rounding: Any, generator: Any = None) -> Tensor:
        made = function(x.detach(), format.grid, rounding)
        return y.detach().copy_(made)

    with mock.patch.object(ops, "round_into", round_into):
        yield


def elements(side: int, turns: int) -> list[Figure]:
    """The ways of computing ``round(a + b)``."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    nearest = lp.Rounding()

    def two() -> Tensor:
        total = a + b
        return lp.round(total, E4M3, out=total)

    one, plain = torch.compile(lambda a, b: lp.round(a + b, E4M3)), torch.compile(lambda a, b: a + b)
    ways: dict[str, Work] = {
        name: lambda write=write: write(a + b, E4M3.grid, nearest)  # type: ignore[misc]
        for name, write in MANY.items()
    }
    ways |= {TWO: two, ONE: lambda: one(a, b), PLAIN: lambda: plain(a, b)}
    wanted = two()
    for name, work in ways.items():
        assert name == PLAIN or torch.equal(work(), wanted), name
    print("operations of round(a + b):", {name: count(ways[name]) for name in MANY})
    return [ratio(ELEMENT, name, work, lambda: a + b, turns, 1.0, None) for name, work in ways.items()]


def step(lowered: bool, compiles: bool, width: int = 512, batch: int = 128) -> Work:
    """A step of SGD on three layers; the optimizer is left as it is."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
    model, x = nn.Sequential(*layers), torch.randn(batch, width)
    if lowered:
        lp.lower(model, ["linear", "activation"], E4M3, E5M2, "nearest", "nearest")
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


def training(turns: int) -> list[Figure]:
    """The ways of taking a step."""
    plain = step(lowered=False, compiles=False)

    def by(function: Callable[..., Tensor]) -> Work:
        work = step(lowered=True, compiles=False)

        def run() -> None:
            with rounding_by(function):
                work()

        return run

    ways = {name: by(function) for name, function in MANY.items()}
    ways |= {TWO: step(True, False), ONE: step(True, True), PLAIN: step(False, True)}
    return [ratio(STEP, name, work, plain, turns, 1.0, None) for name, work in ways.items()]


def save(figures: list[Figure], where: dict[str, str], path: Path) -> None:
    """Bars of medians with whiskers to the quartiles, on a logarithmic axis; a line at the plain work."""
    matplotlib.rcParams["svg.hashsalt"] = "lptensor"  # the same figures make the same file
    fig, axes = plt.subplots(2, 1, figsize=(9, 4.6), layout="constrained")
    for ax, group in zip(axes, (ELEMENT, STEP), strict=True):
        mine = [f for f in figures if f.group == group]
        middle = [f.median for f in mine]
        errors = [[f.median - f.low for f in mine], [f.high - f.median for f in mine]]
        ax.barh(range(len(mine)), middle, 0.7, xerr=errors, color=COLORS, ecolor="#444444")
        for y, f in enumerate(mine):
            ax.text(f.high * 1.06, y, f"{f.median:.3g}", va="center", fontsize=8)
        ax.set_yticks(range(len(mine)), [f.name for f in mine], fontsize=8)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick < max(middle) * 1.8]
        ax.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        ax.minorticks_off()
        ax.set_xlim(min(0.5, *(f.low for f in mine)) * 0.9, max(f.high for f in mine) * 1.8)
        ax.axvline(1, color="#888888", linewidth=0.8)
        ax.set_title(f"{group}: time / time of plain fp32, eager", fontsize=9, loc="left")
    fig.suptitle(f"Efficient simulation ({where['processor']}, {where['kernels'].split(':')[1].strip()})", fontsize=9)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--side", type=int, default=2048, help="of the square tensors")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--plot", type=Path, help="draw them into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = machine()
    with memory_kept(torch.empty(options.side, options.side)):
        figures = elements(options.side, options.turns) + training(3 * options.turns)
    table = Table("work", ELEMENT, STEP, title="time / time of plain fp32, eager", title_justify="left")
    for name in dict.fromkeys(figure.name for figure in figures):
        table.add_row(name, *(str(f) for f in figures if f.name == name))
    Console(width=120).print(table)
    for path in filter(None, (options.json, options.plot)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if options.json:
        content = {"machine": where, "elements": options.side**2, "figures": as_json(figures)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        save(figures, where, options.plot)


if __name__ == "__main__":
    main()
