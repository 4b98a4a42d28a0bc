"""Formats as plain data, for files that outlive a process: a dict that JSON holds, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from lptensor.formats import Format


def describe(format: Format) -> dict[str, Any]:
    """The name of the format's class and what it was made of.

    >>> from lptensor.formats import INT8
    >>> describe(INT8)
    {'type': 'FixedPoint', 'wl': 8, 'fl': 0, 'clamp': True, 'symmetric': False, 'signed': True}
    """
    if not isinstance(format, Format):
        raise TypeError(f"expected a number format such as FloatingPoint(8) or FixedPoint(8, 4), got {format!r}")
    given = {f.name: getattr(format, f.name) for f in fields(format) if f.init}  # type: ignore[arg-type]
    return {"type": type(format).__name__} | {k: describe(v) if isinstance(v, Format) else v for k, v in given.items()}


def format_from(description: Mapping[str, Any]) -> Format:
    """The format that ``describe`` described; nothing but classes of formats is ever called.

    Raises:
        ValueError: no description, or one of a class that this version of lptensor lacks.

    >>> format_from({"type": "FloatingPoint", "exp": 5, "man": 2})
    FloatingPoint(exp=5, man=2)
    """
    if not isinstance(description, Mapping) or "type" not in description:
        raise ValueError(f"a format is described by a dict with its type, got {description!r}")
    known = {kind.__name__: kind for kind in _kinds(Format)}
    name = description["type"]
    if name not in known:
        raise ValueError(f"unknown format {name!r}; this version of lptensor knows {', '.join(sorted(known))}")
    given = {k: _value(v) for k, v in description.items() if k != "type"}
    try:
        return known[name](**given)
    except TypeError as error:
        raise ValueError(f"{name} takes no such description: {error}") from error


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return format_from(value)
    return tuple(value) if isinstance(value, list) else value


def _kinds(kind: type[Format]) -> Iterator[type[Format]]:
    for sub in kind.__subclasses__():
        if "__dataclass_fields__" in vars(sub):
            yield sub
        yield from _kinds(sub)
