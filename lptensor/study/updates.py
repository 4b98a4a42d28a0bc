"""Counts the changes of weights that rounding undid."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Updates:
    """What an optimizer wanted to do to one parameter, and what came of it.

    ``wanted`` counts elements that a write was to change, ``lost`` those of them that rounding put back
    where they were. ``edq``, effective descent quality (Collage, arXiv 2405.03637), is the part of the
    wanted step that was made, <made, wanted> / <wanted, wanted>: 1 if nothing is lost.
    """

    def __init__(self) -> None:
        self.wanted = self.lost = 0
        self._along = self._whole = 0.0

    def add(self, start: Tensor, before: Tensor, after: Tensor) -> None:
        """One write: the old values, the new ones before they were rounded, and after."""
        wanted, made = before - start, after - start
        changes = before != start
        self.wanted += int(changes.count_nonzero())
        self.lost += int((changes & (after == start)).count_nonzero())
        wanted, made = wanted.double().flatten(), made.double().flatten()
        self._along += float(made @ wanted)
        self._whole += float(wanted @ wanted)

    def merge(self, other: Updates) -> None:
        """Count what another one counted too."""
        self.wanted, self.lost = self.wanted + other.wanted, self.lost + other.lost
        self._along, self._whole = self._along + other._along, self._whole + other._whole

    def row(self) -> dict[str, Any]:
        """Shares of what was wanted; None where nothing was.

        >>> import torch
        >>> updates = Updates()
        >>> updates.add(torch.ones(2), torch.tensor([1.25, 1.001]), torch.tensor([1.25, 1.0]))
        >>> updates.row()["lost"]
        0.5
        """
        return {
            "wanted": self.wanted or None,
            "lost": self.lost / self.wanted if self.wanted else None,
            "edq": self._along / self._whole if self._whole > 0 else None,
        }


NONE = Updates().row()
