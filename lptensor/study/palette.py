"""The look of all pictures: their colours, and what stands around what is drawn."""

from __future__ import annotations

from typing import Any

# Okabe and Ito, Color Universal Design (2008): told apart with any colour vision.
BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, ORANGE = "#CC79A7", "#56B4E9", "#E69F00"  # their yellow is too pale for lines

# Of curves beside each other.
COLOURS, MARKERS = (BLACK, BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE), "os^Dv*X"


def framed(ax: Any, grid: str | None = None, **legend: Any) -> Any:
    """Axes with a legend, if anything on them has a name, a grid if one is asked for, and two sides of their frame."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, **legend)
    if grid is not None:
        ax.grid(True, axis=grid, alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
