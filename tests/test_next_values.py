"""torch.nextafter of LPTensors goes to the next value of their format."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lptensor import BF16, E4M3, FP16, MXFP4, NF4, Arithmetic, FixedPoint, LPTensor, Posit
from lptensor.base import ScalarFormat


def numbers(count: int = 4000) -> torch.Tensor:
    ends = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 65504.0, 2.0**-24])
    return torch.cat(
        [torch.randn(count) * torch.exp2(torch.randint(-30, 20, (count,))), *[ends.roll(i) for i in range(8)]]
    )


@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
def test_in_bf16_it_is_torchs_own(rounding: str) -> None:
    x, y = numbers().bfloat16(), numbers().flip(0).bfloat16()
    y[::7] = x[::7]
    ours = torch.nextafter(x.float().to_lp(BF16, rounding), y.float())  # type: ignore[attr-defined]
    want = torch.nextafter(x, y)
    assert type(ours) is LPTensor and ours.format == BF16
    assert torch.equal(
        ours.dequantize().bfloat16().view(torch.int16)[~want.isnan()], want.view(torch.int16)[~want.isnan()]
    )
    assert torch.equal(ours.dequantize().isnan(), want.isnan())


def test_in_fp16_it_is_numpys() -> None:
    x, y = numbers().half().numpy(), numbers().flip(0).half().numpy()
    with np.errstate(all="ignore"):
        want = torch.from_numpy(np.nextafter(x, y)).float()
    a, b = (torch.from_numpy(v).float() for v in (x, y))
    ours = torch.nextafter(a.to_lp(FP16), b.to_lp(FP16))  # type: ignore[attr-defined]
    assert torch.equal(ours.dequantize().nan_to_num(7.0), want.nan_to_num(7.0))
    assert torch.equal(ours.dequantize().isnan(), want.isnan())


@pytest.mark.parametrize("format", [E4M3, FixedPoint(6, 2), NF4, Posit(8)], ids=repr)
def test_elsewhere_it_is_the_neighbour_in_the_list_of_values(format: ScalarFormat) -> None:
    values = format.values().float()
    low = values.to_lp(format)  # type: ignore[attr-defined]
    up, down = torch.nextafter(low, torch.tensor(math.inf)), torch.nextafter(low, torch.tensor(-math.inf))
    assert up.tolist() == [*values[1:].tolist(), values[-1].item()]  # the ends saturate
    assert down.tolist() == [values[0].item(), *values[:-1].tolist()]
    assert torch.nextafter(low, low).tolist() == values.tolist()


def test_it_writes_in_place_and_into_out() -> None:
    x, toward = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([9.0, -9.0, -3.0])
    want = torch.nextafter(x.bfloat16(), toward.bfloat16()).float()
    low, out = x.to_lp(BF16), torch.empty(0).to_lp(BF16)  # type: ignore[attr-defined]
    torch.nextafter(low, toward, out=out)
    assert low.nextafter_(toward) is low
    assert torch.equal(low.dequantize(), want) and torch.equal(out.dequantize(), want)


def test_shapes_spread_and_formats_join() -> None:
    step = torch.nextafter(torch.ones(2).to_lp(E4M3), torch.full((3, 1), 2.0).to_lp(BF16))  # type: ignore[attr-defined]
    assert step.format == BF16 and step.tolist() == [[1 + 2**-7] * 2] * 3
    plain = torch.nextafter(torch.ones(1).to_lp(Arithmetic()), torch.tensor(2.0))  # type: ignore[attr-defined]
    assert plain.item() == 1 + 2**-23


def test_block_formats_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="of single numbers, got MXFP4"):
        torch.nextafter(torch.ones(32).to_lp(MXFP4), torch.tensor(2.0))  # type: ignore[attr-defined]


def test_operands_of_float64_are_compared_as_they_are() -> None:
    just_above = torch.tensor([1 + 2.0**-40], dtype=torch.float64)
    assert torch.nextafter(torch.ones(1).to_lp(E4M3), just_above).item() == 1.125  # type: ignore[attr-defined]
    just_below, two = 2 - just_above, torch.tensor([2.0]).to_lp(E4M3)  # type: ignore[attr-defined]
    assert torch.nextafter(just_below, two).item() == 1.0


def test_a_plain_tensor_steps_among_its_own_values() -> None:
    x = torch.ones(1)
    assert x.nextafter_(torch.tensor([2.0]).to_lp(E4M3)).item() == 1 + 2.0**-23  # type: ignore[attr-defined]
