"""Formats that change over the course of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lptensor.base import check_int, check_state, no_format
from lptensor.formats import Format


class FormatSchedule:
    """Calls ``apply(format)`` at the steps from which another format holds.

    Accuracy Booster (2211.10737) trains in 4-bit block floating point and its last epoch in 6 bits:
    ``FormatSchedule({0: BlockFloatingPoint(4), epochs - 1: BlockFloatingPoint(6)}, apply)``. What a
    format is used for is the function's affair: ``lower`` the model again, ``convert`` it, or set an
    attribute. The first format is applied at once; a step is what the caller counts, epochs or batches.

    Args:
        formats: {the first step: format or None}, with one at 0.
        apply: a function of the format.

    Raises:
        TypeError: no dict of formats, an ``apply`` that cannot be called.
        ValueError: a negative step, or none at 0.

    >>> from lptensor import E4M3, BF16
    >>> seen = []
    >>> schedule = FormatSchedule({0: E4M3, 2: BF16}, seen.append)
    >>> for epoch in range(3):
    ...     schedule.step()
    >>> [format is BF16 for format in seen]
    [False, True]
    """

    def __init__(self, formats: Mapping[int, Format | None], apply: Callable[[Format | None], Any]) -> None:
        if not isinstance(formats, Mapping):
            raise TypeError(f"formats must be a dict such as {{0: E4M3, 10: BF16}}, got {formats!r}")
        count = len(formats)
        formats = {check_int("the step of a format", step, 0, 2**62): format for step, format in formats.items()}
        if len(formats) < count:
            raise ValueError(f"a step has one format; equal steps are among {[*formats]}")
        for step, format in formats.items():
            if format is not None and not isinstance(format, Format):
                got = no_format(format)
                raise TypeError(f"step {step} needs a number format such as FloatingPoint(8) or None, got {got}")
        if not callable(apply):
            raise TypeError(f"apply must be a function of the format, got {apply!r}")
        if 0 not in formats:
            raise ValueError(f"the schedule needs a format to begin with, at step 0; it has {sorted(formats)}")
        self.formats, self.apply = dict(sorted(formats.items())), apply
        self.steps = 0
        apply(self.format)

    @property
    def format(self) -> Format | None:
        """The format that holds now."""
        return self.formats[max(step for step in self.formats if step <= self.steps)]

    def step(self) -> None:
        """Count one step, and apply the format that begins with it. If that raises, the step is not counted."""
        if self.steps + 1 in self.formats:
            self._apply_at(self.steps + 1)
        else:
            self.steps += 1

    def _apply_at(self, steps: int) -> None:
        before, self.steps = self.steps, steps
        try:
            self.apply(self.format)
        except BaseException:
            self.steps = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """The count of steps; formats and function are the constructor's."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, and apply the format that holds there.

        Load the schedule before the model and the optimizer: until then these have the format of step 0, to which
        what is loaded would be rounded.

        Raises:
            TypeError, ValueError: a state without a count of steps.
        """
        check_state("schedule", state_dict, "steps")
        self._apply_at(check_int("steps", state_dict["steps"], 0, 2**62))
