"""One training run: a recipe, a seed, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from lptensor.demo.data import TEST_SIZE, Digits, load_digits
from lptensor.demo.net import digit_net
from lptensor.demo.recipes import MakeOptimizer, Recipe
from lptensor.demo.text import TEST_WINDOWS, WINDOW, TextNet, load_text
from lptensor.training.loss_scaling import LossScaler

MOMENTUM = 0.9


@dataclass(frozen=True)
class Task:
    """What is learned: samples with labels, a network, and an optimizer for a learning rate."""

    title: str
    tests: str
    load: Callable[[], Digits]
    net: Callable[[], nn.Module]
    optimizer: Callable[[float], MakeOptimizer]


def _sgd(lr: float) -> MakeOptimizer:
    return lambda params: SGD(params, lr, MOMENTUM)


def _adam(lr: float) -> MakeOptimizer:
    return lambda params: Adam(params, lr, betas=(0.9, 0.95))


DIGITS = Task("Handwritten digits", f"{TEST_SIZE} test images", load_digits, digit_net, _sgd)
TEXT = Task("Next characters", f"{TEST_WINDOWS * WINDOW} test characters", load_text, TextNet, _adam)


@dataclass(frozen=True)
class Settings:
    """What all recipes share, so that only the arithmetic differs: SGD with momentum and a cosine schedule.

    The defaults were chosen on a part of the training images, not on the test images.
    """

    epochs: int = 15
    batch_size: int = 32
    lr: float = 0.05


@dataclass(frozen=True)
class Run:
    """What one run gave, epoch by epoch; losses are means over the training images, accuracies are test percentages.

    ``seconds`` are processor time of training alone, which other programs on the machine hardly change.
    """

    seed: int
    losses: list[float]
    accuracies: list[float]
    seconds: list[float]

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in percent."""
        return self.accuracies[-1]


def train(
    recipe: Recipe,
    settings: Settings,
    seed: int,
    digits: Digits,
    on_epoch: Callable[[], object] = lambda: None,
    task: Task = DIGITS,
) -> Run:
    """Train the network from the seed's initial weights, in the seed's order of images.

    Both are the same for every recipe. The seed also decides every stochastic rounding, so that a
    run can be repeated; torch's CPU generator is left where the run ends.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model, optimizer = recipe.apply(recipe, task.net(), task.optimizer(settings.lr))
    scaler = None if recipe.scaler is None else recipe.scaler()
    scheduler = CosineAnnealingLR(optimizer, settings.epochs)
    run = Run(seed, [], [], [])
    for _ in range(settings.epochs):
        started = time.process_time()
        total = 0.0
        model.train()
        for batch in torch.randperm(len(digits.train_labels), generator=order).split(settings.batch_size):
            images, labels = digits.train_images[batch], digits.train_labels[batch]
            optimizer.zero_grad()
            loss = cross_entropy(model(recipe.inputs(recipe, images)), labels)
            _step(loss, optimizer, scaler)
            total += loss.item() * len(batch)
        scheduler.step()
        run.seconds.append(time.process_time() - started)
        run.losses.append(total / len(digits.train_labels))
        run.accuracies.append(_accuracy(model, recipe.inputs(recipe, digits.test_images), digits.test_labels))
        on_epoch()
    return run


def _step(loss: Tensor, optimizer: Optimizer, scaler: LossScaler | None) -> None:
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percentage of right answers; a row of NaN counts as wrong."""
    model.eval()
    logits = model(images)
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return 100 * int(right.sum()) / labels.numel()
