"""Small networks and their training, for tests of what papers report: digits, and characters of Python's help texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lptensor.demo.data import Digits
from lptensor.demo.text import TextNet
from lptensor.training import LossScaler


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def text_net() -> TextNet:
    """One block of width 32: two seconds for a hundred steps of 16 windows."""
    return TextNet(32, 1)


def learn(
    net: nn.Module,
    optim: Any,
    data: Digits,
    steps: int,
    batch: int = 32,
    scaler: LossScaler | None = None,
    after: Callable[[], object] = lambda: None,
    seed: int = 0,
) -> None:
    """So many steps on batches in an order that the seed gives; ``after`` comes after each."""
    scaler = scaler or LossScaler(1.0)
    order = torch.Generator().manual_seed(seed)
    done = 0
    while done < steps:
        for chosen in torch.randperm(len(data.train_labels), generator=order).split(batch)[: steps - done]:
            optim.zero_grad()
            scaler.scale(cross_entropy(net(data.train_images[chosen]), data.train_labels[chosen])).backward()
            scaler.step(optim)
            scaler.update()
            after()
            done += 1


@torch.no_grad()
def loss_of(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(net(inputs), labels))


@torch.no_grad()
def accuracy_of(net: nn.Module, data: Digits) -> float:
    """Percent of the test images that are right."""
    return 100 * float((net(data.test_images).argmax(1) == data.test_labels).double().mean())
