"""The figures of a run as a picture: bars of medians, whiskers to the quartiles, a mark at each target."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from measure import Figure

matplotlib.rcParams["svg.hashsalt"] = "lptensor"  # the same figures make the same file


def save(figures: list[Figure], machine: dict[str, str], path: Path) -> None:
    groups = list(dict.fromkeys(figure.group for figure in figures))
    panels = {
        "copy / work: 1 is the speed of a copy": [g for g in groups if g.startswith("copy")],
        "time of others / ours": [g for g in groups if g.startswith("peer")],
    }
    panels = {title: members for title, members in panels.items() if members}
    counts = [len({f.name for f in figures if f.group in members}) for members in panels.values()]
    fig, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.36 * sum(counts) + 1.6), height_ratios=counts, squeeze=False, layout="constrained"
    )
    for ax, (title, members) in zip(axes[:, 0], panels.items(), strict=True):
        names = list(dict.fromkeys(f.name for f in figures if f.group in members))
        wide = 0.8 / len(members)
        for i, group in enumerate(members):
            mine = [f for f in figures if f.group == group]
            at = [names.index(f.name) - 0.4 + wide * (i + 0.5) for f in mine]
            middle = [f.median for f in mine]
            errors = [[f.median - f.low for f in mine], [f.high - f.median for f in mine]]
            color = ("#1f5a8a", "#9bbfdb")[i % 2]
            ax.barh(at, middle, wide, xerr=errors, color=color, ecolor="#444444", label=group.split(", ")[1])
            marks = [(f.target, y) for f, y in zip(mine, at, strict=True) if f.target]
            if marks:
                x, y = zip(*marks, strict=True)
                ax.plot(x, y, "|", color="#c0392b", markersize=9, markeredgewidth=2)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.invert_yaxis()
        ax.axvline(1, color="#888888", linewidth=0.8)
        if title.startswith("time"):
            ax.set_xscale("log")
        ax.set_title(f"{title} (red: target)", fontsize=9, loc="left")
        ax.legend(fontsize=7, loc="lower right")
    fig.suptitle(f"{machine['processor']}, {machine['kernels'].split(':')[1].strip()}", fontsize=9)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
