"""A network in the shape of VGG, cut to the size of the digits."""

from __future__ import annotations

from torch import nn

_WIDTHS = (12, 24, 48)


def vgg(bare: bool = False) -> nn.Sequential:
    """(n, 1, 8, 8) images to (n, 10) logits: three times two convolutions and a pool, and two linear layers.

    After Simonyan and Zisserman (1409.1556), with batch normalisation and without dropout; 43,630
    parameters. ``bare`` is the shape that WAGE's authors train (1802.04680): no normalisation and no biases.
    Weights are drawn as He et al. do (1502.01852), the last layer as torch does.
    """
    layers: list[nn.Module] = []
    before = 1
    for width in _WIDTHS:
        for channels in (before, width):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not bare))
            layers += [nn.ReLU()] if bare else [nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        before = width
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, before, bias=not bare), nn.ReLU())
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    net.add_module("head", nn.Linear(before, 10, bias=not bare))
    return net
