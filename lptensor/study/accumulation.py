"""What a narrow accumulator makes of long sums."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from lptensor.accumulate import odd_sum
from lptensor.accumulator import EXACT_PRECISION, Accumulator
from lptensor.base import check_bool, check_int, wrong_format
from lptensor.blocks import BlockFormat
from lptensor.finfo import finfo
from lptensor.formats import Format, ScalarFormat
from lptensor.gemm import cumsum, reduce
from lptensor.ops import round as round_to
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.study.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, framed
from lptensor.study.places import numbers_of
from lptensor.study.progress import track
from lptensor.study.rows import Rows, drawable


class Accumulation(Rows):
    """Rows of ``accumulation_error``; ``stagnation`` is the number of the first term that changed nothing (from 1,
    for each trial; None if all did, or if an ``Accumulator`` draws or does not
    add term by term), ``slope`` the exponent a of error ~ n**a over the rows.
    """

    stagnation: list[int | None]

    @property
    def slope(self) -> float | None:
        """From a straight line through log(error) over log(n); None with fewer than two finite errors above zero."""
        points = [(math.log(row["n"]), math.log(row["error"])) for row in self if 0 < row["error"] < math.inf]
        if len(points) < 2:
            return None
        x, y = ([p[i] for p in points] for i in (0, 1))
        mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
        across = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        return across / math.fsum((a - mean_x) ** 2 for a in x)


def accumulation_error(
    terms: Tensor,
    format: Format | Accumulator,
    rounding: Rounding | Mode | str | None = None,
    chunk: int | None = None,
    quantize_terms: bool = False,
    progress: bool = False,
) -> Accumulation:
    """Sums of ``terms`` from first to last in an accumulator that is rounded after every addition.

    A row at each power of two n (and at the end): n, exact (the mean over trials of the sum in float64),
    sum (the mean of the low-precision sums), error (root mean square over trials of |sum - exact| / sum of
    |terms|, the backward error, in units of u), worst and sqrt, the bounds n and sqrt(n) in the same units:
    rounding to nearest obeys the first, random errors follow the second (Connolly, Higham and Mary 2021).
    Every addition is rounded once, as if it had been exact before (with up to 51 bits of precision).

    Args:
        terms: (n,) or (trials, n) float32 or float64.
        format: of the running sum, or an ``Accumulator``, which says order, chunks and rounding itself. Formats
            without a u (fixed point, codebooks) give errors in units of 1.
        rounding: to nearest, if none is named.
        chunk: terms are summed in chunks of so many, and then the sums of chunks, both in ``format``
            (Wang et al., arXiv 1812.08011).
        quantize_terms: round the terms to the format first; the exact sum is then of those.
        progress: show how far it has come, on a terminal.

    Raises:
        TypeError: terms are not a dense tensor of real numbers; or a block format, which cannot round a sum alone.
        ValueError: no terms, more than two axes, a chunk below 1, an Accumulator beside a rounding or a chunk.

    >>> from lptensor import BF16
    >>> harmonic = 1 / torch.arange(1, 101, dtype=torch.float64)
    >>> found = accumulation_error(harmonic, BF16)
    >>> found.stagnation, found[-1]["sum"]
    ([65], 5.0625)
    """
    terms = numbers_of(terms)
    if not isinstance(format, Accumulator | Format):
        raise wrong_format(format)
    if isinstance(format, BlockFormat):
        raise TypeError(f"a running sum is rounded on its own, got the block format {format!r}; ask its element")
    if terms.dim() not in (1, 2) or terms.numel() == 0:
        raise ValueError(f"terms are (n,) or (trials, n) with n > 0, got shape {tuple(terms.shape)}")
    if chunk is not None:
        chunk = check_int("chunk", chunk, 1, 2**31)
    if isinstance(format, Accumulator) and not rounding is chunk is None:
        raise ValueError(f"an Accumulator names its rounding and chunks, got rounding={rounding!r} and chunk={chunk!r}")
    x = terms.double().reshape(-1, terms.shape[-1])
    summed = format.sum if isinstance(format, Accumulator) else format
    nearest = format.rounding if isinstance(format, Accumulator) else "nearest" if rounding is None else rounding
    check_bool("progress", progress)
    if check_bool("quantize_terms", quantize_terms):
        x = round_to(x, summed, nearest)
    count = x.shape[1]
    marks = sorted({2**k for k in range(count.bit_length()) if 2**k <= count} | {count})
    unit = finfo(summed).u if isinstance(summed, ScalarFormat) else None
    exact, whole = x.cumsum(1), x.abs().cumsum(1)
    if isinstance(format, Accumulator):
        # float64 holds the terms in any case; steps in fp32 are those of float32 terms
        given = x.float() if terms.dtype == torch.float32 and _in_fp32(format) else x
        totals = {n: reduce(given[:, :n], 1, format).double() for n in track(marks, "sums", progress)}
        stuck = _stuck(given, format)
    elif chunk is None and _adds(format):
        sums = cumsum(x, 1, Accumulator(format, rounding=nearest))
        totals, stuck = {n: sums[:, n - 1] for n in marks}, _first_still(sums, x)
    else:
        running, totals = _Sum(x.shape[0], format, nearest, chunk or count), {}
        for i in track(range(count), "terms", progress):
            running.add(x[:, i])
            if i + 1 in marks:
                totals[i + 1] = running.total()
        stuck = running.stuck
    rows = []
    for n, total in totals.items():
        wrong = (total - exact[:, n - 1]).abs() / whole[:, n - 1].clamp(min=torch.finfo(torch.float64).tiny)
        row = {
            "n": n,
            "exact": float(exact[:, n - 1].mean()),
            "sum": float(total.mean()),
            "error": float(wrong.square().mean().sqrt()) / (unit or 1.0),
            "worst": float(n),
            "sqrt": math.sqrt(n),
        }
        rows.append(row)
    found = Accumulation(rows, plot_accumulation)
    found.stagnation = [int(n) if n > 0 else None for n in stuck.tolist()]
    return found


def _in_fp32(accumulator: Accumulator) -> bool:
    inner = accumulator.inner
    return accumulator.compute == "fp32" or inner is not None and _in_fp32(inner)


def _stuck(x: Tensor, accumulator: Accumulator) -> Tensor:
    """The number of the first term that changed nothing, in each row; 0 for none."""
    if accumulator.order != "sequential" or accumulator.chunk != 1 or accumulator.stochastic:
        return torch.zeros(len(x), dtype=torch.int64)
    return _first_still(cumsum(x, 1, accumulator), x)


def _first_still(sums: Tensor, x: Tensor) -> Tensor:
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
    still = (sums == before) & (x != 0)
    return torch.where(still.any(1), still.int().argmax(1) + 1, 0)


def _adds(format: Format) -> TypeGuard[ScalarFormat]:
    """Whether an ``Accumulator`` gives what a loop over the terms does, and sooner."""
    if not isinstance(format, ScalarFormat):
        return False
    grid = format.grid
    return grid.signed and grid.zero and math.isfinite(grid.max) and grid.precision <= EXACT_PRECISION


class _Sum:
    """Running sums of several trials: inside a chunk, and over chunks."""

    def __init__(self, trials: int, format: Format, rounding: Any, chunk: int) -> None:
        self.format, self.rounding, self.chunk = format, rounding, chunk
        self.once = not as_rounding(rounding).stochastic and getattr(format, "bits", 0) <= EXACT_PRECISION
        self.inner = torch.zeros(trials, dtype=torch.float64)
        self.outer: Tensor | None = None
        self.stuck = torch.zeros(trials, dtype=torch.int64)
        self.seen = 0

    def _added(self, x: Tensor, y: Tensor) -> Tensor:
        # A sum rounded to odd in float64 goes on to what the exact one rounds to; no draw is that fine.
        return round_to(odd_sum(x, y) if self.once else x + y, self.format, self.rounding)

    def add(self, term: Tensor) -> None:
        self.seen += 1
        after = self._added(self.inner, term)
        still = (after == self.inner) & (term != 0) & (self.stuck == 0)
        self.stuck = torch.where(still, self.seen, self.stuck)
        self.inner = after
        if self.seen % self.chunk == 0:
            self.outer = self.total()
            self.inner = torch.zeros_like(self.inner)

    def total(self) -> Tensor:
        """The sum so far."""
        return self.inner if self.outer is None else self._added(self.outer, self.inner)


def plot_accumulation(rows: Iterable[dict[str, Any]], ax: Any = None, label: str = "error") -> Any:
    """Draw the error over n, with the bounds n u and sqrt(n) u; returns the axes.

    Args:
        rows: of ``accumulation_error``.
        ax: matplotlib axes; by default pyplot's current ones.
        label: what the legend calls the errors.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from lptensor import BF16
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> accumulation_error(torch.ones(4), BF16).plot(axes).lines[0].get_xdata().tolist()
    [1, 2, 4]
    """
    rows, ax = drawable(rows, ax, "n", "error", "worst", "sqrt")
    n = np.array([row["n"] for row in rows])
    before = sum(line.get_gid() == "error" for line in ax.lines)
    colour = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)[before % 6]
    marker = "os^Dv*"[before % 6]
    values = np.array([row["error"] for row in rows])
    ax.plot(n, values, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label, gid="error")
    if len([line for line in ax.lines if line.get_gid() == "bound"]) == 0:
        for key, style, name in (("worst", "--", "n u"), ("sqrt", ":", "sqrt(n) u")):
            bound = np.array([row[key] for row in rows])
            ax.plot(n, bound, color=BLACK, linestyle=style, linewidth=0.8, label=name, gid="bound")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2, nonpositive="mask")  # an error of zero has no place
    ax.set_xlabel("terms")
    ax.set_ylabel("backward error (u)")
    return framed(ax, grid="both")
