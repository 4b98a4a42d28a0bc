"""Contexts that hold for a thread, and the backward passes it starts, and that close in whatever order."""

from __future__ import annotations

from typing import Any

from lptensor import _compat


def open_on_thread(key: str, context: Any) -> None:
    """Add a context to those of its kind, innermost last, which ``_compat.thread_local(key)`` gives."""
    _compat.set_thread_local(key, (*(_compat.thread_local(key) or ()), context))


def close_on_thread(key: str, context: Any) -> None:
    """Take a context out: one that opened since stays, as asyncio's tasks leave it."""
    _compat.set_thread_local(key, tuple(c for c in _compat.thread_local(key) or () if c is not context))
