"""One training run: a recipe, a seed, and what came of it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from lptensor.demo.data import Digits
from lptensor.demo.recipes import Recipe
from lptensor.training.loss_scaling import LossScaler
from lptensor.training.swalp import SWALP


@dataclass(frozen=True)
class Settings:
    """What all runs share; without a learning rate each task has its own."""

    epochs: int = 15
    batch_size: int = 32
    lr: float | None = None


@dataclass(frozen=True)
class Run:
    """What one run gave, epoch by epoch; losses are means over the training images, accuracies are test percentages.

    ``seconds`` are processor time of training alone, which other programs on the machine hardly change.
    Where the task averages the weights, ``accuracies`` are the mean's from its first epoch on, and ``iterates``
    are those of the weights themselves.
    """

    seed: int
    losses: list[float]
    accuracies: list[float]
    seconds: list[float]
    iterates: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in percent."""
        return self.accuracies[-1]


def train(
    recipe: Recipe,
    settings: Settings,
    seed: int,
    samples: Digits,
    on_epoch: Callable[[], object] = lambda: None,
) -> Run:
    """Train the network of the recipe's task from the seed's initial weights, in the seed's order of samples.

    Both are the same for every recipe. The seed also decides every stochastic rounding, so that a
    run can be repeated; torch's CPU generator is left where the run ends.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    task, epochs = recipe.task, settings.epochs
    net = task.net()
    wide = copy.deepcopy(net)
    model, optimizer = recipe.apply(recipe, net, task.optimizer(settings.lr or task.lr))
    scaler = None if recipe.scaler is None else recipe.scaler()
    scheduler = task.schedule(optimizer, epochs)
    average = SWALP(model)
    averaged = epochs if task.average_from is None else min(math.ceil(task.average_from * epochs), epochs - 1)
    run = Run(seed, [], [], [])
    for epoch in range(epochs):
        started = time.process_time()
        total = 0.0
        model.train()
        for batch in torch.randperm(len(samples.train_labels), generator=order).split(settings.batch_size):
            images, labels = samples.train_images[batch], samples.train_labels[batch]
            optimizer.zero_grad()
            loss = task.loss(model(recipe.inputs(recipe, images)), labels)
            _step(loss, optimizer, scaler)
            total += loss.item() * len(batch)
        scheduler.step()
        run.seconds.append(time.process_time() - started)
        run.losses.append(total / len(samples.train_labels))
        accuracy = _accuracy(model, recipe.inputs(recipe, samples.test_images), samples.test_labels)
        if epoch >= averaged:
            run.iterates.append(accuracy)
            average.collect()
            mean = mean_net(average, model, wide, samples.train_images)
            accuracy = _accuracy(mean, samples.test_images, samples.test_labels)
        run.accuracies.append(accuracy)
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


def mean_net(average: SWALP, model: nn.Module, wide: nn.Module, images: Tensor) -> nn.Module:
    """``wide``, an fp32 network of the model's shape, with the mean of its weights and statistics of its own.

    Batch normalisation's statistics are those of all ``images``, as 1904.11943 makes them anew; the
    model keeps its weights and its statistics.
    """
    with average.swapped():
        wide.load_state_dict(model.state_dict())
    update_bn([images], wide)
    return wide


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percentage of right answers; a row of NaN counts as wrong."""
    model.eval()
    logits = model(images)
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return 100 * int(right.sum()) / labels.numel()
