"""What is said to those who look at roundings."""

from __future__ import annotations

import pytest
import torch

from lptensor.observe import Observer, about, observers, observing, said


def test_an_inner_subject_gives_way_to_the_outer_one_again() -> None:
    p, q = torch.ones(1), torch.ones(2)
    with about("accumulator", p):
        with pytest.raises(KeyError), about("weight", q):
            inner = said()
            raise KeyError
        assert inner == ("weight", q) and said() == ("accumulator", p)
    assert said() is None


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
