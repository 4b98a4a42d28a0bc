"""A residual network whose blocks begin with normalisation, cut to the size of the digits."""

from __future__ import annotations

from torch import Tensor, nn

_WIDTHS = (8, 16, 32)


class Block(nn.Module):
    """Normalise, activate, convolve, twice, beside a shortcut (He et al., Identity Mappings, 1603.05027).

    Where the width or the size changes the shortcut is a convolution of 1 x 1, of the block's input as
    it comes.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.residual(x)
        return y


def preresnet() -> nn.Sequential:
    """(n, 1, 8, 8) images to (n, 10) logits: three blocks of two convolutions each, with 19,714 parameters.

    Weights of convolutions are drawn as He et al. do (1502.01852), the last layer's as torch does.
    """
    before = _WIDTHS[0]
    net = nn.Sequential(nn.Conv2d(1, before, 3, padding=1, bias=False))
    for width in _WIDTHS:
        net.append(Block(before, width, stride=1 if width == before else 2))
        before = width
    net.extend([nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    net.add_module("head", nn.Linear(before, 10))
    return net
