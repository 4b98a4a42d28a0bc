"""Training runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lptensor.base import check_bool, check_number
from lptensor.study.palette import COLOURS, MARKERS, framed
from lptensor.study.rows import axes_of

_STYLES = ("-", "--", ":", "-.")


def plot_training(curves: Mapping[str, Sequence[float]], ax: Any = None, log: bool = True) -> Any:
    """Draw one curve for each run, by step; returns the axes.

    Runs differ in colour and marker, after seven of them in the line too. A run that becomes NaN or infinite
    ends in a cross at its last finite value.

    Args:
        curves: from a name to a value for each step or epoch, from 1.
        ax: matplotlib axes; by default pyplot's current ones.
        log: the values on a logarithmic axis; those that are not positive are left out.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: no curves, or none with a value to draw.
        TypeError: something else than sequences of numbers by name, or no axes.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> [line.get_ydata().tolist() for line in plot_training({"fp32": [1.0, 0.5]}, axes).lines]
    [[1.0, 0.5]]
    """
    if not isinstance(curves, Mapping) or not all(hasattr(values, "__len__") for values in curves.values()):
        raise TypeError(f"curves are lists of values by name, {{name: values}}, got {curves!r}")
    check_bool("log", log)
    if not curves:
        raise ValueError("there are no curves to draw")
    numbers = {name: [check_number(f"a value of {name!r}", v) for v in values] for name, values in curves.items()}
    if not any(math.isfinite(v) and (v > 0 or not log) for values in numbers.values() for v in values):
        raise ValueError(f"no curve has a {'positive ' * log}value to draw: {', '.join(map(str, curves))}")
    ax = axes_of(ax)
    for i, (name, values) in enumerate(numbers.items()):
        y = np.array([v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in values], dtype=float)
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": _STYLES[i // len(COLOURS) % len(_STYLES)],
            "markevery": max(1, len(values) // 10),
        }
        ax.plot(np.arange(1, len(values) + 1), y, linewidth=1.3, markersize=4, label=name, **look)
        broken = next((k for k, v in enumerate(values) if not math.isfinite(v)), None)
        if broken:
            ax.plot([broken], [values[broken - 1]], "x", color=look["color"], markersize=9, markeredgewidth=2)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel("step")
    return framed(ax, grid="both")
