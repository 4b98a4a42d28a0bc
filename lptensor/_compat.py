"""Every private name of torch that lptensor relies on, each with what breaks without it."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

# What sees every op before its tensors do. Without it no op can be taken apart on demand.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

Function = TypeVar("Function", bound=Callable[..., Any])

# Without it every attribute of an LPTensor goes through a Python call: .shape takes six times as long.
disabled_torch_function = torch._C._disabled_torch_function_impl


# Whether a tensor is a zero of forward-mode AD, which has no memory. Without it a kernel would write to address 0.
is_zero_tensor = Tensor._is_zerotensor


# The bits that a kind of product takes, ("cuda", "matmul") say. Without them each op would ask a Python object for each
# kind, three microseconds in all, and six where there is a GPU.
fp32_precision = torch._C._get_fp32_precision_getter
set_fp32_precision = torch._C._set_fp32_precision_setter


# The switches of oneDNN and cuDNN. Without them all settings of either would be read and set again at once, which fixes
# what it has taken over from the general ones, and raises where some of them contradict each other.
onednn = torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled
cudnn = torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled


def current_raw_stream(device: int) -> int:
    """The handle of the stream that is current on a CUDA device.

    Without it every launch would make a torch.cuda.Stream, in several microseconds.
    """
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream


def make_wrapper(cls: type, inner: Tensor) -> Any:
    """A tensor of class ``cls`` without storage that looks like ``inner``, a dense float32 tensor.

    Without it no wrapper subclass. Every argument that is left to its default saves a part of a microsecond.
    """
    make = torch.Tensor._make_wrapper_subclass
    offset = inner.storage_offset()
    if inner.is_cpu and not offset:
        return make(cls, inner.size(), inner.stride(), dtype=torch.float32)
    return make(cls, inner.size(), inner.stride(), offset, dtype=torch.float32, device=inner.device)


def share_storage(view: Tensor, base: Tensor) -> None:
    """Let torch see that ``view`` is a view of ``base``.

    Without it writes to a view that a compiled function returned lose their gradient.
    """
    torch._functionalize_unsafe_set(view, base)


# The number of the backward pass that runs on this thread, -1 outside of any. Without it a backward op cannot be told
# from a forward one, and no backward format is possible.
graph_task: Callable[[], int] = torch._C._current_graph_task_id


def recomputing() -> bool:
    """Whether a checkpoint computes its forward pass again, asked within a backward pass: in whatever grad mode.

    Without it the gradients of torch.func and of create_graph=True would round as forward values, or what a checkpoint
    computes without a graph, as one within another does, as gradients.
    """
    frame = sys._getframe(2).f_back
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_engine_run_backward":  # of the innermost backward pass
            break
        if code.co_filename == _CHECKPOINT:
            return True
        frame = frame.f_back
    if not torch.is_grad_enabled():
        return False
    node = torch._C._current_autograd_node()  # other libraries have one of their own, by this name
    return node is not None and node.name().startswith("CheckpointFunction") and not called_by_autograd()


def innermost(x: Tensor) -> Tensor:
    """The tensor within the wrappers of torch.func. Without it a format is out of sight in a transformation."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def thread_local(name: str) -> Any:
    """What ``set_thread_local`` stored on this thread, None if nothing.

    Without it the ops of a backward pass on a GPU, which run on autograd's own threads, belong to nobody.
    """
    return torch._C._get_obj_in_tls(name) if torch._C._is_key_in_tls(name) else None


def set_thread_local(name: str, value: Any) -> None:
    """Store a value on this thread; a backward pass hands it to the threads that autograd computes on."""
    if _storing_takes_a_reference():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    torch._C._stash_obj_in_tls(name, value)


@functools.cache
def _storing_takes_a_reference() -> bool:
    """Whether torch gives a reference back that it never took: 2.11 frees what is still in use."""
    probe = object()
    before = sys.getrefcount(probe)
    torch._C._stash_obj_in_tls("lptensor.probe", probe)
    taken: bool = sys.getrefcount(probe) == before
    if taken:  # the probe is the first of them
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(probe))
    return taken


def next_node() -> int:
    """The number that autograd gives its next node on this thread; without it a gradient has no line of code."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def running_node() -> int:
    """The number of the autograd node whose backward runs, -1 outside of any."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else node._sequence_nr()


def decompose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a composite operator as the operators it is made of, NotImplemented where it is none.

    As autograd does, by the C++ kernel. The public ``func.decompose`` prefers Python ones, and that of torch
    2.11 for an LSTM puts another axis on its states, so that inference mode gives other shapes.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if not has_kernel(func, key.name):
        return NotImplemented
    counts = torch._C.DispatchKey.ADInplaceOrView  # writes, where no autograd does; a few operators as a whole
    if not torch.is_inference_mode_enabled() or has_kernel(func, counts.name):
        return func._op_dk(key, *args, **kwargs)
    with torch._C._SetExcludeDispatchKeyGuard(counts, False):
        return func._op_dk(key, *args, **kwargs)


def schema(func: Any) -> Any:
    """What an operator declares of its arguments and results.

    Without it there are no rules: which arguments an op writes to, which results are views, and what it is called.
    """
    return func._schema


def has_kernel(func: Any, key: str) -> bool:
    """Whether an operator has a kernel of its own under a dispatch key.

    Without it composite operators reach us whole in inference mode, and round once for many.
    """
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
    return found


def is_operator(func: Any) -> bool:
    """Whether ``func`` is an aten-like operator, not a higher-order one that takes functions."""
    return isinstance(func, torch._ops.OpOverload)


def direct_call(func: Any) -> Callable[..., Any]:
    """An operator as torch's dispatcher knows it. Without it every op pays for one more call in Python."""
    call: Callable[..., Any] = func._op if type(func) is torch._ops.OpOverload else func
    return call


def apply_below(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run ``func`` on the wrappers' own metadata: how squeeze_() and its like change a wrapper's shape."""
    from torch.utils._mode_utils import no_dispatch

    with no_dispatch():
        func(*args, **kwargs)


def real_tensors() -> AbstractContextManager[None]:
    """A context in which tensors are made and computed as they are, also while torch.compile traces with fake ones."""
    from torch.utils._mode_utils import no_dispatch

    made: AbstractContextManager[None] = no_dispatch()
    return made


def take_form(wrapper: Tensor, inner: Tensor) -> None:
    """Give a wrapper the form of an inner tensor that got another size or storage.

    Without it views of the wrapper fail: resized itself, it would allocate on the meta device.
    """
    apply_below(torch.ops.aten.set_.source_Tensor, (wrapper, make_wrapper(type(wrapper), inner)), {})


def decomposition(func: Any) -> Callable[..., Any] | None:
    """The formula of an operator in simpler ones, if torch has it written in Python.

    Without it softmax, norms, activations and losses cannot round at every primitive.
    """
    from torch._decomp import decomposition_table

    formula: Callable[..., Any] | None = decomposition_table.get(func)
    return formula


def attention_in_steps(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """``F.scaled_dot_product_attention``, made of products and a softmax.

    Without it only ``sdpa_kernel`` could ask for that, which does so of the whole process.
    """
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # the public function gives this one sums to add
        zeros = torch.zeros(attn_mask.shape, dtype=query.dtype, device=attn_mask.device)
        attn_mask = zeros.masked_fill(~attn_mask, -torch.inf)
    attention: Tensor = torch._scaled_dot_product_attention_math(query, key, value, attn_mask, *args, **kwargs)[0]
    return attention


def refuse_higher_order(cls: type, refuse: Callable[[Any], None]) -> None:
    """Call ``refuse(operator)`` where an operator that takes functions meets a tensor of class ``cls``.

    Without it torch says that it has no rule for the class, and nothing of a way out.
    """
    for name in ("cond", "while_loop", "map_impl", "scan", "flex_attention"):
        operator = torch._ops._higher_order_ops.get(name)
        if operator is not None:
            operator.py_impl(cls)(lambda *_, operator=operator, **__: refuse(operator))


def replace_in_batches(formulas: Mapping[str, Callable[..., Any]]) -> None:
    """Run operators of aten by other formulas in a batch of gradients (``is_grads_batched=True``), of any tensors.

    Without it torch's own rules for batches write gradients of subclasses into plain zeros.
    """
    for name, formula in formulas.items():
        _LIBRARY.impl(name, formula, "VmapMode")


def replace_for_subclasses(formulas: Mapping[str, Callable[..., Any]]) -> None:
    """Run composite operators of aten by other formulas where tensors are of Python classes, traced or transformed.

    These are keys that plain tensors do not have. Without it torch's own formulas run before a class sees an op.
    """
    for name, formula in formulas.items():
        for key in ("PythonTLSSnapshot", "FuncTorchDynamicLayerFrontMode"):
            _LIBRARY.impl(name, formula, key)


def prepare_for_subclasses(
    places: Mapping[str, int],
    prepare: Callable[[int, tuple[Any, ...]], Any],
    around: Callable[[tuple[Any, ...]], AbstractContextManager[None]] | None = None,
) -> None:
    """Let ``prepare(place, arguments)`` change arguments of composite operators where tensors are of Python classes.

    Without it what such an operator writes to inside is plain, and nothing of a class is left. They run within
    ``around(arguments)``, also in torch.func, whatever the tensors are there.
    """
    key = torch._C.DispatchKey.PythonTLSSnapshot
    for name, place in places.items():
        op, _, overload = name.partition(".")
        run = getattr(getattr(torch.ops.aten, op), overload or "default")

        @run_by_python
        def prepared(keys: Any, *args: Any, run: Any = run, place: int = place, **kwargs: Any) -> Any:
            args = prepare(place, args)
            if keys is None or torch.is_inference_mode_enabled():  # where it would arrive whole
                return decompose(run, args, kwargs)
            return run.redispatch(keys.remove(key), *args, **kwargs)

        if around is None:
            _LIBRARY.impl(name, prepared, key.name, with_keyset=True)
            continue

        @run_by_python
        def within(keys: Any, *args: Any, prepared: Any = prepared, **kwargs: Any) -> Any:
            with around(args):
                return prepared(keys, *args, **kwargs)

        _LIBRARY.impl(name, within, key.name, with_keyset=True)
        _LIBRARY.impl(name, functools.partial(within, None), "FuncTorchDynamicLayerFrontMode")


def refuse_as_data(cls: type) -> None:
    """Keep tensors that are not of class ``cls`` from taking one that is for their ``.data``.

    ``Module._apply`` asks, and goes another way; who sets ``.data`` hears of one. Without it a plain tensor takes a
    subclass's null pointer for its memory, and the next op is a memory fault.
    """
    key, fits = torch._C.DispatchKey.PythonTLSSnapshot, torch.ops.aten._has_compatible_shallow_copy_type.default

    def checked(keys: Any, x: Any, source: Any) -> Any:
        if type(source) is cls and type(x) is not cls:
            if called_by_torch():
                return False
            raise RuntimeError(
                f"a plain tensor has no memory for the format of an {cls.__name__}: "
                "say plain.data = low.dequantize().detach()"
            )
        return fits.redispatch(keys.remove(key), x, source)

    _LIBRARY.impl("_has_compatible_shallow_copy_type", checked, "PythonTLSSnapshot", with_keyset=True)


def broadcast_as(prepare: Callable[[Tensor], Tensor]) -> None:
    """Let DistributedDataParallel send each tensor of a model as what ``prepare`` makes of it, into the same memory.

    Without it all tensors of a dtype travel in one, which rounds plain ones to a format, and blocks across tensors.
    """
    if torch.distributed.is_available():
        module: Any = torch.distributed
        send = module._broadcast_coalesced

        def sent(group: Any, tensors: Sequence[Tensor], *how: Any, **named: Any) -> Any:
            return send(group, [prepare(x) for x in tensors], *how, **named)

        module._broadcast_coalesced = sent


_LIBRARY = torch.library.Library("aten", "IMPL")


def disable_fused_attention() -> None:
    """Keep nn.TransformerEncoderLayer from running as one fused op, which would round once for a layer."""
    torch.backends.mha.set_fastpath_enabled(False)


# Keys of our hooks on modules: one for each purpose, for what sets or drops hooks of a key does so to all of them.
OUTPUTS, BOUNDARY, LAZY, LOADING, UNIT_SCALING, WEIGHTED, PRODUCTS, ROUND_LAYERS = range(-1, -9, -1)


def set_hooks(module: torch.nn.Module, key: int, before: Any = None, after: Any = None, always: bool = False) -> None:
    """Give a module forward hooks under a negative key of our own; ``before`` gets kwargs too.

    torch counts its keys up from zero, in every process anew: one that it handed out could be handed out
    again after a model is loaded, and our hook would be overwritten.
    """
    if before is not None:
        module._forward_pre_hooks[key] = before
        module._forward_pre_hooks_with_kwargs[key] = True
    if after is not None:
        module._forward_hooks[key] = after
    if always:
        module._forward_hooks_always_called[key] = True


def run_innermost(module: torch.nn.Module, key: int) -> None:
    """Run hooks of ``set_hooks`` right before and right after the forward method, within all others there are."""
    begin: Any = module._forward_pre_hooks  # OrderedDicts
    end: Any = module._forward_hooks
    if key in begin and key in end:
        begin.move_to_end(key)
        end.move_to_end(key, last=False)


def between_graphs(hook: Any) -> Any:
    """A hook that shows a layer tensors in the place of its parameters, as a compiler can run it.

    Before 2.13 Dynamo deletes a parameter of a module when traced code takes away what hid it: there graphs end before
    such hooks, and begin after them.
    """
    if torch.__version__ >= "2.13":
        return hook

    def run(*args: Any) -> Any:
        return hook(*args)

    functools.update_wrapper(run, hook)  # a pickle has its name
    # What torch.compiler.disable() does, which would import all of Dynamo.
    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(run.__code__, frames._FrameExecStrategy(skip, skip))  # and what it calls
    return run


def runs_one_hook(module: torch.nn.Module) -> bool:
    """Whether a forward hook that runs is the only one.

    Without it another hook could keep, or replace, the output that ours is about to round where it lies.
    """
    return len(module._forward_hooks) == 1 and not torch.nn.modules.module._global_forward_hooks


def run_by_python(function: Function) -> Function:
    """Keep Dynamo from compiling ``function``, and what it calls, where they run next to a compiled graph.

    After a graph break in a loop, or around ``backward()``, Dynamo runs a frame as Python code, and compiles every
    function that is called in it. Without this it would take on our own dispatch of each op, and fail.
    """
    frames: Any = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


def run_members_by_python(cls: type) -> None:
    """The same for the methods and properties that a class defines.

    Without it Dynamo fails in a property of a format, which it takes for a constant without a source.
    """
    for member in vars(cls).values():
        function = getattr(member, "fget", getattr(member, "func", member))  # of a property, of a cached one
        if isinstance(function, FunctionType):
            run_by_python(function)


def break_graph(function: Function) -> Function:
    """``function`` as code that Dynamo traces shall call it: outside its graph, as Python code, without a look inside.

    Without it Dynamo traces autograd functions of ours that hold formats and techniques, and fails.
    """
    from torch._compile import _disable_dynamo

    outside = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Only there: the way outside imports Dynamo, which takes a second.
        return (outside if torch.compiler.is_dynamo_compiling() else function)(*args, **kwargs)

    return call  # type: ignore[return-value]


def guard_hooks() -> None:
    """Let compiled code see that a module has hooks that another, or the same one before, had not.

    Without it Dynamo takes modules without hooks to stay so, and would run what it compiled of a plain model for
    one like it that was lowered, without a rounding. What it compiled before is forgotten.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        sys.meta_path.insert(0, _GuardsHooks())
    elif dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


class _GuardsHooks(MetaPathFinder):
    """Changes one setting of Dynamo once it is loaded, which takes as long as loading torch: too long for an import."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "torch._dynamo.config":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_set(module: Any) -> None:
            load(module)
            module.skip_nnmodule_hook_guards = False

        spec.loader.exec_module = load_and_set  # type: ignore[method-assign]
        return spec


def set_load_hook(module: torch.nn.Module, key: int, hook: Any) -> None:
    """Call ``hook(module, state_dict, prefix, metadata, ...)`` before a module loads, under a key of our own."""
    from torch.nn.modules.module import _WrappedHook

    module._load_state_dict_pre_hooks[key] = _WrappedHook(hook, module)


def drop_hooks(module: torch.nn.Module, key: int) -> None:
    """Take the hooks of ``set_hooks`` off again."""
    for table in (
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks,
        module._forward_hooks_always_called,
        module._load_state_dict_pre_hooks,
    ):
        table.pop(key, None)


def tree_map(f: Callable[[Any], Any], nest: Any, leaf: type) -> Any:
    """``nest`` with f applied to what is not a container, and to instances of ``leaf``.

    Without it the containers that users register with torch (dataclasses of outputs) stay closed.
    """
    from torch.utils import _pytree

    return _pytree.tree_map(f, nest, is_leaf=lambda part: isinstance(part, leaf))


def leaves(nest: Any, leaf: type) -> list[Any]:
    """What ``tree_map`` gives to its function, in order."""
    from torch.utils import _pytree

    return _pytree.tree_leaves(nest, is_leaf=lambda part: isinstance(part, leaf))


def collate_map() -> dict[Any, Any]:
    """How batches are made, by type. Without it data loader workers return plain tensors."""
    from torch.utils.data._utils.collate import default_collate_fn_map

    return default_collate_fn_map


def has_hooks(module: torch.nn.Module, key: int) -> bool:
    """Whether a module has hooks of ``set_hooks``. Without it a layer would be prepared twice."""
    return key in module._forward_hooks


def hook_of(module: torch.nn.Module, key: int) -> Any:
    """What ``set_hooks`` runs after the module, or None. Without it a study could not tell what a layer rounds to."""
    return module._forward_hooks.get(key)


def parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter | None]:
    """A module's own parameters by name, to look at or to change.

    Without it names that hold None could not be told, nor lazy parameters left out for a time.
    """
    return module._parameters


def buffers(module: torch.nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name. Without it those that a forward pass adds could not be taken away again."""
    return module._buffers


def replace_tensors(module: torch.nn.Module, new: Callable[[Tensor], Tensor]) -> None:
    """Put ``new(t)`` in the place of each tensor of a module itself, and of its gradient.

    Without it parameters could not change in place, and optimizers would hold those of before.
    """
    module._apply(new, recurse=False)


def moving(fn: Callable[[Tensor], Tensor], integers: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What ``Module._apply`` may do to buffers in a dtype of their own: move them, with all their bits.

    Casts of a model are for floating tensors and spare integers of the same width, but not ``Module.type()``: of that
    the device is taken alone. Without it the integers would be taken for values.
    """

    def move(t: Tensor) -> Tensor:
        moved = fn(t.view(integers))
        return moved.view(t.dtype) if moved.dtype is integers else t.to(moved.device)

    return move


def could_not_swap(error: BaseException) -> bool:
    """Whether ``replace_tensors``, or parametrizing an LPTensor, failed because something else holds a tensor.

    Without its words, no memory or an error of a user's format would be taken for a graph that is alive.
    """
    return "Couldn't swap" in str(error) or "Expected use_count" in str(error)


# Where an RNN keeps its weights in the order of its kernel. Without it one with products keeps a copy of each.
FLAT_WEIGHTS = "_flat_weights"


def forget_flat_weights(module: torch.nn.Module) -> None:
    """Drop the weak references of an RNN to its weights. Without it they cannot be swapped."""
    if isinstance(module, torch.nn.RNNBase):
        module._flat_weight_refs = []


def gather_flat_weights(module: torch.nn.Module) -> None:
    """Let an RNN take up its weights again. Without it it computes with those it had before."""
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()


def transforming() -> bool:
    """Whether a transformation of torch.func (vmap, grad, jvp) runs.

    Without it a kernel would ask a batched or dual tensor for memory that it does not have.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def differentiating_forward() -> bool:
    """Whether a level of forward-mode AD is open. Without it a kernel would pass over the tangent of a dual tensor."""
    return torch.autograd.forward_ad._current_level >= 0


# torch 2.11 asks for a metaclass of its own, which makes every isinstance() of such a class slow. There Dynamo takes
# formats apart and makes them anew from their fields.
COMPILES_CONSTANTS = torch.__version__ >= "2.12"

# Of an enum it keeps the number. Without this no Rounding could be made anew.
ENUMS_TURN_INTO_NUMBERS = not COMPILES_CONSTANTS


def register_constant(cls: type) -> None:
    """Let torch.compile take instances of a class for constants, equal ones for the same.

    Without it Dynamo looks for the fields of a format, and cannot hand a format to an op.
    """
    from torch._library.opaque_object import register_opaque_type

    if COMPILES_CONSTANTS:
        register_opaque_type(cls, typ="value")


def traced_by_mode() -> bool:
    """Whether a mode of torch's own tracers sees the ops of this thread. Modes of users, which count or watch, do not.

    Without it a kernel would write behind a tracer's back, and the rounding be lost from its graph.
    """
    if not torch._C._len_torch_dispatch_stack():  # nearly always
        return False
    modes = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (modes.PROXY, modes.FAKE))


def traced() -> bool:
    """The same, or whether ``torch.jit.trace`` looks on."""
    return traced_by_mode() or jit_traces()


def jit_traces() -> bool:
    """Whether ``torch.jit.trace`` looks on. Without it what is written behind its back is lost from its graph."""
    return torch._C._get_tracing_state() is not None


@contextmanager
def recording() -> Iterator[None]:
    """Let ``torch.jit.trace`` see the ops called in here, within an op of ours. Without it a convolution is missing."""
    torch._C._dispatch_tls_set_dispatch_key_excluded("Tracer", False)
    try:
        yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded("Tracer", True)


def latest_mode() -> TorchDispatchMode | None:
    """The mode of users that this thread entered last. Without it one that is left early leaves in place of another."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    users = [mode for mode in _get_current_dispatch_mode_stack() if getattr(mode, "_mode_key", None) is None]
    return users[-1] if users else None


def graph_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of a tensor, as code that Dynamo traces shall call it.

    Dynamo takes the call of a tensor's method for one node of its graph, which AOTAutograd then traces
    through the function itself. Any other function of ours it would try to look into, and fail. Where it
    has to give the call back to Python, it shall not look into that either.
    """
    from torch._compile import _disable_dynamo

    setattr(Tensor, function.__name__, _disable_dynamo(function))

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, function.__name__)(*args, **kwargs)

    return call


def running_formula() -> Any:
    """The autograd node whose own formula calls the running op, None if Python code in between does, or no node.

    Without it the product that a gradient belongs to is unknown under create_graph=True, where the
    recomputation of a checkpoint, which runs within a node too, looks the same.
    """
    node = torch._C._current_autograd_node()
    return node if node is not None and called_by_autograd() else None


def called_by_autograd() -> bool:
    """Whether no Python code stands between autograd and the running op, but ours."""
    frame = _caller()
    # The threads that autograd computes on have no Python frames but ours.
    return frame is None or frame.f_code.co_name == "_engine_run_backward"


def called_by_torch() -> bool:
    """The same, or whether a function of torch's own runs the op, but what brings saved tensors back.

    Without it a forward value that was saved on another device for the backward pass would come back rounded as a
    gradient.
    """
    frame = _caller()
    file = "" if frame is None else frame.f_code.co_filename
    return (
        frame is None or file.startswith(_TORCH) and file != _SAVING or frame.f_code.co_name == "_engine_run_backward"
    )


def _caller() -> FrameType | None:
    """The code that called an op, past ours."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return past_modes(frame)


def past_modes(frame: FrameType | None) -> FrameType | None:
    """The code that called an op which ``frame`` hands on, if that belongs to a mode; else ``frame``.

    Without it an op would round otherwise as soon as somebody looks on, as ``FlopCounterMode`` does.
    """
    above = frame
    while above is not None and above.f_code.co_name != "_engine_run_backward":
        if above.f_code.co_name == "__torch_dispatch__":  # all that it calls is the mode's own
            return past_modes(_past_wrappers(above.f_back))
        above = above.f_back
    if frame is not None and frame.f_code.co_name == "__torch_function__":
        return past_modes(frame.f_back)
    return frame


def _past_wrappers(frame: FrameType | None) -> FrameType | None:
    """The code above those functions in which torch wraps a mode's, so that Dynamo does not look into it."""
    while frame is not None and frame.f_code.co_filename.startswith(_WRAPPERS):
        frame = frame.f_back
    return frame


def known_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as the ``forward`` of an autograd function: torch asks for its signature at each call.

    Without it finding that out takes as long as rounding a small tensor.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def differentiable_once(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The ``backward`` of an autograd function, whose gradients raise when they are differentiated in their turn.

    Without it penalties on gradients vanish, as by torch's own ``once_differentiable`` where the incoming gradient
    needs none.
    """
    says = f"the gradients of {what} are not differentiated again, as a penalty on gradients asks: exempt such layers"
    refuse = torch._C._functions.DelayedError(says.encode(), 1)

    def refusing(gradient: Any) -> Any:
        gradient = gradient.detach()
        gradient.requires_grad = True
        return refuse(gradient)

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def run(ctx: Any, *gradients: Any) -> Any:
            with torch.no_grad():
                found = backward(ctx, *gradients)
            return tuple(g if g is None else refusing(g) for g in found) if torch.is_grad_enabled() else found

        return run

    return decorate


def calls_of(module: torch.nn.Module, thread: int | None = None) -> int:
    """How many calls of a module run on a thread, this one if none is given; on one that has ended none does.

    Torch runs no hook after a ``KeyboardInterrupt``: without it what such a call has changed would stay so.
    """
    count, frame = 0, sys._getframe(1) if thread is None else sys._current_frames().get(thread)
    while frame is not None:
        count += frame.f_code is MODULE_CALL and frame.f_locals.get("self") is module
        frame = frame.f_back
    return count


def stepping(optimizers: Collection[int]) -> set[int]:
    """Those of some optimizers, named by their ids, whose ``step()`` runs on this thread.

    Without it a step that has raised seems to go on, and what is copied of gradients becomes forward values.
    """
    missing, frame = set(optimizers), sys._getframe(1)
    while missing and frame is not None:  # no further down the stack than need be
        if frame.f_code is _STEP:
            missing.discard(id(frame.f_locals.get("self")))
        frame = frame.f_back  # type: ignore[assignment]
    return set(optimizers) - missing


_CHECKPOINT = torch.utils.checkpoint.noop_context_fn.__code__.co_filename

# The code around every module's forward(). Without it nothing could say in which module a line of code ran.
MODULE_CALL = torch.nn.Module._call_impl.__code__

# The code around every optimizer's step.
_STEP = next((c for c in torch.optim.Optimizer.profile_hook_step.__code__.co_consts if isinstance(c, CodeType)), None)

_HERE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep  # not torchvision
_WRAPPERS = (_TORCH + "_compile.py", _TORCH + "_dynamo")
_SAVING = torch.autograd.graph.save_on_cpu.__init__.__code__.co_filename


def evaluation() -> tuple[int, int]:
    """Names the evaluation of an autograd node that runs on this thread: its backward pass and its number.

    Without it a gradient that an earlier node transposed is taken for one that this node did, or what a pass before
    did in a node of the same number, which another thread may have made.
    """
    return torch._C._current_graph_task_id(), running_node()


def saved_form(node: Any, name: str) -> tuple[list[int], list[int]] | None:
    """Sizes and strides of an operand when autograd saved it, without asking for the operand.

    Without it a gradient of which torch computes the transposed form could be taken for the other operand.
    """
    sizes = getattr(node, f"_saved_{name}_sym_sizes", None)
    return None if sizes is None else (list(sizes), list(getattr(node, f"_saved_{name}_sym_strides")))


def inductor_operations() -> Any:
    """The operations of which inductor's loops are made. Without them a rounding cannot be part of a loop."""
    from torch._inductor.virtualized import ops

    return ops


def set_lowering(op: Any, element_function: Callable[[Any, torch.dtype], Callable[[Any], Any] | None]) -> bool:
    """Let inductor write an elementwise op as ``element_function(argument, dtype)`` says, once inductor is there.

    None stands for a call of the op itself. Without it each rounding is a pass over memory of its own.
    """
    if "torch._inductor.compile_fx" not in sys.modules:
        return False
    from torch._inductor.lowering import fallback_handler, make_pointwise, register_lowering

    call = fallback_handler(op, add_to_fallback_set=False)

    def lower(x: Any, argument: Any) -> Any:
        function = element_function(argument, x.get_dtype())
        return call(x, argument) if function is None else make_pointwise(function)(x)

    register_lowering(op, type_promotion_kind=None)(lower)
    return True


def leave_out_of_graphs(name: str, needless: Callable[[Any, Any], bool], library: Any) -> None:
    """Let graphs hold a copy for ``name(x, argument)`` where ``needless(the node that made x, argument)``.

    Without it compiled loops round the ReLU of rounded values again, and keep a mask for it, which inductor's code for
    CPUs stores byte by byte.
    """
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, get_proxy_slot

    def trace(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        made = get_proxy_slot(args[0], mode.tracer, None)
        if made is not None and needless(made.proxy.node, args[1]):
            with mode:
                return args[0].clone()
        return mode.__torch_dispatch__(op, types, args, kwargs or {})

    torch.library.register_torch_dispatch(name, ProxyTorchDispatchMode, trace, lib=library)


def wait_for(results: Any) -> None:
    """Wait until other processes have sent what a collective operator returned, before it is looked at.

    Without it what is still being written would be rounded.
    """
    each: Any = results if isinstance(results, (list, tuple)) else (results,)
    for result in each:
        if isinstance(result, Tensor):
            torch.ops._c10d_functional.wait_tensor(result)
        elif not isinstance(result, (list, tuple)):  # a handle of the work
            result.wait()


def coerce_seeds(coerce: Callable[[Any, Tensor, bool, bool], Tensor]) -> None:
    """Let ``coerce(output, gradient, batched, given)`` see the gradients with which autograd starts.

    Without it a plain one that a caller gives goes back through a result in low precision, to its leaves, and is never
    rounded; and torch's own 1, where none was given, is rounded to the format of the result, which may lack it.
    """
    make = torch.autograd._make_grads

    @run_by_python
    def made(outputs: Any, grads: Any, is_grads_batched: bool) -> tuple[Tensor | None, ...]:
        seeds = make(outputs, grads, is_grads_batched)
        triples = zip(outputs, seeds, grads, strict=False)  # torch counts them itself, and says so
        return tuple(
            seed if seed is None else coerce(output, seed, is_grads_batched, grad is not None)
            for output, seed, grad in triples
        )

    torch.autograd._make_grads = made


def refuse_linearize(kind: type) -> None:
    """Let torch.func.linearize say that it cannot take an LPTensor, which it traces as a constant.

    Without it the linear function is one too, of memory that nobody has written.
    """
    linearize = torch.func.linearize

    @functools.wraps(linearize)
    def checked(func: Callable[..., Any], *primals: Any) -> Any:
        if any(isinstance(leaf, kind) for leaf in leaves(primals, kind)):
            raise NotImplementedError(
                "torch.func.linearize takes an LPTensor for a constant: use torch.func.jvp, or give it plain tensors "
                "and say to_lp() inside"
            )
        return linearize(func, *primals)

    torch.func.linearize = checked


def let_modules_swap(here: Callable[[], bool]) -> None:
    """Let modules replace a parameter's contents and keep the object where ``here()``, also on the way back to plain.

    Torch's own setting is the whole process's. Without this a plain model that another thread moves meanwhile would do
    so too, which fails while a graph is alive.
    """
    chosen = torch.__future__.get_swap_module_params_on_conversion

    @functools.wraps(chosen)
    def swaps() -> bool:
        return here() or chosen()

    torch.__future__.get_swap_module_params_on_conversion = swaps


def keep_what_hangs_on_tensors(leaves: Callable[[Tensor, Tensor], bool], contents: Collection[str]) -> None:
    """Let two tensors that swap what they are keep their attributes and hooks, where ``leaves`` says so.

    ``contents`` are the attributes that are a part of what they are. Without it a parameter that is converted, or whose
    module moves to another device, forgets its hooks, and takes no new ones: swap_tensors exchanges the attributes
    of the objects, but neither finds the hooks of the one nor tells autograd of them.
    """
    swap: Callable[[Tensor, Tensor], None] = torch.utils.swap_tensors
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")

    @functools.wraps(swap)
    def swapped(t1: Tensor, t2: Tensor) -> None:
        if not leaves(t1, t2):
            return swap(t1, t2)
        kept = [{name: value for name, value in vars(t).items() if name not in contents} for t in (t1, t2)]
        forms = [(type(t), vars(t)) for t in (t1, t2)]
        impl = t1._cdata
        try:
            swap(t1, t2)
        finally:  # it may have raised, Ctrl-C also after all is done
            if t1._cdata == impl:  # perhaps with the classes and attributes exchanged, but the contents not
                for t, (kind, own) in zip((t1, t2), forms, strict=True):
                    t.__class__, t.__dict__ = kind, own
            else:
                for t, own in zip((t1, t2), kept, strict=True):
                    t.__dict__ = {name: value for name, value in vars(t).items() if name in contents} | own
                    for name in hooks:
                        setattr(t, name, getattr(t, name))

    torch.utils.swap_tensors = swapped


def local_part(p: Tensor) -> Any:
    """The part of a DTensor that this process holds, None of any other tensor.

    Without it FSDP's gradients, which belong to the DTensor, find no way to the part that says how they round.
    """
    return getattr(p, "_local_tensor", None)


def version(x: Tensor) -> int:
    """How often a tensor was written to. Without it what code writes to a stand-in would not reach its tensor."""
    number: int = x._version
    return number


def wraps_tensors(x: Tensor) -> bool:
    """Whether a tensor is of a class that holds others, such as quantized ones. Without it one would become another."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return is_traceable_wrapper_subclass(x)


def weak_storage(x: Tensor) -> Any:
    """What tells by ``expired()`` whether the memory of a tensor is free again, without keeping it.

    Without it a study would take what lies there later for what did before.
    """
    from torch.multiprocessing.reductions import StorageWeakRef

    return StorageWeakRef(x.untyped_storage())


def is_view(x: Tensor) -> bool:
    """Whether a tensor looks at another's memory. Without it gradients in DDP's buckets look like any other."""
    return x._is_view()


def finished_work() -> Any:
    """What a caller may wait for though it is done.

    Without it values would be written anew, unrounded: some work of the backend gloo copies them each time it is
    waited for.
    """
    from torch._C._distributed_c10d import FakeWork

    return FakeWork().boxed()


# What marks a tensor as a parameter. Without it a copy of an LPTensor parameter would be none.
IS_PARAMETER = "_is_param"

# What torch.compile calls the module that it wraps. Without it no path of a compiled model fits a rule.
COMPILED = "_orig_mod"

# Where GradScaler's state has the steps since its scale changed. Without it its state could not be gone on with.
GROWTH_COUNT = "_growth_tracker"

# Where an optimizer keeps hooks around a step. Without it those would hear of steps that a study takes and undoes.
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def state_hooks(optimizer: torch.optim.Optimizer, when: str) -> list[Callable[..., Any]]:
    """The hooks around ``state_dict`` or ``load_state_dict``, "pre" or "post" of an optimizer that overrides them.

    Without it what a user registers there would not be called.
    """
    return list(getattr(optimizer, f"_optimizer_{when}_hooks").values())


def set_plain_tangent(coerce: Callable[..., Any]) -> None:
    """How a plain gradient becomes one of a traced wrapper subclass; torch asks the gradient, not the subclass.

    Without it a compiled function with two LPTensor results of which one is used fails in its backward pass.
    """
    Tensor.__coerce_same_metadata_as_tangent__ = coerce  # type: ignore[attr-defined]
