"""Finds which roundings spoil a result, by undoing half of them, and half of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lptensor import _compat, direction, observe
from lptensor.base import check_number
from lptensor.convert import remembered
from lptensor.study.losses import check_callable, number_of
from lptensor.study.palette import BLACK, BLUE, VERMILLION, framed
from lptensor.study.places import Places, named_modules
from lptensor.study.progress import counting
from lptensor.study.rows import Rows, drawable
from lptensor.trace import Origins, op_name

UNITS = ("op", "module", "role")


class Culprits(Rows):
    """The rows of ``bisect``: what was tried, in order. ``culprits`` are the units to blame, ``rules`` the rule
    set for ``convert`` that keeps them in fp32, for modules ({path: None}); ``exact`` and ``low`` are the
    results without and with all roundings, ``target`` is what counts as recovered.
    """

    culprits: list[str]
    rules: dict[str, None]
    exact: float
    low: float
    target: float


def bisect(
    run: Callable[[], Any],
    model: nn.Module | None = None,
    by: str = "op",
    recovered: float = 0.5,
    target: float | None = None,
    progress: bool = False,
) -> Culprits:
    """Find a smallest set of ops, modules or roles whose roundings spoil the loss.

    ``run()`` does the whole computation from the start (set seeds and reload weights in it, so that it
    repeats itself) and returns the loss; NaN counts as the worst. It is run once as it is and once with all
    roundings undone, then with those of ever smaller sets undone (delta debugging: Zeller and Hildebrandt
    2002): the answer is a set that recovers the loss, of which no unit can be left out. About
    2 log2(units) runs for one culprit, and 3 to 5 times k log2(units) for k of them. A row for each: undone (how
    many units), loss, recovered (whether that reaches the target), units (their names, or "all").

    Args:
        run: returns a number or a tensor of one.
        model: the one whose modules are meant; needed for "module" and "role".
        by: "op" (an op at a line of the user's code, backward ones apart), "module" (its path, forward and
            backward; parameters count to their modules), or "role" ("weight", "activation", "gradient", ...).
        recovered: the share of the way from the low to the exact loss that counts as recovered, above 0, up to 1.
        target: or the loss that does: anything at or below it.
        progress: count the runs, on a terminal.

    Raises:
        ValueError: an unknown ``by``, no model where it is needed, a share out of range, a loss of several numbers, or
            undoing everything does not help.
        TypeError: no function, or one whose loss is no number; no module, no number.

    >>> from lptensor import BF16
    >>> def run():
    ...     x = torch.tensor([1.0]).to_lp(BF16) * 1.5
    ...     y = x + 1000.0
    ...     return (y - 1000.0 - 1.5).abs()
    >>> [unit.partition(" ")[0] for unit in bisect(run).culprits]
    ['add.Tensor']
    """
    if by not in UNITS:
        raise ValueError(f"bisect goes by one of {', '.join(UNITS)}, got {by!r}")
    if by != "op" and model is None:
        raise ValueError(f"by={by!r} needs model=, whose {by}s are meant")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_callable("run", run)
    recovered = check_number("recovered", recovered)
    if not 0 < recovered <= 1:
        raise ValueError(f"recovered is a share of the way, above 0 and up to 1, got {recovered:g}")
    target = None if target is None else check_number("target", target)
    with counting("runs", progress) as done:
        return _bisect(_Search(run, model, by, done), recovered, target)


def _bisect(search: _Search, recovered: float, target: float | None) -> Culprits:
    low = search.loss(frozenset())
    units = list(search.seen)
    exact = search.loss(None)
    if target is None:
        far = math.isinf(low) or math.isnan(low)
        target = exact + (abs(exact) + 1.0) * (1 - recovered) if far else low + recovered * (exact - low)
    if not exact <= target or low <= target:
        raise ValueError(
            f"the loss is {low:g} with all roundings and {exact:g} without any: "
            f"there is nothing to recover at a target of {target:g}"
        )
    search.target = target
    culprits = _smallest(units, search)
    found = Culprits(({**row, "recovered": row["loss"] <= target} for row in search.rows), plot_bisect)
    found.culprits, found.exact, found.low, found.target = culprits, exact, low, target
    found.rules = _rules(culprits, search.model) if search.by == "module" and search.model is not None else {}
    return found


def _rules(culprits: list[str], model: nn.Module) -> dict[str, Any]:
    """Path rules that take the culprits to fp32, and leave what they hold, and is none, as it is; inner paths first."""
    rules: dict[str, Any] = {}
    for path, module in sorted(model.named_modules(), key=lambda item: -len(item[0].split(".")) if item[0] else 0):
        if path in culprits:
            rules[path] = None
        elif path.rpartition(".")[0] in culprits and (arithmetic := remembered(module)) is not None:
            rules[path] = arithmetic
    return rules


def _smallest(units: list[str], search: _Search) -> list[str]:
    """A set of units whose undoing recovers, and that loses this with any one of them (ddmin)."""
    parts = 2
    while len(units) > 1:
        size = -(-len(units) // parts)
        chunks = [units[i : i + size] for i in range(0, len(units), size)]
        smaller = next((chunk for chunk in chunks if search.recovers(chunk)), None)
        if smaller is not None:
            units, parts = smaller, 2
            continue
        rest = ([unit for unit in units if unit not in chunk] for chunk in chunks if parts > 2)
        fewer = next((part for part in rest if search.recovers(part)), None)
        if fewer is not None:
            units, parts = fewer, max(parts - 1, 2)
        elif parts >= len(units):
            break
        else:
            parts = min(2 * parts, len(units))
    return units


class _Search:
    """Runs with chosen roundings undone, and remembers what came of it."""

    def __init__(self, run: Callable[[], Any], model: nn.Module | None, by: str, done: Callable[[], None]) -> None:
        self.run, self.model, self.by, self.done = run, model, by, done
        self.seen: dict[str, None] = {}  # units, in the order in which they came
        self.rows: list[dict[str, Any]] = []
        self.known: dict[frozenset[str] | None, float] = {}
        self.target = -math.inf

    def recovers(self, units: list[str]) -> bool:
        return self.loss(frozenset(units)) <= self.target

    def loss(self, undone: frozenset[str] | None) -> float:
        """The result with the roundings of these units undone; None: of all."""
        if undone not in self.known:
            with ExitStack() as stack:
                places = None if self.model is None else stack.enter_context(Places(self.model, None))
                make: Any = _Undo
                undo = make(undone, self.by, places, self.seen)
                stack.enter_context(observe.observing(undo))
                stack.enter_context(undo)
                result = self.run()
            self.done()
            value = number_of(result, "run")
            self.known[undone] = math.inf if math.isnan(value) else value
            count = len(self.seen) if undone is None else len(undone)
            self.rows.append(
                {"undone": count, "loss": value, "units": sorted(undone) if undone is not None else ["all"]}
            )
        return self.known[undone]


class _Undo(_compat.TorchDispatchMode, observe.Observer):
    """Puts back what was there before the roundings of some units."""

    def __init__(self, undone: frozenset[str] | None, by: str, places: Places | None, seen: dict[str, None]) -> None:
        mode: Any = super()
        mode.__init__()
        self.undone, self.by, self.places, self.seen = undone, by, places, seen
        self.modules = set() if places is None else {path for path, _ in named_modules(places.model)}
        self.active = True
        self.origins = Origins()
        self.op = "round"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.op = self.op, op_name(func)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.op = before

    def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
        unit = self._unit(before, after)
        self.seen.setdefault(unit)
        if self.undone is None or unit in self.undone:
            with torch.no_grad():
                after.copy_(before)

    def _unit(self, before: Tensor, after: Tensor) -> str:
        if self.by == "op":
            backward = direction.in_backward()
            where, _ = self.origins.origin(backward)
            return f"{self.op} at {where}" + " (backward)" * backward
        assert self.places is not None
        role, path = self.places.of(before, after)
        if self.by == "role":
            return role
        return path if path in self.modules else path.rpartition(".")[0]


def plot_bisect(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the losses of ``bisect`` run by run, and what counts as recovered; returns the axes.

    Runs that recovered are dots, others crosses; a loss that is not a number is a cross at the upper edge.

    Args:
        rows: of ``bisect``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> rows = [{"undone": 0, "loss": 2.0, "recovered": False}, {"undone": 1, "loss": 0.5, "recovered": True}]
    >>> [line.get_ydata().tolist() for line in plot_bisect(rows, axes).lines]
    [[0.5], [2.0]]
    """
    rows, ax = drawable(rows, ax, "undone", "loss", "recovered")
    finite = [row["loss"] for row in rows if math.isfinite(row["loss"])]
    for good, look, label in (
        (True, dict(color=BLUE, marker="o", markersize=5), "recovered"),
        (False, dict(color=VERMILLION, marker="x", markersize=6), "not recovered"),
    ):
        part = [(i + 1, row["loss"]) for i, row in enumerate(rows) if row["recovered"] is good]
        known = np.array([point for point in part if math.isfinite(point[1])]).reshape(-1, 2)
        ax.plot(known[:, 0], known[:, 1], linestyle="", label=label, **look)
        for i, _ in (point for point in part if not math.isfinite(point[1])):
            ax.plot([i], [0.98], linestyle="", transform=ax.get_xaxis_transform(), **look)
    if hasattr(rows, "target"):
        ax.axhline(rows.target, color=BLACK, linewidth=0.8, linestyle="--", label="target")
    for i, row in enumerate(rows):
        at = (i + 1, row["loss"] if math.isfinite(row["loss"]) else max(finite, default=1.0))
        ax.annotate(str(row["undone"]), at, xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center")
    ax.set_xlabel("run (number: how many units were undone)")
    ax.set_ylabel("loss")
    ax.margins(y=0.15)
    return framed(ax)
