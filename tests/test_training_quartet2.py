"""Quartet II, four over six and MS-EDEN against their formulas, in numpy with ml_dtypes, and on average."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lptensor import NVFP4, Hadamard, round as lp_round
from lptensor.training import FourOverSix, MSEden, recipes

E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
TYPES = (np.float32, np.float64)


def e2m1(x: np.ndarray) -> np.ndarray:
    return x.clip(-6, 6).astype(E2M1).astype(x.dtype)


def scale_of(largest: np.ndarray, unit: np.float32) -> np.float32:
    s = (largest / unit).astype(E4M3).astype(np.float32)
    return s or np.float32(1)


def four_or_six(x: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """The values, and which blocks end at four; x is a matrix of whole blocks."""
    out, fours = np.empty_like(x), []
    unit = np.float32(np.float32(np.abs(x).max()) / np.float32(6)) / np.float32(256)
    for where in np.ndindex(x.shape[0], x.shape[1] // 16):
        block = x[where[0], where[1] * 16 :][:16]
        largest = np.float32(np.abs(block).max()) / np.float32(6)
        tried = []
        for stretched in (largest, largest * np.float32(1.5)):
            t = (scale_of(stretched, unit) * unit).astype(x.dtype)
            values = e2m1(block / t) * t
            tried.append((float(((values - block) ** 2).sum()), values))
        fours.append(tried[1][0] < tried[0][0])
        out[where[0], where[1] * 16 :][:16] = tried[fours[-1]][1]
    return out, fours


@pytest.mark.parametrize("dtype", TYPES)
def test_each_block_ends_at_four_or_six_whichever_costs_less(dtype: type) -> None:
    x = torch.randn(64, 64, dtype=torch.float64) * torch.logspace(-4, 4, 64, dtype=torch.float64).unsqueeze(1)
    given = x.numpy().astype(dtype)
    want, fours = four_or_six(given)
    got = FourOverSix()(torch.from_numpy(given))
    assert np.array_equal(got.numpy(), want) and 0.2 < np.mean(fours) < 0.8
    for shift in (2.0**-90, 2.0**90):  # where squares of fp32 are zero, or infinite
        assert torch.equal(FourOverSix()(torch.from_numpy(given) * shift), got * shift)
    assert float((got - x).square().sum()) < float((lp_round(x.to(got.dtype), NVFP4) - x).square().sum())


def test_a_block_at_four_has_the_values_that_six_leaves_out() -> None:
    """8, 6 and 4 under 2 are 4, 3 and 2; under 8 / 6, which is 1.375 in E4M3, nothing is near 6."""
    x = torch.tensor([[8.0, 6.0, 4.0, 0.0] * 4, [1.0, 0.5, -0.25, -0.0] * 4])
    assert torch.equal(FourOverSix()(x)[0], x[0])


def test_special_blocks_of_four_over_six() -> None:
    x = torch.randn(3, 32)
    x[0, 3], x[1, 20], x[2, :16] = math.nan, math.inf, -0.0
    got = FourOverSix()(x)
    assert got[0, :16].isnan().all() and got[1, 16:].isnan().all() and int(got.isnan().sum()) == 32
    assert got[2, :16].signbit().all() and not got[2, :16].any()
    rest = x.clone()
    rest[0, :16] = rest[1, 16:] = 0
    assert torch.equal(got.nan_to_num(0), FourOverSix()(rest)), "other blocks do not know of it"
    for round_ in (FourOverSix(), MSEden()):
        assert torch.equal(round_(torch.zeros(5)), torch.zeros(5)) and round_(torch.empty(0, 3)).shape == (0, 3)
        assert round_(torch.tensor(3.0)).shape == () and round_(torch.randn(2, 3, 21)).shape == (2, 3, 21)
        assert round_(torch.full((16,), 1e-45)).isfinite().all()
        short = torch.randn(4, 21)
        padded = nn.functional.pad(short, (0, 11))
        torch.manual_seed(0)
        of_short = round_(short)
        torch.manual_seed(0)
        assert torch.equal(of_short, round_(padded)[:, :21])
        wide = torch.tensor([2.0**130, -1.0], dtype=torch.float64)
        assert round_(wide)[0].isfinite() and round_(wide)[1] == 0, "scales end with fp32"
        with pytest.raises(TypeError, match="float16"):
            round_(short.half())


def stretched(block: np.ndarray, m: float) -> tuple[np.ndarray, float, np.float32]:
    """q, the scale that E4M3 has to round, and g, of one block."""
    end = np.float32(6 / (17 / 16 * 0.93))
    unit = np.float32(np.float32(np.float32(m) / end) / np.float32(255.99))
    s = scale_of(np.float32(np.abs(block).max()) / end, unit)
    z = block / (s * unit).astype(block.dtype)
    q = e2m1(z)
    along = float((z * q).sum())
    return q, float(s) * (float((z * z).sum()) / along if along else 1.0), unit


@pytest.mark.parametrize("dtype", TYPES)
def test_scales_are_stretched_to_one_of_two_neighbours(dtype: type) -> None:
    x = torch.randn(6, 64, dtype=torch.float64).numpy().astype(dtype)
    codes = np.arange(127, dtype=np.uint8).view(E4M3).astype(np.float64)
    draws = [MSEden()(torch.from_numpy(x)).numpy() for _ in range(200)]
    for where in np.ndindex(6, 4):
        q, wanted, unit = stretched(x[where[0], where[1] * 16 :][:16], float(np.abs(x).max()))
        got = np.stack([d[where[0], where[1] * 16 :][:16] for d in draws]).astype(np.float64)
        at = int(np.abs(q).argmax())
        scales = got[:, at] / (float(q[at]) * float(unit))
        low, high = codes[codes <= wanted].max(), codes[codes >= wanted].min()
        near = np.where(np.abs(scales - low) < np.abs(scales - high), low, high)
        assert np.allclose(scales, near, rtol=1e-6)
        assert np.allclose(got, near[:, None] * q * float(unit), rtol=1e-6), "one scale for the block, and Q to nearest"
        assert abs(near.mean() - wanted) <= 4 * (high - low) / 2 / math.sqrt(200) + 1e-9


class Turned:
    """What a rounding makes of x between a random rotation and its inverse."""

    def __init__(self, round_: Callable[[Tensor], Tensor]) -> None:
        self.round, self.turn, self.back = round_, Hadamard(128, "random"), Hadamard(128, "none")

    def __call__(self, x: Tensor) -> Tensor:
        signs = self.turn.draw(x)
        return self.back.apply(self.round(self.turn.apply(x, signs)), None) * signs.repeat(x.shape[-1] // 128)


def test_ms_eden_is_unbiased_and_costs_less_than_stochastic_elements() -> None:
    x = torch.randn(32, 256, dtype=torch.float64) * torch.logspace(-1, 1, 256, dtype=torch.float64)

    def measured(round_: Callable[[Tensor], Tensor], draws: int) -> tuple[float, float, float]:
        """How far its mean is from x, and how far chance would be; and the mean square of one error."""
        turned, total, square = Turned(round_), torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(draws):
            error = turned(x) - x
            total, square = total + error, square + error.square()
        chance = ((square / draws - (total / draws).square()) / draws).sum().sqrt()
        return float((total / draws).norm()), float(chance), float(square.sum() / draws)

    bias, chance, error = measured(MSEden(), 400)
    assert bias < 1.1 * chance
    nearest = measured(lambda t: lp_round(t, NVFP4), 400)
    assert nearest[0] > 1.25 * nearest[1], "to nearest lengths shrink"
    assert error < 0.55 * measured(lambda t: lp_round(t, NVFP4, "stochastic"), 20)[2]


def layer(hadamard: int = 32) -> tuple[nn.Linear, Tensor, Tensor]:
    net = recipes.quartet2(hadamard).model(nn.Sequential(nn.Linear(96, 64))).double()
    return net[0], torch.randn(64, 96, dtype=torch.float64), torch.randn(64, 64, dtype=torch.float64)


def test_the_forward_product_is_of_four_over_six() -> None:
    linear, x, _ = layer()
    qx, qw = (torch.from_numpy(four_or_six(t.detach().numpy())[0]) for t in (x, linear.weight))
    assert torch.allclose(linear(x), qx @ qw.T + linear.bias, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_rounded_operands_on_average() -> None:
    linear, x, g = layer()
    qx, qw = FourOverSix()(x), FourOverSix()(linear.weight.detach())
    draws: list[list[Tensor]] = [[], []]
    for _ in range(150):
        leaf = x.clone().requires_grad_()
        linear.zero_grad()
        linear(leaf).backward(g)
        for kept, grad in zip(draws, (leaf.grad, linear.weight.grad), strict=True):
            assert grad is not None
            kept.append(grad)
    assert linear.bias.grad is not None and torch.equal(linear.bias.grad, g.sum(0))
    for kept, wanted in zip(draws, (g @ qw, g.T @ qx), strict=True):
        stacked = torch.stack(kept)
        spread = stacked.std(0) / math.sqrt(150)
        assert float((stacked.mean(0) - wanted).norm()) < 1.1 * float(spread.norm())
        assert 0.05 < float((kept[0] - wanted).norm() / wanted.norm()) < 0.3 and not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("hadamard", [16, 128])
def test_both_operands_of_a_backward_product_are_turned_alike_and_rounded(hadamard: int) -> None:
    linear, x, g = layer(hadamard)
    y = linear(x)
    torch.manual_seed(1)
    y.backward(g)
    torch.manual_seed(1)
    turn, made = Hadamard(hadamard, "random"), []
    qx, qw = FourOverSix()(x), FourOverSix()(linear.weight.detach())
    for a, b in ((g, qw.T), (g.T, qx.T)):
        signs = turn.draw(a)
        first, second = (MSEden()(turn.apply(t, signs)) for t in (a, b))
        made.append(first @ second.T)
    assert linear.weight.grad is not None and torch.equal(linear.weight.grad, made[1])


@pytest.mark.parametrize("width", [8, 24, 0])
def test_transforms_that_split_a_block_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"got {width}"):
        recipes.quartet2(width)
