"""LPTensor: a tensor that carries its arithmetic and rounds the result of every op."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from lptensor import _compat, dispatch, observe, watch
from lptensor.aot import Traceable, accept_plain_gradients
from lptensor.arithmetic import Arithmetic, as_arithmetic, promote
from lptensor.base import Format, check_dense, check_tensor
from lptensor.blocks import BlockFormat
from lptensor.composites import BATCHES, CELLS, FORMULAS, LAYERS, QUESTIONS, step_by_step, with_low_state, with_values
from lptensor.dispatch import Runner, make_runner
from lptensor.distributed import Sharded, broadcast_values, refuse_distributed, refuse_views_of_buckets
from lptensor.ops import check_samples_draw, differentiates, round_fresh
from lptensor.rounding import Beyond, Mode, Rounding, as_rounding
from lptensor.rules import Kind, rule_for
from lptensor.surface import Surface, rebuild
from lptensor.watch import round_

_RUNNERS: dict[Any, Runner] = {}


class LPTensor(Traceable, Sharded, Surface, Tensor):  # type: ignore[misc]
    """A tensor whose values are in a number format, and stay in it through every op.

    It holds a plain fp32 tensor and an ``Arithmetic``. Each aten op computes in fp32 on the inner
    tensors and rounds its result once, where a tensor of a native dtype would round; ops in
    the backward pass round to the backward format. Make one with ``x.to_lp(format)``, leave with
    ``y.dequantize()``. Any shape and device; it cannot be subclassed.

    With a plain fp32 operand the LPTensor's arithmetic wins and the plain values are used exactly.
    Of two formats the one that contains the other wins; if neither does, a TypeError is raised. So a plain
    parameter that is used with LPTensors stays plain, but its gradient is an LPTensor, and what an optimizer adds
    to the gradient (weight decay, Nesterov's momentum) is rounded to its format. To avoid that, dequantize before
    the plain part, as the rules of ``lptensor.convert`` do.

    ``LPTensor(x, arithmetic)`` itself rounds nothing: it is for values that are in the format already.

    Args:
        inner: the values, a plain float32 tensor, which is not copied.
        arithmetic: what ops with it round to, an ``Arithmetic``.
        gradient: whether it is a gradient, whose format is the backward one.
        requires_grad: as for any tensor. If given without an arithmetic, an LPTensor becomes a parameter, in the way
            that libraries recreate parameters: ``type(p)(p.to(device), requires_grad=True)``.

    Raises:
        TypeError: values that are not a plain float32 tensor, an arithmetic that is not an ``Arithmetic``; a subclass.

    >>> from lptensor import FloatingPoint
    >>> torch.tensor([0.1, 0.2]).to_lp(FloatingPoint(8)) * 3
    LPTensor([0.2500, 0.5000], format=E5M2, rounding='nearest')
    """

    _inner: Tensor
    _arithmetic: Arithmetic
    _gradient: bool

    if TYPE_CHECKING:  # a method of every tensor, see below, of which type checkers can only be told here

        def to_lp(
            self, format: Format | Arithmetic, rounding: Rounding | Mode | str = "nearest", grad: Format | None = None
        ) -> LPTensor: ...

    @staticmethod
    @_compat.run_by_python
    def __new__(
        cls,
        inner: Tensor,
        arithmetic: Arithmetic | None = None,
        gradient: bool = False,
        *,
        requires_grad: bool | None = None,
    ) -> LPTensor:
        if type(arithmetic) is not Arithmetic:
            if arithmetic is None and type(inner) is cls and requires_grad is not None:
                return nn.Parameter(inner.detach(), requires_grad)  # type: ignore[return-value]
            if arithmetic is None and requires_grad is not None:  # accelerate's way, of a weight that it has read
                raise TypeError(
                    "a parameter in low precision is made anew of plain values, of which nothing says the format; load "
                    "a model first, and convert it then"
                )
            raise TypeError(
                f"an LPTensor is made by x.to_lp(format), which rounds; its own arithmetic is no {arithmetic!r}"
            )
        if inner.dtype is not torch.float32 or type(inner) is cls:
            what = "an LPTensor" if type(inner) is cls else inner.dtype
            raise TypeError(f"an LPTensor holds a plain float32 tensor, got {what}; x.to_lp(format) takes it")
        self: LPTensor = dispatch.wrap(cls, inner, arithmetic, gradient)
        if requires_grad:
            self.requires_grad_()
        return self

    def __init_subclass__(cls, **_: Any) -> NoReturn:
        raise TypeError("LPTensor cannot be subclassed; carry what differs in its Arithmetic")

    __torch_function__: Any = _compat.disabled_torch_function

    @classmethod
    @_compat.run_by_python
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        run = _RUNNERS.get(func)
        if run is None:
            run = _RUNNERS[func] = make_runner(func, LPTensor)
        eyes = watch.watcher
        if eyes is not None:
            return eyes.run(func, rule_for(func).kind, partial(run, args, kwargs or {}))
        return run(args, kwargs or {})

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], grid: tuple[Arithmetic, bool], size: Any, stride: Any
    ) -> LPTensor:
        return LPTensor(inner["_inner"], *grid)

    def dequantize(self) -> Tensor:
        """The values as a plain fp32 tensor. A gradient that comes back is rounded to the backward format.

        >>> from lptensor import FloatingPoint
        >>> torch.tensor([0.1]).to_lp(FloatingPoint(8)).dequantize()
        tensor([0.0938])
        """
        return _apply(_Leave, self, self._arithmetic)

    def _let_plain_gradients_enter(self) -> None:
        """Round the gradient of this result, once it is there, if it comes from plain tensors alone."""
        arithmetic = self._arithmetic

        def enter(grad: Tensor | None) -> Tensor | None:  # None where only other results of the same op have one
            plain = grad is not None and not is_low(grad) and grad.layout is torch.strided
            return _apply(_EnterGradient, grad, arithmetic) if plain else grad

        self.register_hook(enter)  # type: ignore[no-untyped-call]


@_compat.run_by_python
def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)
    return result


class _Boundary(torch.autograd.Function):
    """What the ways into and out of low precision remember of a call: the arithmetic."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Arithmetic], output: Tensor) -> None:
        ctx.arithmetic = inputs[1]


class _Enter(_Boundary):
    """Plain tensor in, LPTensor out; the gradient leaves low precision on its way back."""

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, arithmetic: Arithmetic) -> LPTensor:
        return watch.watched("to_lp", Kind.ROUND, lambda: enter(x, arithmetic))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _apply(_Leave, grad, ctx.arithmetic), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _apply(_Enter, tangent, ctx.arithmetic)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, arithmetic: Arithmetic) -> Any:
        return _of_samples(_Enter, False, info, in_dims, x, arithmetic)


class _Leave(_Boundary):
    """LPTensor in, plain tensor out; the gradient is rounded on its way back."""

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, arithmetic: Arithmetic) -> Tensor:
        return x._inner.clone() if isinstance(x, LPTensor) else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _apply(_EnterGradient, grad, ctx.arithmetic), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _apply(_Leave, tangent, ctx.arithmetic)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, arithmetic: Arithmetic) -> Any:
        return _apply(_Leave, x, arithmetic), in_dims[0]


class _EnterGradient(_Boundary):
    """A plain gradient becomes one of an LPTensor."""

    @staticmethod
    @_compat.known_signature
    def forward(grad: Tensor, arithmetic: Arithmetic) -> LPTensor:
        return _as_gradient("dequantize", grad, arithmetic)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _apply(_Leave, grad, ctx.arithmetic), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _apply(_EnterGradient, tangent, ctx.arithmetic)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Tensor, arithmetic: Arithmetic) -> Any:
        return _of_samples(_EnterGradient, True, info, in_dims, grad, arithmetic)


class _EnterSeed(_EnterGradient):
    """The same of a gradient that a caller gives."""

    @staticmethod
    @_compat.known_signature
    def forward(grad: Tensor, arithmetic: Arithmetic) -> LPTensor:
        return _as_gradient("backward", grad, arithmetic)


def _of_samples(
    function: type[torch.autograd.Function], gradient: bool, info: Any, in_dims: Any, x: Tensor, arithmetic: Arithmetic
) -> Any:
    samples, (format, rounding) = x.movedim(in_dims[0], 0), arithmetic.sides[gradient]
    if rounding.stochastic:
        check_samples_draw(info, "stochastic rounding")
    if isinstance(format, BlockFormat):  # the blocks are those of each sample
        return torch.stack([_apply(function, sample, arithmetic) for sample in samples]), 0
    return _apply(function, samples, arithmetic), 0


def _as_gradient(what: str, grad: Tensor, arithmetic: Arithmetic) -> LPTensor:
    inner = (grad._inner if isinstance(grad, LPTensor) else grad).clone()
    return LPTensor(watch.watched(what, Kind.ROUND, partial(round_, inner, arithmetic, True)), arithmetic, True)


def _seed(output: Any, grad: Tensor, batched: bool, given: bool) -> Tensor:
    """The gradient of a result with which autograd starts, rounded to the result's format of gradients.

    That is one that a caller gives, if it is plain, as that of a native dtype is cast; and 1 where none is given, which
    torch makes like the result, and so in its format.
    """
    inner, seed = (_compat.innermost(x) if isinstance(x, Tensor) else x for x in (output, grad))
    if not isinstance(inner, LPTensor) or grad.layout is not torch.strided:
        return grad
    if not given:
        if inner._arithmetic.forward is None or inner._arithmetic.forward.has(1.0):
            return grad
        return _apply(
            _EnterSeed, torch.ones(output.shape, dtype=torch.float32, device=output.device), inner._arithmetic
        )
    if isinstance(seed, LPTensor):
        return grad
    if batched and isinstance(inner._arithmetic.gradient_format, BlockFormat):  # the blocks are those of each one
        return torch.stack([_apply(_EnterSeed, one.float(), inner._arithmetic) for one in grad])
    return _apply(_EnterSeed, grad.float(), inner._arithmetic)


def is_low(x: Any) -> bool:
    """Whether ``x`` is an LPTensor, also where torch.func wraps it into a tensor of its own."""
    if isinstance(x, LPTensor) or torch.compiler.is_dynamo_compiling() or not isinstance(x, Tensor):
        return isinstance(x, LPTensor)
    return _compat.transforming() and isinstance(_compat.innermost(x), LPTensor)


def enter(x: Tensor, arithmetic: Arithmetic, gradient: bool = False) -> LPTensor:
    """A plain floating-point tensor as an LPTensor, without autograd. float64 is rounded before it becomes fp32."""
    format, rounding = arithmetic.sides[gradient]
    given = x = x.detach()
    if x.dtype not in (torch.float32, torch.float64):  # the kernels take no narrow ones, of which fp32 holds all values
        x = x.float()
    if format is None:
        rounded = x.clone()
    else:
        rounded = round_fresh(x, format, rounding)
        watch.tell(rounded, format, rounding)
    inner = rounded.float()
    if observe.anyone and type(given) is Tensor:
        observe.copied(given, inner)
    return LPTensor(inner, arithmetic, gradient)


def check_carrier(arithmetic: Arithmetic) -> None:
    """Refuse an arithmetic with a format of which fp32, the carrier of every LPTensor, does not hold all values."""
    for format in (arithmetic.forward, arithmetic.backward):
        try:
            if format is not None:
                format.check_carrier(torch.float32)
        except ValueError as error:
            raise ValueError(f"an LPTensor holds its values in float32: {error} and lptensor.round()") from None


def to_lp(
    x: Tensor,
    format: Format | Arithmetic,
    rounding: Rounding | Mode | str = "nearest",
    grad: Format | None = None,
) -> LPTensor:
    """``x`` in low precision: an LPTensor of the same shape and device; a method of every tensor.

    An LPTensor is recast: rounded anew to the other format. The gradient passes straight through:
    it arrives at ``x`` as a plain tensor, or in x's own backward format if x is an LPTensor. What
    NaN, infinities, -0 and overflow become is the format's to say.

    Args:
        x: any floating-point tensor; float64 is rounded once, never through fp32.
        format: a number format, or an ``Arithmetic`` that says everything itself.
        rounding: how this and every later result is rounded.
        grad: format of gradients, if not ``format``.

    Raises:
        TypeError: x is not a dense floating-point tensor, format or grad not a format, or a rounding or grad is given
            beside an ``Arithmetic``.
        ValueError: a format that fp32 does not hold, whatever the dtype of x; one without negative numbers and no
            grad; an unknown rounding.
        NotImplementedError: within torch.export.

    >>> from lptensor import FixedPoint
    >>> to_lp(torch.tensor([0.3, 9.0]), FixedPoint(8, 4))
    LPTensor([0.3125, 7.9375], format=FixedPoint(wl=8, fl=4), rounding='nearest')
    """
    if torch.compiler.is_dynamo_compiling() and isinstance(x, Tensor):
        return cast(LPTensor, _lptensor_enter(x, format, as_rounding(rounding), grad))
    arithmetic = as_arithmetic(format, rounding, grad)
    check_tensor(x)
    if not x.is_floating_point():
        raise TypeError(
            f"only floating-point tensors have a low-precision form, got {x.dtype}; convert with .float() first"
        )
    check_dense(x, "a low-precision form is for")
    refuse_distributed(x)
    if isinstance(x, LPTensor) and x._arithmetic == arithmetic and not x._gradient:
        return x
    if is_low(x):
        x = x.dequantize()
    check_carrier(arithmetic)
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "torch.export cannot make an LPTensor within a graph: export a converted model and give it LPTensors or "
            "plain tensors, or round plain tensors with lptensor.round(), a quantizer or lower(). Operands and an "
            "accumulator are exported of a model that is converted to them: convert(model, Arithmetic(operands=...)). "
            "Between modules that have different rules tensors are recast, which is such a making: give rules to "
            "parameters alone, as {'head.*': None, '*': E4M3} does"
        )
    _compat.disable_fused_attention()
    return cast(LPTensor, _apply(_Enter, x, arithmetic) if differentiates(x) else _Enter.forward(x, arithmetic))


def _operator(name: str) -> Any:
    """A binary operator that takes numpy arrays as plain tensors, where torch leaves them to numpy.

    It also lets a clash of formats be heard: torch takes any TypeError for "not mine". And where Python asks the
    class of the right operand first, it is still the left one that is divided: torch's own way takes a reciprocal.
    """
    method = getattr(Tensor, name)
    mirrored: Any = getattr(Tensor, name.replace("__r", "__")) if name.startswith("__r") else None

    @_compat.run_by_python
    def run(self: LPTensor, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            other = torch.as_tensor(other, device=self.device)
        turned = mirrored and isinstance(other, Tensor)
        result = mirrored(other, self) if turned else method(self, other)
        if result is NotImplemented and isinstance(other, LPTensor):
            promote(self._arithmetic, other._arithmetic)
        return result

    run.__name__ = name
    return run


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    for _prefix in ("", "r", "i"):
        if hasattr(Tensor, f"__{_prefix}{_name}__"):
            setattr(LPTensor, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(LPTensor, f"__{_name}__", _operator(f"__{_name}__"))
LPTensor.__hash__ = Tensor.__hash__  # type: ignore[method-assign]

_dequantize = Tensor.dequantize


def dequantize(x: Tensor) -> Tensor:
    """``Tensor.dequantize``, which finds an LPTensor also where torch.func wraps it into a tensor of its own.

    Of a plain tensor it is the tensor, and has a gradient, which torch's own has not: a script need not know of what
    kind the output of a model is.
    """
    inner = _compat.innermost(x) if _compat.transforming() else None
    if isinstance(inner, LPTensor):
        return _apply(_Leave, x, inner._arithmetic)
    return _dequantize(x) if x.is_quantized or isinstance(x, LPTensor) else x.float()


Tensor.to_lp = to_lp  # type: ignore[attr-defined]
Tensor.dequantize = dequantize  # type: ignore[method-assign, assignment]
accept_plain_gradients(LPTensor)
_compat.replace_for_subclasses(FORMULAS)
_compat.replace_in_batches(BATCHES)
_compat.prepare_for_subclasses(CELLS, partial(with_low_state, LPTensor))
_compat.prepare_for_subclasses(LAYERS, partial(with_low_state, LPTensor), partial(step_by_step, LPTensor))
_compat.prepare_for_subclasses(QUESTIONS, partial(with_values, LPTensor))
_compat.refuse_higher_order(LPTensor, dispatch.refuse_higher_order)
_compat.refuse_linearize(LPTensor)
_compat.guard_hooks()
_compat.coerce_seeds(_seed)
refuse_views_of_buckets(LPTensor)
broadcast_values(LPTensor)


@_compat.graph_node
def _lptensor_enter(x: Tensor, *args: Any) -> LPTensor:
    return to_lp(x, *args)


def _collate(batch: list[Any], *, collate_fn_map: Any = None) -> Tensor:
    return torch.stack(batch)


# A data loader's workers would write a batch into plain shared memory, and lose the format.
_compat.collate_map()[LPTensor] = _collate


# The C++ of `plain.data = lp` would take the memory of a tensor that has none.
_compat.refuse_as_data(LPTensor)
# torch.load(weights_only=True) makes objects of these classes, and of formats, only.
torch.serialization.add_safe_globals([LPTensor, rebuild, Arithmetic, Rounding, Mode, Beyond])
