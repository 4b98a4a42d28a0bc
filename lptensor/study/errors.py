"""Error curves: how far off values are, op by op or along an axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lptensor.study.palette import BLACK, BLUE, VERMILLION, framed
from lptensor.study.rows import drawable


def plot_errors(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the rows of a shadow: the error after each op, what the op made of it itself, where it is no number.

    Returns the axes.

    Args:
        rows: of ``Shadow.rows()``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no row has an error.

    >>> rows = [{"op": "add", "error": 0.5, "born": 0.5, "nonfinite": 0, "backward": False}]
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> [line.get_ydata().tolist() for line in plot_errors(rows, axes).lines]
    [[0.5], [0.5]]
    """
    rows, ax = drawable(rows, ax, "op", "error", "born", "nonfinite")
    known = [row for row in rows if row["error"] is not None]
    if not known:
        raise ValueError("no op has an error in ulps: nothing ran, or in block formats only")
    at = np.arange(len(known))
    total, born = (np.array([row[key] for row in known]) for key in ("error", "born"))
    ax.plot(at, total, color=BLUE, marker="o", markersize=3.5, linewidth=1.2, label="distance to float64")
    ax.plot(at, born, color=VERMILLION, marker="x", markersize=4, linestyle="", label="made by this op")
    for i, row in enumerate(known):
        if row["nonfinite"]:
            ax.axvline(i, color=BLACK, linewidth=0.8, linestyle=":", zorder=0)
            ax.annotate("NaN or inf", (i, 1), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top")
    if len(known) <= 40:
        ax.set_xticks(at, labels=[row["op"] for row in known], rotation=90, fontsize=7)
    ax.set_yscale("symlog", linthresh=0.5)
    ax.set_ylim(bottom=-0.05)
    ax.set_ylabel("largest error (ulps)")
    return framed(ax, grid="y")
