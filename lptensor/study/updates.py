"""Counts the changes of weights that rounding undid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lptensor import _native_census
from lptensor._native_census import Rounder, UpdatesStruct
from lptensor.formats import Format
from lptensor.ops import draw_key, round_fresh
from lptensor.rounding import Rounding
from lptensor.study.census import alike, native, rounds


class Updates:
    """What an optimizer wanted to do to one parameter, and what came of it.

    ``wanted`` counts elements that a write was to change, ``lost`` those of them that rounding put back
    where they were. ``edq``, effective descent quality (Collage, arXiv 2405.03637), is the part of the
    wanted step that was made, <made, wanted> / <wanted, wanted>: 1 if nothing is lost.

    >>> updates = Updates()
    >>> updates.add(torch.ones(2), torch.tensor([1.25, 1.001]), torch.tensor([1.25, 1.0]))
    >>> updates.wanted, updates.row()["lost"]
    (2, 0.5)
    """

    def __init__(self) -> None:
        self._found = UpdatesStruct()
        self._rounder: Rounder | None = None

    def __getstate__(self) -> dict[str, Any]:  # what a kernel gets has no pickle, and is made again
        return self.__dict__ | {"_rounder": None}

    @property
    def wanted(self) -> int:
        """How many elements a write was to change."""
        return int(self._found.wanted)

    def add(self, start: Tensor, before: Tensor, after: Tensor) -> None:
        """One write: the old values, the new ones before they were rounded, and after."""
        start, before, after = alike(start, before, after)
        if native(start):
            _native_census.updates(start, before, after, self._found)
        else:
            self._add_with_torch(start, before, after)

    def ask(
        self,
        start: Tensor,
        now: Tensor,
        format: Format,
        rounding: Rounding,
        generator: torch.Generator | None = None,
    ) -> None:
        """One step of a plain weight, as it would be if the weight were held, and written, in a format."""
        if not rounds(now, format):
            held = round_fresh(start, format, rounding, generator)
            wanted = held + (now - start)
            self.add(held, wanted, round_fresh(wanted, format, rounding, generator))
            return
        if self._rounder is None or not self._rounder.fits(rounding, now.dtype):
            self._rounder = Rounder(format.lowered, rounding, now.dtype)
        keys = [draw_key(generator) if rounding.stochastic else None for _ in range(2)]
        start, now = alike(start, now)
        self._rounder.updates(start, now, keys, self._found)

    def _add_with_torch(self, start: Tensor, before: Tensor, after: Tensor) -> None:
        """The same in torch, on any device."""
        wanted, made = before - start, after - start
        changes = before != start
        counts = torch.stack([changes.sum(), (changes & (after == start)).sum()]).tolist()
        wanted, made = wanted.double().flatten(), made.double().flatten()
        sums = torch.stack([made @ wanted, wanted @ wanted]).tolist()
        found = UpdatesStruct(*counts)
        found.sums[:] = sums
        _native_census.join(self._found, found)

    def merge(self, other: Updates) -> None:
        """Count what another one counted too."""
        _native_census.join(self._found, other._found)

    def row(self) -> dict[str, Any]:
        """Shares of what was wanted; None where nothing was."""
        along, whole = self._found.sums
        return {
            "wanted": self.wanted or None,
            "lost": self._found.lost / self.wanted if self.wanted else None,
            "edq": None if whole == 0 else along / whole,
        }
