"""Ratios of times that are measured in turns, so that what disturbs the machine disturbs both sides."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import lptensor as lp


@dataclass(frozen=True)
class Figure:
    """A ratio: its median and quartiles over the turns, and what it should be at least, or at most."""

    group: str
    name: str
    low: float
    median: float
    high: float
    target: float | None = None
    at_most: bool = False

    @property
    def missed(self) -> bool:
        """On the wrong side of the target by more than the spread."""
        if self.target is None:
            return False
        return self.low > self.target if self.at_most else self.high < self.target

    def __str__(self) -> str:
        digits = 3 if self.median < 10 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def ratio(
    group: str,
    name: str,
    base: Callable[[], object],
    work: Callable[[], object],
    turns: int,
    scale: float,
    target: float | None,
    at_most: bool = False,
) -> Figure:
    """Time of ``base`` over time of ``work``, times ``scale``. One thread is timed by the processor time it takes,
    which other programs' turns are no part of; several by the clock on the wall."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(do: Callable[[], object]) -> float:
        start = clock()
        do()
        return clock() - start

    seconds(base), seconds(work)  # warm up
    ratios = [scale * seconds(base) / seconds(work) for _ in range(turns)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Figure(group, name, low, median, high, target, at_most)


@contextlib.contextmanager
def memory_kept(like: torch.Tensor) -> Iterator[bool]:
    """New tensors lie where old ones were, and not in pages that the system makes first. Whether that works here."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        yield False  # not the GNU C library
        return
    threshold, trim = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt(threshold, 2**30), mallopt(trim, 2**31 - 1)
    old = [torch.ones_like(like) for _ in range(4)]
    del old
    try:
        yield True
    finally:
        mallopt(threshold, 2**17), mallopt(trim, 2**17)  # as they are by default


def machine() -> dict[str, str]:
    """The machine and what runs on it, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model or platform.machine(),
        "cores": str(torch.get_num_threads()),
        "kernels": lp.backend(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def as_json(figures: list[Figure]) -> list[dict[str, object]]:
    return [{**asdict(figure), "missed": figure.missed} for figure in figures]
