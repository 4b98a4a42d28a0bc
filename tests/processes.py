"""What tests run in another process, which imports it by name."""

from __future__ import annotations

from typing import Any


def double_in_place(inbox: Any, outbox: Any) -> None:
    """Say what arrived, send a copy back, then write into the memory that is shared."""
    import lptensor  # noqa: F401 - to_lp and the classes in the pickle

    given = inbox.get()
    x, leaf = given["x"], given["leaf"]
    outbox.put((type(x).__name__, x.arithmetic, leaf.requires_grad, x.clone()))
    x.mul_(2)
    inbox.get()  # the sender of a tensor in shared memory must outlive its receiver
