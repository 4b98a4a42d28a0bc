"""The pictures of docs/accumulators.md, from sums that are really formed.

``python docs/pages/accumulator_pictures.py docs`` writes them into docs/measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lptensor.accumulator import Accumulator
from lptensor.extra import need
from lptensor.formats import BF16, E4M3, E5M2, FP16
from lptensor.gemm import cumsum
from lptensor.study.accumulation import accumulation_error
from lptensor.study.palette import BLACK, BLUE, GREEN, PURPLE, SKY, VERMILLION, framed

WAYS = {
    "to nearest": Accumulator(BF16),
    "stochastic": Accumulator(BF16, rounding="stochastic"),
    "chunks of 64": Accumulator(BF16, chunk=64),
    "pairwise": Accumulator(BF16, order="pairwise"),
    "Kahan": Accumulator(BF16, order="kahan"),
}
SERIES = {
    "FP16": (Accumulator(FP16), VERMILLION),
    "BF16": (Accumulator(BF16), BLUE),
    "E4M3": (Accumulator(E4M3), GREEN),
    "E5M2": (Accumulator(E5M2), PURPLE),
    "BF16, stochastic": (Accumulator(BF16, rounding="stochastic"), SKY),
}


def errors(ax: Any, trials: int = 20, count: int = 2**14) -> None:
    """The backward errors of sums of numbers of BF16 from [0, 1], over their length."""
    torch.manual_seed(0)
    terms = torch.rand(trials, count).bfloat16().double()
    for name, accumulator in WAYS.items():
        accumulation_error(terms, accumulator).plot(ax, label=name)


def harmonic(ax: Any, count: int = 2000) -> None:
    """The running sums of 1 + 1/2 + 1/3 ..., and where those to nearest stop."""
    terms = 1 / torch.arange(1, count + 1, dtype=torch.float64)
    n = range(1, count + 1)
    ax.plot(n, terms.cumsum(0).tolist(), color=BLACK, linestyle="--", linewidth=0.8, label="exact")
    torch.manual_seed(0)
    for name, (accumulator, colour) in SERIES.items():
        sums = cumsum(terms, 0, accumulator)
        ax.plot(n, sums.tolist(), color=colour, linewidth=1.2, label=name)
        (stop,) = accumulation_error(terms, accumulator).stagnation
        if stop is not None:
            ax.plot([stop], [float(sums[stop - 1])], "o", color=colour, markersize=5)
    ax.set_xscale("log")
    ax.set_xlabel("terms")
    ax.set_ylabel("sum (the dot: the first term that changes nothing)")
    framed(ax, grid="both")


PICTURES: dict[str, Callable[[Any], None]] = {"accumulation_errors": errors, "harmonic_series": harmonic}


def main(arguments: Sequence[str]) -> None:
    """Write every picture into the folder ``measured`` of the folder that is named."""
    (folder,) = map(Path, arguments)
    for name, draw in PICTURES.items():
        with need("matplotlib").rc_context({"svg.hashsalt": "lptensor", "font.size": 9}):
            figure = need("matplotlib.figure").Figure(figsize=(6.4, 4.2), layout="constrained")
            draw(figure.subplots())
            figure.savefig(folder / "measured" / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
