"""What is learned, and how: samples with labels, a network, a loss, an optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from lptensor.demo.data import TEST_SIZE, Digits, load_digits
from lptensor.demo.net import digit_net
from lptensor.demo.text import TEST_WINDOWS, WINDOW, TextNet, load_text

MakeOptimizer: TypeAlias = Callable[[Iterable[Any]], Optimizer]

MOMENTUM = 0.9


@dataclass(frozen=True)
class Task:
    """All that recipes share which are compared with each other, so that only the arithmetic differs.

    ``lr`` is the learning rate where settings name none, and ``schedule`` makes of an optimizer and a
    number of epochs what changes the rate after each. ``average_from`` is the share of the epochs after which the
    weights begin to enter a mean, once an epoch, which then is what is tested; None is no mean.
    """

    title: str
    tests: str
    network: str
    load: Callable[[], Digits]
    net: Callable[[], nn.Module]
    optimizer: Callable[[float], MakeOptimizer]
    lr: float
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    schedule: Callable[[Optimizer, int], LRScheduler] = CosineAnnealingLR
    average_from: float | None = None


def sgd(lr: float, weight_decay: float = 0.0) -> MakeOptimizer:
    """Stochastic gradient descent with the demo's momentum."""
    return lambda params: SGD(params, lr, MOMENTUM, weight_decay=weight_decay)


def _adam(lr: float) -> MakeOptimizer:
    return lambda params: Adam(params, lr, betas=(0.9, 0.95))


# The rates were chosen on a part of the training images, not on the test images.
DIGITS = Task("Handwritten digits", f"{TEST_SIZE} test images", "small", load_digits, digit_net, sgd, 0.05)
TEXT = Task(
    "Next characters", f"{TEST_WINDOWS * WINDOW} test characters", "transformer", load_text, TextNet, _adam, 3e-3
)
