"""Losses that a study asks for, and the number that one is."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_callable(name: str, given: Any, returns: str = "one number") -> None:
    """An error that says what was given, unless it can be called."""
    if not callable(given):
        raise TypeError(f"{name} must be a function that returns {returns}, got {given!r}")


def number_of(value: Any, name: str) -> float:
    """What ``name`` returned, as a number, or an error that says what it should have been.

    >>> number_of(2, "loss")
    2.0
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} must return one number, got a tensor of shape {tuple(value.shape)}; take its .mean()")
    try:
        return float(value.detach().double().item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must return one number, got {value!r}") from error
