"""Runs every op in float64 beside low precision, and says where errors are born and how they grow."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat, direction, observe
from lptensor.base import check_int
from lptensor.formats import ScalarFormat
from lptensor.grouped import IN_FLOAT64
from lptensor.neighbours import ulp
from lptensor.rules import argument, rule_for
from lptensor.study.errors import plot_errors
from lptensor.study.factors import as_chosen
from lptensor.study.places import values_of
from lptensor.study.rows import Rows
from lptensor.tensor import LPTensor
from lptensor.trace import Origins, op_name

_FRESH = ("aten::empty", "aten::new_empty")  # what they hold is nothing yet
_CONTAINERS = (list, tuple)
# Ops that return values and where they were: along a named axis, or in so many last axes as one.
_CHOOSE = dict.fromkeys("sort topk kthvalue mode median nanmedian max min cummax cummin".split(), 0) | {
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3,
    "fractional_max_pool2d": 2,
    "fractional_max_pool3d": 3,
}


class shadow:  # reads as a function
    """A context in which every op on LPTensors, and every rounding, has a twin in float64 that never rounds.

    The twins go along through views, in-place ops, the backward pass and optimizer steps, so that at any
    time a tensor can be compared with what it would be without rounding. Tensors from before the context
    start without an error, and so do results whose shape depends on values (unique) where float64 has another.
    Branches, indices (of sort, topk, max along an axis, pooling), random draws, the pivots of an LU factorization and
    the signs of eigenvectors and singular vectors are those of low precision.
    Values are not changed. It costs three times the arithmetic and memory in float64, and several looks at each value
    of each result, so that a step takes 10 to 50 times as long as in fp32; it is for a few steps, of models of moderate
    size, in the thread that enters it. Compiled code is not seen.

    Raises:
        RuntimeError: entered within itself, or left before a context that was entered within.

    >>> from lptensor import BF16
    >>> x = torch.tensor([1.0]).to_lp(BF16)
    >>> with shadow() as seen:
    ...     y = (x + 1000.0) - 1000.0
    >>> [(row["op"], row["error"], row["born"]) for row in seen.rows()]
    [('add.Tensor', 0.25, 0.25), ('sub.Tensor', 128.0, 0.0)]
    """

    def __init__(self) -> None:
        self._open: tuple[_Mode, ExitStack] | None = None

    def __enter__(self) -> Shadow:
        if self._open is not None:
            raise RuntimeError("this shadow is entered already; make another shadow() for a context within")
        make: Any = _Mode
        seen = Shadow()
        mode = make(seen)
        with ExitStack() as stack:
            stack.enter_context(observe.observing(mode))
            stack.enter_context(mode)
            self._open = mode, stack.pop_all()
        return seen

    def __exit__(self, *_: Any) -> None:
        if self._open is None:
            return
        mode, stack = self._open
        if _compat.latest_mode() is not mode:  # of which torch would take off that one
            raise RuntimeError("another context was entered within this shadow, and is open still; leave it first")
        self._open = None
        stack.close()


class Shadow:
    """What ``shadow()`` saw, op by op, and the twins of tensors that are still alive.

    >>> from lptensor import BF16
    >>> with shadow() as seen:
    ...     y = torch.tensor([1.0]).to_lp(BF16) + 1000.0
    >>> seen.twin(y).item(), seen.error(y).item()
    (1001.0, 0.25)
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._twins: dict[int, tuple[Any, Tensor]] = {}

    def twin(self, x: Tensor) -> Tensor:
        """What ``x`` would be without rounding: float64, a copy; its own values if nothing is known of it."""
        found = self._find(x)
        return found.detach().clone() if found is not None else _double(values_of(x)).detach()

    def error(self, x: LPTensor) -> Tensor:
        """How far ``x`` is from its twin, in units in the last place of its format at the twin; float64.

        Raises:
            TypeError: x is not an LPTensor in a scalar format.
        """
        format = x.format if isinstance(x, LPTensor) else None
        if not isinstance(format, ScalarFormat):
            raise TypeError(f"units in the last place are those of an LPTensor's scalar format, got {format!r}")
        twin = self.twin(x)
        return (_double(x) - twin).abs() / ulp(twin, format)

    def rows(self) -> Rows:
        """One row for each op that gave low-precision values, in order.

        op, where (the whole path of the user's file, a colon, the line; of a gradient those of the forward op),
        module, backward, shape, format; error, the largest distance to the twin in ulps (units in the last place) of
        the twin; born, what this op made of it: the largest distance to what float64 makes of the very same
        operands, in ulps of that, 0.5 if it was rounded to nearest once; relative, |x - twin| / |twin| in
        the 2-norm; growth, by how much the relative error of the worst operand grew (None if all were
        exact); nonfinite, how many values are NaN or infinite and not so by right: NaN, or an infinity that
        the twin is not. Ulps are None where the last place moves: in block formats, posits and codebooks.
        """
        return Rows(self._rows, plot_errors)

    def births(self, count: int = 10) -> Rows:
        """The ops that made the largest errors themselves, ``count`` of them at most."""
        count = check_int("count", count, 0, 2**31)
        known = [row for row in self._rows if row["born"] is not None]
        return Rows(sorted(known, key=lambda row: -row["born"])[:count], plot_errors)

    def growths(self, count: int = 10) -> Rows:
        """The ops that made the errors of their operands grow most, ``count`` of them at most."""
        count = check_int("count", count, 0, 2**31)
        known = [row for row in self._rows if row["growth"] is not None]
        return Rows(sorted(known, key=lambda row: -row["growth"])[:count], plot_errors)

    @property
    def first_nonfinite(self) -> dict[str, Any] | None:
        """The row of the first op that gave a NaN, or an infinity that float64 does not have."""
        return next((row for row in self._rows if row["nonfinite"]), None)

    def __str__(self) -> str:
        first = self.first_nonfinite
        last = "no NaN, no overflow" if first is None else f"first NaN or overflow: {first['op']} at {first['where']}"
        return f"{self.rows()}\n{last}"

    # -- for the mode that fills it ----------------------------------------------------------------

    def _find(self, x: Tensor) -> Tensor | None:
        held = _held(x)
        known = self._twins.get(id(held))
        return known[1] if known is not None and known[0]() is held else None

    def _keep(self, x: Tensor, twin: Tensor) -> None:
        held = _held(x)
        key = id(held)

        known = weakref.ref(self)  # which would else keep itself, and all twins, until Python looks for cycles

        def forget(reference: Any) -> None:
            shadow = known()
            if shadow is not None and key in shadow._twins and shadow._twins[key][0] is reference:
                del shadow._twins[key]

        self._twins[key] = weakref.ref(held, forget), twin

    def _note(self, name: str, x: Tensor, born: Tensor, origin: tuple[str, str], worst: float, format: Any) -> None:
        twin = self._find(x)
        assert twin is not None
        value = _double(x).detach()
        born = born.detach()
        gap, right = _finite(value, twin)
        relative = _relative(gap, right)
        missing = value.isnan() | value.isinf() & (value != twin) if gap.shape != value.shape else None
        where, module = origin
        self._rows.append(
            {
                "op": name,
                "where": where,
                "module": module,
                "backward": direction.in_backward(),
                "shape": tuple(x.shape),
                "format": None if format is None else repr(format),
                "error": _ulps(gap, right, format),
                "born": _ulps(*_finite(value, born), format),
                "relative": relative,
                "growth": relative / worst if worst > 0 else None,
                "nonfinite": 0 if missing is None else int(missing.sum()),
            }
        )


class _Mode(_compat.TorchDispatchMode, observe.Observer):
    """Sees every op before LPTensors do, and runs it in float64 twice: on its twins, and on the very operands."""

    def __init__(self, seen: Shadow) -> None:
        mode: Any = super()
        mode.__init__()
        self.seen = seen
        self.active = True
        self.origins = Origins()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        known = any(isinstance(x, LPTensor) or self.seen._find(x) is not None for x in tensors)
        if not self.active or not known or any(x.is_meta for x in tensors):  # torch asks for a shape alone
            return func(*args, **kwargs)
        self.active = False  # what an op does inside is its own affair
        try:
            return self._run(func, args, kwargs, [x for x in tensors if x.is_floating_point()])
        finally:
            self.active = True

    def _run(self, func: Any, args: Any, kwargs: Any, operands: list[Tensor]) -> Any:
        origin = self.origins.origin(direction.in_backward())
        for x in operands:
            if self.seen._find(x) is None:
                self.seen._keep(x, _double(x))
        same = {id(x): _double(x) for x in operands}  # before an in-place op changes them
        worst = max((_relative(*_finite(same[id(x)], self._twin(x))) for x in operands), default=0.0)
        out = func(*args, **kwargs)
        if _compat.schema(func).name.startswith(_FRESH):
            return out
        if torch.Tag.nondeterministic_seeded in func.tags:  # the draws of low precision hold for all
            for x in (*_tensors([out]), *_written(func, args, kwargs)):
                if x.is_floating_point():
                    self.seen._keep(x, _double(x))
            return out
        run = IN_FLOAT64.get(func, func)
        born = run(*_map(args, lambda x: same[id(x)]), **_named(kwargs, lambda x: same[id(x)]))
        twin = self._chosen(func, args, kwargs, out)
        if twin is None:
            twin = run(*_map(args, self._twin), **_named(kwargs, self._twin))
        name = op_name(func)
        if operands:
            born = as_chosen(name, out, born, same[id(operands[0])])
            twin = as_chosen(name, out, twin, self._twin(operands[0]))
        noted: set[int] = set()
        for x in _written(func, args, kwargs):
            if x.is_floating_point():
                noted.add(id(x))
                self._note(name, x, same[id(x)], origin, worst, func)
        for x, b, t in zip(_tensors([out]), _tensors([born]), _tensors([twin]), strict=True):
            if id(x) in noted or not x.is_floating_point():
                continue
            self.seen._keep(x, _laid_out(t, x, func) if t.shape == x.shape else _double(x))
            self._note(name, x, b, origin, worst, func)
        return out

    def _chosen(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """What an op that chooses values by index takes from the twin: the elements that low precision chose."""
        name = _compat.schema(func).name.removeprefix("aten::")
        if not isinstance(out, _CONTAINERS) or len(out) != 2 or name not in _CHOOSE or out[1].dtype != torch.int64:
            return None
        source, index = self._twin(args[0]), out[1]
        axes = _CHOOSE[name]
        if axes:  # an index counts the positions of the last axes
            return source.flatten(-axes).gather(-1, index.flatten(-axes)).view(index.shape), index
        dim = next(
            args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(_compat.schema(func).arguments)
            if a.name == "dim"
        )
        if index.dim() == source.dim():
            return source.gather(dim, index), index
        return source.gather(dim, index.unsqueeze(dim)).squeeze(dim), index

    def _twin(self, x: Tensor) -> Tensor:
        found = self.seen._find(x)
        assert found is not None
        return found

    def _note(self, name: str, x: Tensor, born: Tensor, origin: tuple[str, str], worst: float, func: Any) -> None:
        if isinstance(x, LPTensor) and not _views(func) and x.numel():
            format, _ = x._arithmetic.sides[x._gradient]
            self.seen._note(name, x, born, origin, worst, format)

    def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
        """A rounding outside of ops: to_lp, a quantizer, an optimizer in low precision."""
        self.active = False
        try:
            known = self.seen._find(before)
            twin = _double(before) if known is None else known.detach().clone()
            worst = _relative(*_finite(_double(before), twin))
            self.seen._keep(after, twin)
            said = observe.said()
            name = "round" if said is None else f"round {said[0]}"
            origin = self.origins.origin(direction.in_backward())
            self.seen._note(name, after, _double(before), origin, worst, format)
        finally:
            self.active = True


def _held(x: Tensor) -> Tensor:
    """The plain tensor that stands for x: LPTensors come and go, what they hold stays."""
    return x._inner if isinstance(x, LPTensor) else x


def _double(x: Tensor) -> Tensor:
    """A copy of the values in float64."""
    return _held(x).detach().to(torch.float64, copy=True)


def _laid_out(twin: Tensor, x: Tensor, func: Any) -> Tensor:
    """The twin of a result, in memory as the result is, for the views of it that are to come."""
    return twin if twin.stride() == x.stride() or _views(func) else _double(x).copy_(twin)


def _views(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in _compat.schema(func).returns)


def _finite(value: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The differences of two tensors, and the second of them: where both are finite."""
    gap = value - right
    if gap.sum().isfinite():  # then all are: so it mostly is, and a mask costs more than all else
        return gap, right
    both = value.isfinite() & right.isfinite()
    return gap[both], right[both]


def _relative(gap: Tensor, right: Tensor) -> float:
    """The norm of differences over that of the right values."""
    norm, distance = right.norm().item(), gap.norm().item()
    return distance / norm if norm > 0 else 0.0 if distance == 0 else float("inf")


def _ulps(gap: Tensor, right: Tensor, format: Any) -> float | None:
    """The largest of differences, in units in the last place at the right values."""
    if not isinstance(format, ScalarFormat):
        return None
    return float((gap / ulp(right, format)).abs_().max()) if gap.numel() else 0.0


def _tensors(nest: Iterable[Any]) -> Iterable[Tensor]:
    for value in nest:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, _CONTAINERS):
            yield from _tensors(value)


def _map(nest: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with every float tensor replaced by f of it."""
    return type(nest)(
        f(value)
        if isinstance(value, Tensor) and value.is_floating_point()
        else _map(value, f)
        if isinstance(value, _CONTAINERS)
        else value
        for value in nest
    )


def _named(kwargs: dict[str, Any], f: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Keyword arguments likewise; a dtype that a caller names is float64 there."""
    values = dict(zip(kwargs, _map(tuple(kwargs.values()), f), strict=True))
    return {name: torch.float64 if value is torch.float32 else value for name, value in values.items()}


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an op writes to."""
    return list(_tensors([argument(p, args, kwargs) for p in rule_for(func).writes]))
