"""Says where values are rounded: at every aten kernel, at every function, or at every primitive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from inspect import iscoroutinefunction, isgeneratorfunction
from typing import Any, ParamSpec, TypeVar

from lptensor import _compat
from lptensor.contracts import CONTRACTS, Held
from lptensor.functions import Functions
from lptensor.primitives import Primitives

P = ParamSpec("P")
T = TypeVar("T")


class rounding_points:  # reads as a function
    """A context in which LPTensors round by another contract; before a function, that of its calls.

    "aten", the default: once at the output of each aten kernel, as a native dtype would. "function":
    each function of torch.nn.functional computes in fp32 and rounds once, whatever its layout, backend
    and decomposition, and once each gradient that leaves it; what selects values still rounds nothing,
    multi_head_attention_forward is entered, RNNs and all other ops follow "aten". "primitive": softmax,
    norms, activations, losses and attention run by their formulas, and every exp, sum, quotient rounds.

    Holds for the thread that enters it and the backward passes it starts, until the end of the block;
    the inner of two nested contexts wins. A graph that "function" made keeps its rounding points; for
    "primitive", and for checkpoints, the backward pass has to run within the context too.

    Args:
        name: "aten", "function" or "primitive".

    Raises:
        ValueError: any other name.
        TypeError: before a class, or a function that computes after it has returned, as a generator does.

    >>> import torch
    >>> from lptensor import BF16
    >>> from lptensor import trace
    >>> x = torch.randn(4).to_lp(BF16)
    >>> for name in ("aten", "function", "primitive"):
    ...     with rounding_points(name), trace() as t:
    ...         y = torch.nn.functional.softplus(x * 2).softmax(0)
    ...     print(name, t.count().total())
    aten 3
    function 3
    primitive 7
    """

    def __init__(self, name: str) -> None:
        if name not in CONTRACTS:
            raise ValueError(f"rounding_points takes one of {', '.join(map(repr, CONTRACTS))}, got {name!r}")
        self._name = name
        self._open: list[tuple[Held, ExitStack]] = []

    @_compat.run_by_python
    def __enter__(self) -> None:
        stack = ExitStack()
        if self._name != "aten":
            stack.enter_context(Functions())
        if self._name == "primitive":
            mode: Any = Primitives
            stack.enter_context(mode())
        self._open.append((Held(self._name), stack))

    @_compat.run_by_python
    def __exit__(self, *_: Any) -> None:
        held, stack = self._open.pop()
        held.end()
        stack.close()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        computes_later = isgeneratorfunction(function) or iscoroutinefunction(function)
        if not callable(function) or isinstance(function, type) or computes_later:
            raise TypeError(
                f"rounding_points() stands before a function that has computed all when it returns, got {function!r}; "
                "enter it within, with rounding_points(name):"
            )

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with rounding_points(self._name):
                return function(*args, **kwargs)

        return run
