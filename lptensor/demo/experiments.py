"""The experiments of QPyTorch's examples, cut to the size of the digits, each beside fp32 on its own network.

What the examples do is theirs (their settings, their schedules, which values they round); the networks are
VGG's and PreResNet's shapes cut to size, and so is the number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lptensor.blocks import BlockFloatingPoint
from lptensor.demo.papers import PAPERS
from lptensor.demo.preresnet import preresnet
from lptensor.demo.recipes import RECIPES, Recipe
from lptensor.demo.task import DIGITS, MakeOptimizer, sgd
from lptensor.demo.vgg import vgg
from lptensor.formats import FloatingPoint, Format
from lptensor.lower import lower
from lptensor.optim import OptimLP
from lptensor.quantizer import quantizer
from lptensor.rounding import Rounding, Stochastic
from lptensor.training import LossScaler

_AVERAGED = 2 / 3  # of the epochs come before the mean, 200 of 300


def _by_share(factor: Callable[[float], float]) -> Callable[[Optimizer, int], LRScheduler]:
    """A schedule whose factor is that of the share of the epochs that are over."""
    return lambda optimizer, epochs: LambdaLR(optimizer, lambda epoch: factor(epoch / epochs))


def falling(share: float) -> float:
    """Whole for half of the time, then straight down to a hundredth at nine tenths of it."""
    return max(0.01, min(1.0, 1 - 0.99 * (share - 0.5) / 0.4))


def then_constant(share: float) -> float:
    """The same until the mean begins, then a fifth: 0.01 where the rate was 0.05."""
    return falling(share / _AVERAGED) if share < _AVERAGED else 0.2


def in_steps(share: float) -> float:
    """Whole until 200 of 300 epochs, an eighth until 250, then a 64th: WAGE's 8, 1 and 1/8."""
    return 1.0 if share < 2 / 3 else 1 / 8 if share < 5 / 6 else 1 / 64


def half_squares(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the sum of squared differences from one and zeros, mean over the samples: WAGE's loss."""
    return (logits - one_hot(labels, logits.shape[1])).square().sum(1).mean() / 2


def _decayed(lr: float) -> MakeOptimizer:
    return sgd(lr, weight_decay=5e-4)


VGG = replace(DIGITS, network="VGG", net=vgg, optimizer=_decayed, schedule=_by_share(falling))
AVERAGED = replace(VGG, schedule=_by_share(then_constant), average_from=_AVERAGED)
BARE = replace(DIGITS, network="bare VGG", net=lambda: vgg(bare=True), loss=half_squares, schedule=_by_share(in_steps))
PRERESNET = replace(VGG, network="PreResNet", net=preresnet)


@dataclass(frozen=True)
class _ByShape:
    """Rounds vectors (biases, normalisation) as one block where matrices have an exponent for each row."""

    number: Format
    rounding: Rounding

    def __call__(self, x: Tensor) -> Tensor:
        number = self.number
        if x.dim() < 2 and isinstance(number, BlockFloatingPoint) and number.block_size is None:
            number = replace(number, dim=-1)
        return quantizer(number, forward_rounding=self.rounding)(x)


def _rounded(
    recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer, sums_rounding: Rounding
) -> tuple[nn.Module, Optimizer]:
    def quant(format: Format | None, rounding: Rounding = recipe.rounding) -> Callable[[Tensor], Tensor] | None:
        return None if format is None else _ByShape(format, rounding)

    number, gradient, sums = recipe.number, recipe.gradient or recipe.number, recipe.accumulator
    layers, rounding = ["conv", "activation", "linear"], recipe.rounding
    model = lower(model, layers, number, gradient, rounding, rounding, exempt=recipe.exempt)
    optimizer = OptimLP(
        make_optimizer(model.parameters()),
        weight_quant=quant(number),
        grad_quant=quant(gradient),
        momentum_quant=quant(sums, sums_rounding),
        acc_quant=quant(sums, sums_rounding),
    )
    return model, optimizer


def _in_one_number(recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
    """Weights, activations, errors, gradients and momenta in one number; logits are fp32."""
    return _rounded(recipe, model, make_optimizer, recipe.rounding)


def _ibm8(recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
    """Momenta and sums of weights in a wider number, stochastically, and logits in it to nearest; images are in it."""
    lower(model.get_submodule("head"), ["linear"], recipe.accumulator, recipe.accumulator, "nearest", "nearest")
    return _rounded(recipe, model, make_optimizer, Stochastic())


_BFP8, _FP8, _FP16 = BlockFloatingPoint(8), FloatingPoint(5, 2), FloatingPoint(6, 9)
_FP32, _WAGE = RECIPES[0], next(row for row in PAPERS if row.name == "wage")

# The first row of a task is what the others are compared with.
EXPERIMENTS = (
    replace(_FP32, name="fp32-vgg", task=VGG),
    Recipe("lp_train", "QPyTorch", _BFP8, Stochastic(), _in_one_number, accumulator=_BFP8, exempt=("head",), task=VGG),
    replace(_FP32, name="fp32-swa", task=AVERAGED),
    Recipe(
        "swalp",
        "1904.11943",
        BlockFloatingPoint(8, dim=0),
        Stochastic(),
        _in_one_number,
        accumulator=BlockFloatingPoint(8, dim=0),
        exempt=("head",),
        task=AVERAGED,
    ),
    replace(_FP32, name="fp32-bare-vgg", task=BARE),
    replace(_WAGE, name="wage-vgg", task=BARE),
    replace(_FP32, name="fp32-preresnet", task=PRERESNET),
    Recipe(
        "ibm8",
        "1812.08011",
        _FP8,
        Rounding(),
        _ibm8,
        accumulator=_FP16,
        exempt=("head",),
        scaler=lambda: LossScaler(1000.0),
        task=PRERESNET,
    ),
)
