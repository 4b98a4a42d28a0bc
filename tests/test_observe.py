"""What is said to those who look at roundings."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import lptensor
from lptensor import BF16, E4M3, _compat
from lptensor.formats import Format
from lptensor.observe import Observer, about, observers, observing, said
from lptensor.rounding import Rounding


def test_an_inner_subject_gives_way_to_the_outer_one_again() -> None:
    p, q = torch.ones(1), torch.ones(2)
    with about("accumulator", p):
        with pytest.raises(KeyError), about("weight", q):
            inner = said()
            raise KeyError
        assert inner == ("weight", q) and said() == ("accumulator", p)
    assert said() is None


def test_what_a_thread_keeps_lives_until_something_else_takes_its_place() -> None:
    class Kept:
        pass

    kept = Kept()
    alive = weakref.ref(kept)
    _compat.set_thread_local("lptensor.test", kept)
    del kept
    gc.collect()
    assert alive() is not None and _compat.thread_local("lptensor.test") is alive()
    _compat.set_thread_local("lptensor.test", None)
    gc.collect()
    assert alive() is None


def test_observers_that_leave_in_the_order_in_which_they_came_see_what_runs_within() -> None:
    first, second = Observer(), Observer()
    a, b = observing(first), observing(second)
    a.__enter__()
    b.__enter__()
    assert observers() == [first, second]
    a.__exit__()
    assert observers() == [second]
    b.__exit__()
    assert observers() == []


def test_what_an_observer_rounds_himself_is_shown_to_nobody() -> None:
    class Curious(Observer):
        seen = 0

        def rounded(self, before: Tensor, after: Tensor, format: Format, rounding: Rounding) -> None:
            self.seen += 1
            lptensor.round(before, BF16)

    one, other = Curious(), Curious()
    with observing(one), observing(other):
        lptensor.round(torch.ones(1), E4M3)
    assert one.seen == other.seen == 1


def test_an_observer_that_fails_blinds_nobody() -> None:
    class Failing(Observer):
        def rounded(self, before: Tensor, after: Tensor, format: Format, rounding: Rounding) -> None:
            raise KeyError("seen")

    with observing(Failing()):
        for _ in range(2):
            with pytest.raises(KeyError, match="seen"):
                lptensor.round(torch.ones(1), E4M3)
