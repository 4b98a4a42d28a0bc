"""Learning curves of all recipes, as a PNG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lptensor.demo.data import TEST_SIZE
from lptensor.demo.recipes import Recipe
from lptensor.demo.summary import Summary
from lptensor.extra import need
from lptensor.rounding import Rounding
from lptensor.study.palette import COLOURS, MARKERS


def plot_curves(summaries: Sequence[Summary], path: Path, title: str) -> None:
    """Draw training loss and test error by epoch, means over seeds, into a PNG at ``path``.

    Recipes that differ in their rounding alone share a colour; the stochastic one is dashed. The
    values' axes are logarithmic: no error at all shows as half of one test image.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    ticker = need("matplotlib.ticker")
    figure = need("matplotlib.figure").Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    loss, error = figure.subplots(1, 2)
    families: list[Recipe] = []
    for summary in summaries:
        family = replace(summary.recipe, name="", rounding=Rounding())
        if family not in families:
            families.append(family)
        look = families.index(family) % len(COLOURS)
        epochs = range(1, len(summary.runs[0].losses) + 1)
        losses = [statistics.fmean(at) for at in zip(*(run.losses for run in summary.runs), strict=True)]
        right = [statistics.fmean(at) for at in zip(*(run.accuracies for run in summary.runs), strict=True)]
        style = {
            "color": COLOURS[look],
            "marker": MARKERS[look],
            "linestyle": "--" if summary.recipe.rounding.stochastic else "-",
            "linewidth": 1.4,
            "markersize": 4,
            "markevery": max(1, len(epochs) // 10),
            "label": summary.recipe.name,
        }
        loss.plot(epochs, losses, **style)
        error.plot(epochs, [max(100 - r, 50 / TEST_SIZE) for r in right], **style)
    for axes, shown in ((loss, "training loss"), (error, "test error (%)")):
        axes.set(xlabel="epoch", ylabel=shown, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.6)))
        axes.grid(True, which="major", alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    seeds = len(summaries[0].runs)
    figure.suptitle(f"{title}, mean of {seeds} seeds" if seeds > 1 else f"{title}, one seed")
    figure.savefig(path)
