"""Low-precision layers: the outputs and gradients of chosen layers of a model are rounded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.rnn import PackedSequence

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.formats import Format
from lptensor.layer_products import LayerProducts, check_plain, holds_integers
from lptensor.layer_types import LayerTypes, classes_of, names_of, passed_over
from lptensor.nests import is_container, remade
from lptensor.operands import Gemm
from lptensor.ops import check_format
from lptensor.outputs import round_output
from lptensor.path_rules import PathRules, listed
from lptensor.quantizer import Quantize, quantizer
from lptensor.rounding import Mode, Rounding

Model = TypeVar("Model", bound=nn.Module)


def lower(
    model: Model,
    layer_type: LayerTypes | None = None,
    forward_number: Format | None = None,
    backward_number: Format | None = None,
    forward_rounding: Rounding | Mode | str = "stochastic",
    backward_rounding: Rounding | Mode | str = "stochastic",
    *,
    layer_types: LayerTypes | None = None,
    operands: Gemm | None = None,
    accumulator: Accumulator | None = None,
    exempt: Iterable[str] = (),
) -> Model:
    """Round the outputs of the chosen layers of ``model``, and the gradients of these outputs.

    The model is changed in place and returned: modules, parameters, buffers and the keys of the
    state_dict stay what they are; ``deepcopy``, pickle and ``torch.save`` keep the rounding. Every
    floating-point tensor in a layer's output is rounded, also inside tuples, lists, dicts,
    dataclasses and packed sequences; integers, plain numbers and None pass. What special values become depends on
    the format.

    The output of a ReLU, max pooling, padding or inactive dropout is not rounded again if its input was just rounded
    to the same format and not written to since. Writes through ``.data``, which hides them from
    autograd, are not seen.

    A later call replaces what an earlier one said about a layer; with neither numbers nor products
    it removes everything. Subclasses count as what they extend. Only modules that are called can be rounded:
    functional code is left alone, and so are the projections inside ``nn.MultiheadAttention``, whose
    own output the group "attention" rounds. Layers that extend none of torch.nn are in no group: where "linear" ones
    are asked for and such hold more than half as many numbers as these do, a warning names their classes.

    Args:
        model: any module, itself a chosen layer or with such inside.
        layer_type: one or several of "conv", "linear", "pool", "pad", "activation", "normalization",
            "dropout", "loss", "rnn", "embedding", "attention"; "all" for all of these; module classes.
        forward_number: format of the outputs; None leaves them as they are.
        backward_number: format of the gradients; None leaves them as they are.
        forward_rounding, backward_rounding: how outputs and gradients are rounded: a name as of ``round``, a
            ``Mode`` or a ``Rounding``; stochastically by default, as QPyTorch does.
        layer_types: another name for layer_type.
        operands: a ``Gemm``: what the operands of the products within these layers are rounded to,
            forward and backward. Tensors, parameters and gradients stay plain.
        accumulator: an ``Accumulator``: what adds up within these layers, forward and backward.
        exempt: path patterns as those of ``convert`` ("0", "head", "layers.*.norm"): layers at or
            below such a path are left alone, as the first and the last one often are.

    Raises:
        TypeError: a model, a layer type or a number that is not one.
        ValueError: an unknown group or rounding, a pattern that matches nothing, no such layer in
            the model, a layer within another if their products are to be rounded, or a backward_number without
            negative numbers. The model is unchanged.

    >>> from lptensor import FloatingPoint
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> lower(net, ["conv"], FloatingPoint(8), FloatingPoint(8)) is net
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lower takes a torch.nn.Module, got {model!r}")
    wanted, exempt = _classes(layer_type, layer_types), listed("exempt", exempt)
    quantize = quantizer(forward_number, backward_number, forward_rounding, backward_rounding)
    if {p.dtype for p in model.parameters()} == {torch.float32}:  # which is then what layers put out
        for number in (forward_number, backward_number):
            if number is not None:
                check_format(number)
    products = None
    if operands is not None or accumulator is not None:
        products = Arithmetic(None, operands=operands, accumulator=accumulator)
    layers = _chosen(model, wanted, exempt)
    if not layers:
        present = sorted({type(module).__name__ for module in model.modules()})
        if _chosen(model, wanted, ()):
            raise ValueError(f"exempt={exempt} leaves no layer of {names_of(wanted)}; name fewer paths")
        raise ValueError(
            f"{type(model).__name__} has no layer of {names_of(wanted)}; it is made of {', '.join(present)}"
        )
    rounds = products is not None or forward_number is not None or backward_number is not None
    if rounds and (others := passed_over(model, wanted)):
        warnings.warn(
            f"lower leaves {', '.join(others)} alone, which hold many of the numbers of {type(model).__name__} and "
            f"extend no layer of torch.nn; name those that multiply too, as in lower(model, ['linear', {others[0]}])",
            stacklevel=2,
        )
    if products is not None:
        chosen = {id(layer) for layer in layers}
        within = {id(part) for layer in layers for part in layer.modules() if part is not layer} & chosen
        if within:
            paths = [path for path, module in model.named_modules() if id(module) in within]
            raise ValueError(
                f"{', '.join(paths)} lie within other layers, whose products are rounded whatever is in them; "
                f"say exempt={[*exempt, *paths]}"
            )
        for layer in layers:
            for parameter in layer.parameters():
                if not holds_integers(parameter):
                    check_plain(parameter)
    for layer in layers:
        LayerProducts.detach(layer)  # first off, then on: outputs are rounded after they have become plain
        _compat.drop_hooks(layer, _compat.OUTPUTS)
        if products is not None:
            LayerProducts(products).attach(layer)
        if forward_number is not None or backward_number is not None:
            _compat.set_hooks(layer, _compat.OUTPUTS, after=RoundOutput(quantize))
    return model


def _chosen(model: nn.Module, wanted: tuple[type[nn.Module], ...], exempt: Iterable[str]) -> list[nn.Module]:
    """The layers of these classes, without those at or below an exempt path."""
    rules = PathRules(dict.fromkeys(exempt))
    modules = dict(model.named_modules(remove_duplicate=False))
    rules.check_paths(list(modules))
    left_alone = {id(module) for path, module in modules.items() if rules.of(path) is None}
    return [
        module
        for module in model.modules()
        if isinstance(module, wanted)
        and type(module) is not NonDynamicallyQuantizableLinear
        and id(module) not in left_alone
    ]


@dataclass(frozen=True)
class RoundOutput:
    """A forward hook that rounds the tensors in an output, whatever containers hold them."""

    quantize: Quantize

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        plain = type(output) is Tensor and not torch.compiler.is_dynamo_compiling()
        if plain and output.is_floating_point() and not output.is_nested:
            return round_output(module, args, output, self.quantize)
        return self._all(type(module).__name__, output)

    def _all(self, name: str, nest: Any) -> Any:
        return _compat.tree_map(lambda part: self._rounded(name, part), nest, PackedSequence)

    def _rounded(self, name: str, part: Any) -> Any:
        if isinstance(part, PackedSequence):
            return part._replace(data=self.quantize(part.data))
        if isinstance(part, Tensor) and part.is_nested:  # nn.TransformerEncoder makes them of padded batches
            return torch.nested.as_nested_tensor([self.quantize(t) for t in part.unbind()], layout=part.layout)
        if isinstance(part, Tensor):
            return self.quantize(part) if part.is_floating_point() or part.is_complex() else part
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if is_container(part):  # a dataclass, or a class of dicts that torch does not know
            return remade(part, lambda item: self._all(name, item))
        raise TypeError(
            f"cannot round the output of {name}: it holds a {type(part).__name__}; return tensors, or a dict or a "
            "dataclass of them, or register the type with torch.utils._pytree"
        )


def _classes(layer_type: Any, layer_types: Any) -> tuple[type[nn.Module], ...]:
    """The module classes that the two ways of naming them stand for."""
    if (layer_type is None) == (layer_types is None):
        raise TypeError("lower needs layer_type= (layer_types= is the same), exactly once, such as ['conv']")
    return classes_of("layer_type", layer_types if layer_type is None else layer_type)
