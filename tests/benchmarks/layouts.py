"""What rounding costs away from the beaten track: `python tests/benchmarks/layouts.py`.

Other orders of axes, blocks that are longer than rows or end with them, and codes: over `copy_`, or `clone` of codes,
one thread, a million numbers, both in memory already there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from measure import Figure, ratio
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lptensor as lp
from lptensor import BF16, E4M3, FP16, MXFP8_E4M3, NF4, NVFP4, TF32, FixedPoint, FloatingPoint
from lptensor.codes import decode, encode

TENSORS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(1024, 1024),
    "transposed": lambda: torch.randn(1024, 1024).t(),
    "channels_last": lambda: torch.randn(32, 32, 32, 32).to(memory_format=torch.channels_last),
    "3 x 3 kernels": lambda: torch.randn(256, 256, 3, 3),
    "rows of 7": lambda: torch.randn(150_000, 7),
    "rows of 10": lambda: torch.randn(100_000, 10),
    "rows of 28": lambda: torch.randn(37_000, 28),
    "rows of 56": lambda: torch.randn(18_000, 56),
}
WAYS = {
    "E4M3": (E4M3, "nearest"),
    "E4M3, stochastic": (E4M3, "stochastic"),
    "MXFP8": (MXFP8_E4M3, "nearest"),
    "MXFP8, stochastic": (MXFP8_E4M3, "stochastic"),
    "NVFP4": (NVFP4, "nearest"),
    "NVFP4, stochastic": (NVFP4, "stochastic"),
    "NVFP4, first axis": (replace(NVFP4, axis=0), "nearest"),
    "blocks of 8": (replace(MXFP8_E4M3, block_size=8), "nearest"),
    "MXFP8, along channels": (replace(MXFP8_E4M3, axis=1), "nearest"),
    "MXFP8, along channels, stochastic": (replace(MXFP8_E4M3, axis=1), "stochastic"),
    "NVFP4, along channels": (replace(NVFP4, axis=1), "nearest"),
    "NVFP4, along channels, stochastic": (replace(NVFP4, axis=1), "stochastic"),
}


def layouts(turns: int) -> list[Figure]:
    figures = []
    for layout, make in TENSORS.items():
        x, y = make(), torch.empty_like(make())
        for name, (format, mode) in WAYS.items():
            if "channels" in name and x.dim() < 4:
                continue
            figures.append(
                ratio(
                    layout,
                    name,
                    lambda x=x, y=y, format=format, mode=mode: lp.round(x, format, mode, out=y),  # type: ignore[misc]
                    lambda x=x, y=y: y.copy_(x),  # type: ignore[misc]
                    turns,
                    1.0,
                    None,
                )
            )
    return figures


def codes(turns: int) -> list[Figure]:
    x, figures = torch.randn(2**20), []
    for format, name in (
        (E4M3, "E4M3"),
        (BF16, "BF16"),
        (FP16, "FP16"),
        (NF4, "NF4"),
        (TF32, "TF32"),
        (FixedPoint(16, 8), "FixedPoint(16, 8)"),
        (FloatingPoint(8, 15), "FloatingPoint(8, 15)"),
    ):
        stored = encode(x, format)
        for group, work in (
            ("encode", lambda format=format: encode(x, format)),  # type: ignore[misc]
            ("decode", lambda format=format, stored=stored: decode(stored, format)),  # type: ignore[misc]
        ):
            figures.append(ratio(group, name, work, x.clone, turns, 1.0, None))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    table = Table("tensor", "work", "times a copy")
    for figure in [*layouts(turns), *codes(turns)]:
        table.add_row(figure.group, figure.name, str(figure))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
