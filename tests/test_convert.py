"""Models, optimizers and nests of tensors into low precision and back, whole or not at all."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from low import is_low, rounded, same, through_file, values
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    FP32,
    Accumulator,
    Arithmetic,
    FixedPoint,
    FloatingPoint,
    LPTensor,
    convert,
    lower,
)

BOTH = Arithmetic(E4M3, backward=E5M2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, i: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.embed(i)))
        return y


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a failed conversion must not change: objects, kinds, values, gradients, hooks."""
    state: dict[str, Any] = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if t.grad is None else (id(t.grad), type(t.grad), values(t.grad).clone())
        state[name] = id(t), type(t), getattr(t, "arithmetic", None), values(t).clone(), grad
    for name, m in model.named_modules():
        state[f"hooks of {name}"] = list(m._forward_hooks), list(m._forward_pre_hooks)
    return state


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert repr(after) == repr(before)


# -- whole models ------------------------------------------------------------------------------------


def test_parameters_are_rounded_in_place_and_keep_their_identity() -> None:
    model = Tied()
    ids, before = [id(p) for p in model.parameters()], [p.detach().clone() for p in model.parameters()]
    assert convert(model, BOTH) is model
    for p, i, old in zip(model.parameters(), ids, before, strict=True):
        assert id(p) == i and isinstance(p, nn.Parameter) and p.requires_grad
        assert is_low(p, E4M3) and p.arithmetic == BOTH and same(p, rounded(old, E4M3))


def test_tied_weights_stay_tied() -> None:
    model = convert(Tied(), E4M3)
    assert model.head.weight is model.embed.weight and len(list(model.parameters())) == 3


def test_an_optimizer_made_before_goes_on_with_the_same_parameters() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model, BF16)
    model(torch.randn(4, 3).to_lp(BF16)).sum().backward()
    before = values(model.weight).clone()
    optimizer.step()
    assert is_low(model.weight, BF16) and not same(model.weight, before)


@pytest.mark.parametrize("buffers", [False, True])
def test_floating_buffers_convert_only_if_asked_and_counters_never(buffers: bool) -> None:
    model = convert(Tied(), E4M3, buffers=buffers)
    for _ in range(3):
        model(torch.arange(7))
    assert isinstance(model.norm.running_mean, LPTensor) is buffers
    assert model.norm.num_batches_tracked.item() == 3 and model.steps.dtype == torch.int64
    mean, var = model.norm.running_mean, model.norm.running_var
    if buffers:
        assert is_low(mean, E4M3) and is_low(var, E4M3)
    else:
        assert not same(mean, rounded(mean, E4M3))


def test_gradients_go_along_to_the_backward_format() -> None:
    model = nn.Linear(3, 2)
    model(torch.randn(4, 3)).sum().backward()
    want = model.weight.grad.clone()
    convert(model, BOTH)
    assert is_low(model.weight.grad, E5M2) and same(model.weight.grad, rounded(want, E5M2))


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    assert not any(p.requires_grad for p in convert(model, BF16).parameters())


def test_none_converts_back_to_the_same_values() -> None:
    model = convert(Tied(), BOTH, buffers=True)
    model(torch.arange(7)).sum().backward()
    ids = [id(p) for p in model.parameters()]
    tensors = [*model.parameters(), *model.buffers()]
    want = [(values(t).clone(), None if t.grad is None else values(t.grad).clone()) for t in tensors]
    convert(model, None)
    assert [id(p) for p in model.parameters()] == ids
    for t, (v, g) in zip([*model.parameters(), *model.buffers()], want, strict=True):
        assert not isinstance(t, LPTensor) and not isinstance(t.grad, LPTensor)
        assert same(t, v) and (g is None) == (t.grad is None) and (g is None or same(t.grad, g))
    assert type(model(torch.arange(7))) is Tensor
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_converting_again_changes_the_format() -> None:
    model = convert(convert(nn.Linear(3, 2), BF16), E5M2)
    assert is_low(model.weight, E5M2)


# -- copies and files --------------------------------------------------------------------------------


def reloaded(model: nn.Module) -> nn.Module:
    loaded: nn.Module = through_file(model, weights_only=False)
    return loaded


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), reloaded])
def test_copies_of_a_converted_model_work_alike(make: Callable[[nn.Module], nn.Module]) -> None:
    rules = {"0": BOTH, "1": None, "2": BF16}
    model = convert(nn.Sequential(nn.LSTM(3, 4, batch_first=True), Last(), nn.Linear(4, 2)), rules)
    twin, x = make(model), torch.randn(2, 5, 3)
    assert same(twin(x), model(x)) and [type(p) for p in twin.parameters()] == [LPTensor] * 6
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


class Last(nn.Module):
    def forward(self, pair: Any) -> Tensor:
        out: Tensor = pair[0][:, -1]
        return out


def test_state_goes_between_plain_and_low_precision_models() -> None:
    plain, model = nn.Linear(3, 2), convert(nn.Linear(3, 2), E4M3)
    model.load_state_dict(plain.state_dict())
    assert is_low(model.weight, E4M3) and same(model.weight, rounded(values(plain.weight), E4M3))
    plain.load_state_dict(model.state_dict())
    assert not isinstance(plain.weight, LPTensor) and same(plain.weight, values(model.weight))


def test_a_state_dict_loads_with_weights_only() -> None:
    model = convert(Tied(), BOTH)
    loaded = through_file(model.state_dict())
    assert is_low(loaded["norm.weight"], E4M3)
    other = convert(Tied(), BOTH)
    other.load_state_dict(loaded)
    assert same(other.embed.weight, model.embed.weight)


# -- path rules --------------------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


def test_rules_need_not_say_what_compiling_adds_to_paths() -> None:
    inner: Any = torch.compile(Blocks(), backend="eager")
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(2, 2), inner), backend="eager")
    convert(compiled, {"0": E4M3, "1.norm": None, "_orig_mod.1._orig_mod.first": FP16, "1": BF16})
    formats = [getattr(p, "format", None) for p in compiled.parameters()]
    assert formats == [E4M3, E4M3, FP16, FP16, None, None, BF16, BF16]
    with pytest.raises(ValueError, match="the model has '0', '1', '1.first', '1.norm', '1.last', '0.weight'"):
        convert(compiled, {"head": E4M3})


def test_rules_recast_at_module_boundaries() -> None:
    """The same by hand: every cast and every dequantisation is spelled out."""
    torch.manual_seed(0)
    model = Blocks()
    by_hand = copy.deepcopy(model)
    convert(model, {"first": BOTH, "norm": None, "last": BF16})
    w1, b1 = (p.detach().to_lp(BOTH).requires_grad_() for p in by_hand.first.parameters())
    w3, b3 = (p.detach().to_lp(BF16).requires_grad_() for p in by_hand.last.parameters())
    x = torch.randn(5, 4)

    linear = nn.functional.linear
    hidden = by_hand.norm(linear(x.to_lp(BOTH), w1, b1).dequantize())
    want = linear(hidden.to_lp(BF16), w3, b3).dequantize()
    got = model(x)
    assert type(got) is Tensor and torch.equal(got, want)

    got.square().sum().backward()
    want.square().sum().backward()
    for p, q in zip(model.parameters(), [w1, b1, *by_hand.norm.parameters(), w3, b3], strict=True):
        assert type(p.grad) is type(q.grad) and same(p.grad, q.grad)


class Held(nn.Module):
    """Blocks in a list and in a dict, which are never called themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Blocks(), nn.ModuleDict({"a": Blocks()})])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.blocks[0](x)
        y: Tensor = self.head(x + self.blocks[1]["a"](x))
        return y


@pytest.mark.parametrize(
    ("rules", "first", "second", "head", "rest"),
    [
        ({"blocks": BOTH}, BOTH, BOTH, None, None),
        ({"blocks": None, "*": BOTH}, None, None, BOTH, BOTH),
        ({"blocks": BOTH, "head": BF16}, BOTH, BOTH, BF16, None),
        ({"blocks.1": None, "*": BOTH}, BOTH, None, BOTH, BOTH),
    ],
)
def test_a_rule_for_a_list_of_modules_holds_at_the_boundaries_of_each(
    rules: Any, first: Any, second: Any, head: Any, rest: Any
) -> None:
    """As by hand, where each part is a model of its own."""
    torch.manual_seed(0)
    model, x = Held(), convert(torch.randn(5, 4), rest)
    parts = copy.deepcopy(model)
    got = convert(model, rules)(x)

    def run(part: nn.Module, rule: Any, x: Tensor) -> Tensor:
        return convert(convert(part, rule)(convert(x, rule)), rest)

    x = x + run(parts.blocks[0], first, x)
    want = run(parts.head, head, x + run(parts.blocks[1]["a"], second, x))
    assert type(got) is type(want) and getattr(got, "format", None) == getattr(want, "format", None)
    assert same(got, want)


@pytest.mark.parametrize("part", [None, BF16], ids=["plain", "BF16"])
@pytest.mark.parametrize("copied", [False, True])
def test_a_part_converted_later_meets_its_surroundings_as_if_at_once(part: Any, copied: bool) -> None:
    """What an earlier call has made of the rest holds: a part that is to be fp32 gets fp32 to compute with."""
    later = Blocks()
    at_once = convert(copy.deepcopy(later), {"norm": part, "*": BOTH})
    convert(later, BOTH)
    later = pickle.loads(pickle.dumps(later)) if copied else later
    convert(later, {"norm": part})
    x = torch.randn(5, 4)
    for model in (later, at_once):
        model.norm.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    seen: list[tuple[Tensor, Tensor]] = []
    got, want = later(x), at_once(x)
    assert got.format == want.format == BOTH.forward and same(got, want)
    for one, other in zip(*seen, strict=True):
        assert type(one) is type(other) and getattr(one, "format", None) == getattr(other, "format", None)


def test_a_model_taken_back_to_plain_forgets_what_it_was() -> None:
    model = convert(convert(convert(Blocks(), E4M3), None), {"first": BF16})
    assert type(model(torch.ones(2, 4))) is Tensor


def test_the_first_rule_that_matches_counts_and_the_rest_stays_untouched() -> None:
    model = convert(Blocks(), {"first.bias": E5M2, "fir*": BF16})
    assert model.first.bias.format == E5M2 and model.first.weight.format == BF16
    assert not isinstance(model.last.weight, LPTensor)


def test_a_path_is_a_pattern_of_itself_whatever_characters_it_has() -> None:
    model = convert(nn.ModuleDict({"a[0]": nn.Linear(2, 1), "b": nn.Linear(2, 1)}), {"a[0]": BF16, "b": None})
    assert model["a[0]"].weight.format == BF16 and type(model["b"].weight) is nn.Parameter


def test_the_empty_path_is_the_model_itself_and_all_below() -> None:
    model = convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), {"1": None, "": BF16})
    assert model[0].weight.format == BF16 and type(model[1].weight) is nn.Parameter
    assert convert(nn.Linear(2, 1), {"": BF16}).weight.format == BF16


@pytest.mark.parametrize("rules", [{"nosuch": BF16}, {"first": BF16, "lst": BF16}, {"first.wieght": None}])
def test_a_rule_that_matches_nothing_is_refused_by_name_and_changes_nothing(rules: Any) -> None:
    model = Blocks()
    before = snapshot(model)
    with pytest.raises(ValueError, match="|".join(set(rules) - {"first"})):
        convert(model, rules)
    assert_unchanged(model, before)


def test_weights_tied_across_two_rules_are_refused_and_nothing_changes() -> None:
    model = Tied()
    before = snapshot(model)
    with pytest.raises(ValueError, match="embed.weight.*head.weight"):
        convert(model, {"embed": BF16, "head": E4M3})
    assert_unchanged(model, before)


def test_a_live_graph_is_refused_and_nothing_changes() -> None:
    model = Tied()
    model.norm.weight.grad = torch.ones(4)
    loss = model(torch.arange(7)).sum()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="del loss"):
        convert(model, BF16, buffers=True)
    assert_unchanged(model, before)
    loss.backward()
    del loss
    assert is_low(convert(model, BF16).embed.weight, BF16)


@pytest.mark.parametrize("already", [None, E5M2])
@pytest.mark.parametrize("first", [lambda: nn.Linear(4, 4), lambda: nn.GRU(4, 4)])
def test_what_was_converted_before_the_failure_is_undone(already: Any, first: Callable[[], nn.Module]) -> None:
    model = convert(nn.ModuleDict({"first": first(), "last": nn.Linear(4, 4)}), already)
    for p in model["first"].parameters():
        p.grad = torch.zeros_like(p)
    x = torch.randn(2, 4, requires_grad=True)
    loss = model["last"](x).sum()  # saves the weight of the last layer alone
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="unchanged"):
        convert(model, BF16)
    assert_unchanged(model, before)
    loss.backward()
    model["first"](x)
    assert [id(p) for p in getattr(model["first"], "_flat_weights", [])] in (
        [],
        [id(p) for p in model["first"].parameters()],
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("of a format"), RuntimeError("no memory")], ids=repr)
@pytest.mark.parametrize("roundings", [2, 3])  # the next is that of a parameter, of its gradient
def test_whatever_breaks_a_conversion_off_comes_out_as_it_is_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, roundings: int
) -> None:
    done: list[Tensor] = []

    def enter(*args: Any) -> Tensor:
        if len(done) == roundings:
            raise error
        done.append(rounding(*args))
        return done[-1]

    module = importlib.import_module("lptensor.convert")  # not the function of that name
    rounding = module.enter
    monkeypatch.setattr(module, "enter", enter)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model(torch.ones(3)).sum().backward()
    before = snapshot(model)
    with pytest.raises(type(error)) as raised:
        convert(model, E4M3)
    assert raised.value is error
    assert_unchanged(model, before)


@pytest.mark.parametrize("swaps", [1, 2])  # of the gradient, then of the parameter, or another one's
@pytest.mark.parametrize("already", [None, BF16])
def test_ctrl_c_right_after_a_swap_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, swaps: int, already: FloatingPoint | None
) -> None:
    done: list[None] = []

    def swap(*tensors: Tensor) -> None:
        exchange(*tensors)
        done.append(None)
        if len(done) == swaps:
            raise KeyboardInterrupt

    model, heard = convert(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), already), []
    model(torch.ones(3)).sum().backward()
    for p in model.parameters():
        p.register_hook(lambda grad: heard.append(None))
    before = snapshot(model)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        exchange = torch._C._swap_tensor_impl  # type: ignore[attr-defined]
        patched.setattr(torch._C, "_swap_tensor_impl", swap)
        convert(model, E4M3)
    assert_unchanged(model, before)
    model(torch.ones(3)).sum().backward()
    assert len(heard) == 4


def test_ctrl_c_once_tensors_are_converted_leaves_a_model_that_computes_as_it_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[None] = []

    def attach(self: Any, module: nn.Module) -> None:
        if not raised:
            raised.append(None)
            raise KeyboardInterrupt
        attached(self, module)

    boundary = importlib.import_module("lptensor.boundary").Boundary
    attached, rules, x = boundary.attach, {"0": FP16, "1": BF16}, torch.randn(4, 3)  # which meet in no format
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    wanted = convert(copy.deepcopy(model), rules)(x)
    monkeypatch.setattr(boundary, "attach", attach)
    with pytest.raises(KeyboardInterrupt):
        convert(model, rules)
    assert same(model(x), wanted)


def test_buffers_converted_before_the_failure_are_undone() -> None:
    model = nn.ModuleDict({"first": nn.BatchNorm1d(4), "last": nn.Linear(4, 4)})
    loss = model["last"](torch.randn(2, 4, requires_grad=True)).sum()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="unchanged"):
        convert(model, BF16, buffers=True)
    assert_unchanged(model, before)
    loss.backward()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "rules", [None, {"rnn": None, "head": E4M3}, {"rnn.bias*": FP32}, {"rnn.bias*": None, "*": FP32}]
)
def test_a_recurrent_layer_of_which_a_part_stays_plain_computes_with_all_its_weights(
    kind: type[nn.RNNBase], rules: Any
) -> None:
    plain = nn.ModuleDict({"rnn": kind(3, 4), "head": nn.Linear(4, 2)})
    model, x = copy.deepcopy(plain), torch.randn(5, 2, 3)
    for _ in range(2):
        convert(model, rules)
        assert all(a is b for a, b in zip(model["rnn"]._flat_weights, model["rnn"].parameters(), strict=True))
        torch.testing.assert_close(values(model["rnn"](x)[0]), plain["rnn"](x)[0])


def test_a_buffer_that_modules_share_stays_shared() -> None:
    class Rotary(nn.Module):
        def __init__(self, frequencies: Tensor) -> None:
            super().__init__()
            self.register_buffer("frequencies", frequencies)

    frequencies = torch.rand(4)
    model = nn.ModuleList([Rotary(frequencies), Rotary(frequencies)])
    for format in (BF16, E4M3, None):
        convert(model, format, buffers=True)
        assert model[0].frequencies is model[1].frequencies
        assert getattr(model[1].frequencies, "format", None) == format


@pytest.mark.parametrize("bad", ["bf16", 8, torch.bfloat16, {"first": "bf16"}, {3: BF16}])
def test_what_is_no_format_is_refused_and_nothing_changes(bad: Any) -> None:
    model = Blocks()
    before = snapshot(model)
    with pytest.raises(TypeError):
        convert(model, bad)
    assert_unchanged(model, before)


def test_a_format_wider_than_the_carrier_is_refused_and_nothing_changes() -> None:
    model = Blocks()
    before = snapshot(model)
    with pytest.raises(ValueError, match="24"):
        convert(model, FixedPoint(32, 16))
    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_has_no_say_in_what_is_carried(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(ValueError, match="24"):
            convert(model, FixedPoint(32, 16))
        assert is_low(convert(model, BF16).weight, BF16)
        optimizer = convert(torch.optim.Adam(model.parameters(), eps=0.01), {"exp_avg_sq": FP16})
        model(torch.ones(1, 3, dtype=torch.float32)).sum().backward()
        optimizer.step()
        assert is_low(optimizer.state[model.weight]["exp_avg_sq"], FP16)
    finally:
        torch.set_default_dtype(before)


# -- nests, tensors, optimizers ----------------------------------------------------------------------


def test_a_nest_is_rebuilt_and_integers_stay() -> None:
    nest = {"a": [torch.randn(3), (torch.arange(3), 2)], "b": torch.randn(2)}
    out = convert(nest, E4M3)
    assert is_low(out["a"][0], E4M3) and out["a"][1][0].dtype == torch.int64 and out["a"][1][1] == 2
    back = convert(out, None)
    assert type(back["b"]) is Tensor and same(back["b"], out["b"]) and type(nest["b"]) is Tensor


@dataclass(frozen=True)
class Output:
    hidden: Tensor
    more: dict[str, Tensor]
    steps: int = 3


def test_containers_of_other_kinds_stay_what_they_are() -> None:
    kept = Output(torch.randn(2), defaultdict(list, {"a": torch.randn(2)}))  # type: ignore[arg-type]
    out = convert(kept, E4M3)
    assert type(out) is Output and out.steps == 3 and is_low(out.hidden, E4M3) and is_low(out.more["a"], E4M3)
    assert out.more["b"] == [] and type(kept.hidden) is type(kept.more["a"]) is Tensor
    numbered = convert(OrderedDict({1: torch.randn(2)}), E4M3)
    assert type(numbered) is OrderedDict and is_low(numbered[1], E4M3)


def test_a_dataclass_is_recast_at_a_boundary() -> None:
    """What a plain head gets of a body in low precision is plain, in whatever it comes."""

    class Body(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return Output(super().forward(x), {})

    class Head(nn.Linear):
        def forward(self, output: Any) -> Tensor:
            assert type(output.hidden) is Tensor
            return super().forward(output.hidden)

    model = convert(nn.Sequential(Body(4, 4), Head(4, 2)), {"0": E4M3})
    assert type(model(torch.randn(3, 4))) is Tensor


def test_integer_tensors_and_strangers_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        convert(torch.arange(3), BF16)
    for stranger in ("model", Output):
        with pytest.raises(TypeError, match="str|type"):
            convert(stranger, BF16)
    with pytest.raises(TypeError, match="path rules"):
        convert(torch.ones(2), {"a": BF16})


def test_the_state_of_an_optimizer_converts_and_counters_stay() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    want = optimizer.state[model.weight]["exp_avg"].clone()
    convert(model, FP16)
    convert(optimizer, FP16)
    state = optimizer.state[model.weight]
    assert is_low(state["exp_avg"], FP16) and same(state["exp_avg"], rounded(want, FP16))
    assert type(state["step"]) is Tensor and state["step"] == 1
    convert(optimizer, None)
    assert type(state["exp_avg"]) is Tensor


def test_lazy_parameters_convert_when_they_are_materialised() -> None:
    model = convert(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)), BOTH)
    assert is_low(model(torch.randn(5, 3).to_lp(BOTH)), E4M3)
    assert all(is_low(p, E4M3) for p in model.parameters()) and len(list(model.parameters())) == 6
    model(torch.randn(5, 3).to_lp(BOTH)).sum().backward()
    assert all(is_low(p.grad, E5M2) for p in model.parameters())


def test_a_parameter_beside_a_lazy_layer_converts_before_the_layer_does() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    model.register_parameter("scale", nn.Parameter(torch.ones(4)))
    convert(model, E4M3)
    assert is_low(model.scale, E4M3) and is_low(model(torch.randn(5, 3).to_lp(E4M3)), E4M3)
    assert is_low(model[0].weight, E4M3)


# -- what hangs on a parameter ----------------------------------------------------------------------------


@pytest.mark.parametrize("move", [lambda m: m, lambda m: m.to("cpu"), lambda m: m.float(), lambda m: m.share_memory()])
@pytest.mark.parametrize("rules", [E4M3, {"1": None, "*": E4M3}, {"1": BF16}], ids=str)
def test_hooks_and_attributes_of_parameters_survive(rules: Any, move: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    calls: list[str] = []
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: calls.append(f"before {name}"))
        p.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(f"after {name}"))
        p.no_decay = True
    names = [name for name, _ in model.named_parameters()]
    removed = model[1].bias.register_hook(lambda g: calls.append("removed"))
    for target in (rules, rules, None):
        move(convert(model, target))
        assert all(p.no_decay for p in model.parameters())
        calls.clear()
        model(torch.ones(2, 3)).sum().backward()
        assert sorted(set(calls) - {"removed"}) == sorted(f"{when} {n}" for when in ("before", "after") for n in names)
        assert ("removed" in calls) == (removed is not None)
        if removed is not None:
            removed.remove()
            removed = None
    convert(model, rules)
    model[0].weight.register_hook(lambda g: g * 0)
    model.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    assert not values(model[0].weight.grad).any() and values(model[1].weight.grad).any()


def test_a_module_at_two_paths_gets_one_rule() -> None:
    act = nn.GELU()
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), act), "b": nn.Sequential(nn.Linear(2, 2), act)})
    for rules in ({"a.1": None, "*": E4M3}, {"b.1": None, "*": E4M3}):
        with pytest.raises(ValueError, match=r"'a\.1' and 'b\.1' are one module.*give it one rule"):
            convert(model, rules)
    assert not any(isinstance(p, LPTensor) for p in model.parameters())
    convert(model, {"*.1": None, "*": E4M3})
    convert(model, None)
    plain = copy.deepcopy(model)
    convert(model, {"a": E4M3})  # which asks nothing of the shared one but to run
    x = torch.randn(9, 2)
    low = model["a"](x)
    assert same(low, rounded(low, E4M3)) and torch.equal(model["b"](x), plain["b"](x))


def test_rules_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name nothing to convert, got \{\}.*\"\*\": E4M3"):
        convert(nn.Linear(2, 2), {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch itself
def test_linearize_says_that_it_cannot_take_an_lptensor() -> None:
    """It would make a graph with the values of this call in it."""
    x = torch.tensor([0.3, 0.7]).to_lp(E4M3)  # type: ignore[attr-defined]
    with pytest.raises(NotImplementedError, match=r"takes an LPTensor for a constant: use torch\.func\.jvp"):
        torch.func.linearize(lambda x: x * 1.1, x)
    y, tangent = torch.func.linearize(lambda x: x * 2, torch.ones(2))
    assert y.tolist() == [2, 2] and tangent(torch.ones(2)).tolist() == [2, 2]


def test_buffers_called_mask_stay_plain() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("attn_mask", torch.zeros(2, 2))
    model.register_buffer("mean", torch.zeros(2))
    convert(model, BF16, buffers=True)
    assert type(model.attn_mask) is torch.Tensor and isinstance(model.mean, LPTensor)


def test_a_rule_that_comes_too_late_and_says_the_same_is_no_error() -> None:
    model = convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"*": BF16, "0": BF16})
    assert all(p.format == BF16 for p in model.parameters())


class _Gained(nn.LazyLinear):
    """A lazy layer with a parameter that is there already, and buffers."""

    def __init__(self, out: int) -> None:
        super().__init__(out)
        self.gain = nn.Parameter(torch.tensor([0.3]))
        self.register_buffer("shift", torch.tensor([0.3]))
        self.register_buffer("attn_mask", torch.tensor([0.3]))


def test_a_lazy_layer_may_have_parameters_and_buffers_that_are_not() -> None:
    net = convert(nn.Sequential(_Gained(3)), E4M3, buffers=True)
    assert is_low(net[0].gain, E4M3) and list(dict(net[0].named_parameters())) == ["weight", "bias", "gain"]
    net(torch.ones(2, 4).to_lp(E4M3))
    assert is_low(net[0].weight, E4M3) and is_low(net[0].shift, E4M3)
    assert type(net[0].attn_mask) is Tensor and net[0].attn_mask.item() == torch.tensor(0.3).item()


@pytest.mark.parametrize("given", ["stochastic", E5M2, 3, Accumulator(FP16)], ids=repr)
def test_what_stands_for_buffers_and_is_none_is_named(given: Any) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"buffers must be True or False, .* fields of Arithmetic"):
        convert(model, E4M3, given)
    assert type(model.weight) is nn.Parameter and not isinstance(model.weight, LPTensor)


@pytest.mark.parametrize(
    "held", [nn.Linear(2, 2), torch.optim.SGD([torch.ones(1)]), np.ones(3)], ids=lambda x: type(x).__name__
)
def test_a_nest_with_what_is_no_tensor_is_refused(held: Any) -> None:
    for nest in ([held], {"a": (torch.ones(2), held)}):
        with pytest.raises(TypeError, match=f"a nest of tensors holds a {type(held).__name__}"):
            convert(nest, E4M3)


def test_a_nest_without_a_tensor_is_refused_unless_it_holds_nothing() -> None:
    for nest, kinds in (([0.1], "float"), ({"a": ("x", 2)}, "int and str"), (Empty(0.5), "float")):
        with pytest.raises(TypeError, match=f"holds {kinds} alone, and nothing to convert"):
            convert(nest, E4M3)
    assert convert([], E4M3) == [] and convert({"state": None}, E4M3) == {"state": None}
    assert convert([torch.arange(2), 0.1], E4M3)[1] == 0.1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_state_dict_of_an_optimizer_that_keeps_nothing_converts_back(kind: Any) -> None:
    saved = kind(nn.Linear(2, 1).parameters(), lr=0.1).state_dict()
    assert convert(saved, None) == saved and convert([0.1, "x"], None) == [0.1, "x"]


@dataclass
class Empty:
    rate: float


def test_formats_of_the_same_values_say_so() -> None:
    other = FloatingPoint(4, 3, specials="fn")
    with pytest.raises(TypeError, match="have the same values, but not all the rest"):
        torch.ones(2).to_lp(E4M3) + torch.ones(2).to_lp(other)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_buffers_of_a_model_of_other_numbers_go_on_in_fp32_with_it(dtype: torch.dtype) -> None:
    def norms() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4), nn.BatchNorm1d(4))
        net[1].running_mean += 0.25  # type: ignore[operator]
        return net.to(dtype)

    model, x = convert(norms(), {"3": None, "*": E4M3}), torch.randn(5, 3)
    assert model[1].running_mean.dtype == torch.float32 and model[1].running_mean.tolist() == [0.25] * 4
    assert model[3].running_mean.dtype == model[3].weight.dtype == dtype  # the rule leaves it out
    whole, single = convert(norms(), E4M3), convert(norms().float(), E4M3)
    for _ in range(2):
        assert torch.equal(whole(x).dequantize(), single(x).dequantize())
        assert torch.equal(whole[1].running_mean, single[1].running_mean)
        whole.eval(), single.eval()


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_a_conversion_that_a_profiler_stands_in_the_way_of_says_so_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True):
        with pytest.raises(RuntimeError, match="weak reference and cannot be converted now.* the model is unchanged"):
            convert(model, E4M3)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_parameters_of_other_classes_are_named_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(TypeError, match="'1.weight' is a TwoTensor, .* leave it out: {'1.weight': None, ...}"):
        convert(model, E4M3)
    assert type(model[0].weight) is nn.Parameter


class Manifold(nn.Parameter):
    """As libraries have parameters by whose class their optimizers and operators go."""


class Rotation(Tensor):
    pass


@pytest.mark.parametrize("make", [Manifold, lambda x: nn.Parameter(x.as_subclass(Rotation))])
def test_parameters_whose_class_means_something_to_a_library_keep_it(make: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = p = make(torch.ones(2, 2))
    kind = type(p)
    with pytest.raises(TypeError, match=f"'1.weight' is a {kind.__name__}, .* leave it out: {{'1.weight': None, ...}}"):
        convert(model, E4M3)
    assert type(model[0].weight) is nn.Parameter
    convert(model, {"1.weight": None, "*": E4M3})
    assert isinstance(model[0].weight, LPTensor) and model[1].weight is p and type(p) is kind


def test_a_parameter_is_made_anew_as_libraries_make_theirs() -> None:
    p = convert(nn.Linear(2, 2), E4M3).weight
    p.requires_grad_(False)
    new = type(p)(p.to("cpu"), requires_grad=p.requires_grad)
    assert isinstance(new, nn.Parameter) and new.arithmetic == p.arithmetic and not new.requires_grad
    assert torch.equal(new.dequantize(), p.dequantize())
    with pytest.raises(TypeError, match="load a model first"):
        type(p)(torch.ones(2), requires_grad=False)


def test_finite_buffers_of_float64_stay_finite_and_rules_name_buffers() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([-1.7e308, 1e300, torch.inf, torch.nan], dtype=torch.float64))
    model.register_buffer("left", torch.ones(2))
    convert(model.double(), {"left": None, "*": E4M3})
    top = torch.finfo(torch.float32).max
    assert model.mask.dtype == torch.float32 and model.mask[:3].tolist() == [-top, top, torch.inf]
    assert model.mask[3].isnan() and model.left.dtype == torch.float64


def test_whether_a_tensor_made_of_values_requires_a_gradient_is_said() -> None:
    made = LPTensor(torch.ones(2), Arithmetic(BF16), requires_grad=True)
    assert made.requires_grad and not isinstance(made, nn.Parameter)
    with pytest.raises(TypeError, match="made by x.to_lp"):
        LPTensor(made)


def test_what_was_kept_of_low_weights_stays_when_the_plain_ones_train() -> None:
    layer = convert(nn.Linear(3, 3), BF16)
    kept = layer.weight.detach()
    before = values(kept).clone()
    convert(layer, None)
    with torch.no_grad():
        layer.weight.zero_()
    assert same(values(kept), before) and before.any()


def test_layers_that_lower_has_given_products_may_stay_plain() -> None:
    model = lower(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.LayerNorm(2)), "linear", accumulator=Accumulator(BF16))
    convert(model, {"0": None, "*": BF16})
    assert type(model[0].weight) is nn.Parameter and is_low(model[2].weight, BF16)
    with pytest.raises(TypeError, match="for plain models"):
        convert(model, BF16)


class Looped(nn.ModuleList):
    """A list that is called."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) + 0.3
        return x


def test_a_list_of_modules_with_a_forward_has_a_boundary_of_its_own() -> None:
    """What it adds between its layers is in its format: 1 + 0.3 is 1.25 in E4M3, and 1.25 + 0.3 is 1.5."""
    model = nn.Sequential(Looped([nn.Identity(), nn.Identity()]))
    convert(model, {"0": E4M3})
    y = model(torch.ones(2))
    assert type(y) is Tensor and y.tolist() == [1.5, 1.5]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_module_is_named_or_left_out() -> None:
    net = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="'1' is a ScriptModule, whose tensors cannot .* or leave it out"):
        convert(net, E4M3)
    assert type(net[0].weight) is nn.Parameter and not net[0]._forward_hooks
    before = net[1].weight.clone()
    convert(net, {"1": None, "*": E4M3})
    assert net[0].weight.format == E4M3 and torch.equal(net[1].weight, before)
    within = net[0](torch.ones(1, 2)).dequantize()
    alone = nn.functional.linear(within, before, net[1].bias)
    assert torch.equal(net(torch.ones(1, 2)).dequantize(), rounded(alone, E4M3))
    assert all(type(p) is nn.Parameter for p in convert(net, None).parameters())
    scripted = torch.jit.script(convert(nn.Linear(2, 2), E4M3))
    for model in (scripted, nn.Sequential(scripted)):
        with pytest.raises(TypeError, match="(the model|'0') is a ScriptModule"):
            convert(model, None)
    assert type(scripted(torch.ones(1, 2))) is LPTensor
