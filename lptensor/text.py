"""Formats, roundings and arithmetics as text: what compiled graphs, saved programs and cache keys hold of them."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lptensor import _compat

T = TypeVar("T")

_CLASSES: dict[str, type] = {}
_RENAMED: dict[type, dict[str, str]] = {}
_MADE = "~"  # no field's name


def learn(cls: type[T]) -> type[T]:
    """A class whose instances have a text: a frozen dataclass or an enum, made again by its fields."""
    _CLASSES[_name(cls)] = cls
    _compat.run_members_by_python(cls)
    return cls


def constant(cls: type[T]) -> type[T]:
    """The same, for a class whose instances and subclasses' instances torch.compile shall take for constants.

    Dynamo then guards on their equality, runs their constructors, and never looks inside.
    """
    cls.__fx_repr__ = _fx_repr  # type: ignore[attr-defined]
    _compat.register_constant(cls)
    return learn(cls)


def renamed(**names: str) -> Callable[[type[T]], type[T]]:
    """A dataclass whose fields had other names, which pickles and texts of then have: the name of now for each of them.

    Without it a pickle would give a field of another name its default.
    """

    def learnt(cls: type[T]) -> type[T]:
        _RENAMED[cls] = names
        cls.__setstate__ = _set_state  # type: ignore[attr-defined]
        return cls

    return learnt


def _set_state(self: Any, state: dict[str, Any]) -> None:
    self.__dict__.update(_named_now(type(self), state))


def _named_now(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    names = _RENAMED.get(cls, {})
    return {names.get(name, name): value for name, value in given.items()}


def write(value: Any) -> str:
    """The text of a value, equal for equal parameters, in any process.

    Raises:
        TypeError: a value, or something in it, whose class has no text.

    >>> from lptensor import FixedPoint
    >>> write(FixedPoint(8, 4))
    '{"":"lptensor.formats.FixedPoint","wl":8,"fl":4,"clamp":true,"symmetric":false,"signed":true}'
    """
    return json.dumps(_plain(value), separators=(",", ":"))


@functools.lru_cache(maxsize=256)  # compiled code reads its formats' texts at each call
def read(text: str) -> Any:
    """The value whose text this is.

    Raises:
        ValueError: text that no ``write`` made, or that names a class which is not there.

    >>> from lptensor import E4M3
    >>> read(write(E4M3)) == E4M3
    True
    """
    try:
        return _made(json.loads(text))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{text!r} is the text of no format or rounding known here ({error!r})") from error


@functools.cache
def code() -> str:
    """A name for the code of this package. What an older one compiled, and torch kept on disk, may differ."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def arguments(cls: type[Any]) -> dict[str, str]:
    """The fields of a dataclass that its constructor takes, and what it calls them.

    Raises:
        TypeError: a class that is not a dataclass.
    """
    if not is_dataclass(cls):
        raise TypeError(f"nothing says what makes a {cls.__name__}: let the class be a frozen dataclass")
    taken = [f for f in fields(cls) if f.init or "argument" in f.metadata]
    return {f.name: f.metadata.get("argument", f.name) for f in taken}


def call(value: Any) -> str:
    """The call of a dataclass that makes this value of it: the arguments that are not at their defaults.

    >>> from lptensor import E8M0, CurrentMaximum
    >>> call(CurrentMaximum(scale=E8M0, margin=1))
    'CurrentMaximum(scale=E8M0, margin=1)'
    """
    given = {f.name: getattr(value, f.name) for f in fields(value) if f.init and getattr(value, f.name) != f.default}
    return f"{type(value).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class(name: str) -> type | None:
    """The class of that name: one that was learnt, or a noun of this package; None if there is none."""
    module, _, attribute = name.rpartition(".")
    if name not in _CLASSES and module.startswith("lptensor."):
        found = getattr(sys.modules.get(module), attribute, None)
        if isinstance(found, type) and (is_dataclass(found) or issubclass(found, enum.Enum)):
            learn(found)
    return _CLASSES.get(name)


def _plain(value: Any) -> Any:
    """``value`` as JSON has it; a dictionary stands for an object, and says its class under ""."""
    if isinstance(value, torch.dtype):
        return {"": "torch.dtype", "name": str(value).removeprefix("torch.")}
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) in (type(None), bool, int, float, str):
        return value
    name = _name(type(value))
    known = _class(name) is not None
    if known and isinstance(value, enum.Enum):
        return {"": name, "name": value.name}
    if known and is_dataclass(value):
        given = arguments(type(value))
        text = {"": name} | {argument: _plain(getattr(value, field)) for field, argument in given.items()}
        # What a user's own class makes of its fields may be edited, while compiled code is kept on disk.
        return text if name.startswith("lptensor.") else text | {_MADE: repr(getattr(value, "lowered", None))}
    raise TypeError(
        f"{value!r} cannot be written into a compiled graph: {name} is not a format, rounding or plain value; "
        "say what depends on it outside of torch.compile and torch.export"
    )


def _made(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_made(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    given = {name: _made(item) for name, item in plain.items() if name not in ("", _MADE)}
    if plain[""] == "torch.dtype":
        return getattr(torch, given["name"])
    cls: Any = _class(plain[""])
    if cls is None:
        raise KeyError(plain[""])
    return cls[given["name"]] if issubclass(cls, enum.Enum) else cls(**_named_now(cls, given))


def _fx_repr(self: Any) -> tuple[str, dict[str, Any]]:
    """How the code of a graph spells a constant, and what the names in it are.

    It names the code of this package too: torch keeps compiled code on disk by the code of its graph.
    """
    return f"_lptensor_read({write(self)!r}, {code()!r})", {"_lptensor_read": _read}


def _read(text: str, code: str = "") -> Any:
    return read(text)
