"""The three contracts about where values are rounded, and the one that holds on this thread."""

from __future__ import annotations

from lptensor import _compat
from lptensor.thread_contexts import close_on_thread, open_on_thread

CONTRACTS = ("aten", "function", "primitive")
_KEY = "lptensor.rounding_points"


def contract() -> str:
    """The contract that holds on this thread, and on those of its backward passes."""
    held = _compat.thread_local(_KEY)
    return held[-1].name if held else CONTRACTS[0]


class Held:
    """A contract that holds on this thread until it ends, or a later one comes; its mode has to be on as well."""

    def __init__(self, name: str) -> None:
        self.name = name
        open_on_thread(_KEY, self)

    def end(self) -> None:
        close_on_thread(_KEY, self)
