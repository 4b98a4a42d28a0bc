"""Recipes: how a model, its optimizer and its loss become low precision, one function for each paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.base import check_bool, check_int
from lptensor.blocks import MX, MXFP4, NVFP4, Scaled, TwoLevel
from lptensor.codebooks import LogNumber
from lptensor.delayed import DelayedScaling
from lptensor.formats import E2M1, E3M2, E4M3, E5M2, FP32, FixedPoint, FloatingPoint, Format, ScalarFormat
from lptensor.hadamard import Hadamard
from lptensor.hardware_sums import tensor_core
from lptensor.lower import lower
from lptensor.operands import Gemm, Operand
from lptensor.optim import OptimLP
from lptensor.path_rules import listed, matches
from lptensor.posits import Posit
from lptensor.quantizer import quantizer
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.scaling import PER_TENSOR, CurrentMaximum, DelayedMaximum, Tile
from lptensor.training.blockwise import Blockwise
from lptensor.training.dorefa import DoReFaActivation, DoReFaGradient, DoReFaWeight
from lptensor.training.four_over_six import FourOverSix
from lptensor.training.hbfp import HBFP
from lptensor.training.loss_scaling import Automatic, Dynamic, LossScaler, Static, as_policy
from lptensor.training.luq import LUQ
from lptensor.training.ms_eden import MSEden
from lptensor.training.quartet import quartet_layers
from lptensor.training.round_layers import Make, check_unrounded, round_each, round_layers
from lptensor.training.s2fp8 import S2FP8
from lptensor.training.sawb import SAWB
from lptensor.training.technique import Technique
from lptensor.training.three_quarters import ThreeQuarters
from lptensor.training.unit_scaling import unit_layers
from lptensor.training.wage import (
    WageActivation,
    WageError,
    WageGradient,
    WageWeight,
    check_drawable,
    draw_weight,
    grid,
)
from lptensor.weighted_layers import LAYERS, called_layers, check_dtypes

__all__ = [
    "Recipe",
    "deepseek",
    "dorefa",
    "fp8_current",
    "fp8_delayed",
    "gupta",
    "hbfp",
    "hfp8",
    "lns_madam",
    "luq",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "nvfp4",
    "posit",
    "quartet",
    "quartet2",
    "s2fp8",
    "unit_scaling",
    "wage",
    "wang",
]


def __dir__() -> list[str]:
    return __all__


Model = TypeVar("Model", bound=nn.Module)
Exempt = Sequence[str]


@dataclass(frozen=True)
class Recipe:
    """What becomes of a model, its optimizer and its loss.

    First the model, in place, then an optimizer of its parameters, wrapped; the scaler is a LossScaler, of 1
    where the paper has none.

    Args:
        operands, accumulator: of the products of linear and convolutional layers, as of ``lower``.
        change: a function of the model and of ``exempt``, for what no operands express.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.
        optim: arguments of ``OptimLP`` by name; without any, the optimizer stays as it is.
        scaling: ``Static``, ``Dynamic`` or ``Automatic``, or a number for a static scale.

    Raises:
        ValueError: ``arithmetic`` of a recipe that changes layers.
        TypeError: a field that is none of these, ``optimizer`` of what is not a torch optimizer.

    >>> from torch.optim import Adam
    >>> recipe = mxfp8()
    >>> model = recipe.model(nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> optim, scaler = recipe.optimizer(Adam(model.parameters())), recipe.scaler()

    Everything they hold is in their state_dicts. Linear and convolutional layers take part, transposed ones where
    there is an ``arithmetic``, but those at or below the paths in ``exempt``, which stay fp32; parameters and what
    layers put out are plain.
    A model takes one recipe: a second is refused or takes the place of the first if it works by the same means,
    and if not, both round. ``lower(model, ["linear", "conv"])`` takes off what has an ``arithmetic``.
    ``recipe.arithmetic`` is for whoever wants LPTensors: ``convert(model, recipes.mxfp8().arithmetic)``.
    """

    operands: Gemm | None = None
    accumulator: Accumulator | None = None
    change: Callable[[nn.Module, Exempt], Any] | None = None
    exempt: Exempt = ()
    optim: Mapping[str, Any] = field(default_factory=dict, hash=False)  # a dict, which has none
    scaling: Static | Dynamic | Automatic | float = Static(1.0)

    def __post_init__(self) -> None:
        Arithmetic(operands=self.operands, accumulator=self.accumulator)  # refuses what is neither
        if self.change is not None and not callable(self.change):
            raise TypeError(f"change must be a function of a model and of what is exempt, got {self.change!r}")
        if not isinstance(self.optim, Mapping):
            raise TypeError(f"optim must be a dict of arguments of OptimLP, got {self.optim!r}")
        object.__setattr__(self, "scaling", as_policy("scaling", self.scaling))
        object.__setattr__(self, "exempt", listed("exempt", self.exempt))
        object.__setattr__(self, "optim", dict(self.optim))

    def model(self, model: Model) -> Model:
        """The model, its layers changed in place.

        Raises:
            TypeError: no module, or weights of half precision in a recipe that changes layers.
            ValueError: a path in ``exempt`` that matches nothing, no layer left to change.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"a recipe changes a torch.nn.Module, got {model!r}")
        if self.change is not None:
            self.change(model, self.exempt)
        if self.operands is not None or self.accumulator is not None:
            kinds = ["linear", "conv"]
            lower(model, kinds, operands=self.operands, accumulator=self.accumulator, exempt=self.exempt)
        return model

    @property
    def arithmetic(self) -> Arithmetic:
        """The operands and the accumulator of the recipe's products.

        Raises:
            ValueError: a recipe that has none, but changes layers.
        """
        if self.operands is None and self.accumulator is None:
            raise ValueError("this recipe changes layers and has no arithmetic; let recipe.model(model) do it")
        return Arithmetic(operands=self.operands, accumulator=self.accumulator)

    def optimizer(self, optim: Optimizer) -> Optimizer:
        """The optimizer with the recipe's update: an ``OptimLP`` where the paper has one of its own.

        Raises:
            TypeError: no torch optimizer.
        """
        if not isinstance(optim, Optimizer):
            raise TypeError(f"a recipe wraps a torch.optim.Optimizer, got {type(optim).__name__}")
        return OptimLP(optim, **self.optim) if self.optim else optim

    def scaler(self) -> LossScaler:
        """The recipe's loss scaling."""
        return LossScaler(self.scaling)


def _operands(x: Any, w: Any, g: Any, transform: Any = None) -> Gemm:
    """Products whose operands are rounded to these formats, in whichever product they stand."""
    return Gemm((x, w), (g, w), (g, x), transform)


@dataclass(frozen=True)
class _With:
    """A function that gets ``last`` after its own arguments: one that pickles, and equals its like."""

    function: Callable[..., Any]
    last: tuple[Any, ...] = ()

    def __call__(self, *first: Any) -> Any:
        return self.function(*first, *self.last)

    def __repr__(self) -> str:  # by names, not by addresses
        last = (getattr(given, "__name__", None) or repr(given) for given in self.last)
        return f"{self.function.__name__.lstrip('_')}({', '.join(last)})"


def _by_layers(exempt: Exempt, input: Make, weight: Make, gradient: Make, **others: Any) -> Recipe:
    """Layers whose input, weight and gradient are rounded by what these make; each is made once to refuse it now."""
    for make in (input, weight, gradient):
        make()
    return Recipe(change=_With(_round_layers, (input, weight, gradient)), exempt=exempt, **others)


def _round_layers(model: nn.Module, exempt: Exempt, input: Make, weight: Make, gradient: Make) -> None:
    round_layers(model, input, weight, gradient, exempt)


def _per_tensor(element: ScalarFormat) -> Format:
    return Scaled(element, CurrentMaximum(PER_TENSOR))


_IBM = Accumulator(FloatingPoint(6, 9), chunk=64)
_IBM_UPDATE = {"weight_quant": FloatingPoint(6, 9), "update": "stochastic"}


def gupta(
    wl: int = 16,
    fl: int = 12,
    rounding: Rounding | Mode | str = "stochastic",
    outputs: int | None = None,
    exempt: Exempt = (),
) -> Recipe:
    """Fixed point everywhere, rounded stochastically: outputs of layers, their gradients, weights and updates.

    Gupta et al., Deep Learning with Limited Numerical Precision (1502.02551). Products add up in fp32
    (48 bits in the paper). ``outputs`` are the fraction bits of what layers put out, by default ``fl`` or
    what leaves 6 integer bits, so that the default is (4, 12) and outputs are (6, 10): with 4
    they would end at 8, which logits pass, and training ends where they clip. The layers of torch.nn take part, those
    without weights too, and so do other modules that have no parts.

    Args:
        wl, fl: word length and fraction bits, as of ``FixedPoint``.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: numbers that ``FixedPoint`` refuses, another rounding than "stochastic" and "nearest";
            an ``exempt`` that is not a list.

    >>> import torch
    >>> model = gupta(wl=8, fl=6).model(nn.Sequential(nn.Linear(4, 2)))  # outputs have 2 fraction bits
    >>> model(torch.randn(3, 4)).mul(4).frac().count_nonzero().item()
    0
    """
    rule = as_rounding(rounding)
    if rule.name not in ("nearest", "stochastic") or rule != as_rounding(rule.name):
        raise ValueError(f'gupta rounds "stochastic" or "nearest", got {rounding!r}')
    number = FixedPoint(wl, fl)
    wide = FixedPoint(
        wl, min(number.fl, number.wl - 6) if outputs is None else check_int("outputs", outputs, -126, 149)
    )
    return Recipe(
        change=_With(_lower_all, (wide, number, rule)),
        exempt=exempt,
        optim={
            "weight_quant": number,
            "grad_quant": quantizer(number, forward_rounding=rule),
            "update": rule.name,
        },
    )


def _lower_all(model: nn.Module, exempt: Exempt, wide: Format, number: Format, rule: Rounding) -> None:
    # Layers are those of torch.nn, and whatever has no parts but those that make its weights.
    makers = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == "parametrizations"]
    whole = (m for m in model.modules() if not dict(m.named_children()).keys() - {"parametrizations"})
    kinds: list[str | type[nn.Module]] = ["all", *{type(m) for m in whole if not isinstance(m, nn.Identity)}]
    check_dtypes(p for path, p in model.named_parameters() if not any(matches(out, path) for out in exempt))
    lower(model, kinds, wide, number, rule, rule, exempt=(*exempt, *makers))


def wang(exempt: Exempt = ()) -> Recipe:
    """FP8 1-5-2 operands, sums in 1-6-9 by chunks of 64, 1-6-9 weights updated stochastically, losses times 1000.

    Wang et al., Training Deep Neural Networks with 8-bit Floating Point Numbers (1812.08011). The
    paper keeps the first layer's input and the last layer wider: ``exempt``.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> recipe = wang(exempt=["0"])
    >>> recipe.operands.forward[0].format == E5M2, recipe.accumulator.chunk, recipe.scaler().get_scale()
    (True, 64, 1000.0)
    """
    return Recipe(_operands(E5M2, E5M2, E5M2), _IBM, exempt=exempt, optim=_IBM_UPDATE, scaling=Static(1000.0))


def hfp8(exempt: Exempt = ()) -> Recipe:
    """Hybrid FP8: 1-4-3 up to 30 forward, 1-5-2 for gradients, 1-6-9 weights updated stochastically.

    Sun et al., Hybrid 8-bit Floating Point Training and Inference (NeurIPS 2019); sums are as Wang's. The paper's
    exponent bias of 4 comes on top of the usual 7: values shrink by 2**4, as in E4M3B11FNUZ, which was made after it.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> forward, backward = (pair[0].format for pair in (hfp8().operands.forward, hfp8().operands.grad_input))
    >>> forward.max, backward == E5M2
    (30.0, True)
    """
    forward = FloatingPoint(4, 3, bias=7 + 4, specials="none")
    return Recipe(_operands(forward, forward, E5M2), _IBM, exempt=exempt, optim=_IBM_UPDATE, scaling=Dynamic())


def fp8_current(exempt: Exempt = ()) -> Recipe:
    """E4M3 forward and E5M2 for gradients, each tensor under a scale of its own maximum.

    Micikevicius et al., FP8 Formats for Deep Learning (2209.05433). Weights stay fp32.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> import torch
    >>> model = fp8_current().model(nn.Sequential(nn.Linear(2, 1, bias=False)))
    >>> _ = model[0].weight.data.fill_(1.0)
    >>> model(torch.tensor([[1e6, 1.0]])).item()  # the largest keeps its value, 1 underflows beside it
    1000000.0
    """
    forward = _per_tensor(E4M3)
    return Recipe(_operands(forward, forward, _per_tensor(E5M2)), exempt=exempt)


def fp8_delayed(history: int = 1024, margin: int = 0, amax: str = "max", exempt: Exempt = ()) -> Recipe:
    """The same under scales from the maxima of earlier steps, which the model's buffers hold (2209.05433).

    Args:
        history, margin, amax: as of ``DelayedMaximum``.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, what ``DelayedMaximum`` refuses.

    >>> import torch
    >>> model = fp8_delayed(history=4).model(nn.Sequential(nn.Linear(2, 1)))
    >>> _ = model(torch.tensor([[7.0, 1.0]]))
    >>> model[0].rounded_input.amax_history.tolist(), model[0].rounded_input.scale.item()
    ([7.0, 0.0, 0.0, 0.0], 64.0)
    """
    scaling = DelayedMaximum(history, margin, amax)
    forward, backward = (_With(DelayedScaling, (format, scaling)) for format in (E4M3, E5M2))
    return _by_layers(exempt, forward, forward, backward)


def deepseek(promote_every: int | None = None, exempt: Exempt = ()) -> Recipe:
    """E4M3 for all: tiles of 1 x 128 of activations and gradients, blocks of 128 x 128 of weights, fp32 scales.

    DeepSeek-V3 (2412.19437, section 3.3). Products add up in fp32 throughout; with ``promote_every``, the
    paper's 128, so many products of elements add up as Hopper's tensor cores do it for FP8
    (``tensor_core("hopper_fp8")``), and these sums, times their scales, in fp32. It is as slow as ``tensor_core`` is.

    Args:
        promote_every: how many products, a divisor of 128 from 2 on; None for fp32 throughout.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, a promote_every that is none of these.

    >>> x, w = deepseek().operands.forward
    >>> x.format.block_shape((512, 512)), w.format.block_shape((512, 512))
    ((1, 128), (128, 128))
    """
    tile = Scaled(E4M3, CurrentMaximum(Tile((1, 128))))
    sums = None
    if promote_every is not None:
        chunk = check_int("promote_every", promote_every, 2, 128)
        if 128 % chunk:
            raise ValueError(f"promote_every must divide 128, along which a tile has one scale, got {promote_every}")
        sums = Accumulator(FP32, chunk=chunk, inner=tensor_core("hopper_fp8", unscaled=True))
    return Recipe(_operands(tile, Scaled(E4M3, CurrentMaximum(Tile((128, 128)))), tile), sums, exempt=exempt)


def hbfp(
    wl: int = 8,
    storage: int = 16,
    tile: int = 24,
    rounding: Rounding | Mode | str = "stochastic",
    exempt: Exempt = (),
) -> Recipe:
    """Block floating point for products: an exponent for each sample, or for each tile of a weight; wide weights.

    Drumond et al., Training DNNs with Hybrid Block Floating Point (1804.01526). Activations and gradients
    have one exponent for each index of their first axis, each tensor is rounded once for both of its
    products, weights are kept in ``storage`` bits and everything else is fp32. ``hbfp_widths``
    makes the schedule of Accuracy Booster of it.

    Args:
        wl, storage: bits of operands and of stored weights, 2 to 24.
        tile, rounding: as of ``HBFP``.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, what ``HBFP`` refuses.

    >>> import torch
    >>> model = hbfp(wl=4).model(nn.Sequential(nn.Linear(64, 8)))
    >>> optim = hbfp(wl=4, storage=12).optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> model(torch.randn(2, 64)).sum().backward(); optim.step()
    """
    rounding = as_rounding(rounding)
    check_int("storage", storage, 2, 24)
    samples, tiles = (_With(HBFP, (wl, size, rounding)) for size in (None, tile))
    return _by_layers(exempt, samples, tiles, samples, optim={"weight_quant": HBFP(storage, tile, rounding)})


def mxfp8(exempt: Exempt = ()) -> Recipe:
    """MXFP8 E4M3 for all operands, scales rounded up so that nothing saturates.

    Mishra et al., Recipes for Pre-training LLMs with MXFP8 (2506.08027).

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> import torch
    >>> model = mxfp8(exempt=["2"]).model(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    >>> model(torch.randn(2, 64)).sum().backward()
    >>> mxfp8().operands.forward[0].format == MX(E4M3, scale_rule="rceil")
    True
    """
    number = MX(E4M3, scale_rule="rceil")
    return Recipe(_operands(number, number, number), exempt=exempt)


def mxfp6(element: ScalarFormat = E3M2, exempt: Exempt = ()) -> Recipe:
    """MXFP6 for all operands, to nearest: Rouhani et al., Microscaling Data Formats for Deep Learning (2310.10537).

    Args:
        element: E3M2 or E2M3, or another that ``MX`` takes.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, an element that ``MX`` refuses.

    >>> from lptensor import E2M3, MXFP6_E2M3
    >>> mxfp6(E2M3).operands.grad_weight[0].format == MXFP6_E2M3
    True
    """
    number = MX(element)
    return Recipe(_operands(number, number, number), exempt=exempt)


def mxfp4(unbiased: bool = True, hadamard: int | None = 64, exempt: Exempt = ()) -> Recipe:
    """MXFP4 in the two backward products, unbiased, after random Hadamard transforms; the forward one is fp32.

    Tseng et al., Training LLMs with MXFP4 (2502.20586). ``unbiased=False`` is MXFP4 to nearest in all
    three products; ``hadamard`` is the width of the transforms, None for none.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, an ``unbiased`` that is neither True nor
            False, a width that ``Hadamard`` refuses.

    >>> mxfp4().operands.forward, mxfp4().operands.transform[1]
    ((None, None), Hadamard(block_size=64, signs='random', seed=0))
    >>> mxfp4(unbiased=False, hadamard=None).operands.forward[0].format == MXFP4
    True
    """
    check_bool("unbiased", unbiased)
    transform = None if hadamard is None else Hadamard(check_int("hadamard", hadamard, 2, 1024), "random")
    if not unbiased:
        return Recipe(_operands(MXFP4, MXFP4, MXFP4, transform), exempt=exempt)
    q, backward = Technique(MXFP4, ThreeQuarters()), {"grad_input": transform, "grad_weight": transform}
    return Recipe(Gemm(None, (q, q), (q, q), backward), exempt=exempt)


def quartet(exempt: Exempt = ()) -> Recipe:
    """MXFP4 in all three products of ``nn.Linear``: Castro et al., Quartet (2505.14669).

    Forward to nearest, clipped for the least square error, after a Hadamard transform; backward unbiased
    after one of random signs, and zero where the forward pass clipped. Weights stay fp32.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> model = quartet().model(nn.Sequential(nn.Linear(64, 8), nn.ReLU()))
    >>> type(model[0]).__name__
    'QuartetLinear'
    """
    return Recipe(change=_With(_quartet), exempt=exempt)


def _quartet(model: nn.Module, exempt: Exempt) -> None:
    quartet_layers(model, exempt, unbiased=ThreeQuarters())


def quartet2(hadamard: int = 128, exempt: Exempt = ()) -> Recipe:
    """NVFP4 in all three products of ``nn.Linear``: Panferov et al., Quartet II (2601.22813).

    Forward to nearest, by ``FourOverSix``; backward the rounded operands and the gradient are rounded again by
    ``MSEden``, which is unbiased, after a Hadamard transform of random signs. Weights stay fp32.

    Args:
        hadamard: the width of the transform, a multiple of 16: 128 in its authors' kernels, 32 in their experiments.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, a width that ``Hadamard`` refuses, or below 16.

    >>> model = quartet2().model(nn.Sequential(nn.Linear(64, 8), nn.ReLU()))
    >>> type(model[0]).__name__
    'QuartetLinear'
    """
    transform = Hadamard(check_int("hadamard", hadamard, MSEden.block_size, 1024), "random")
    return Recipe(change=_With(_quartet2, (transform,)), exempt=exempt)


def _quartet2(model: nn.Module, exempt: Exempt, transform: Hadamard) -> None:
    quartet_layers(model, exempt, unbiased=MSEden(), operand=FourOverSix(), transform=transform)


def nvfp4(exempt: Exempt = ()) -> Recipe:
    """NVFP4: weights under 16 x 16 scales, stochastic gradients, a Hadamard transform before the weight's gradient.

    NVIDIA, Pretraining Large Language Models with NVFP4 (2509.25149); there 16 % of the layers stay wider.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> x, w = nvfp4().operands.forward
    >>> x.format == NVFP4, w.format.block_shape((64, 64)), nvfp4().operands.grad_weight[0].rounding
    (True, (16, 16), Stochastic())
    """
    w, g = TwoLevel(E2M1, block_size=(16, 16)), Operand(NVFP4, "stochastic")
    return Recipe(Gemm((NVFP4, w), (g, w), (g, NVFP4), {"grad_weight": Hadamard(16)}), exempt=exempt)


def s2fp8(exempt: Exempt = ()) -> Recipe:
    """Shifted and squeezed FP8 operands, fp32 weights, no loss scaling: Cambier et al. (2001.05674).

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> import torch
    >>> model = s2fp8().model(nn.Sequential(nn.Linear(8, 2)))
    >>> model(torch.full((1, 8), 1e-20)).isfinite().all().item()
    True
    """
    return _by_layers(exempt, S2FP8, S2FP8, S2FP8)


def luq(samples: int = 1, forward: Operand | Format | None = None, exempt: Exempt = ()) -> Recipe:
    """INT4 forward, to nearest; gradients on a 4-bit logarithmic grid, unbiased (Chmiel et al., 2112.10769).

    ``samples`` roundings are averaged for the weight's gradient. INT4 is clipped by ``SAWB``, unless
    ``forward`` is another operand, such as INT4 under the largest magnitude:
    ``Scaled(INT4, CurrentMaximum(PER_TENSOR))``. A convolution's moments are those of its unfolded input.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, samples below 1, a ``forward`` that is not an operand.

    >>> recipe = luq(samples=2)
    >>> [operand.function for operand in recipe.operands.grad_weight]
    [LUQ(bits=4, samples=2), SAWB()]
    """
    q = Technique(SAWB().format, SAWB()) if forward is None else forward
    g, averaged = (Technique(LUQ().format, LUQ(samples=n)) for n in (1, samples))
    return Recipe(Gemm((q, q), (g, q), (averaged, q)), exempt=exempt)


def dorefa(weight: int = 1, activation: int = 2, gradient: int = 6, exempt: Exempt = ()) -> Recipe:
    """Weights, activations and gradients of so many bits: Zhou et al., DoReFa-Net (1606.06160).

    The inputs of layers are clipped to [0, 1], as the paper's activations are; the first and the last
    layer stay fp32 there: ``exempt``.

    Args:
        weight, activation, gradient: bits, 1 to 16.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, bits out of range.

    >>> model = dorefa(weight=1).model(nn.Sequential(nn.Linear(8, 2)))
    >>> model[0].weight.abs().unique().numel()  # a sign and one magnitude
    1
    """
    makes = {DoReFaActivation: activation, DoReFaWeight: weight, DoReFaGradient: gradient}
    for name, bits in {"weight": weight, "activation": activation, "gradient": gradient}.items():
        check_int(name, bits, 1, 16)
    return _by_layers(exempt, *(_With(make, (bits,)) for make, bits in makes.items()))


def wage(
    weight: int = 2,
    activation: int = 8,
    gradient: int = 8,
    error: int = 8,
    initialize: bool = True,
    exempt: Exempt = (),
) -> Recipe:
    """Weights, activations, gradients and errors as integers of so many bits: Wu et al., WAGE (1802.04680).

    The inputs of layers are clipped to (-1, 1), errors and gradients lose their magnitude, and weights
    are kept on the 8-bit grid inside (-1, 1), updated stochastically. The paper has bare SGD with rates of 8, then
    1, then 1/8, which count steps of that grid, no biases, no normalisation and the sum of squares
    as the loss. The layer whose incoming error is rounded is the last one of ``model.modules()``, wherever it is
    called. With ``initialize`` weights are drawn anew, as the paper needs it. The paper exempts no layer.

    Args:
        weight, activation, gradient, error: bits, 2 to 24.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: bits out of range, an ``initialize`` that is neither True nor False; an ``exempt`` that
            is no list.

    >>> model = wage().model(nn.Sequential(nn.Linear(64, 8, bias=False)))
    >>> model[0].weight.unique().numel()  # minus, zero and plus
    3
    """
    for name, bits in {"weight": weight, "activation": activation, "gradient": gradient, "error": error}.items():
        check_int(name, bits, 2, 24)
    check_bool("initialize", initialize)
    change = _With(_wage, (weight, activation, gradient, error, initialize))
    optim = {"weight_quant": grid(gradient), "grad_quant": WageGradient(gradient), "update": "stochastic"}
    return Recipe(change=change, exempt=exempt, optim=optim)


def _wage(
    model: nn.Module, exempt: Exempt, weight: int, activation: int, gradient: int, error: int, initialize: bool
) -> None:
    layers = [*called_layers(model, exempt, LAYERS).values()]
    check_unrounded(layers, layers)
    weights: list[Any] = [layer.weight for layer in layers]
    for w in weights if initialize else ():
        check_drawable(w, gradient)
    inputs, rounded = _With(WageActivation, (activation, error)), _With(WageWeight, (weight,))
    # Errors are rounded where they leave a layer's input; the first one enters the last layer's output.
    round_each(layers[-1:], inputs, rounded, _With(WageError, (error,)))
    round_each(layers[:-1], inputs, rounded)
    for w in weights if initialize else ():
        draw_weight(w, WageWeight(weight), gradient)


def lns_madam(bits: int = 8, gamma: int = 8, exempt: Exempt = ()) -> Recipe:
    """Logarithmic operands under each tensor's largest magnitude: Zhao et al., LNS-Madam (2106.13914).

    The optimizer to go with it is ``Madam``. Weights stay fp32.

    Args:
        bits, gamma: as of ``LogNumber``.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError, ValueError: an ``exempt`` that is not a list, what ``LogNumber`` refuses.

    >>> from lptensor.training import Madam
    >>> model = lns_madam().model(nn.Sequential(nn.Linear(8, 2)))
    >>> optim = lns_madam().optimizer(Madam(model.parameters(), lr=0.01))
    """
    bits = check_int("bits", bits, 2, 16)
    table = LogNumber(bits, gamma, bias=2 ** (bits - 1) - 1)
    q = Technique(table, Blockwise(table, block_size=None, min_size=0))
    return Recipe(_operands(q, q, q), exempt=exempt)


def unit_scaling(
    forward: Format | None = E4M3, backward: Format | None = E5M2, exempt: Exempt = (), initialize: bool = True
) -> Recipe:
    """E4M3 operands and E5M2 gradients under scales that are constants: Blake et al., Unit Scaling (2303.11257).

    Linear layers, embeddings and activations begin with unit variance, forward and backward; ``initialize``
    draws their weights anew for it. ``lptensor.training.unit_scaling.cross_entropy`` is the loss to go with it.
    Gradients of weights are large: Adam does not mind, SGD needs other rates. In ``exempt`` layers
    are scaled and not rounded.

    Args:
        forward, backward: formats of operands and of gradients; None rounds nothing.
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list, an ``initialize`` that is neither True nor False.
        ValueError: from ``model``, a ``backward`` without negative numbers.

    >>> import torch
    >>> model = unit_scaling().model(nn.Sequential(nn.Linear(64, 64, bias=False)))
    >>> 0.9 < model(torch.randn(256, 64)).std().item() < 1.1
    True
    """
    check_bool("initialize", initialize)
    return Recipe(change=_With(_unit_layers, (forward, backward, initialize)), exempt=exempt)


def _unit_layers(
    model: nn.Module, exempt: Exempt, forward: Format | None, backward: Format | None, initialize: bool
) -> None:
    unit_layers(model, forward, backward, exempt, initialize)


def posit(exempt: Exempt = ()) -> Recipe:
    """Posit(8, 1) forward, Posit(8, 2) for gradients, Posit(16, 1) weights.

    Lu et al., Evaluations on Deep Neural Networks Training Using Posit (2020), without its shifts and warm-up.

    Args:
        exempt: paths of layers to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: an ``exempt`` that is not a list.

    >>> posit().operands.forward[0].format, posit().operands.grad_input[0].format
    (Posit(nbits=8, es=1), Posit(nbits=8))
    """
    optim = {"weight_quant": Posit(16, 1), "update": "nearest"}
    return Recipe(_operands(Posit(8, 1), Posit(8, 1), Posit(8, 2)), exempt=exempt, optim=optim)
