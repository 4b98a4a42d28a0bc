"""How fast sums of products are with each accumulator: `python tests/benchmarks/gemm.py`.

GFLOP/s of square products on one thread, by processor time (two operations for each step of a sum), and
the share of torch.mm's, which runs in turns with each row; medians of the turns, quartiles in parentheses.
A scalar loop in Python over a part of the outputs stands for the way such sums are written down.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import lptensor as lp
from lptensor import BF16, FP16, FP32, FixedPoint, FloatingPoint
from lptensor._native import library
from lptensor.accumulator import Accumulator
from lptensor.gemm import gemm
from lptensor.hardware_sums import integer_accumulator, tensor_core

ROWS = {
    "FP32": Accumulator(FP32),
    "FP16, fp32 steps": Accumulator(FP16, compute="fp32"),
    "FP16": Accumulator(FP16),
    "BF16, fp32 steps": Accumulator(BF16, compute="fp32"),
    "BF16": Accumulator(BF16),
    "FP16, products in FP16": Accumulator(FP16, FP16),
    "BF16, chunks of 32 in FP32": Accumulator(BF16, chunk=32, inner=FP32),
    "1-6-9, chunks of 64": Accumulator(FloatingPoint(6, 9), chunk=64),
    "FP16, stochastic, fp32 steps": Accumulator(FP16, rounding="stochastic", compute="fp32"),
    "BF16, stochastic": Accumulator(BF16, rounding="stochastic"),
    "FP16, stochastic": Accumulator(FP16, rounding="stochastic"),
    "FP16, stochastic, chunks of 32 in FP32": Accumulator(FP16, chunk=32, inner=FP32, rounding="stochastic"),
    "FP16, stochastic, chunks of 64": Accumulator(FP16, chunk=64, rounding="stochastic"),
    **{
        f"{name}, {mode.replace('_', ' ')}": Accumulator(sum, rounding=mode)
        for name, sum in (("FP32", FP32), ("BF16", BF16), ("FP16", FP16))
        for mode in ("toward_zero", "up", "down")
    },
    "FP16, products in FP16, toward zero": Accumulator(FP16, FP16, rounding="toward_zero"),
    "FP16, to odd": Accumulator(FP16, rounding="odd"),
    "FP16, subnormals flushed": Accumulator(FloatingPoint(5, 10, subnormals="flush")),
    "fixed(16, 8)": Accumulator(FixedPoint(16, 8)),
    "fixed(16, 8), wraps": Accumulator(FixedPoint(16, 8), wrap=True),
    "BF16, pairwise": Accumulator(BF16, order="pairwise"),
    "BF16, Kahan": Accumulator(BF16, order="kahan"),
    "BF16, exact": Accumulator(BF16, order="exact"),
    "tensor core (Ampere)": tensor_core("ampere"),
    "FP32, 4 fused": Accumulator(FP32, chunk=4, order="aligned"),
    "FP32, 16 fused": Accumulator(FP32, chunk=16, order="aligned"),
    "FP32 of float64": Accumulator(FP32),
    "32-bit integers in float64, wrap": integer_accumulator(32),
    "32-bit integers in float64, saturate": integer_accumulator(32, "saturate"),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def loop(a: list[float], b: list[float]) -> float:
    """The sum of one output in a scalar loop, rounded to BF16 after each step."""
    s = 0.0
    for x, y in zip(a, b, strict=True):
        s = torch.tensor(s + x * y).bfloat16().item()
    return s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--build", help="of the kernels: v4 (AVX-512), v3 (AVX2) or baseline")
    parser.add_argument("--operands", help="the name of a format that operands are rounded to, such as E4M3")
    options = parser.parse_args()
    kernels: Any = library()
    if options.build and (kernels is None or kernels.lpt_choose_build(f"lpt_{options.build}".encode())):
        parser.error(f"this processor cannot run the build {options.build!r}")
    n = options.size
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a, b = torch.randn(n, n), torch.randn(n, n)
    if options.operands:
        a, b = (lp.round(t, getattr(lp, options.operands)) for t in (a, b))
    operations = 2 * n**3
    table = Table(title=f"{n} x {n} x {n}, one thread, {lp.backend()}", title_justify="left")
    for column in ("accumulator", "GFLOP/s", "share of torch.mm"):
        table.add_column(column, justify="left" if column == "accumulator" else "right")
    plain = []
    for name, accumulator in ROWS.items():
        x, y = (t.double() if "float64" in name else t for t in (a, b))
        x, y = ((8 * t).round() if "integers" in name else t for t in (x, y))
        work = partial(gemm, x, y, accumulator)
        work()
        pairs = [(seconds(lambda: a @ b), seconds(work)) for _ in range(options.turns)]
        plain += [mm for mm, _ in pairs]
        speed = operations / statistics.median(own for _, own in pairs) / 1e9
        low, share, high = statistics.quantiles([mm / own for mm, own in pairs], method="inclusive")
        table.add_row(name, f"{speed:.2f}", f"{share:.3f} ({low:.3f} to {high:.3f})")
    row, column = a[0].tolist(), b[:, 0].tolist()
    table.add_row("BF16, a scalar loop in Python", f"{2 * n / seconds(lambda: loop(row, column)) / 1e9:.5f}", "")
    table.add_row("torch.mm", f"{operations / statistics.median(plain) / 1e9:.1f}", "1")
    Console().print(table)


if __name__ == "__main__":
    main()
