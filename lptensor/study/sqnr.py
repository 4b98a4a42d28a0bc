"""How much of a tensor rounding leaves, in decibels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lptensor.base import check_int, wrong_format
from lptensor.blocks import BlockFormat
from lptensor.formats import Format
from lptensor.ops import round as round_to
from lptensor.rounding import Mode, Rounding
from lptensor.study.format_table import by_name, element_of
from lptensor.study.palette import BLUE, VERMILLION, framed
from lptensor.study.places import numbers_of
from lptensor.study.rows import Rows, drawable

_SHARED_EXPONENT = 8  # bits; nothing bounds that of BlockFloatingPoint, and an fp32 exponent holds it


def bits_per_value(format: Format, shape: Sequence[int] = (1024, 1024)) -> float:
    """The bits that one value of a tensor takes, with its share of the scales of blocks, and of their zero points.

    Raises:
        TypeError: no format, a size that is not an integer.
        ValueError: a size below 0.

    >>> from lptensor import E4M3, MXFP4
    >>> bits_per_value(E4M3), bits_per_value(MXFP4)
    (8.0, 4.25)
    """
    if not isinstance(format, Format):
        raise wrong_format(format)
    if not isinstance(shape, Iterable):
        raise TypeError(f"shape lists the sizes of a tensor, such as (1024, 1024), got {shape!r}")
    shape = [check_int("a size", size, 0, 2**63 - 1) for size in shape]
    element: Any = element_of(format)
    if not isinstance(format, BlockFormat):
        return float(element.bits)
    wide = _SHARED_EXPONENT if format.scale is None else format.scale.bits
    wide += 0 if format.offset is None else format.offset.bits
    blocks = math.prod(-(-n // side) for n, side in zip(shape, format.block_shape(shape), strict=True))
    return float(element.bits) + wide * blocks / max(math.prod(shape), 1)


def sqnr(
    x: Tensor,
    formats: Mapping[str, Format] | Iterable[Format] | Format,
    rounding: Rounding | Mode | str = "nearest",
) -> Rows:
    """Signal to quantization noise of one tensor in several formats: a row for each.

    format, bits (per value, with the share of the scales), sqnr (10 log10 of sum x**2 / sum (x - q)**2, in
    dB; infinite where nothing moved), mse, largest (|x - q|), cosine (of x and q), zeros (the share of
    values that were not zero and became it), lost (the share that came in or out NaN or infinite, and has no
    part in the rest).
    Of an empty tensor, of zeros and where all is lost, nothing moved; the cosine is None where x or q is zero.

    Args:
        x: float32 or float64, or an LPTensor; any shape. Scales of blocks follow its axes.
        formats: some formats, or a dict from the names to show.

    Raises:
        TypeError: something that is not a format, or x is not a dense tensor of real numbers.
        ValueError: no formats.

    >>> import torch
    >>> from lptensor import E4M3, INT8
    >>> [round(row["sqnr"], 1) for row in sqnr(torch.linspace(1, 100, 1000), [E4M3, INT8])]
    [31.4, 46.1]
    """
    plain = numbers_of(x)
    rows = [_row(name, plain, format, rounding) for name, format in by_name(formats).items()]
    return Rows(rows, plot_sqnr)


def _row(name: str, x: Tensor, format: Format, rounding: Any) -> dict[str, Any]:
    shape, q = tuple(x.shape) or (1,), round_to(x, format, rounding).double().flatten()
    x = x.double().flatten()
    kept = x.isfinite() & q.isfinite()
    a, b = (x, q) if kept.all() else (x[kept], q[kept])
    signal, noise = float(a @ a), float((a - b) @ (a - b))
    across = float(a.norm() * b.norm())
    return {
        "format": name,
        "bits": bits_per_value(format, shape) if x.numel() else bits_per_value(format),
        "sqnr": math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise),
        "mse": noise / max(len(a), 1),
        "largest": float((a - b).abs().max()) if len(a) else 0.0,
        "cosine": float(a @ b) / across if across > 0 else None,
        "zeros": float(((b == 0) & (a != 0)).double().mean()) if len(a) else 0.0,
        "lost": 1 - len(a) / x.numel() if x.numel() else 0.0,
    }


def plot_sqnr(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw formats by their bits and decibels, those of infinite decibels at the edges; returns the axes.

    Args:
        rows: of ``sqnr``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> import torch
    >>> from lptensor import E4M3, INT8
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> sorted(t.get_text() for t in sqnr(torch.randn(99), [E4M3, INT8]).plot(axes).texts)
    ['E4M3', 'INT8']
    """
    rows, ax = drawable(rows, ax, "format", "bits", "sqnr")
    known = sorted((row for row in rows if math.isfinite(row["sqnr"])), key=lambda row: (row["bits"], row["sqnr"]))
    ax.plot([row["bits"] for row in known], [row["sqnr"] for row in known], "o", color=BLUE, markersize=4)
    for i, row in enumerate(known):  # neighbours say their names above and below
        at, beside = (row["bits"], row["sqnr"]), (4, 4) if i % 2 else (4, -9)
        ax.annotate(row["format"], at, xytext=beside, textcoords="offset points", fontsize=7)
    for edge, marker, end, label in ((math.inf, "^", 0.98, "infinite"), (-math.inf, "v", 0.02, "minus infinite")):
        beyond = [row for row in rows if row["sqnr"] == edge]
        place = ax.get_xaxis_transform()
        for i, bits in enumerate(sorted({row["bits"] for row in beyond})):
            look = dict(color=VERMILLION, markersize=5, linestyle="", label=None if i else label)
            ax.plot([bits], [end], marker=marker, transform=place, **look)
            names = "\n".join(row["format"] for row in beyond if row["bits"] == bits)
            side, down = ("top", -9 * (i % 2)) if edge > 0 else ("bottom", 9 * (i % 2))
            ax.annotate(names, (bits, end), (6, down), place, "offset points", va=side, fontsize=7)
    ax.set_xlabel("bits per value")
    ax.set_ylabel("SQNR (dB)")
    return framed(ax, grid="both", loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
