"""The network that the demo trains: two convolutions with batch normalisation, one linear layer."""

from __future__ import annotations

from torch import nn


def digit_net() -> nn.Sequential:
    """(n, 1, 8, 8) images to (n, 10) logits, with 3,866 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )
