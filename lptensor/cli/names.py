"""Formats as a person types them: the named rows, and how a text becomes a format."""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import re

import torch

import lptensor
from lptensor.blocks import BlockFloatingPoint
from lptensor.formats import FixedPoint, FloatingPoint, Format
from lptensor.interop import format_of
from lptensor.names import name_of, named_formats

_SHORT: dict[str, type[Format]] = {"fixed": FixedPoint, "float": FloatingPoint, "bfp": BlockFloatingPoint}
_SPELLINGS = "eXmY (e5m10), or a constructor: fixed(8, 4), FloatingPoint(5, 2, bias=16), Posit(8) or MX(E4M3, 16)"


def constructors() -> dict[str, type[Format]]:
    """The format classes that the package exports, and short names for them, by name in lower case."""
    kinds = [kind for kind in vars(lptensor).values() if isinstance(kind, type) and _constructible(kind)]
    return _SHORT | {kind.__name__.lower(): kind for kind in kinds}


def _constructible(kind: type) -> bool:
    """Whether it is a format to make values of, not a base class of formats."""
    return issubclass(kind, Format) and "__dataclass_fields__" in vars(kind)


def parse_format(text: str) -> Format:
    """The format that a text names, in upper or lower case.

    The text is a row's name or that of a torch dtype, ``eXmY`` for IEEE-like floating point (a row of that
    name comes first: ``e4m3`` is OCP's), or a constructor with literal arguments. Nothing is evaluated.

    Raises:
        ValueError: the text names no format, or one with parameters out of range.

    >>> parse_format("e5m10") == parse_format("fp16") == parse_format("FloatingPoint(16)")
    True
    >>> parse_format("float8_e4m3fn") == parse_format("e4m3fn") == parse_format("e4m3")
    True
    >>> parse_format("fixed(8, fl=4)")
    FixedPoint(wl=8, fl=4)
    """
    name = text.strip()
    rows: dict[str, Format] = {row.lower(): format for row, format in named_formats().items()}
    if name.lower() in rows:
        return rows[name.lower()]
    if (counterpart := _of_dtype(name)) is not None:
        return counterpart
    try:
        if sizes := re.fullmatch(r"e(\d+)m(\d+)", name.lower()):
            return FloatingPoint(int(sizes[1]), int(sizes[2]))
        call = _parse_call(name)
        kind = constructors().get(call.func.id.lower()) if call and isinstance(call.func, ast.Name) else None
        if call is None or kind is None:
            raise _Unknown
        given, named = [*map(_argument, call.args)], {str(k.arg): _argument(k.value) for k in call.keywords}
        taken = inspect.signature(kind)
        try:
            taken.bind(*given, **named)
        except TypeError as error:
            bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in taken.parameters.values()]
            raise ValueError(f"{error}; it takes {inspect.Signature(bare)}") from None
        return kind(*given, **named)
    except _Unknown:
        raise ValueError(_unknown(name)) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r} is not a format: {error}") from None


def _of_dtype(name: str) -> Format | None:
    """The format of the torch dtype of that name, with or without ``float8_``."""
    for spelling in (name.lower().removeprefix("torch."), f"float8_{name.lower()}"):
        if isinstance(dtype := getattr(torch, spelling, None), torch.dtype):
            with contextlib.suppress(ValueError):
                return format_of(dtype)
    return None


class _Unknown(Exception):
    """The text has the form of no format."""


def _parse_call(text: str) -> ast.Call | None:
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return node if isinstance(node, ast.Call) else None


def _argument(node: ast.expr) -> object:
    """A literal, or a format inside a format."""
    if isinstance(node, ast.Name | ast.Call):
        return parse_format(ast.unparse(node))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"arguments are numbers, names or formats, got {ast.unparse(node)!r}") from None


def _unknown(name: str) -> str:
    rows = list(named_formats())
    known = {spelling.lower(): spelling for spelling in [*rows, *(kind.__name__ for kind in constructors().values())]}
    close = difflib.get_close_matches(name.lower().partition("(")[0], known, n=1)
    hint = f" Did you mean {known[close[0]]}?" if close else ""
    return f"unknown format {name!r}.{hint} Known: {', '.join(rows)}; or {_SPELLINGS}."


def short(format: Format | None) -> str:
    """A format's name, or else a short text, which ``parse_format`` takes but for ``Scaled`` formats and codebooks.

    >>> short(FloatingPoint(8)), short(FixedPoint(8, 4)), short(None)
    ('E5M2', 'fixed(8, 4)', '-')
    """
    if format is None:
        return "-"
    if name := name_of(format):
        return name
    text = re.sub(r"\b(wl|fl|exp|man)=", "", format.spelled())
    word = next((word for word, kind in _SHORT.items() if kind is type(format)), type(format).__name__)
    return text.replace(type(format).__name__, word, 1)
