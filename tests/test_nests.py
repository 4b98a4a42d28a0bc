"""Containers that cross the boundary of a module: the caller's own, with what the module wrote."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from low import is_low, same
from lptensor import BF16, E4M3, LPTensor, convert, lower, round as lp_round
from lptensor.operands import Gemm


class Runs(nn.Module):
    """A layer that hands its arguments to a function, and its own output."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.body(self.linear(x), *args, **kwargs)


def bounded(body: Callable[..., Any], inside: Any = E4M3, outside: Any = None) -> Any:
    """The same layer as part of a model whose rule is another."""
    model = nn.ModuleDict({"layer": Runs(body)})
    return convert(model, {"layer": inside, "": outside})["layer"]


def lowered(body: Callable[..., Any]) -> Any:
    return lower(Runs(body), [Runs], operands=Gemm(E4M3))


def kind(x: Any) -> Any:
    return x.format if isinstance(x, LPTensor) else type(x)


X = torch.linspace(-1, 1, 8).reshape(2, 4)
BOTH = pytest.mark.parametrize("made", [bounded, lowered])


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, outs: list[Tensor], cache: dict[str, Any]) -> Tensor:
        y: Tensor = self.linear(x)
        outs.append(y)
        cache["k"] = y
        return y


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Caching(), Caching()

    def forward(self, x: Tensor) -> Any:
        outs: list[Tensor] = []
        cache: dict[str, Any] = {}
        x = self.a(x, outs, cache=cache)
        return self.b(x, outs, cache=cache), outs, cache


@pytest.mark.parametrize("how", ["rules", "operands"])
def test_what_modules_append_and_store_reaches_the_caller(how: str) -> None:
    model = Stack()
    if how == "rules":
        convert(model, {"a": E4M3, "b": BF16})
    else:
        lower(model, [Caching], operands=Gemm(E4M3))
    y, outs, cache = model(X)
    assert len(outs) == 2 and outs[1] is y and cache == {"k": y} and type(y) is type(outs[0]) is Tensor
    by_hand = model.a(X, [], {})
    assert torch.equal(outs[0], by_hand) and torch.equal(y, model.b(by_hand, [], {}))
    outs[0].sum().backward()
    assert model.a.linear.weight.grad is not None and model.b.linear.weight.grad is None


def test_what_was_written_is_recast_to_the_rule_of_the_caller() -> None:
    outs: list[Tensor] = []
    y = bounded(lambda y, outs: outs.extend([y, y * 2]) or y, E4M3, BF16)(X.to_lp(BF16), outs)
    assert is_low(y, BF16) and is_low(outs[0], BF16) and is_low(outs[1], BF16) and outs[0] is y


@BOTH
def test_what_the_module_does_not_change_stays_the_same_object(made: Any) -> None:
    seen = []

    def body(y: Tensor, outs: list[Any], cache: dict[str, Any]) -> Tensor:
        seen.extend([*outs[:2], *cache["kv"], cache["n"]["deep"]])
        cache["kv2"] = cache["kv"][0], y
        outs.reverse()
        return y

    t, n = torch.rand(3), torch.arange(2)
    outs, pair, inner = [t, t, n, None], (t, t), {"deep": t}
    cache = {"kv": pair, "n": inner}
    made(body)(X, outs, cache)
    assert all(type(x) is LPTensor for x in seen) and len(seen) == 5
    assert outs[0] is None and outs[1] is n and outs[2] is t and outs[3] is t
    assert cache["kv"] is pair and cache["n"] is inner and inner["deep"] is t
    assert cache["kv2"][0] is t and type(cache["kv2"][1]) is Tensor and list(cache) == ["kv", "n", "kv2"]


def test_plain_operands_of_the_caller_stay_plain() -> None:
    """A mask in a low-precision part is exact, and so on its way back from a plain module."""
    mask, low = torch.full((4,), -torch.inf), torch.ones(4).to_lp(BF16)
    held = [mask, low]
    bounded(lambda y, held: y + held[0].sum() + held[1], None, BF16)(X.to_lp(BF16), held)
    assert held[0] is mask and held[1] is low


@BOTH
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_what_is_written_in_place_into_a_tensor_in_a_container_reaches_the_caller(made: Any, mode: Any) -> None:
    def body(y: Tensor, cache: dict[str, Any], state: State) -> Tensor:
        cache["kv"][0][:2] = y
        state.x.add_(1)
        return y

    keys, values, x = torch.full((4, 4), 0.3), torch.full((4, 4), 0.3), torch.ones(3)
    with mode():
        y = made(body)(X, {"kv": (keys, values)}, State(x))
    assert torch.equal(keys[:2], y) and x.tolist() == [2.0, 2.0, 2.0]
    assert torch.equal(values, torch.full((4, 4), 0.3)) and type(keys) is Tensor


@BOTH
def test_a_container_that_is_given_twice_or_holds_itself_is_one(made: Any) -> None:
    seen: list[Any] = []
    outs: list[Any] = [torch.rand(3)]
    outs.append(outs)

    def body(y: Tensor, first: list[Any], second: list[Any], third: tuple[Any, ...]) -> Tensor:
        seen.append(first is second and third[0] is first and first[1] is first)
        second.append(y)
        return y

    made(body)(X, outs, second=outs, third=(outs, 1))
    assert seen == [True] and len(outs) == 3 and outs[1] is outs and type(outs[0]) is type(outs[2]) is Tensor


@BOTH
def test_a_tensor_that_is_given_twice_is_one(made: Any) -> None:
    """By which nn.MultiheadAttention tells self-attention, whose projections are one product."""
    seen: list[bool] = []

    def body(y: Tensor, first: Tensor, second: tuple[Tensor, Tensor], third: Tensor) -> Tensor:
        seen.append(type(first) is LPTensor and first is second[0] and first is third and first is not second[1])
        return y

    made(body)(X, X, (X, X.clone()), third=X)
    assert seen == [True]


class Named(NamedTuple):
    x: Tensor
    n: int


@dataclass
class State:
    x: Any
    n: int = 2
    more: list[Any] = field(default_factory=list, init=False)

    def __getitem__(self, _: int) -> Any:
        return self.x


@dataclass(frozen=True)
class Frozen:
    x: Any

    def __getitem__(self, _: int) -> Any:
        return self.x


@dataclass(frozen=True, slots=True)
class Slotted(Frozen):
    y: Any = None


@dataclass
class Output(OrderedDict[Any, Any]):
    """As the outputs of Hugging Face: a dict of the fields that are not None, which follow it."""

    x: Any = None
    y: Any = None

    def __post_init__(self) -> None:
        super().__setitem__("x", self.x)

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __delitem__(self, key: str) -> None:
        raise KeyError(key)


class Noted(list[Any]):
    note = "none"


def noted(x: Tensor) -> Noted:
    made = Noted([x])
    made.note = "mine"
    return made


MAKE: dict[str, Callable[[Tensor], Any]] = {
    "OrderedDict": lambda x: OrderedDict({0: x}),
    "defaultdict": lambda x: defaultdict(list, {0: x}),
    "UserDict": lambda x: UserDict({0: x}),
    "a subclass of list": noted,
    "namedtuple": lambda x: Named(x, 2),
    "an immutable mapping": lambda x: MappingProxyType({0: x}),
    "a dataclass": State,
    "a frozen dataclass": Frozen,
    "a dataclass with slots": Slotted,
    "a dataclass of a dict": Output,
}
FROZEN = ("namedtuple", "an immutable mapping", "a frozen dataclass", "a dataclass with slots")


@pytest.mark.parametrize("name", MAKE)
@BOTH
def test_containers_keep_their_class_and_what_else_they_know(name: str, made: Any) -> None:
    def body(y: Tensor, given: Any) -> Any:
        assert type(given) is type(MAKE[name](X)) and type(given[0]) is LPTensor
        return MAKE[name](y), given

    given = MAKE[name](X)
    fresh, back = made(body)(X, given)
    assert type(fresh) is type(back) is type(given) and type(fresh[0]) is type(back[0]) is Tensor
    assert given[0] is X and (back is given or name in FROZEN)
    assert getattr(fresh, "default_factory", list) is list and getattr(fresh, "note", "mine") == "mine"


@pytest.mark.parametrize("make", [State, Frozen, Slotted, Output])
def test_lowered_outputs_are_rounded_in_the_fields_of_dataclasses(make: Any) -> None:
    layer = lower(Runs(lambda y: make([y])), [Runs], E4M3, forward_rounding="nearest")
    plain, low = Runs.forward(layer, X), layer(X)
    assert type(low) is make and low is not plain and torch.equal(low.x[0], lp_round(plain.x[0], E4M3))


def test_what_a_module_writes_to_a_dataclass_is_recast() -> None:
    def body(y: Tensor, state: State) -> State:
        state.more.append(y)
        state.x = state.x, y
        return state

    state = State(X)
    assert bounded(body)(X, state) is state and state.n == 2
    assert state.x[0] is X and type(state.x[1]) is type(state.more[0]) is Tensor and state.more[0] is state.x[1]


def test_a_dataclass_that_cannot_be_copied_is_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Locked:
        x: Tensor

        def __copy__(self) -> Any:
            raise TypeError("there is one of me")

    with pytest.raises(TypeError, match="a Locked other tensors.*one of me.*use a tuple"):
        bounded(Locked)(X)
    with pytest.raises(TypeError, match="a Locked other tensors"):
        lower(Runs(Locked), [Runs], E4M3)(X)
    assert bounded(lambda y, locked: locked)(X, Locked(torch.arange(2))).x.tolist() == [0, 1]


def test_convert_keeps_the_class_of_a_nest_and_hands_out_a_new_one() -> None:
    nest = [defaultdict(list, {0: X}), OrderedDict({1: X}), noted(X)]
    low = convert(nest, E4M3)
    assert low[0].default_factory is list and type(low[1]) is OrderedDict and low[2].note == "mine"
    again = convert(low, E4M3)
    assert again is not low and again[0] is not low[0] and nest[0][0] is X and is_low(again[0][0], E4M3)


@BOTH
def test_a_module_that_raises_leaves_containers_as_plain_python_would(made: Any) -> None:
    t = torch.rand(3)
    outs, pair = [t], (t,)
    cache = {"kv": pair}

    def body(y: Tensor, outs: list[Any], cache: dict[str, Any]) -> Tensor:
        outs.append(y)
        raise KeyError("no")

    layer = made(body)
    with pytest.raises(KeyError):
        layer(X, outs, cache=cache)
    assert len(outs) == 2 and outs[0] is t and type(outs[1]) is Tensor and cache["kv"] is pair
    assert not any(name.startswith("_lptensor_crossings") for name in vars(layer))


def test_refused_arguments_leave_containers_as_they_were() -> None:
    layer, t, low = lowered(lambda y, held: y), torch.rand(3), torch.ones(3).to_lp(BF16)
    held = [t, low]
    with pytest.raises(TypeError, match="for plain models"):
        layer(X, held)
    assert held[0] is t and held[1] is low and not any(name.startswith("_lptensor_crossings") for name in vars(layer))
    layer.linear.double()
    with pytest.raises(TypeError, match="fp32 models"):
        layer(X, held[:1])
    assert held[0] is t and type(layer.linear.weight) is nn.Parameter
    assert not any(name.startswith("_lptensor_crossings") for name in vars(layer))


def test_a_module_that_calls_itself_keeps_its_calls_apart() -> None:
    def body(y: Tensor, outs: list[Any], depth: int) -> Tensor:
        outs.append(y)
        return layer(y, [] if depth == 2 else outs, depth - 1) if depth else y

    layer = bounded(body)
    outs: list[Any] = []
    layer(X, outs, 2)
    assert [kind(x) for x in outs] == [Tensor]
    layer(X, outs, 1)
    assert [kind(x) for x in outs] == [Tensor] * 3


@BOTH
def test_checkpoints_train_with_containers(made: Any) -> None:
    layer = made(lambda y, held: y * held["s"])
    scale = torch.rand(4, requires_grad=True)
    held = {"s": scale}
    layer(X, held).sum().backward()
    want, scale.grad = scale.grad, None
    for reentrant in (False, True):
        checkpoint(layer, X.clone().requires_grad_(), held, use_reentrant=reentrant).sum().backward()
        assert held["s"] is scale and same(scale.grad, want)
        scale.grad = None


def test_objects_that_are_no_containers_are_left_alone() -> None:
    class Cache:
        def __init__(self) -> None:
            self.keys: list[Tensor] = []

    def body(y: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        cache.keys.append(y)
        return y, cache

    cache = Cache()
    assert bounded(body)(X, cache)[1] is cache and is_low(cache.keys[0], E4M3)


def test_copies_of_a_running_model_know_nothing_of_the_call() -> None:
    layer = bounded(lambda y: copy.deepcopy(layer))
    twin = layer(X)
    assert same(twin.linear.weight, layer.linear.weight) and is_low(twin.linear.weight, E4M3)


def test_an_interrupted_call_gives_its_containers_back_when_the_next_begins() -> None:
    stop = [True]

    def body(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if stop:
            raise KeyboardInterrupt
        return x + batch["bias"]

    model = bounded(body)
    batch = {"bias": torch.randn(4)}
    given = batch["bias"]
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 4), batch)
    stop.clear()
    model(torch.randn(2, 4), {"bias": torch.randn(4)})
    assert batch["bias"] is given
    assert not any(name.startswith("_lptensor_crossings") for part in model.modules() for name in vars(part))


def test_what_crosses_a_boundary_is_let_go_at_once() -> None:
    model = bounded(lambda x, batch: x + batch["bias"])
    gc.disable()
    try:
        batch = {"bias": torch.randn(4)}
        known = weakref.ref(batch["bias"])
        model(torch.randn(2, 4), batch)
        del batch
        assert known() is None
    finally:
        gc.enable()


def test_a_layer_that_returns_containers_is_let_go_at_once() -> None:
    model = lower(nn.LSTM(4, 8), [nn.LSTM], BF16, forward_rounding="nearest")
    model(torch.randn(2, 1, 4))
    known = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert known() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("outside", [None, BF16])
def test_masks_and_plain_operands_of_a_low_side_enter_as_they_are(outside: Any) -> None:
    """By the keyword that ends in "mask", whatever calls them; by position where all else is low precision."""
    entered: list[Tensor] = []

    def body(x: Tensor, other: Tensor, attn_mask: Tensor) -> Tensor:
        entered.extend((x, other, attn_mask))
        return x

    x, other, mask = (torch.full((2, 4), 0.3) for _ in range(3))
    layer = bounded(body, outside=outside)
    layer(x if outside is None else x.to_lp(outside), other, attn_mask=mask)  # type: ignore[attr-defined]
    assert is_low(entered[0], E4M3) and entered[2] is mask
    assert is_low(entered[1], E4M3) if outside is None else entered[1] is other
