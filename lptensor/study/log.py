"""What a recording counted: rows, text, JSON, TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lptensor.formats import Format
from lptensor.study.census import Census
from lptensor.study.histogram import Histogram
from lptensor.study.layer_map import plot_layer_map
from lptensor.study.places import ROLES
from lptensor.study.rows import Rows
from lptensor.study.updates import Updates

_Key = tuple[str, str, int]  # role, path, id of the format
_MAIN = ("role", "path", "format", "underflow", "subnormal", "saturated", "overflow", "nonfinite", "snr", "lost", "edq")


class Log:
    """The counts of one ``record``; they grow while it is open, and stay.

    ``steps`` is the number of steps counted. See ``Census`` and ``Updates`` for what the columns mean.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._counts: dict[_Key, Census] = {}
        self._updates: dict[_Key, Updates] = {}
        self._numbers: dict[Format, int] = {}
        self._formats: dict[int, tuple[int, Format]] = {}

    def census(self, role: str, path: str, format: Format) -> Census:
        """The counts of one role, path and format."""
        key = role, path, self._one(format)
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = Census(format)
        return found

    def _one(self, format: Format) -> int:
        """A number of a format: an equal one that is made anew at each call shall not have counts of its own.

        It is looked up by its id, as hashing costs more than counting.
        """
        known = self._formats.get(id(format))
        if known is None or known[1] is not format:
            number = self._numbers.setdefault(format, len(self._numbers))
            if len(self._formats) > 1000:  # of which most are made anew
                self._formats.clear()
            known = self._formats[id(format)] = number, format
        return known[0]

    def updates(self, role: str, path: str, format: Format) -> Updates:
        """The lost updates of the same."""
        key = role, path, self._one(format)
        found = self._updates.get(key)
        if found is None:
            found = self._updates[key] = Updates()
        return found

    def rows(self, by: str = "path") -> Rows:
        """A row of plain values for each role, path and format, or with ``by="role"`` for each role and format.

        role, path (with by="path"), format, roundings, values, and as shares of the values zero,
        underflow, subnormal, saturated, overflow and nonfinite; snr in dB; wanted, lost and edq of
        updates; binades, a dict from floor(log2 |x|) before rounding to a count.

        Raises:
            ValueError: any other ``by``.
        """
        if by not in ("path", "role"):
            raise ValueError(f"rows go by 'path' or by 'role', got {by!r}")
        merged: dict[tuple[str, str, Format], tuple[Census, Updates]] = {}
        for key in sorted(self._counts, key=lambda key: ROLES.index(key[0])):
            role, path, _ = key
            format = self._counts[key].format
            place = role, path if by == "path" else "", format
            census, updates = merged.setdefault(place, (Census(format), Updates()))
            census.merge(self._counts[key])
            if key in self._updates:
                updates.merge(self._updates[key])
        found = []
        for (role, path, format), (census, updates) in merged.items():
            where = {"role": role, "path": path} if by == "path" else {"role": role}
            counted = {**census.row(), **updates.row(), "binades": census.histogram()}
            found.append({**where, "format": repr(format), **counted})
        return Rows(found, plot_layer_map, _MAIN)

    def histogram(self, role: str, path: str | None = None) -> Histogram:
        """The exponents of the values of one role before they were rounded, of all paths or of one.

        Raises:
            ValueError: nothing was recorded under these names.
        """
        chosen = [c for (r, p, _), c in self._counts.items() if r == role and path in (None, p)]
        if not chosen:
            known = sorted({r if path is None else f"{r} {p}" for r, p, _ in self._counts})
            raise ValueError(f"nothing recorded of {role!r} {path or ''}; there is {', '.join(known) or 'nothing'}")
        whole = Census(chosen[0].format)
        for census in chosen:
            whole.merge(census)
        return Histogram(whole)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def __str__(self) -> str:
        if not self._counts:
            return (
                "nothing was rounded; to ask what rounding would do to values in float32 or float64, "
                "give record() a format: forward=E4M3"
            )
        return str(self.rows())

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """A map of shares by path and role; see ``plot_layer_map``."""
        return self.rows().plot(ax, **options)

    def to_json(self, path: str | Path | None = None) -> str:
        """The rows as JSON, also into a file; what is infinite or missing becomes null."""
        rows = [{key: _finite(value) for key, value in row.items()} for row in self.rows()]
        text = json.dumps({"steps": self.steps, "rows": rows}, indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_tensorboard(self, writer: Any, step: int | None = None) -> None:
        """Write every number of every row to a ``torch.utils.tensorboard.SummaryWriter`` (or what acts like one).

        Scalars are called "role/path/column", histograms of exponents "role/path/binades".

        Raises:
            TypeError: no writer, as the path of a folder.
        """
        if not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer must be a SummaryWriter, got {writer!r}; say SummaryWriter(folder)")
        for row in self.rows():
            name = "/".join(filter(None, (row["role"], row["path"])))
            for key, value in row.items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    writer.add_scalar(f"{name}/{key}", value, step)
            if row["binades"]:
                low, high = min(row["binades"]), max(row["binades"])
                counts = [row["binades"].get(e, 0) for e in range(low, high + 1)]
                total = sum(e * n for e, n in row["binades"].items())
                squares = sum(e * e * n for e, n in row["binades"].items())
                edges = [float(e + 1) for e in range(low, high + 1)]
                writer.add_histogram_raw(
                    f"{name}/binades", low, high + 1, sum(counts), total, squares, edges, counts, step
                )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
