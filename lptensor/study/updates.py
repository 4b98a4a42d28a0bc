"""Counts the changes of weights that rounding undid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lptensor import _native_census
from lptensor._native_census import UpdatesStruct
from lptensor.study.census import alike, native


class Updates:
    """What an optimizer wanted to do to one parameter, and what came of it.

    ``wanted`` counts elements that a write was to change, ``lost`` those of them that rounding put back
    where they were. ``edq``, effective descent quality (Collage, arXiv 2405.03637), is the part of the
    wanted step that was made, <made, wanted> / <wanted, wanted>: 1 if nothing is lost.
    """

    def __init__(self) -> None:
        self._found = UpdatesStruct()

    @property
    def wanted(self) -> int:
        """How many elements a write was to change."""
        return int(self._found.wanted)

    def add(self, start: Tensor, before: Tensor, after: Tensor) -> None:
        """One write: the old values, the new ones before they were rounded, and after."""
        if native(start):
            _native_census.updates(*alike(start, before, after), self._found)
        else:
            self._add_with_torch(start, before, after)

    def _add_with_torch(self, start: Tensor, before: Tensor, after: Tensor) -> None:
        """The same in torch, on any device."""
        wanted, made = before - start, after - start
        changes = before != start
        counts = torch.stack([changes.sum(), (changes & (after == start)).sum()]).tolist()
        wanted, made = wanted.double().flatten(), made.double().flatten()
        sums = torch.stack([made @ wanted, wanted @ wanted]).tolist()
        self._join(UpdatesStruct(*counts, *sums))

    def merge(self, other: Updates) -> None:
        """Count what another one counted too."""
        self._join(other._found)

    def _join(self, more: UpdatesStruct) -> None:
        for name, _ in UpdatesStruct._fields_:
            setattr(self._found, name, getattr(self._found, name) + getattr(more, name))

    def row(self) -> dict[str, Any]:
        """Shares of what was wanted; None where nothing was.

        >>> updates = Updates()
        >>> updates.add(torch.ones(2), torch.tensor([1.25, 1.001]), torch.tensor([1.25, 1.0]))
        >>> updates.row()["lost"]
        0.5
        """
        found = self._found
        return {
            "wanted": self.wanted or None,
            "lost": found.lost / found.wanted if found.wanted else None,
            "edq": found.along / found.whole if found.whole > 0 else None,
        }


NONE = Updates().row()
