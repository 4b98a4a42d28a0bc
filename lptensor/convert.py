"""Models, optimizers and nests of tensors into low precision and back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lptensor import _compat, optimizer_state
from lptensor.arithmetic import Arithmetic, as_arithmetic
from lptensor.boundary import Boundary, Materialize, keep_formats_when_loading, unhook
from lptensor.distributed import refuse_distributed
from lptensor.formats import Format
from lptensor.layer_products import WAY_OUT, LayerProducts
from lptensor.nests import is_container, map_nest, remade
from lptensor.path_rules import UNTOUCHED, Answer, PathRules, Verdict
from lptensor.tensor import LPTensor, check_carrier, enter

Target = TypeVar("Target")
Spec = Format | Arithmetic | None


def convert(target: Target, format: Spec | Mapping[str, Spec], buffers: bool = False) -> Target:
    """``target`` in low precision; None converts back to plain fp32.

    * A module: its floating-point parameters become LPTensors in place, and the module is returned.
      Parameters keep their identity, so optimizers, tied weights and RNNs stay right; gradients go
      along, to the backward format. Lazy parameters convert when they are materialised.
    * An optimizer: its state, in place, and what it will keep later. {state key pattern: format} gives
      keys formats of their own ("exp_avg_sq"); what no pattern matches is as its parameter. Counters
      (0-dim) and what is not a tensor stay as they are. Without this, state goes with its parameter: it
      follows a conversion of the model, or a load_state_dict(), at the next step.
    * A tensor, or a nest of dicts, lists, tuples and dataclasses of them: a new nest; integers stay as they are.

    Args:
        target: a module, an optimizer, a floating-point tensor or a nest.
        format: a format, an ``Arithmetic``, None, or for a module ordered rules
            {path pattern: format or None}. A pattern is a shell pattern for the path of a module or
            parameter ("layers.*.norm") and holds for all below it; the first that matches counts, what
            none matches stays untouched, as an earlier call has left it. Where the rule of a module differs from
            its parent's, tensors that enter or leave it are recast (None: dequantized), plain ones only if they come
            from a plain part; arguments called ``*mask`` are not. A rule for a parameter alone has no such boundary:
            what is computed with it goes on in low precision. What a ``ModuleList`` or ``ModuleDict`` holds has the
            module above that for its parent.
            Lists, dicts and dataclasses stay the caller's own, and what a module writes to
            them is recast as its outputs are. To make a part plain, name it to its model, ``convert(model,
            {"head": None})``: ``convert(model.head, None)`` knows no surroundings, and a plain part computes as
            what enters it says.
        buffers: convert floating-point buffers too (running statistics, rotary frequencies), those called
            ``*mask`` apart.

    Raises:
        ValueError: a pattern that matches nothing, one that comes after those that decide all it matches
            otherwise, a parameter tied across two rules, a format that fp32 cannot carry.
        TypeError: a target or format that is not one, a nest that holds modules or the like, one of numbers alone
            that shall be in low precision, a layer that ``lower`` has given operands or an accumulator. Nothing is
            converted in either case.

    >>> from lptensor import FloatingPoint
    >>> model = convert(nn.Linear(2, 1), FloatingPoint(8))
    >>> model.weight.format
    E5M2
    """
    if not isinstance(buffers, bool):
        raise TypeError(
            f"buffers must be True or False, got {buffers!r}; a rounding, a format of gradients and an accumulator are "
            "fields of Arithmetic(format, backward=..., rounding=..., accumulator=...), which stands for the format"
        )
    if isinstance(target, nn.Module):
        _convert_module(target, format, buffers)
        return target
    if isinstance(target, torch.optim.Optimizer):
        optimizer_state.fit(target, format)
        return target
    if isinstance(format, Mapping):
        raise TypeError(f"path rules are for modules and optimizers; a {type(target).__name__} takes one format")
    arithmetic = None if format is None else as_arithmetic(format)
    if isinstance(target, Tensor) and not target.is_floating_point():
        raise TypeError(f"only floating-point tensors have a low-precision form, got {target.dtype}; say .float()")
    if not isinstance(target, Tensor) and not is_container(target):
        raise TypeError(f"convert takes a module, an optimizer or a nest of tensors, got {type(target).__name__}")
    held: set[type] = set()
    _check_nest(target, held)
    if arithmetic is not None and held and Tensor not in held:
        kinds = " and ".join(sorted(kind.__name__ for kind in held))
        raise TypeError(f"a nest of tensors holds {kinds} alone, and nothing to convert; make tensors of numbers")
    converted: Target = map_nest(target, lambda x: _convert_tensor(x, arithmetic))
    return converted


def _check_nest(item: Any, held: set[type]) -> Any:
    """Refuse a nest with things that hold tensors and are none: they would stay as they are, unsaid.

    ``held`` gets the classes of what the nest holds, but for None.
    """
    if isinstance(item, (nn.Module, torch.optim.Optimizer, np.ndarray)):
        way = "make a tensor of it" if isinstance(item, np.ndarray) else "convert each of them by itself"
        raise TypeError(f"a nest of tensors holds a {type(item).__name__}; {way}")
    if not isinstance(item, Tensor) and is_container(item):
        return remade(item, lambda part: _check_nest(part, held))
    if item is not None:
        held.add(Tensor if isinstance(item, Tensor) else type(item))
    return item


def _convert_tensor(x: Tensor, arithmetic: Arithmetic | None) -> Tensor:
    if arithmetic is None:
        return x.dequantize() if isinstance(x, LPTensor) else x
    lp: Tensor = x.to_lp(arithmetic)  # type: ignore[attr-defined]
    return lp


def _convert_module(model: nn.Module, format: Any, buffers: bool) -> None:
    if isinstance(format, Mapping) and not format:
        raise ValueError('path rules name nothing to convert, got {}; say a format, or rules such as {"*": E4M3}')
    rules = PathRules(format)
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = (model.named_parameters, model.named_buffers)
    rules.check_paths([*modules, *(path for named in tensors for path, _ in named(remove_duplicate=False))])
    _refuse_shared(modules, rules)
    plan = _plan(model, rules, buffers)
    _refuse_lowered(model, plan)
    _refuse_scripted(model, plan)
    _compat.disable_fused_attention()
    _carry_out(model, plan)

    def finish() -> None:
        optimizer_state.mark(p for p in model.parameters() if id(p) in plan)
        _hook(model, rules, buffers)

    try:
        finish()
    except BaseException:  # Ctrl-C: its tensors are converted, and would go without what runs with them
        finish()
        raise


# By id: the tensor, what it becomes (a dtype is that of a plain buffer), whether it is a gradient.
Plan = dict[int, tuple[Tensor, Arithmetic | torch.dtype | None, bool]]


def _plan(model: nn.Module, rules: PathRules, buffers: bool) -> Plan:
    """What becomes of every tensor of the model, or an error before anything has changed."""
    plan: Plan = {}
    paths: dict[int, str] = {}
    tensors: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    stored = model.named_buffers(remove_duplicate=False)
    tensors += [(n, b) for n, b in stored if buffers and _converts(n) or isinstance(b, LPTensor)]
    for path, tensor in tensors:
        verdict = rules.of(path)
        if nn.parameter.is_lazy(tensor) or not tensor.is_floating_point():
            continue
        if id(tensor) in paths and rules.of(paths[id(tensor)]) != verdict:
            raise ValueError(
                f"{paths[id(tensor)]!r} and {path!r} are one tensor, but the rules give them "
                f"{rules.of(paths[id(tensor)])!r} and {verdict!r}; give tied weights one rule"
            )
        paths[id(tensor)] = path
        if isinstance(verdict, Verdict):
            continue
        refuse_distributed(tensor)
        if verdict is not None:
            check_carrier(verdict)
            _refuse_unfit(path, tensor)
        plan[id(tensor)] = tensor, verdict, False
        if tensor.grad is not None:
            plan[id(tensor.grad)] = tensor.grad, verdict, True
    # What parameters of another dtype leave for fp32, their buffers leave too, or the two would not go together.
    dtypes = {t.dtype for t, verdict, _ in plan.values() if verdict is not None and t.dtype is not torch.float32}
    for path, buffer in model.named_buffers(remove_duplicate=False):
        if buffer.dtype in dtypes and id(buffer) not in plan and isinstance(rules.of(path), Arithmetic):
            plan[id(buffer)] = buffer, torch.float32, False
    return plan


def _refuse_unfit(path: str, tensor: Tensor) -> None:
    """Refuse a tensor that is neither plain and dense nor low precision.

    A class of another library may mean something to it, as a point on a manifold does to an optimizer.
    """
    ours, torchs = isinstance(tensor, LPTensor), type(tensor).__module__.partition(".")[0] == "torch"
    foreign = not ours and (not torchs or _compat.wraps_tensors(tensor))
    if foreign or tensor.layout is not torch.strided:
        what = f"a {type(tensor).__name__}" if foreign else f"a tensor of {tensor.layout}"
        raise TypeError(
            f"{path!r} is {what}, and what is converted are plain dense tensors; make it one, or leave it out: "
            f"{{{path!r}: None, ...}}"
        )


def _converts(name: str) -> bool:
    """Whether a floating-point buffer of that name is converted: masks hold no values."""
    return not name.endswith("mask")


def _refuse_shared(modules: dict[str, nn.Module], rules: PathRules) -> None:
    """Refuse to recast at one of a module's two paths what enters and leaves it, and not at the other."""
    first: dict[nn.Module, str] = {}
    for path, module in modules.items():
        other = first.setdefault(module, path)
        if rules.of(other) != rules.of(path) and any(rules.of(p) != rules.of_parent(p) for p in (other, path)):
            raise ValueError(
                f"{other!r} and {path!r} are one module, but the rules give them {rules.of(other)!r} and "
                f"{rules.of(path)!r}; give it one rule, or each path a module of its own"
            )


def _refuse_lowered(model: nn.Module, plan: Plan) -> None:
    """Refuse to make a layer low precision whose products ``lower`` forms otherwise, from plain tensors."""
    for path, module in model.named_modules():
        if LayerProducts.attached(module):
            for p in module.parameters():
                if id(p) in plan and plan[id(p)][1] is not None:
                    raise TypeError(
                        f"the layer {path!r} has operands or an accumulator of lower(), which is for plain models; "
                        f"take them away with lptensor.lower(layer, type(layer)) and {WAY_OUT}"
                    )


def _refuse_scripted(model: nn.Module, plan: Plan) -> None:
    """Refuse to change what belongs to a ScriptModule, in which nobody can put another tensor in the place of one."""
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            continue
        planned = [plan[id(t)] for t in _own(module) if id(t) in plan]
        if module is model or any(verdict is not None or isinstance(t, LPTensor) for t, verdict, _ in planned):
            raise TypeError(
                f"{repr(path) if path else 'the model'} is a ScriptModule, whose tensors cannot be replaced; convert "
                "the module that it was made of, or leave it out"
            )


def _target(tensor: Tensor, arithmetic: Arithmetic | torch.dtype | None, gradient: bool) -> Tensor:
    if isinstance(arithmetic, torch.dtype):
        top = torch.finfo(arithmetic).max
        single = tensor.to(arithmetic)  # what is finite stays so: the lowest number of float64 is a mask's
        return torch.where(single.isinf() & tensor.isfinite(), single.sign() * top, single)
    plain = tensor._inner if isinstance(tensor, LPTensor) else tensor.detach()
    if arithmetic is None:
        return plain.clone() if isinstance(tensor, LPTensor) else tensor
    if isinstance(tensor, LPTensor) and tensor._arithmetic == arithmetic:
        return tensor
    return enter(plain, arithmetic, gradient)


def _carry_out(model: nn.Module, plan: Plan) -> None:
    """Apply a plan, or leave the model as it was."""
    before: dict[int, Tensor] = {}  # by id of a tensor that has changed, its old values in their old form
    after: dict[int, Tensor] = {}  # by id of a buffer, what came in its place: also where modules share it
    gradients = {id(p): p.grad for p in model.parameters()}  # torch takes one away while it is at its parameter

    def apply(tensor: Tensor) -> Tensor:
        if id(tensor) in after:
            return after[id(tensor)]
        if id(tensor) not in plan or id(tensor) in before:
            return tensor
        new = _target(*plan[id(tensor)])
        if new is not tensor:
            before[id(tensor)] = tensor.detach()
            if not plan[id(tensor)][2] and not isinstance(tensor, nn.Parameter):
                after[id(tensor)] = new
        return new

    scripted = torch.jit.ScriptModule  # whose tensors stay as they are
    touched = [m for m in model.modules() if not isinstance(m, scripted) and any(id(t) in plan for t in _own(m))]
    _let_go_of_results(touched)
    for i, module in enumerate(touched):
        try:
            _here.converting = True
            try:
                with _without_others(module, plan):
                    _compat.replace_tensors(module, apply)
            finally:
                _here.converting = False
        except BaseException as error:  # also the user's: Ctrl-C, or what a format of his raises
            _undo(touched[: i + 1], before, gradients, {id(new): plan[old][0] for old, new in after.items()})
            if not _compat.could_not_swap(error):
                raise
            raise RuntimeError(
                "a parameter is in use by a computation graph or a weak reference and cannot be converted now: "
                f"let go of losses and outputs (del loss) and convert again; the model is unchanged (torch: {error})"
            ) from error


@contextlib.contextmanager
def _without_others(module: nn.Module, plan: Plan) -> Iterator[None]:
    """Leave out the parameters that stay as they are: of some classes, and without a shape, torch makes no new ones."""

    def stays(x: Tensor | None) -> bool:
        return x is None or id(x) not in plan or plan[id(x)][1] is None and not isinstance(x, LPTensor)

    own = _compat.parameters(module)
    others = {name: p for name, p in own.items() if p is not None and stays(p) and stays(p.grad)}
    own.update(dict.fromkeys(others))
    try:
        yield
    finally:
        own.update(others)
        if others:
            _compat.gather_flat_weights(module)


def _let_go_of_results(modules: list[nn.Module]) -> None:
    """Detach what weight_norm() and prune leave in a module between two calls: it would hold a graph."""
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


def _undo(
    modules: list[nn.Module],
    before: dict[int, Tensor],
    gradients: dict[int, Tensor | None],
    buffers: dict[int, Tensor],
) -> None:
    """Give the tensors of ``modules`` their old contents back, parameters their gradients, by id, and the modules their
    buffers, by id of those there."""
    for module in modules:
        _compat.forget_flat_weights(module)
        for parameter in module.parameters(recurse=False):
            grad, old = gradients[id(parameter)], before.get(id(parameter))
            parameter.grad = None
            if old is not None and not _same_form(parameter, old):
                torch.utils.swap_tensors(parameter, nn.Parameter(old, requires_grad=parameter.requires_grad))
            if grad is not None and not _same_form(grad, before.get(id(grad), grad)):
                torch.utils.swap_tensors(grad, before[id(grad)])
            parameter.grad = grad
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffers.get(id(buffer), buffer))
        _compat.gather_flat_weights(module)


def _same_form(a: Tensor, b: Tensor) -> bool:
    return getattr(a, "arithmetic", None) == getattr(b, "arithmetic", None)


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


_here = threading.local()  # whether this thread converts


def _converting() -> bool:
    return getattr(_here, "converting", False)


def _changes_form(a: Tensor, b: Tensor) -> bool:
    """Whether a parameter gets new contents in low precision, or those of a conversion: all else stays with it."""
    return type(a) is LPTensor or type(b) is LPTensor or _converting()


_compat.let_modules_swap(_converting)
_compat.keep_what_hangs_on_tensors(_changes_form, ("_inner", "_arithmetic", "_gradient", _compat.IS_PARAMETER))


def _hook(model: nn.Module, rules: PathRules, buffers: bool) -> None:
    """What must happen when modules run: casts at boundaries and lazy parameters."""
    for path, module in model.named_modules():
        verdict = rules.of(path)
        if verdict is UNTOUCHED and rules.of_parent(path) is UNTOUCHED:
            continue
        unhook(module)
        if any(isinstance(t, LPTensor) for t in _own(module)):
            keep_formats_when_loading(module)
        _remember(module, verdict)
        caller = _caller(model, path)
        inside, outside = _remembered(module, verdict), _remembered(model.get_submodule(caller), rules.of(caller))
        if path and inside != outside and not _only_holds(module):
            Boundary(inside, outside).attach(module)
            LayerProducts.stay_innermost(module)
        lazy = {
            name: rules.of(f"{path}.{name}" if path else name)
            for name, p in module.named_parameters(recurse=False)
            if nn.parameter.is_lazy(p)
        }
        wanted = {name: v for name, v in lazy.items() if not isinstance(v, Verdict) and v is not None}
        if wanted:
            Materialize(wanted, buffers, _finish_lazy).attach(module)


def _caller(model: nn.Module, path: str) -> str:
    """The path of the module that calls the one at ``path``: no list of modules does, which is only looped over."""
    above = path.rpartition(".")[0]
    return _caller(model, above) if above and _only_holds(model.get_submodule(above)) else above


def _only_holds(module: nn.Module) -> bool:
    """Whether a module is never called, so that nothing enters or leaves it."""
    return isinstance(module, nn.ModuleList | nn.ModuleDict) and type(module).forward is nn.Module.forward


_RULE = "_lptensor_rule"  # an attribute of a module: what it was converted to, for a later call that tells of others


def _remember(module: nn.Module, verdict: Answer) -> None:
    if verdict is None:
        vars(module).pop(_RULE, None)
    elif verdict is not UNTOUCHED:
        vars(module)[_RULE] = verdict


def _remembered(module: nn.Module, verdict: Answer) -> Arithmetic | None:
    """What a rule makes of a module; where it says nothing, what an earlier conversion has made of it."""
    return remembered(module) if isinstance(verdict, Verdict) else verdict


def remembered(module: nn.Module) -> Arithmetic | None:
    """What a module was last converted to."""
    arithmetic: Arithmetic | None = vars(module).get(_RULE)
    return arithmetic


def _finish_lazy(module: nn.Module, wanted: dict[str, Arithmetic], buffers: bool) -> None:
    """Convert parameters that have just been materialised."""
    plan: Plan = {}
    for name, arithmetic in wanted.items():
        plan[id(module.get_parameter(name))] = module.get_parameter(name), arithmetic, False
    for name, buffer in module.named_buffers(recurse=False) if buffers else ():
        if buffer.is_floating_point() and _converts(name):
            plan[id(buffer)] = buffer, next(iter(wanted.values())), False
    _carry_out(module, plan)
    optimizer_state.mark(p for p in module.parameters(recurse=False) if id(p) in plan)
    keep_formats_when_loading(module)
