"""What is said to those who look at roundings."""

from __future__ import annotations

import pytest
import torch

from lptensor.observe import about, said


def test_an_inner_subject_gives_way_to_the_outer_one_again() -> None:
    p, q = torch.ones(1), torch.ones(2)
    with about("accumulator", p):
        with pytest.raises(KeyError), about("weight", q):
            inner = said()
            raise KeyError
        assert inner == ("weight", q) and said() == ("accumulator", p)
    assert said() is None
