"""How far a long study has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from lptensor.base import check_bool

T = TypeVar("T")


def track(items: Sequence[T], what: str, show: bool) -> Iterable[T]:
    """The items, with a bar on standard error that counts them, if that is a terminal and ``show`` says so.

    >>> list(track([1, 2], "numbers", show=True))
    [1, 2]
    """
    from rich.console import Console  # here, so that importing lptensor does not import rich
    from rich.progress import track as rich_track

    console = Console(file=sys.stderr)
    if not check_bool("progress", show) or not console.is_terminal:
        return items
    return rich_track(items, what, console=console, transient=True)


@contextmanager
def counting(what: str, show: bool) -> Iterator[Callable[[], None]]:
    """Counts steps of which nobody knows how many there will be; call what it gives after each.

    >>> with counting("runs", show=True) as done:
    ...     done()
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn

    console = Console(file=sys.stderr)
    if not check_bool("progress", show) or not console.is_terminal:
        yield lambda: None
        return
    columns = SpinnerColumn(), "{task.description}: {task.completed:g}"
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda: bar.advance(task)
