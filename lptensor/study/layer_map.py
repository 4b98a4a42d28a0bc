"""A map of a model: one number for each module and role, as shades of a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lptensor.study.rows import drawable

_SHARES = ("zero", "underflow", "subnormal", "saturated", "overflow", "nonfinite", "lost")


def plot_layer_map(rows: Iterable[dict[str, Any]], ax: Any = None, column: str = "underflow") -> Any:
    """Draw one column of a recording's rows: paths downwards, roles to the right; returns the axes.

    A cell says its number too: shares in percent, "snr" in dB. Several formats of one path and role
    show the one with the most values. An empty cell was not recorded, or has no such figure.

    Args:
        rows: of ``Log.rows()``.
        ax: matplotlib axes; by default pyplot's current ones.
        column: a key of the rows that has numbers.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows, no such column, or one that has no numbers.

    >>> rows = [{"role": "weight", "path": "a", "values": 4, "underflow": 0.25}]
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> [text.get_text() for text in plot_layer_map(rows, axes).texts]
    ['25']
    """
    rows, ax = drawable(rows, ax, "role", "values")
    if not all(isinstance(row.get(column, ""), (int, float, type(None))) for row in rows):
        known = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
        raise ValueError(f"a layer map shows a column of numbers such as {', '.join(known)}, got column={column!r}")
    paths = list(dict.fromkeys(row.get("path", "") for row in rows))
    roles = list(dict.fromkeys(row["role"] for row in rows))
    cells: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        at = paths.index(row.get("path", "")), roles.index(row["role"])
        if row[column] is not None and (at not in cells or row["values"] > cells[at]["values"]):
            cells[at] = row
    scale = 100 if column in _SHARES else 1
    grid = [
        [scale * cells[i, j][column] if (i, j) in cells else float("nan") for j in range(len(roles))]
        for i in range(len(paths))
    ]
    # One hue from light to dark: the same order in grey, in print and for any colour vision.
    finite = [abs(value) for line in grid for value in line if abs(value) < float("inf")]
    top = max(finite, default=0.0) or 1.0
    # What is infinite, the snr of what did not move, has the shade of the largest: blank is what was not recorded.
    held = [[max(min(value, top), -top) if value == value else value for value in line] for line in grid]
    image = ax.imshow(held, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (i, j), row in cells.items():
        value = scale * row[column]
        dark = value > 0.6 * top
        whole = not math.isfinite(value) or value == round(value) or value >= 10
        text = f"{value:.0f}" if whole else f"{value:.2g}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ax.set_xticks(range(len(roles)), labels=roles)
    ax.set_yticks(range(len(paths)), labels=[path or "(whole)" for path in paths])
    ax.tick_params(length=0, labelsize=7)
    unit = " (%)" if scale == 100 else " (dB)" if column == "snr" else ""
    ax.set_title(column + unit, loc="left", fontsize=9)
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
    return ax
