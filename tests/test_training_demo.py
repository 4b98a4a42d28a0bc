"""The papers' recipes on the demo's two tasks, and what papers report that shows on digits."""

from __future__ import annotations

from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from lptensor import BF16, FloatingPoint, OptimLP, lower, quantizer
from lptensor.demo.data import Digits
from lptensor.demo.papers import PAPERS
from lptensor.demo.run import Settings, train
from lptensor.demo.task import DIGITS, TEXT
from lptensor.demo.text import VOCABULARY, WINDOW, TextNet, load_text
from lptensor.training import LossScaler, recipes
from small_networks import mlp


@pytest.fixture(scope="module")
def digits() -> Digits:
    return DIGITS.load()


def test_the_text_is_pythons_own() -> None:
    data = load_text()
    text = "\n".join(topics[name] for name in sorted(topics))
    shown = "".join(VOCABULARY[i] for i in data.train_images.flatten().tolist())
    assert all(a == b or b == "\n" for a, b in zip(text, shown, strict=False))
    assert torch.equal(data.train_images[:, 1:], data.train_labels[:, :-1])
    assert torch.equal(data.train_images[1:, 0], data.train_labels[:-1, -1])
    assert data.test_images.shape == (200, WINDOW)


def test_the_text_net_sees_no_later_character() -> None:
    net = TextNet()
    codes = torch.randint(len(VOCABULARY), (2, WINDOW))
    changed = codes.clone()
    changed[:, 40:] = 0
    assert torch.allclose(net(codes)[..., :40], net(changed)[..., :40], atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) == 115_008


@pytest.mark.parametrize("task", [DIGITS, TEXT], ids=["digits", "text"])
@pytest.mark.parametrize("name", [row.name for row in PAPERS])
def test_every_row_trains(name: str, task: Any, digits: Digits) -> None:
    row = next(row for row in PAPERS if row.name == name)
    few = Digits(*(t[: 48 if task is DIGITS else 24] for t in (digits if task is DIGITS else TEXT.load())))
    settings = Settings(4, 8, 0.02) if task is DIGITS else Settings(4, 12)
    run = train(replace(row, task=task), settings, 0, few)
    assert run.losses[-1] < run.losses[0]


def learn(net: nn.Module, optim: Any, digits: Digits, epochs: int, scaler: LossScaler | None = None) -> float:
    """Percent of the test images that are right in the end."""
    scaler = scaler or LossScaler(1.0)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_labels), generator=order).split(32):
            optim.zero_grad()
            scaler.scale(cross_entropy(net(digits.train_images[batch]), digits.train_labels[batch])).backward()
            scaler.step(optim)
            scaler.update()
    with torch.no_grad():
        right = net(digits.test_images).argmax(1) == digits.test_labels
    return 100 * float(right.double().mean())


@pytest.mark.theory
def test_guptas_fixed_point_learns_with_few_fraction_bits_if_stochastic(digits: Digits) -> None:
    """B4: to nearest, 6 fraction bits stop learning; stochastically they are within a point and a half of 14."""

    def accuracy(fl: int, rounding: str) -> float:
        torch.manual_seed(1)
        recipe = recipes.gupta(16, fl, rounding)
        net = recipe.model(mlp())
        return learn(net, recipe.optimizer(SGD(net.parameters(), lr=0.05)), digits, 20)

    fine = accuracy(14, "stochastic")
    assert abs(accuracy(14, "nearest") - fine) < 1.5
    assert accuracy(6, "stochastic") > fine - 1.5
    assert accuracy(6, "nearest") < 60


def share_of_zeros(digits: Digits, scale: float, format: FloatingPoint | None) -> float:
    """How many gradients of weights are zero, the loss scaled and what flows back in ``format``."""
    torch.manual_seed(2)
    net = mlp()
    learn(net, SGD(net.parameters(), lr=0.1, momentum=0.9), digits, 10)
    if format is not None:
        lower(net, ["linear", "activation"], None, format, backward_rounding="nearest")
    scaler = LossScaler(scale)
    scaler.scale(cross_entropy(net(digits.train_images[:256]), digits.train_labels[:256])).backward()
    quantize = quantizer(format, forward_rounding="nearest")
    grads = torch.cat([quantize(p.grad).flatten() for p in net.parameters() if p.grad is not None])
    return float((grads == 0).double().mean())


@pytest.mark.theory
def test_scaled_losses_keep_gradients_from_becoming_zero(digits: Digits) -> None:
    """B10: gradients in IEEE-like E4M3; each factor of 16 brings more of them back, towards fp32's share."""
    narrow = FloatingPoint(4, 3)
    shares = [share_of_zeros(digits, 2.0**k, narrow) for k in (0, 4, 8, 12)]
    exact = share_of_zeros(digits, 1.0, None)
    assert shares[0] > shares[1] > shares[2] > shares[3] >= exact
    assert shares[0] > 0.5 and shares[3] < exact + 0.1


@pytest.mark.theory
def test_bfloat16_weights_stall_unless_rounded_stochastically_or_compensated(digits: Digits) -> None:
    """B3: at a small rate most updates to nearest are lost; Kahan's and stochastic ones end where fp32 does."""

    def accuracy(update: str | None, seed: int) -> float:
        torch.manual_seed(seed)
        net = mlp()
        optim: Any = SGD(net.parameters(), lr=0.003)
        if update is not None:
            optim = OptimLP(optim, weight_quant=BF16, update=update)
        return learn(net, optim, digits, 60)

    for seed in (11, 12):
        exact = accuracy(None, seed)
        assert exact > 50
        assert abs(accuracy("stochastic", seed) - exact) < 4
        assert abs(accuracy("kahan", seed) - exact) < 1
        assert accuracy("nearest", seed) < exact - 25
