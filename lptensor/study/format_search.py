"""Which layer can do with which format: the best losses for every number of bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lptensor.base import check_number
from lptensor.convert import convert
from lptensor.formats import Format
from lptensor.path_rules import listed
from lptensor.study.format_table import by_name
from lptensor.study.losses import check_callable, number_of
from lptensor.study.palette import BLUE, ORANGE, framed
from lptensor.study.places import named_modules, named_parameters
from lptensor.study.progress import track
from lptensor.study.rows import Rows, drawable
from lptensor.study.sensitivity import kept, layers_in
from lptensor.study.sqnr import bits_per_value


class Front(Rows):
    """The points of ``format_search`` that no other beats in bits and loss, fewest bits first; ``tried`` has all."""

    tried: Rows

    def rules(self, bits: float | None = None, loss: float | None = None) -> dict[str, Format]:
        """The rule set for ``convert`` with the least loss for so many bits, or the fewest bits for such a loss.

        Raises:
            TypeError: no number.
            ValueError: both or neither asked for, or no point that good.
        """
        if (bits is None) == (loss is None):
            raise ValueError("ask for bits= or for loss=, one of them")
        if bits is not None:
            bits = check_number("bits", bits)
            fitting = [row for row in self if row["bits"] <= bits]
            best = min(fitting, key=lambda row: float(row["loss"]), default=None)
        else:
            loss = check_number("loss", loss)
            fitting = [row for row in self if row["loss"] <= loss]
            best = min(fitting, key=lambda row: float(row["bits"]), default=None)
        if best is None:
            ends = [(row["bits"], row["loss"]) for row in self]
            raise ValueError(f"nothing reaches bits={bits}, loss={loss}; the points (bits, loss) are {ends}")
        rules: dict[str, Format] = dict(best["rules"])
        return rules


def format_search(
    model: nn.Module,
    loss: Callable[[nn.Module], Any],
    formats: Mapping[str, Format] | Iterable[Format],
    layers: Sequence[str] | None = None,
    progress: bool = False,
) -> Front:
    """Assign a format to each layer, from wide to narrow, and keep the best of what comes out.

    All layers begin in the widest format. What each layer costs in each narrower one is measured with all
    others wide; then layers are narrowed one step at a time, those first that cost least for the bits they
    save, and every assignment on the way is measured as a whole, each once: at most 2 * layers * (formats - 1) runs. It
    is a greedy search: the front is the best found, not the best there is. Layers that share a parameter
    count as one, have one format and go together. A row for each point: bits (the
    mean over the parameters of the layers, shares of scales included), loss, narrowed (steps taken), formats
    (a dict from path to name), rules (what ``convert(model, rules)`` takes).

    Args:
        model: plain; it is copied for every run, and left as it is.
        loss: from a converted model to a number that is better when smaller. Its inputs may be plain.
        formats: at least two.
        layers: paths of the modules or parameters to assign; what is at none of them stays in fp32, and
            does not count in bits. By default every parameter has its part: layers are the leaf modules,
            attention and parametrized modules (``weight_norm``) as a whole, and of other modules the
            parameters that stand beside children (class tokens), those of one module in one format, in
            which the ops they take part in then compute.
        progress: show how far it has come, on a terminal.

    Raises:
        TypeError: no module, layers that are not a list, a loss that is not a number.
        ValueError: fewer than two formats, no layers, a path
            that is not one, a loss of several numbers, NaN in the widest format or infinite in all.

    >>> from lptensor import BF16, E2M1
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = model[0].weight.data.fill_(1.5), model[1].weight.data.fill_(1.3125)
    >>> front = format_search(model, lambda m: abs(m(torch.ones(1, 1)).item() - 1.96875), [BF16, E2M1])
    >>> front.rules(loss=0.0)
    {'0': E2M1, '1': BF16}
    """
    named = dict(by_name(formats))
    order = sorted(named, key=lambda name: -bits_per_value(named[name]))
    if len(order) < 2:
        raise ValueError(f"a search takes at least two formats, got {list(named)}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"format_search takes a torch.nn.Module, got {type(model).__name__}")
    check_callable("loss", loss)
    places = [*dict(named_modules(model)), *dict(named_parameters(model, remove_duplicate=False))]
    groups = _all(model) if layers is None else [[path] for path in listed("layers", layers)]
    if not groups or not {path for group in groups for path in group} <= set(places):
        raise ValueError(f"layers must be paths of modules with parameters, got {groups}; there are {places}")
    search = _Search(model, loss, named, _together(model, groups))
    paths = list(search.layers)
    wide = dict.fromkeys(paths, order[0])
    with kept(model):
        base = search.point(wide, 0)["loss"]
        if math.isnan(base):
            raise ValueError(
                f"the loss is NaN with {order[0]}, the widest format, everywhere; there is nothing to search"
            )
        moves = []
        plan = [(path, i) for path in paths for i in range(1, len(order))]
        for path, i in track(plan, "layers", progress):
            cost = search.point({**wide, path: order[i]}, 1)["loss"] - base
            moves.append((path, i, math.inf if math.isnan(cost) else cost))
        current, step = dict.fromkeys(paths, 0), 0
        for path, i in track(_greedy(moves, search, order), "assignments", progress):
            current[path], step = i, step + 1
            search.point({p: order[at] for p, at in current.items()}, step)
    front = _front(search.rows)
    if not front:
        raise ValueError(
            f"the loss is infinite or NaN with each of the {len(search.rows)} assignments of {', '.join(order)} "
            "that were tried; there is nothing to choose between"
        )
    return front


def _greedy(moves: list[tuple[str, int, float]], search: _Search, order: list[str]) -> list[tuple[str, int]]:
    """Steps to the next narrower format, the cheapest for the bits they save first, each layer's in order."""
    cost = {(path, i): max(value, 0.0) for path, i, value in moves}
    left = {path: 1 for path, _, _ in moves}
    steps: list[tuple[str, int]] = []
    while left:

        def price(path: str) -> float:
            i = left[path]
            more = cost[path, i] - cost.get((path, i - 1), 0.0)
            saved = search.bits(path, order[i - 1]) - search.bits(path, order[i])
            return more / saved if saved > 0 else math.inf

        path = min(left, key=price)
        steps.append((path, left[path]))
        left[path] += 1
        if left[path] == len(order):
            del left[path]
    return steps


class _Layer(NamedTuple):
    """What gets one format."""

    paths: list[str]  # of several modules, if they share parameters, and of parameters elsewhere that are the same
    weights: list[Tensor]  # each once


def _all(model: nn.Module) -> list[list[str]]:
    """The paths that rules must name for every parameter, those in a list in one format.

    A rule for a module holds for all below it. Where that would be too much, the rules name its own parameters.
    """
    whole = [p for p, m in named_modules(model) if isinstance(m, nn.MultiheadAttention) or is_parametrized(m)]
    groups: dict[str, list[str]] = {}
    for path, module in layers_in(model).items():
        above = next((p for p in whole if _at(p, path)), None)
        own = [f"{path}.{name}" if path else name for name, p in module.named_parameters(recurse=False)]
        if any(p.is_floating_point() for p in module.parameters(recurse=False)):
            leaf = not any(True for _ in module.children())
            groups[path if above is None else above] = [above] if above is not None else [path] if leaf else own
    return list(groups.values())


def _at(path: str, name: str) -> bool:
    """Whether ``name`` is at a path, or below it."""
    return not path or name == path or name.startswith(f"{path}.")


def _together(model: nn.Module, groups: list[list[str]]) -> dict[str, _Layer]:
    """The layers at the paths of each group, by the first path of those that share parameters."""
    named = [(n, p) for n, p in named_parameters(model, remove_duplicate=False) if p.is_floating_point()]
    first = {path: group[0] for group in groups for path in group}
    homes = {n: next((first[path] for path in first if _at(path, n)), n) for n, _ in named}
    held: dict[str, dict[int, Tensor]] = {group[0]: {} for group in groups}
    for name, p in named:
        held.setdefault(homes[name], {})[id(p)] = p
    layers: dict[str, _Layer] = {}
    for path in dict.fromkeys(first.values()):
        if any(path in layer.paths for layer in layers.values()):
            continue
        members, weights = [path], dict(held[path])
        while more := [q for q in held if q not in members and not weights.keys().isdisjoint(held[q])]:
            members += more
            weights |= {i: p for q in more for i, p in held[q].items()}
        everywhere = [p for member in members for p in ([q for q in first if first[q] == member] or [member])]
        layers[path] = _Layer(everywhere, list(weights.values()))
    return layers


class _Search:
    """Measures assignments, each once."""

    def __init__(self, model: nn.Module, loss: Any, formats: dict[str, Format], layers: dict[str, _Layer]) -> None:
        self.model, self.loss, self.formats, self.layers = model, loss, formats, layers
        self.rows: list[dict[str, Any]] = []
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}

    def bits(self, path: str, name: str) -> float:
        """What the parameters of a layer take in a format."""
        weights = self.layers[path].weights
        return sum(p.numel() * bits_per_value(self.formats[name], tuple(p.shape)) for p in weights)

    def point(self, names: dict[str, str], narrowed: int) -> dict[str, Any]:
        key = tuple(names.values())
        if key not in self.known:
            everywhere = {path: name for first, name in names.items() for path in self.layers[first].paths}
            rules = {path: self.formats[name] for path, name in everywhere.items()}
            torch.manual_seed(0)
            value = self.loss(convert(copy.deepcopy(self.model), rules))
            count = sum(p.numel() for layer in self.layers.values() for p in layer.weights)
            row = {
                "bits": sum(self.bits(path, name) for path, name in names.items()) / count,
                "loss": number_of(value, "loss"),
                "narrowed": narrowed,
                "formats": everywhere,
                "rules": rules,
            }
            self.known[key] = row
            self.rows.append(row)
        return self.known[key]


def _front(rows: list[dict[str, Any]]) -> Front:
    best, least = [], math.inf
    for row in sorted(rows, key=lambda row: (row["bits"], math.inf if math.isnan(row["loss"]) else row["loss"])):
        if row["loss"] < least:
            least = row["loss"]
            best.append(row)
    front = Front(best, plot_front)
    front.tried = Rows(rows, plot_front)
    return front


def plot_front(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw losses over bits: what was tried as small marks, the front as a line; returns the axes.

    Args:
        rows: of ``format_search``, whose ``tried`` are the small marks; of other rows the line alone.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> plot_front([{"bits": 4, "loss": 0.5}], axes).lines[-1].get_xdata().tolist()
    [4]
    """
    rows, ax = drawable(rows, ax, "bits", "loss")
    tried = getattr(rows, "tried", [])
    if tried:
        at = np.array([[row["bits"], row["loss"]] for row in tried])
        ax.plot(at[:, 0], at[:, 1], "x", color=ORANGE, markersize=5, label="tried")
    bits, losses = (np.array([row[key] for row in rows]) for key in ("bits", "loss"))
    ax.plot(bits, losses, color=BLUE, marker="o", markersize=4, linewidth=1.2, drawstyle="steps-post", label="front")
    ax.set_xlabel("bits per parameter")
    ax.set_ylabel("loss")
    return framed(ax, grid="both")
