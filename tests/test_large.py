"""Tensors of more than 2**31 elements."""

from __future__ import annotations

import pytest
import torch

from lptensor import E4M3, MXFP8_E4M3, NF4, Format, Posit, round as lp_round

SIZE = 2**31 + 4096


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, MXFP8_E4M3, NF4, Posit(8)], ids=repr)
def test_the_last_elements_round_as_they_do_alone(format: Format, rounding: str) -> None:
    """In place, in one allocation; stochastically, values between two neighbours only go to these."""
    x = torch.zeros(SIZE)
    tail = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    x[-4096:] = tail
    lp_round(x, format, rounding, out=x)
    if rounding == "nearest":
        assert torch.equal(x[-4096:], lp_round(tail, format))
    else:
        down, up = lp_round(tail, format, "down"), lp_round(tail, format, "up")
        assert ((x[-4096:] == down) | (x[-4096:] == up)).all() and (x[-4096:] != lp_round(tail, format)).any()
    assert not x[:-4096].any()
