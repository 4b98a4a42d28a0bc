"""Ordered rules from the paths of a model's modules and parameters to arithmetics."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from lptensor import _compat
from lptensor.arithmetic import Arithmetic, as_arithmetic
from lptensor.formats import Format


class Verdict(enum.Enum):
    """What a path gets that no rule matches."""

    UNTOUCHED = "untouched"


UNTOUCHED = Verdict.UNTOUCHED
Answer = Arithmetic | None | Verdict


class PathRules:
    """The first pattern that matches a path, or anything above it, decides.

    >>> rules = PathRules({"head": None})
    >>> rules.of("head.weight"), rules.of("body.weight")
    (None, <Verdict.UNTOUCHED: 'untouched'>)
    """

    def __init__(self, spec: Format | Arithmetic | None | Mapping[str, Format | Arithmetic | None]) -> None:
        rows: Any = spec.items() if isinstance(spec, Mapping) else [("*", spec)]
        self._answers: dict[str, Answer] = {}  # a conversion asks for each path many times
        self._rules: list[tuple[str, Arithmetic | None]] = []
        for pattern, value in rows:
            if not isinstance(pattern, str):
                raise TypeError(f"a path pattern is a string such as 'layers.*.norm', got {pattern!r}")
            self._rules.append((pattern, None if value is None else as_arithmetic(value)))

    def of(self, path: str) -> Answer:
        """The arithmetic of a module or parameter path; None for plain fp32."""
        if path not in self._answers:
            found = (arithmetic for pattern, arithmetic in self._rules if matches(pattern, path))
            self._answers[path] = next(found, UNTOUCHED)
        return self._answers[path]

    def of_parent(self, path: str) -> Answer:
        return self.of(path.rpartition(".")[0])

    def check_paths(self, paths: Sequence[str]) -> None:
        """Refuse patterns that match nothing, which are typing errors, and those that come too late to matter."""
        deciders = [next((rule for rule in self._rules if matches(rule[0], path)), None) for path in paths]
        for pattern, arithmetic in self._rules:
            found = [(path, rule) for path, rule in zip(paths, deciders, strict=True) if matches(pattern, path)]
            if not found:
                plain = [path for path in dict.fromkeys(map(plain_path, paths)) if path]
                known = ", ".join(map(repr, plain[:6])) + (", ..." if len(plain) > 6 else "") or "no parts"
                raise ValueError(f"the path rule {pattern!r} matches no module or parameter; the model has {known}")
            others = [(path, rule) for path, rule in found if rule and rule[0] != pattern]
            path, rule = next(((p, r) for p, r in others if r[1] != arithmetic), ("", None))
            if rule and len(others) == len(found):
                raise ValueError(
                    f"the path rule {pattern!r} comes after {rule[0]!r}, which decides {path!r} and all else that it "
                    "matches, as the first rule that matches does; say the more special rule first"
                )


def listed(name: str, patterns: Iterable[str]) -> tuple[str, ...]:
    """The path patterns of an argument; a string, which is a list of its letters, is refused."""
    if isinstance(patterns, str):
        raise TypeError(f"{name} takes a list of path patterns, got {patterns!r}; say {name}=[{patterns!r}]")
    given = None
    with contextlib.suppress(TypeError):  # of what cannot be gone through, as a tensor of one number
        given = tuple(patterns)
    if given is None or not all(isinstance(pattern, str) for pattern in given):
        raise TypeError(f'{name} takes a list of path patterns such as "head.*", got {patterns!r}')
    return given


def plain_path(path: str) -> str:
    """A path as it is without ``torch.compile``, which wraps a module in one that calls it ``_orig_mod``.

    >>> plain_path("_orig_mod.layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in path.split(".") if part != _compat.COMPILED)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path or one that holds it. The model itself has the empty path, and holds all.

    What ``torch.compile`` adds to a path need not be in the pattern.
    """
    above = _above(path)
    return pattern in above or not _WILD.isdisjoint(pattern) and any(fnmatchcase(part, pattern) for part in above)


_WILD = frozenset("*?[")


@lru_cache(maxsize=2**16)
def _above(path: str) -> frozenset[str]:
    """A path and those that hold it, in either spelling."""
    spellings = (spelling.split(".") for spelling in (path, plain_path(path)))
    return frozenset(".".join(parts[:n]) for parts in spellings for n in range(len(parts) + 1))
