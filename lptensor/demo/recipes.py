"""The number systems that the demo compares. A recipe is one row of RECIPES; to add one, add a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.optim import Optimizer

from lptensor.arithmetic import Arithmetic
from lptensor.blocks import BlockFloatingPoint
from lptensor.convert import convert
from lptensor.demo.task import DIGITS, MakeOptimizer, Task
from lptensor.formats import FP16, FixedPoint, FloatingPoint, Format, ScalarFormat
from lptensor.lower import lower
from lptensor.optim import OptimLP
from lptensor.quantizer import quantizer
from lptensor.rounding import Rounding, Stochastic
from lptensor.training.loss_scaling import LossScaler


@dataclass(frozen=True)
class Recipe:
    """How a float32 model, its optimizer and its inputs become low precision.

    ``number`` is the format of activations and weights; ``gradient`` that of gradients, if another;
    ``accumulator`` that in which the optimizer adds up the weights, None being float32. ``exempt`` names
    layers that stay float32, ``scaler`` makes what scales the loss, and ``task`` is what is learned.
    """

    name: str
    how: str
    number: Format | None
    rounding: Rounding
    apply: Callable[[Recipe, nn.Module, MakeOptimizer], tuple[nn.Module, Optimizer]]
    inputs: Callable[[Recipe, Tensor], Tensor] = lambda recipe, images: images
    gradient: Format | None = None
    accumulator: Format | None = FP16
    exempt: tuple[str, ...] = ()
    scaler: Callable[[], LossScaler] | None = None
    task: Task = DIGITS

    @property
    def narrow(self) -> bool:
        """Whether weights add up in their own format, so that small steps get lost, or are drawn."""
        return self.accumulator == self.number

    def instead(self, number: Format | None, rounding: Rounding | None) -> Recipe:
        """The same with another format, then for gradients too, or another rounding; float32 stays float32.

        An accumulator that could not hold the number gives way to float32.
        """
        recipe = self
        if number is not None and self.number is not None:
            sums = number if self.narrow else self.accumulator
            if isinstance(number, ScalarFormat) and isinstance(sums, ScalarFormat):
                sums = sums if sums.grid.contains(number.grid) else None
            recipe = replace(recipe, number=number, gradient=None, accumulator=sums)
        if rounding is not None and self.number is not None:
            recipe = replace(recipe, rounding=rounding)
        return recipe

    def same_arithmetic(self, other: Recipe) -> bool:
        """Whether the two differ in nothing but their names."""
        return replace(self, name=other.name) == other


def _plain(recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
    return model, make_optimizer(model.parameters())


def _lowered(recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
    """The code of the QPyTorch poster: convolutions lowered, and an optimizer in low precision."""

    def quantize(format: Format | None) -> Callable[[Tensor], Tensor]:
        return quantizer(format, forward_rounding=recipe.rounding)

    number, gradient = recipe.number, recipe.gradient or recipe.number
    model = lower(
        model,
        layer_type=["conv"],
        forward_number=number,
        backward_number=gradient,
        forward_rounding=recipe.rounding,
        backward_rounding=recipe.rounding,
    )
    optimizer = OptimLP(
        make_optimizer(model.parameters()),
        weight_quant=quantize(number),
        grad_quant=quantize(gradient),
        acc_quant=quantize(recipe.accumulator),
    )
    return model, optimizer


def _converted(recipe: Recipe, model: nn.Module, make_optimizer: MakeOptimizer) -> tuple[nn.Module, Optimizer]:
    """Every operation of the model rounds; the optimizer keeps the weights' accumulators."""
    model = convert(model, _arithmetic(recipe))
    accumulate = quantizer(recipe.accumulator, forward_rounding=recipe.rounding)
    return model, OptimLP(make_optimizer(model.parameters()), acc_quant=accumulate)


def _arithmetic(recipe: Recipe) -> Arithmetic:
    return Arithmetic(recipe.number, recipe.gradient, recipe.rounding)


def _as_model(recipe: Recipe, images: Tensor) -> Tensor:
    return convert(images, _arithmetic(recipe))


_NEAREST, _STOCHASTIC = Rounding(), Stochastic()
_FP8, _BFP8 = FloatingPoint(8), BlockFloatingPoint(8)
_FIXED8, _FIXED8_GRADIENT = FixedPoint(8, 5), FixedPoint(8, 10)  # up to 4 in steps of 1/32; to 1/8 in steps of 1/1024

# The first row is what the others are compared with.
RECIPES = (
    Recipe("fp32", "PyTorch", None, _NEAREST, _plain, accumulator=None),
    Recipe("poster", "lower(conv)", _FP8, _STOCHASTIC, _lowered),
    Recipe("poster-nearest", "lower(conv)", _FP8, _NEAREST, _lowered),
    Recipe("narrow", "lower(conv)", _FP8, _STOCHASTIC, _lowered, accumulator=_FP8),
    Recipe("narrow-nearest", "lower(conv)", _FP8, _NEAREST, _lowered, accumulator=_FP8),
    Recipe("convert", "convert", _FP8, _STOCHASTIC, _converted, inputs=_as_model),
    Recipe("convert-nearest", "convert", _FP8, _NEAREST, _converted, inputs=_as_model),
    Recipe("fixed8", "lower(conv)", _FIXED8, _STOCHASTIC, _lowered, gradient=_FIXED8_GRADIENT),
    Recipe("fixed8-nearest", "lower(conv)", _FIXED8, _NEAREST, _lowered, gradient=_FIXED8_GRADIENT),
    Recipe("bfp8", "lower(conv)", _BFP8, _STOCHASTIC, _lowered),
    Recipe("bfp8-nearest", "lower(conv)", _BFP8, _NEAREST, _lowered),
)
