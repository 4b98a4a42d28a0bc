"""The memory that torch's CPU allocator gives out while something runs, in bytes; the same in every run."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def allocations(work: Callable[[], object]) -> list[int]:
    """Bytes of each allocation, negative for what is given back, in order; the result of ``work`` is kept meanwhile."""
    gc.disable()  # it would give back meanwhile what was left before
    with tempfile.TemporaryDirectory() as folder:
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
                result = work()
        finally:
            gc.enable()
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    del result
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["args"]["Ev Idx"])
    return [e["args"]["Bytes"] for e in memory]


def peak(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` holds at once."""
    return max(accumulate(allocations(work)), default=0)
