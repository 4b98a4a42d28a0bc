"""Which updates of weights a format would lose, for the step that an optimizer is about to take."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lptensor import _compat, observe
from lptensor.arithmetic import Arithmetic
from lptensor.formats import Format, ScalarFormat
from lptensor.loans import Loans
from lptensor.neighbours import ulp
from lptensor.ops import round as round_to
from lptensor.optim import OptimLP
from lptensor.rounding import Mode, Rounding
from lptensor.study.palette import BLACK, BLUE, VERMILLION, framed
from lptensor.study.places import innermost, values_of
from lptensor.study.rows import Rows, drawable
from lptensor.study.updates import Updates
from lptensor.tensor import LPTensor


def update_stagnation(optimizer: Optimizer, format: Format, rounding: Rounding | Mode | str = "nearest") -> Rows:
    """What would become of the next step if the weights were kept in ``format``: a row for each parameter.

    parameter ("group.position"), values, wanted (elements that the step changes in fp32), lost (the share
    of them that rounding puts back), edq (see ``Updates``), ratio (the mean of |step| / ulp(weight) over
    changed elements), binades (a dict: how many changed elements have which floor(log2(|step| / ulp));
    rounding to nearest loses every one at -3 and below, and at -2 all but those toward zero from a power
    of two), noise (|gradient| / (sqrt(3) sqrt(d) s), where s is the standard deviation of the rounding
    error of the gradient and d its size: below 1, rounded gradients no longer help, FP4 All the Way,
    arXiv 2505.19115). ratio, binades are None in formats whose ulp moves.

    The step is taken by the optimizer itself and then taken back: weights, states and torch's CPU generator
    are as before, and neither hooks on its step nor a ``record`` hear of it. Run it after ``backward()``, where
    gradients are.

    Args:
        optimizer: of plain fp32 parameters, of LPTensors, or an ``OptimLP``: the step is the one that is made before
            weights are rounded, from accumulators where there are some.
            Not one that needs a closure (LBFGS), and so computes gradients within its step.

    Raises:
        TypeError: no optimizer, or one that needs a closure.
        ValueError: no parameter has a gradient.

    >>> from lptensor import BF16
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0**-4]))
    >>> optimizer = torch.optim.SGD([w], lr=2.0**-10)
    >>> w.sum().backward()
    >>> (row,) = update_stagnation(optimizer, BF16)
    >>> row["lost"], row["binades"], w.tolist()
    (0.5, {-3: 1, 1: 1}, [1.0, 0.0625])
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"update_stagnation takes a torch.optim.Optimizer, got {type(optimizer).__name__}")
    _check_closure(optimizer)
    named = {
        f"{i}.{j}": p
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
        if p.grad is not None
    }
    if not named:
        raise ValueError("no parameter has a gradient: call loss.backward() first")
    with torch.random.fork_rng(devices=[]), observe.unseen(), _without_hooks(optimizer):
        before, after = _step(optimizer, list(named.values()))
        found = zip(named.items(), before, after, strict=True)
        return Rows([_row(name, p, a, b, format, rounding) for (name, p), a, b in found], plot_stagnation)


def _check_closure(optimizer: Optimizer) -> None:
    inner: Any = innermost(optimizer)
    closure = inspect.signature(inner.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"update_stagnation takes a step with the gradients there are, and {type(inner).__name__} needs a "
            "closure to compute its own; give an optimizer that needs none, such as SGD of the same parameters"
        )


@contextmanager
def _without_hooks(optimizer: Optimizer) -> Iterator[None]:
    """Steps of an optimizer, and of what it wraps, of which nobody is told: they are taken back."""
    chain: list[Any] = [optimizer]
    while isinstance(inner := getattr(chain[-1], "optim", None), Optimizer):
        chain.append(inner)
    hooks = [(each, name, getattr(each, name)) for each in chain for name in _compat.STEP_HOOKS]
    try:
        for each, name, there in hooks:
            setattr(each, name, type(there)())
        yield
    finally:
        for each, name, there in hooks:
            setattr(each, name, there)


def _step(optimizer: Optimizer, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights before and after the next step, none of which is rounded; the step is then undone."""
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [values_of(p).clone() for p in everything]
    gradients = [(p.grad, None if p.grad is None else values_of(p.grad).clone()) for p in everything]
    groups = [copy.deepcopy({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
    entries = {p: (entry, copy.deepcopy(dict(entry))) for p, entry in optimizer.state.items()}
    held = dict(optimizer._held) if isinstance(optimizer, OptimLP) else None
    loans, stepping = Loans(), optimizer
    try:
        if isinstance(optimizer, OptimLP):
            stepping = optimizer._begin()
        for p in everything:
            if isinstance(p, LPTensor):
                loans.lend(p, Arithmetic(None))
        before = [values_of(p).clone() for p in parameters]
        stepping.step()
        after = [values_of(p).clone() for p in parameters]
    finally:
        with torch.no_grad():
            for p in everything:
                loans.take_back(p)
                if isinstance(optimizer, OptimLP):
                    optimizer._loans.take_back(p)
            for p, weight, (gradient, values) in zip(everything, weights, gradients, strict=True):
                values_of(p).copy_(weight)
                p.grad = gradient  # a step rounds one that is plain, beside an LPTensor
                if gradient is not None and values is not None:
                    values_of(gradient).copy_(values)
        for group, old in zip(optimizer.param_groups, groups, strict=True):
            for key in group.keys() - old.keys() - {"params"}:
                del group[key]
            group.update(old)
        optimizer.state.clear()
        for p, (entry, old) in entries.items():
            entry.clear()
            dict.update(entry, old)  # as it was, in whatever formats
            optimizer.state[p] = entry
        if isinstance(optimizer, OptimLP) and held is not None:
            optimizer._held = held
    return before, after


def _row(name: str, p: Tensor, before: Tensor, after: Tensor, format: Format, rounding: Any) -> dict[str, Any]:
    held = round_to(before, format, rounding)
    step = after - before
    updates = Updates()
    updates.add(held, held + step, round_to(held + step, format, rounding))
    changed = step != 0
    ratio = binades = None
    if isinstance(format, ScalarFormat):
        ratios = (step.double().abs() / ulp(held.double(), format))[changed]
        ratio = float(ratios.mean()) if ratios.numel() else None
        found, counts = (torch.frexp(ratios[ratios.isfinite()]).exponent - 1).unique(return_counts=True)
        binades = dict(zip(found.tolist(), counts.tolist(), strict=True))
    gradient = p.grad if p.grad is not None else torch.zeros_like(p)
    gradient = values_of(gradient.coalesce().values() if gradient.is_sparse else gradient).double()
    narrow: Any = p.arithmetic.gradient_format if isinstance(p, LPTensor) else format
    error = round_to(gradient, narrow or format, "nearest") - gradient
    noise = float(error.square().mean().sqrt()) * math.sqrt(3 * gradient.numel())
    row = updates.row()
    return {
        "parameter": name,
        "values": p.numel(),
        "wanted": row["wanted"],
        "lost": row["lost"],
        "edq": row["edq"],
        "ratio": ratio,
        "noise": float(gradient.norm()) / noise if noise != 0 else math.inf,
        "binades": binades,
    }


def plot_stagnation(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw how large the steps of all parameters are in ulps of the weights; returns the axes.

    What lies left of the line, half an ulp, rounding to nearest loses.

    Args:
        rows: of ``update_stagnation``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no row has a histogram.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> len(plot_stagnation([{"binades": {-3: 1, 1: 1}}], axes).patches)
    2
    """
    rows, ax = drawable(rows, ax, "binades")
    counts: dict[int, int] = {}
    for row in rows:
        for e, n in (row["binades"] or {}).items():
            counts[e] = counts.get(e, 0) + n
    if not counts:
        raise ValueError("no step has a size in ulps: nothing changes, or the format's ulp moves")
    total = sum(counts.values())
    for lost, colour, hatch, label in ((True, VERMILLION, "//", "lost"), (False, BLUE, "", "may be kept")):
        part = {e: n for e, n in counts.items() if (e < -1) == lost}
        if part:
            look = dict(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
            ax.bar([e + 0.5 for e in part], [100 * n / total for n in part.values()], width=0.9, **look)
    ax.axvline(-1, color=BLACK, linewidth=0.8, linestyle="--")
    ax.set_xlabel("log2(|step| / ulp(weight))")
    ax.set_ylabel("share of steps (%)")
    return framed(ax)
