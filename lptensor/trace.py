"""Lists every op on LPTensors as it runs, with what it rounded and the line of code it came from."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat, direction, watch
from lptensor.base import Format
from lptensor.rounding import Rounding, show_rounding
from lptensor.rules import Kind
from lptensor.thread_contexts import close_on_thread, open_on_thread

_KINDS = {
    Kind.DECOMPOSE: "composite",
    Kind.RESHAPE: "reshaped",
    Kind.MUTATE: "written",
    Kind.VIEW: "viewed",
    Kind.KEEP: "kept",
    Kind.ROUND: "computed",
    Kind.COLLECT: "computed",
    Kind.REFUSE: "refused",
}


@dataclass(frozen=True)
class Rounded:
    """One rounding of one tensor."""

    shape: tuple[int, ...]
    format: Format
    rounding: Rounding

    def __str__(self) -> str:
        how = "" if self.rounding == Rounding() else f" {show_rounding(self.rounding)}"
        return f"{self.format}{how}"


@dataclass(frozen=True)
class Row:
    """One op on LPTensors.

    Args:
        op: its name without ``aten.`` and ``.default``: "addmm", "add.Tensor"; also "to_lp", and
            "dequantize" for the gradient that comes back through one.
        kind: "rounded", "kept", "viewed", "written", "reshaped"; "computed" if nothing was rounded
            because the result is no float, or the arithmetic has no format.
        rounded: every rounding in it, in order.
        backward: whether it computed a gradient.
        shape: of the result, of the first one if there are many; None without a tensor.
        where: file and line of the user's code, "/home/me/net.py:12", of which the printed table has "net.py:12";
            for a gradient those of the forward op.
        module: path of the nn.Module it ran in, "Net.layers.0"; "" outside of any.
    """

    op: str
    kind: str
    rounded: tuple[Rounded, ...]
    backward: bool
    shape: tuple[int, ...] | None
    where: str
    module: str


@dataclass
class Trace:
    """What ``trace()`` saw: a list of rows that prints as a table."""

    rows: list[Row] = field(default_factory=list)

    def count(self, backward: bool | None = None) -> Counter[str]:
        """Roundings by op, of all rows, or of forward or backward ones only. ``.total()`` sums them."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            if row.rounded and backward in (None, row.backward):
                counts[row.op] += len(row.rounded)
        return counts

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        head = ("op", "kind", "pass", "shape", "rounded to", "where", "module")
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        total, ops = self.count().total(), len(self.rows)
        return "\n".join([*lines, f"{total} rounding{'s' * (total != 1)} in {ops} op{'s' * (ops != 1)}"])


def _cells(row: Row) -> tuple[str, ...]:
    names = [str(r) for r in row.rounded]
    shown = [f"{names.count(n)} x {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names)]
    shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
    where, direction = row.where.replace("\\", "/").rpartition("/")[2], "backward" if row.backward else "forward"
    return row.op, row.kind, direction, shape, ", ".join(shown), where, row.module


class trace:  # reads as a function
    """A context that lists, in order, every op on LPTensors: what was rounded, to what, and where it came from.

    Holds for the thread that enters it, and for the backward passes it starts, on whatever device.
    Traces nest; each lists what runs within it. Values are not changed. Ops that ran within
    torch.compile are listed as they are traced, not as they run.

    Raises:
        RuntimeError: entered within itself.

    >>> from lptensor import E4M3
    >>> x = torch.ones(2).to_lp(E4M3)
    >>> with trace() as t:
    ...     y = (x * 3).relu()
    >>> [(row.op, row.kind, len(row.rounded)) for row in t]
    [('mul.Tensor', 'rounded', 1), ('relu', 'kept', 0)]
    """

    _recorder: _Recorder | None = None

    @_compat.run_by_python
    def __enter__(self) -> Trace:
        if self._recorder is not None:
            raise RuntimeError("this trace is entered already; make another trace() for a context within")
        self._recorder = _Recorder()
        open_on_thread(_KEY, self._recorder)
        _watch(1)
        return self._recorder.trace

    @_compat.run_by_python
    def __exit__(self, *_: Any) -> None:
        close_on_thread(_KEY, self._recorder)
        self._recorder = None
        _watch(-1)


_KEY = "lptensor.trace"  # what this thread, and the threads of its backward passes, record into
_lock = threading.Lock()
_open = 0  # traces, on all threads


def _watch(more: int) -> None:
    global _open
    with _lock:
        _open += more
        watch.watcher = _Watcher() if _open else None


class Origins:
    """Where ops come from: the user's line and the module, for gradients those of the forward op."""

    def __init__(self) -> None:
        self.first_node = _compat.next_node()
        self.origins: dict[int, tuple[str, str]] = {}  # by number of the autograd node

    def origin(self, backward: bool) -> tuple[str, str]:
        """The file with its whole path, a colon and the line, and the module's path, of the op that runs.

        Ask before it does, and once.
        """
        node = _compat.running_node()
        if backward and node in self.origins:
            return self.origins[node]
        origin = _origin(sys._getframe(1))
        made = _compat.next_node() - 1  # autograd makes the node of an op before it runs the op
        if made >= self.first_node:
            self.origins.setdefault(made, origin)
        return origin


class _Recorder(Origins):
    """One trace."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()


class _Watcher:
    """Writes down what the recorders of the running thread want to know."""

    def run(self, func: Any, kind: Kind, work: Callable[[], Any]) -> Any:
        recorders = _compat.thread_local(_KEY)
        if not recorders:
            return work()
        backward = direction.in_backward()
        origins = [recorder.origin(backward) for recorder in recorders]
        roundings = _frames()
        roundings.append([])
        try:
            result = work()
        finally:
            rounded = tuple(roundings.pop())
        if kind is not Kind.DECOMPOSE or rounded:  # else its parts are listed
            name = _KINDS[kind]
            if rounded and kind in (Kind.ROUND, Kind.KEEP, Kind.DECOMPOSE, Kind.COLLECT):
                name = "rounded"
            for recorder, (where, module) in zip(recorders, origins, strict=True):
                row = Row(op_name(func), name, rounded, backward, _shape(result), where, module)
                recorder.trace.rows.append(row)
        return result

    def rounded(self, inner: Tensor, format: Format, rounding: Rounding) -> None:
        if _frames():
            _frames()[-1].append(Rounded(tuple(inner.shape), format, rounding))


_local = threading.local()


def _frames() -> list[list[Rounded]]:
    """The roundings of the ops that run on this thread, one within another."""
    frames: list[list[Rounded]] = _local.__dict__.setdefault("frames", [])
    return frames


def op_name(func: Any) -> str:
    """What rows call an op: its name without ``aten.`` and ``.default``."""
    return str(func).removeprefix("aten.").removesuffix(".default")


def _shape(result: Any) -> tuple[int, ...] | None:
    if isinstance(result, Tensor):
        return tuple(result.shape)
    if isinstance(result, (list, tuple)):
        return next((_shape(item) for item in result if _shape(item) is not None), None)
    return None


_LIBRARIES = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))


def _origin(frame: FrameType | None) -> tuple[str, str]:
    """The line of code that is neither torch's nor ours, and the path of the modules around it."""
    where, modules = "", []
    while frame is not None:
        code = frame.f_code
        if not where and not code.co_filename.startswith(_LIBRARIES):
            where = f"{code.co_filename}:{frame.f_lineno}"
        if code is _compat.MODULE_CALL:
            modules.append(frame.f_locals["self"])
        frame = frame.f_back
    return where, _path(modules[::-1])


def _path(modules: list[nn.Module]) -> str:
    """The path of nested modules, outermost first: a class, then names as in named_modules()."""
    parts: list[str] = []
    outer: nn.Module | None = None
    for module in modules:
        names = (name for name, child in outer.named_modules() if child is module) if outer else iter(())
        parts.append(next(names, type(module).__name__))
        outer = module
    return ".".join(parts)
