"""The three contracts about where values are rounded, and the one that holds on this thread."""

from __future__ import annotations

from lptensor import _compat

CONTRACTS = ("aten", "function", "primitive")
_KEY = "lptensor.rounding_points"


def contract() -> str:
    """The contract that holds on this thread, and on those of its backward passes."""
    return _compat.thread_local(_KEY) or CONTRACTS[0]


def set_contract(name: str) -> None:
    """Let a contract hold on this thread; its mode has to be on as well."""
    _compat.set_thread_local(_KEY, name)
