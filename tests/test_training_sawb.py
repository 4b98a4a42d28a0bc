"""SAWB: its coefficients by the paper's own regression, and its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lptensor import INT4, CurrentMaximum, Scaled, quantizer
from lptensor.training import SAWB, sawb


def distributions() -> dict[str, Tensor]:
    """The paper's six, as their values at the middles of 2**14 equally probable intervals, in float64."""
    n = 2**14
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    below = torch.where(p < 0.5, p, 1 - p)
    circle = torch.linspace(-math.pi, math.pi, 2**16, dtype=torch.float64)
    mass = torch.exp(circle.cos()).cumsum(0)
    return {
        "normal": math.sqrt(2) * torch.erfinv(2 * p - 1),
        "uniform": 2 * p - 1,
        "Laplace": torch.sign(p - 0.5) * -(2 * below).log(),
        "logistic": (p / (1 - p)).log(),
        "triangle": torch.sign(p - 0.5) * (1 - (2 * below).sqrt()),
        "von Mises": circle[torch.searchsorted(mass / mass[-1], p).clamp(max=2**16 - 1)],
    }


def best_clip(x: Tensor) -> float:
    """Where clipping costs the least squares among 15 values, by search."""
    largest = float(x.abs().max())
    return min((largest * i / 400 for i in range(20, 401)), key=lambda clip: cost(x, clip))


def cost(x: Tensor, clip: float) -> float:
    step = clip / 7
    return float(((x / step).round().clamp(-7, 7) * step - x).square().mean())


def test_its_coefficients_are_a_regression_over_distributions() -> None:
    """a / mean|x| = c1 rms / mean|x| - c2: the published line is nearly the least-squares one through six optima.

    Nearly: the paper does not say how concentrated its von Mises distribution is, here it is 1.
    """
    points = []
    for name, x in distributions().items():
        mean, rms, best = float(x.abs().mean()), float(x.square().mean().sqrt()), best_clip(x)
        points.append((rms / mean, best / mean))
        assert name == "von Mises" or cost(x, SAWB.clip(x)) < 1.1 * cost(x, best), name
    mx, my = (sum(v) / 6 for v in zip(*points, strict=True))
    slope = sum((u - mx) * (v - my) for u, v in points) / sum((u - mx) ** 2 for u, _ in points)
    assert slope == pytest.approx(sawb.C1, rel=0.05)
    assert slope * mx - my == pytest.approx(sawb.C2, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_its_formula(dtype: torch.dtype) -> None:
    x = torch.randn(30, 40, dtype=dtype) * 3
    mean, rms = float(x.double().abs().mean()), math.sqrt(float(x.double().square().mean()))
    a = 12.035 * rms - 12.03 * mean
    want = (x.double() / (a / 7)).round().clamp(-7, 7) * (a / 7)
    assert SAWB()(x).dtype == dtype and torch.allclose(SAWB()(x).double(), want, rtol=1e-6)
    assert len(SAWB()(x).unique()) == 15

    y = x.relu()
    y[0, 0] = 100.0
    mean, rms = float(y.double().mean()), math.sqrt(float(y.double().square().mean()))
    step = 2 * (12.035 * rms - 12.03 * mean) / 15
    want = (y.double() / step).round().clamp(0, 15) * step
    assert torch.allclose(SAWB()(y).double(), want, rtol=1e-6)
    assert float(SAWB()(y).max()) == pytest.approx(15 * step)


def test_on_normal_values_it_beats_the_largest_magnitude() -> None:
    x = torch.randn(10_000)
    scaled = quantizer(Scaled(INT4, CurrentMaximum()), forward_rounding="nearest")
    assert float((SAWB()(x) - x).norm()) < 0.7 * float((scaled(x) - x).norm())


def test_special_values() -> None:
    assert SAWB()(torch.zeros(3)).tolist() == [0.0] * 3 and SAWB()(torch.empty(0)).shape == (0,)
    for bad in (math.nan, math.inf):
        assert SAWB()(torch.tensor([1.0, -2.0, bad])).isnan().all()
    assert SAWB() == SAWB() and SAWB().format.values()[-1] == 7
