"""Says what tests have counted and which of them a run leaves out, also when several processes share the tests."""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest

import lptensor

# Else pytest makes the first file that it collects there anew, and puts it in the place of the function of its name.
import lptensor.study
import lptensor.training

# What a test needs that an installation may lack.
NEEDS: dict[str, Callable[[], bool]] = {
    "nvcc": lambda: shutil.which("nvcc") is not None,
    "native": lambda: lptensor.backend().startswith("native"),
}
KINDS = ("slow", "gpu", "theory", *NEEDS)
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and count, the tests of what was not compiled here."""
    lacking = [name for name, there in NEEDS.items() if not there()]
    without = [item for item in items if any(item.get_closest_marker(name) for name in lacking)]
    if without:
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if items:
        left_out = items[0].config.stash.setdefault(LEFT_OUT, Counter())
        left_out.update(next((name for name in KINDS if item.get_closest_marker(name)), "other") for item in items)


def pytest_collection_finish() -> None:
    """Tests and modules stay: looking for garbage among them again and again would take a quarter of the time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(LEFT_OUT, Counter()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker has collected all tests, so the last one's count is that of the run."""
    if hasattr(node, "workeroutput"):
        node.config.stash[LEFT_OUT] = Counter(node.workeroutput["left_out"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in chain.from_iterable(terminalreporter.stats.values()):
        if getattr(report, "when", "") == "call":  # tests that count say so by record_property("count", "N of M")
            for name, value in report.user_properties:
                if name == "count":
                    terminalreporter.write_line(str(value))
    left_out = terminalreporter.config.stash.get(LEFT_OUT, Counter())
    kinds = ", ".join(f"{count} {name}" for name, count in left_out.items())
    terminalreporter.write_line(f"{left_out.total()} tests left out" + (f" ({kinds})" if kinds else ""))
