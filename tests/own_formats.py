"""Formats as somebody outside may write them, lowered to what no kernel knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from lptensor import reference
from lptensor.blocks import BlockFloatingPoint, BlockFormat
from lptensor.formats import Format
from lptensor.scaling import Tile


class Step(NamedTuple):
    """Rounds to the multiples of a number, in a function that ``teach`` brings."""

    step: float

    @property
    def loop(self) -> str:
        return "round_step"


@dataclass(frozen=True)
class Multiples(Format):
    """The multiples of a power of two up to 2 in magnitude."""

    step: float = 0.25
    max = 2.0
    min = -2.0

    @property
    def lowered(self) -> Step:
        return Step(self.step)


@dataclass(frozen=True)
class Centred(BlockFormat):
    """Blocks of the last axis from which their largest value is taken away."""

    element = BlockFloatingPoint(8).element
    tile = Tile((4,))

    @property
    def lowered(self) -> Any:
        return Step(0.0)


def in_steps(x: Tensor, lowered: Step, *how: Any) -> Tensor:
    """What the reference has to do, for either format."""
    if lowered.step:
        return (x.clamp(-2, 2) / lowered.step).round() * lowered.step
    blocks: Tensor = x.unflatten(-1, (-1, how[0][-1]))
    return (blocks - blocks.amax(-1, keepdim=True)).flatten(-2)


def teach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference know how to round to them."""
    monkeypatch.setattr(reference, "round_step", in_steps, raising=False)
