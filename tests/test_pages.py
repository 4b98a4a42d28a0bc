"""New memory in large pages: where the wish is made, what it covers, and that nothing depends on it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lptensor as lp
from lptensor import _native
from lptensor.formats import E4M3
from lptensor.rounding import Rounding

LARGE = 1 << 20  # float32 elements of 4 MiB
MAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.native


def wished(address: int) -> bool:
    """Whether the page at an address is marked for large pages, by what Linux says of the process's memory."""
    inside = False
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= address < last
        elif inside and head == "VmFlags:":
            return "hg" in rest.split()
    return False


def accepted() -> bool:
    """Whether this system takes such wishes at all."""
    pages = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    return _native.library().lpt_large_pages(address, 4 * mmap.PAGESIZE) == 1


def expected(x: torch.Tensor) -> torch.Tensor:
    return lp.reference.round_grid(x, E4M3.grid, Rounding())


def test_linux_takes_the_wish_and_no_other_system_does() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    assert accepted() == (sys.platform == "linux" and enabled.exists())


def test_a_large_result_is_wished_for_in_large_pages_and_has_the_same_bits() -> None:
    x = torch.randn(16 * LARGE)  # so large that it is no part of memory that was used before
    y = lp.round(x, E4M3)
    middle = y.data_ptr() + y.nbytes // 2
    assert wished(middle) == accepted()
    assert torch.equal(y, lp.round(x, E4M3, out=torch.empty_like(x)))
    assert torch.equal(y[: LARGE // 4], expected(x[: LARGE // 4]))


@pytest.mark.parametrize(("n", "asked"), [(LARGE - 1, 0), (LARGE, 1)])
def test_the_wish_is_made_for_new_results_alone_from_four_mebibytes_on(
    n: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(_native, "ask_for_large_pages", lambda y: seen.append((y.data_ptr(), y.nbytes)))
    x = torch.randn(n)
    y = lp.round(x, E4M3)
    assert seen == [(y.data_ptr(), 4 * n)] * asked
    lp.round(x, E4M3, out=y)
    lp.round(x, E4M3, out=x)
    assert len(seen) == asked, "memory that a caller brought is left alone"


def test_a_refused_wish_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Refusing:
        def __init__(self, library: Any) -> None:
            self._library = library

        def __getattr__(self, name: str) -> Any:
            return getattr(self._library, name)

        def lpt_large_pages(self, memory: int, size: int) -> int:
            asked.append(size)
            refused: int = self._library.lpt_large_pages(mmap.PAGESIZE, size)  # memory that nobody has
            return refused

    refusing = Refusing(_native.library())
    assert refusing.lpt_large_pages(0, 4 * LARGE) == 0
    monkeypatch.setattr(_native, "library", lambda: refusing)
    x = torch.randn(LARGE)
    assert torch.equal(lp.round(x, E4M3), expected(x))
    assert len(asked) == 2


def test_whole_pages_are_marked_and_none_that_is_shared_with_others() -> None:
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 8 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    pages[:] = bytes(range(256)) * (8 * page // 256)
    took = _native.library().lpt_large_pages(start + 2 * page + 64, 3 * page)  # pages 3 and 4, and parts of 2 and 5
    marks = [wished(start + k * page) for k in range(8)]
    assert marks == [bool(took) and k in (3, 4) for k in range(8)]
    assert pages[:] == bytes(range(256)) * (8 * page // 256)
    assert _native.library().lpt_large_pages(start + 64, page) == 0, "no whole page"
