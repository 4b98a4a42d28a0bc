"""The rounding op that torch's compilers and tracers see in place of a direct kernel call."""

from __future__ import annotations

import torch
from torch import Tensor

from lptensor.formats import Format
from lptensor.ops import round_fresh, round_into
from lptensor.rounding import Rounding

# A graph names a rule by its text; the rule itself is found here. Filled where an op is traced and,
# for graphs that come out of a cache, by whoever made the tensors that the graph gets.
_RULES: dict[str, tuple[Format, Rounding]] = {}

_LIBRARY = torch.library.Library("lptensor", "DEF")
# A draw may be neither merged with another, nor moved, nor repeated in the backward pass.
_TAGS = {False: (), True: (torch.Tag.nondeterministic_seeded,)}
for _kind, _tags in (("round", _TAGS[False]), ("round_stochastic", _TAGS[True])):
    _LIBRARY.define(f"{_kind}(Tensor x, str rule) -> Tensor", tags=_tags)
    _LIBRARY.define(f"{_kind}_(Tensor(a!) x, str rule) -> ()", tags=_tags)


def _round(x: Tensor, rule: str) -> Tensor:
    return round_fresh(x, *_RULES[rule])


def _round_(x: Tensor, rule: str) -> None:
    round_into(x, x, *_RULES[rule])


def _round_fake(x: Tensor, rule: str) -> Tensor:
    return torch.empty_like(x)


def _round_fake_(x: Tensor, rule: str) -> None:
    return None


for _kind in ("round", "round_stochastic"):
    _LIBRARY.impl(_kind, _round, "CompositeExplicitAutograd")
    _LIBRARY.impl(f"{_kind}_", _round_, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lptensor::{_kind}", _round_fake, lib=_LIBRARY)
    torch.library.register_fake(f"lptensor::{_kind}_", _round_fake_, lib=_LIBRARY)


def register(format: Format, rounding: Rounding) -> str:
    """The text by which graphs call a rule."""
    rule = f"{format!r} {rounding!r}"
    _RULES[rule] = format, rounding
    return rule


def traced_round_(x: Tensor, format: Format, rounding: Rounding) -> None:
    """Round a tensor that a tracer watches, in place."""
    op = torch.ops.lptensor.round_stochastic_ if rounding.stochastic else torch.ops.lptensor.round_
    op(x, register(format, rounding))
