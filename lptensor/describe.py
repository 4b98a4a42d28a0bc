"""Formats as plain data, for files that outlive a process: a dict that JSON holds, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lptensor.base import wrong_format
from lptensor.formats import Format
from lptensor.scaling import Scaling, Tile
from lptensor.text import arguments


def describe(format: Format) -> dict[str, Any]:
    """The name of the format's class and what it was made of.

    Raises:
        TypeError: no format.

    >>> from lptensor import INT8
    >>> describe(INT8)
    {'type': 'FixedPoint', 'wl': 8, 'fl': 0, 'clamp': True, 'symmetric': False, 'signed': True}
    """
    if not isinstance(format, Format):
        raise wrong_format(format)
    found: dict[str, Any] = _described(format)
    return found


def format_from(description: Mapping[str, Any]) -> Format:
    """The format that ``describe`` described; nothing but classes of formats and their scalings is ever called.

    Raises:
        ValueError: no description, or one of a class that this version of lptensor lacks.

    >>> format_from({"type": "FloatingPoint", "exp": 5, "man": 2})
    E5M2
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"a format is described by a dict with its type, got {description!r}")
    made: Format = _made(description, [*_kinds(Format)])
    return made


def _described(value: Any) -> Any:
    if not isinstance(value, (Format, Scaling, Tile)):
        return value
    given = {argument: getattr(value, name) for name, argument in arguments(type(value)).items()}
    return {"type": type(value).__name__} | {k: _described(v) for k, v in given.items()}


def _made(value: Any, kinds: list[type[Any]]) -> Any:
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, list) else value
    if "type" not in value:
        raise ValueError(f"a format is described by a dict with its type, got {value!r}")
    known = {kind.__name__: kind for kind in kinds}
    name = value["type"]
    if not isinstance(name, str) or name not in known:
        public = ", ".join(sorted(kind for kind in known if not kind.startswith("_")))
        raise ValueError(f"unknown format {name!r}; this version of lptensor knows {public}")
    inside = [*_kinds(Format), *_kinds(Scaling), Tile]
    taken = arguments(known[name])  # files of earlier versions have a codebook's values under the field's name
    given: dict[str, Any] = {taken.get(str(k), str(k)): _made(v, inside) for k, v in value.items() if k != "type"}
    try:
        return known[name](**given)
    except TypeError as error:
        raise ValueError(f"{name} takes no such description: {error}") from error


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    for sub in kind.__subclasses__():
        if "__dataclass_fields__" in vars(sub):
            yield sub
        yield from _kinds(sub)
