"""Lets others look at every rounding of a plain tensor, with the values before and after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from lptensor import _compat
from lptensor.thread_contexts import close_on_thread, open_on_thread


class Observer:
    """One who looks at roundings; he may also change the values after."""

    active = True  # while it is False nothing is shown, and nothing copied for him

    def round(self, x: Tensor, y: Tensor, format: Any, rounding: Any, generator: Any) -> bool:
        """Round ``x`` into ``y`` himself, if he need not see both: he who only counts is spared a copy."""
        return False

    def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
        """A tensor was rounded."""
        raise NotImplementedError


_KEY = "lptensor.observe"  # who looks at the roundings of this thread, and of its backward passes
_COPIES = "lptensor.copies"  # who follows the copies that it makes
_lock = threading.Lock()
_local = threading.local()
anyone = 0  # contexts open on all threads: a rounding pays for one look at this


class observing:  # reads as a function
    """A context in which an observer sees the roundings of this thread, and of the backward passes it starts.

    LPTensors, ``round``, quantizers, lowered layers and OptimLP all come by; compiled code does not.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __enter__(self) -> None:
        global anyone
        open_on_thread(_KEY, self._observer)
        with _lock:
            anyone += 1

    def __exit__(self, *_: Any) -> None:
        global anyone
        close_on_thread(_KEY, self._observer)
        with _lock:
            anyone -= 1


class following:  # reads as a function
    """A context in which ``follower.copied(x, copy)`` hears where this thread takes the values of a tensor with it."""

    def __init__(self, follower: Any) -> None:
        self._follower = follower

    def __enter__(self) -> None:
        open_on_thread(_COPIES, self._follower)

    def __exit__(self, *_: Any) -> None:
        close_on_thread(_COPIES, self._follower)


def copied(x: Tensor, copy: Tensor) -> None:
    """Tell those who follow that a plain tensor stands for another, as one that is made of it does."""
    if type(copy) is Tensor and not _compat.traced() and not _compat.transforming():
        for follower in _compat.thread_local(_COPIES) or ():
            follower.copied(x, copy)


@contextmanager
def unseen() -> Iterator[None]:
    """A context whose roundings are shown to nobody: they are a means, such as a draw, and no values of a model."""
    before = getattr(_local, "showing", False)
    _local.showing = True
    try:
        yield
    finally:
        _local.showing = before


def observers() -> list[Observer]:
    """Those who look at this thread now; while one looks, what it rounds itself is nobody's affair."""
    if getattr(_local, "showing", False):
        return []
    return [observer for observer in _compat.thread_local(_KEY) or () if observer.active]


def show(to: list[Observer], before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
    """Let observers look at a rounding."""
    with unseen():
        for observer in to:
            observer.rounded(before, after, format, rounding)


class about:  # reads as a function
    """A context that says what is being rounded: "weight", "gradient", ..., of which parameter.

    Or an "operand" of a product that is no gradient, of the tensor that came to the op, None of what was made there.
    """

    def __init__(self, what: str, of: Tensor | None) -> None:
        self._said = what, of

    def __enter__(self) -> None:
        self._before = said()
        _local.said = self._said

    def __exit__(self, *_: Any) -> None:
        _local.said = self._before


def saying(what: str, of: Tensor | None) -> Any:
    """``about(what, of)`` if there is anyone to hear it."""
    return about(what, of) if anyone else nullcontext()


def said() -> tuple[str, Tensor | None] | None:
    """What the innermost ``about`` says."""
    told: tuple[str, Tensor | None] | None = getattr(_local, "said", None)
    return told
