"""Optimizer state follows its parameters, has formats of its own where told, and never divides by zero unsaid."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam

from low import is_low, rounded, same, through_file, values
from lptensor import BF16, E4M3, E5M2, FP16, FP32, Arithmetic, FixedPoint, LPTensor, OptimLP, convert
from lptensor.training import LossScaler, Madam

BOTH = Arithmetic(BF16, backward=E5M2)
ADAM_KEYS = ("exp_avg", "exp_avg_sq")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: Any, count: int = 1, size: float = 1.0) -> None:
    for i in range(count):
        torch.manual_seed(i)
        optimizer.zero_grad()
        (model(torch.randn(5, 6)) * size).square().mean().backward()
        optimizer.step()


def state_of(optimizer: Any, key: str) -> list[Any]:
    return [entries[key] for entries in optimizer.state.values()]


# -- state follows its parameter -------------------------------------------------------------------------


def test_state_made_before_the_model_was_converted_follows_at_the_next_step() -> None:
    """The step is the one that starts from state rounded by hand, bit for bit."""
    models, optimizers = [net(), net()], []
    for model in models:
        optimizers.append(torch.optim.Adam(model.parameters(), eps=1e-4))
        step(model, optimizers[-1], 2)
        convert(model, BOTH)
    for entries in optimizers[1].state.values():
        entries.update({k: rounded(entries[k], BF16).to_lp(BOTH) for k in ADAM_KEYS})  # type: ignore[attr-defined]
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    for key in ADAM_KEYS:
        assert all(is_low(a, BF16) and same(a, b) for a, b in zip(*(state_of(o, key) for o in optimizers), strict=True))
    assert all(same(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(type(s) is Tensor and s == 3 for s in state_of(optimizers[0], "step"))


def test_state_made_by_the_constructor_follows_too() -> None:
    model = net()
    optimizer = torch.optim.Adagrad(model.parameters())
    convert(model, BF16)
    step(model, optimizer)
    assert all(is_low(s, BF16) for s in state_of(optimizer, "sum"))


def test_state_follows_to_another_format_and_back_to_plain() -> None:
    model = convert(net(), BF16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    step(convert(model, E4M3), optimizer)
    assert all(is_low(s, E4M3) for s in state_of(optimizer, "momentum_buffer"))
    step(convert(model, None), optimizer)
    assert all(type(s) is Tensor for s in state_of(optimizer, "momentum_buffer"))


@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
def test_the_momentum_of_a_plain_parameter_is_plain_though_its_gradients_are_not(options: Any) -> None:
    x = torch.randn(4).to_lp(E4M3)  # type: ignore[attr-defined]
    w = nn.Parameter(torch.randn(4))
    by_hand = nn.Parameter(w.detach().clone())
    optimizer, wanted = (torch.optim.SGD([p], lr=0.1, momentum=0.9, **options) for p in (w, by_hand))
    for _ in range(4):
        optimizer.zero_grad()
        (x * w).square().sum().backward()
        by_hand.grad = values(w.grad).clone()
        optimizer.step()
        wanted.step()
    assert type(w) is nn.Parameter and torch.equal(w, by_hand)


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: OptimLP(o, acc_quant=FP16)], ids=["bare", "OptimLP"])
@pytest.mark.parametrize("options", [{}, {"foreach": True}], ids=str)
def test_a_plain_gradient_of_a_low_parameter_is_rounded_before_the_step(options: Any, wrap: Any) -> None:
    """Torch's engine gives plain zeros where nothing depends on a value, and anything may be assigned."""
    w = nn.Parameter(torch.ones(3).to_lp(BOTH))  # type: ignore[attr-defined]
    optimizer = wrap(torch.optim.SGD([w], lr=2.0**-3, momentum=0.5, **options))
    torch.sgn(w).sum().backward()
    assert type(w.grad) is Tensor
    optimizer.step()
    w.grad = torch.tensor([0.3, 0.7, -1.1])
    optimizer.step()
    assert is_low(w.grad, E5M2) and same(w.grad, rounded(torch.tensor([0.3, 0.7, -1.1]), E5M2))
    momentum = optimizer.state[w]["momentum_buffer"]
    assert type(momentum) is LPTensor and momentum.format in (BF16, FP16)


def test_a_part_of_the_model_takes_its_own_state_along() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    convert(model, {"0": BF16})
    step(model, optimizer)
    kinds = [type(s) for s in state_of(optimizer, "momentum_buffer")]
    assert kinds == [LPTensor, LPTensor, Tensor, Tensor]


def test_a_model_converted_elsewhere_changes_nothing_here() -> None:
    """State that another optimizer keeps in another form on purpose is left alone."""
    model = convert(net(), BF16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    for entries in optimizer.state.values():
        entries["momentum_buffer"] = values(entries["momentum_buffer"])
    convert(net(), E4M3)
    step(model, optimizer)
    assert all(type(s) is Tensor for s in state_of(optimizer, "momentum_buffer"))


# -- state dicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped", [False, True])
def test_a_plain_state_dict_loads_into_the_format_of_the_parameters(stepped: bool) -> None:
    plain, model = net(), convert(net(), BF16)
    old, new = (torch.optim.Adam(m.parameters(), eps=1e-4) for m in (plain, model))
    step(plain, old, 2)
    if stepped:
        step(model, new)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    step(model, new)
    assert all(is_low(s, BF16) for key in ADAM_KEYS for s in state_of(new, key))


@pytest.mark.parametrize("stepped", [False, True])
def test_a_low_precision_state_dict_loads_into_a_plain_optimizer(stepped: bool) -> None:
    plain, model = net(), convert(net(), BF16)
    old, new = (torch.optim.Adam(m.parameters(), eps=1e-4) for m in (model, plain))
    step(model, old, 2)
    if stepped:
        step(plain, new)
    new.load_state_dict(through_file(old.state_dict()))
    before = [values(s).clone() for s in state_of(new, "exp_avg")]
    assert all(same(a, b) for a, b in zip(before, state_of(old, "exp_avg"), strict=True))
    step(plain, new)
    assert all(type(s) is Tensor for key in ADAM_KEYS for s in state_of(new, key))


@pytest.mark.parametrize("spec", ["as the parameters", None, FP32, {"exp_avg_sq": FP32}], ids=str)
@pytest.mark.parametrize("through", [through_file, copy.deepcopy], ids=["file", "copy"])
def test_training_resumes_with_the_same_bits(spec: Any, through: Callable[[Any], Any]) -> None:
    def start() -> tuple[nn.Module, Any]:
        model = convert(net(), Arithmetic(E4M3, backward=E5M2))
        optimizer = torch.optim.Adam(model.parameters(), eps=0.01)
        return model, convert(optimizer, spec) if spec != "as the parameters" else optimizer

    model, optimizer = start()
    step(model, optimizer, 3)
    weights, state = through(model.state_dict()), through(optimizer.state_dict())
    step(model, optimizer, 3)
    other, fresh = start()
    other.load_state_dict(weights)
    fresh.load_state_dict(state)
    step(other, fresh, 3)
    assert all(same(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    for key in ADAM_KEYS:
        for a, b in zip(state_of(optimizer, key), state_of(fresh, key), strict=True):
            assert type(a) is type(b) and same(a, b) and getattr(a, "format", None) == getattr(b, "format", None)


# -- state with formats of its own -------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before the first step", "after it"])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_key_of_the_state_has_a_format_of_its_own(when: str, foreach: bool) -> None:
    model = convert(net(), E4M3)
    optimizer = torch.optim.Adam(model.parameters(), eps=0.01, foreach=foreach)
    if when == "after it":
        step(model, optimizer)
    assert convert(optimizer, {"exp_avg_sq": FP32, "exp_*": BF16}) is optimizer
    step(model, optimizer, 2)
    for entries in optimizer.state.values():
        assert entries["exp_avg_sq"].format == FP32 and is_low(entries["exp_avg"], BF16)
        fine = values(entries["exp_avg_sq"])
        assert not same(fine, rounded(fine, BF16))
    assert all(is_low(p, E4M3) for p in model.parameters())


def test_the_first_step_with_an_fp32_second_moment_is_the_one_by_hand() -> None:
    """Adam's first step: m = (1-b1) g, v = (1-b2) g^2; the weight moves by lr m/(1-b1) / (sqrt(v/(1-b2)) + eps)."""
    model = convert(nn.Linear(6, 3, bias=False), E4M3)
    optimizer = convert(torch.optim.Adam(model.parameters(), lr=0.25, betas=(0.5, 0.75)), {"exp_avg_sq": FP32})
    before = values(model.weight).clone()
    step(model, optimizer, size=2**-4)
    g = values(model.weight.grad)
    m = rounded(torch.zeros_like(g).lerp(g, 0.5), E4M3)
    v = torch.zeros_like(g).mul(0.75).addcmul(g, g, value=0.25)
    denominator = (v.sqrt() / 0.25**0.5).add(1e-8)
    assert same(model.weight, rounded(before.addcdiv(m, denominator, value=-0.25 / 0.5), E4M3))


def test_none_keeps_the_state_in_fp32() -> None:
    model = convert(net(), E4M3)
    optimizer = convert(torch.optim.Adam(model.parameters()), None)
    step(model, optimizer, 2)
    assert all(type(s) is Tensor for key in ADAM_KEYS for s in state_of(optimizer, key))
    assert all(is_low(p, E4M3) for p in model.parameters())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.parametrize("steps", [0, 1])
def test_formats_of_their_own_outlive_a_copy_and_a_loaded_state(again: Callable[[Any], Any], steps: int) -> None:
    model = convert(nn.Linear(6, 3), E4M3)
    optimizer = convert(torch.optim.Adam(model.parameters()), {"exp_avg_sq": FP32})
    step(model, optimizer, steps)
    model, optimizer = again((model, optimizer))
    step(model, optimizer)
    optimizer.load_state_dict(through_file(optimizer.state_dict()))
    optimizer.add_param_group({"params": [torch.ones(4).to_lp(E4M3).requires_grad_()]})  # type: ignore[attr-defined]
    optimizer.param_groups[-1]["params"][0].grad = torch.ones(4).to_lp(E4M3)  # type: ignore[attr-defined]
    step(model, optimizer)
    assert [s.format for s in state_of(optimizer, "exp_avg_sq")] == [FP32] * len(optimizer.state)
    assert [s.format for s in state_of(optimizer, "exp_avg")] == [E4M3] * len(optimizer.state)


def test_a_saved_state_is_plain_dicts_that_load_with_weights_only() -> None:
    model = convert(net(), E4M3)
    optimizer = convert(torch.optim.Adam(model.parameters()), {"exp_avg_sq": FP32})
    step(model, optimizer)
    state = through_file(optimizer.state_dict())["state"]
    assert state[0]["exp_avg_sq"].format == FP32 and state[0]["exp_avg"].format == E4M3


def test_the_state_of_an_optimizer_in_optimlp_can_be_told_its_format() -> None:
    model = convert(net(), E5M2)
    optimizer = convert(OptimLP(torch.optim.Adam(model.parameters()), acc_quant=BF16), {"exp_avg_sq": FP32})
    step(model, optimizer, 2)
    assert all(s.format == FP32 for s in state_of(optimizer, "exp_avg_sq"))
    assert all(is_low(p, E5M2) for p in model.parameters())


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"exp_avg_sqr": FP32}, ValueError, "'exp_avg_sqr' matches nothing.*exp_avg_sq"),
        ({3: FP32}, TypeError, "got 3"),
        ({"exp_avg": "bf16"}, TypeError, "'bf16'"),
        ("bf16", TypeError, "'bf16'"),
        ({"exp_avg": BF16, "exp_avg_sq": FixedPoint(32, 16)}, ValueError, "24"),
    ],
)
def test_bad_formats_for_state_are_named_and_change_nothing(spec: Any, error: Any, says: str) -> None:
    model = convert(net(), E4M3)
    optimizer = torch.optim.Adam(model.parameters(), eps=0.01)
    step(model, optimizer)
    with pytest.raises(error, match=says):
        convert(optimizer, spec)
    step(model, optimizer)
    assert all(is_low(s, E4M3) for key in ADAM_KEYS for s in state_of(optimizer, key))


def test_a_key_that_an_optimizer_of_torch_never_keeps_is_named_before_its_first_step() -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="'exp_avg_sqr' matches nothing in the state of Adam, which is .*exp_avg_sq"):
        convert(optimizer, {"exp_avg_sqr": FP32})
    convert(optimizer, {"*sq": FP32})
    convert(optimizer, FP32)


class Foreign(torch.optim.Optimizer):
    """An optimizer from elsewhere that keeps fp32 weights on purpose."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        for p in self.param_groups[0]["params"]:
            self.state[p]["master"] = p.dequantize().detach().clone() if isinstance(p, LPTensor) else p.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p, entries in self.state.items():
            entries["master"].sub_(p.grad, alpha=0.01)
            p.copy_(entries["master"])


def test_state_that_an_optimizer_from_elsewhere_makes_itself_is_pointed_out_and_kept() -> None:
    model = convert(net(), E4M3)
    optimizer = Foreign(model.parameters())
    with pytest.warns(RuntimeWarning, match=r"Foreign.*lptensor\.convert\(optimizer, None\)") as caught:
        step(model, optimizer, 2)
    assert len(caught) == 1 and all(type(m) is Tensor for m in state_of(optimizer, "master"))
    quiet = convert(Foreign(model.parameters()), None)
    step(model, quiet, 2)
    assert all(type(m) is Tensor for m in state_of(quiet, "master"))


class Bare(torch.optim.Optimizer):
    """Keeps a number of steps, and one tensor for each parameter, in no dict."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p] = self.state[p] + 1 if p in self.state else torch.ones_like(p)
        self.state["steps"] = 1


@pytest.mark.parametrize("low", [False, True])
def test_state_in_a_form_of_its_own_is_left_to_its_optimizer(low: bool) -> None:
    p = convert(nn.Linear(2, 1), E4M3 if low else None).weight
    optimizer = Bare([p], {})
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state[p].tolist() == [[2.0, 2.0]]


# -- eps that a narrow format has not --------------------------------------------------------------------

DIVIDING = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta", "Adagrad", "Adafactor"]


@pytest.mark.parametrize("name", DIVIDING)
def test_an_eps_that_underflows_is_explained_once_and_before_the_step(name: str) -> None:
    model = convert(net(), E5M2)
    optimizer = getattr(torch.optim, name)(model.parameters())
    with pytest.warns(RuntimeWarning, match=rf"^{name} .*eps.*E5M2.*way out: [la]") as caught:
        step(model, optimizer, 3)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = getattr(torch.optim, name)(convert(net(), E5M2).parameters())
        before = [values(p).clone() for p in other.param_groups[0]["params"]]
        for p in other.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        with pytest.raises(RuntimeWarning):
            other.step()
        assert all(same(p, b) for p, b in zip(other.param_groups[0]["params"], before, strict=True))


@pytest.mark.parametrize("name", [n for n in DIVIDING if n != "Adafactor"])
def test_the_step_does_divide_by_zero_without_the_way_out(name: str) -> None:
    model = convert(net(), E5M2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(model, getattr(torch.optim, name)(model.parameters()), 8, size=1e-3)  # RAdam divides from the sixth on
    assert not all(values(p).isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("way", ["the named pattern", "fp32 state", "the named eps"])
@pytest.mark.parametrize("name", DIVIDING)
def test_every_way_out_that_the_warning_names_works(name: str, way: str) -> None:
    def warned() -> str:
        with pytest.warns(RuntimeWarning) as caught:
            model = convert(net(), E5M2)
            step(model, getattr(torch.optim, name)(model.parameters()))
        return str(caught[0].message)

    message, options = warned(), {}
    if "eps of at least" not in message or name == "Adamax" and way != "the named eps":
        assert name == "Adamax" and "FP32" not in message
        return
    if way == "the named eps":
        least = float(message.partition("eps of at least ")[2])
        options["eps"] = (least**0.5, 1e-3) if name == "Adafactor" else least
    model = convert(net(), E5M2)
    optimizer: Any = getattr(torch.optim, name)(model.parameters(), **options)
    if way == "the named pattern":
        optimizer = convert(optimizer, {message.partition("{'")[2].partition("'")[0]: FP32})
    elif way == "fp32 state":
        optimizer = convert(optimizer, None)
    step(model, optimizer, 8, size=1e-2)
    assert all(is_low(p, E5M2) and values(p).isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("format", "options"),
    [(BF16, {}), (E5M2, {"eps": 1e-4}), (E5M2, {"fused": True}), (FP16, {"eps": 1e-7}), (FP32, {})],
    ids=str,
)
def test_where_eps_is_representable_or_not_rounded_nothing_is_said(format: Any, options: Any) -> None:
    model = convert(net(), format)
    step(model, torch.optim.Adam(model.parameters(), **options), 2)
    assert all(is_low(p, format) for p in model.parameters()) if format != FP32 else True


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.float()])
def test_state_follows_a_model_that_was_moved_after_it_was_converted(move: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    step(model, optimizer)
    move(convert(model, E4M3))
    step(model, optimizer)
    assert all(is_low(s, E4M3) for s in state_of(optimizer, "momentum_buffer"))


@pytest.mark.parametrize("when", ["before a step", "after it"])
def test_state_of_a_scalar_parameter_has_formats_too_and_its_counter_none(when: str) -> None:
    scale = nn.Parameter(torch.tensor(0.5).to_lp(E5M2))  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam([scale], lr=0.01, eps=0.01)
    if when == "before a step":
        convert(optimizer, {"exp_avg_sq": FP32, "*": BF16})
    for _ in range(2):
        optimizer.zero_grad()
        (scale * 2**-10).backward()
        optimizer.step()
    if when == "after it":
        convert(optimizer, {"exp_avg_sq": FP32, "*": BF16})
    entries = optimizer.state[scale]
    assert entries["exp_avg_sq"].format == FP32 and is_low(entries["exp_avg"], BF16)
    assert type(entries["step"]) is Tensor and entries["step"] == 2
    assert scale.isfinite()


def test_state_of_a_scalar_parameter_follows_its_conversion() -> None:
    holder = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(0.5))})
    optimizer = torch.optim.Adam(holder.parameters(), lr=0.01, eps=0.01)
    (holder["scale"] * 2).backward()
    optimizer.step()
    convert(holder, E4M3)
    (holder["scale"] * 2).backward()
    optimizer.step()
    entries = optimizer.state[holder["scale"]]
    assert is_low(entries["exp_avg"], E4M3) and type(entries["step"]) is Tensor and entries["step"] == 2


@pytest.mark.parametrize("spec", [{"exp_avg": FP32}, E5M2])
@pytest.mark.parametrize("steps", [0, 1])
def test_formats_for_state_do_not_silence_the_warning_of_an_eps_that_underflows(spec: Any, steps: int) -> None:
    p = nn.Parameter(torch.ones(2).to_lp(E5M2))  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam([p])
    p.grad = torch.full((2,), 0.5).to_lp(E5M2)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.step()
    convert(optimizer, spec)
    with pytest.warns(RuntimeWarning, match="where squares of gradients underflow, the step divides by zero"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"nesterov": True}, {"weight_decay": 0.1}], ids=str)
def test_momentum_made_of_unscaled_gradients_is_in_the_format_of_its_parameter(options: Any) -> None:
    model = convert(net(), BOTH)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options), LossScaler(64.0)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 6)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(is_low(s, BF16) for s in state_of(optimizer, "momentum_buffer"))


def test_a_counter_that_a_rule_names_goes_on_counting() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = convert(Adam([w]), {"step": E5M2})  # in which 9 is 8 or 10
    for _ in range(9):
        w.grad = torch.ones(3)
        optimizer.step()
    step = optimizer.state[w]["step"]
    assert not isinstance(step, LPTensor) and step.item() == 9


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_state_from_before_the_first_step_follows_the_accumulators(wrapped_first: bool) -> None:
    model, plain = (nn.Linear(1, 1, bias=False) for _ in range(2))
    for net in (model, plain):
        nn.init.ones_(net.weight)
    if wrapped_first:
        inner = Adagrad(model.parameters(), lr=0.05)
        convert(model, E4M3)
    else:
        convert(model, E4M3)
        inner = Adagrad(model.parameters(), lr=0.05)  # which makes its sum here, in E4M3
    optim, reference = OptimLP(inner, acc_quant=FP32), Adagrad(plain.parameters(), lr=0.05)
    for _ in range(300):
        for net, other in ((model, optim), (plain, reference)):
            net.weight.grad = torch.ones(1, 1)
            other.step()
    assert optim.state[model.weight]["sum"].item() == 300  # E4M3 would end at 16
    assert optim.state_dict()["state"][0]["weight_accumulator"].item() == pytest.approx(plain.weight.item(), rel=1e-5)


def test_state_of_a_bare_optimizer_follows_the_accumulators_wrapped_or_loaded() -> None:
    def model() -> nn.Parameter:
        return nn.Parameter(torch.ones(5).to_lp(BF16))

    def steps(p: nn.Parameter, optim: Any, n: int) -> None:
        for i in range(n):
            p.grad = torch.linspace(0.1, 0.9, 5) * (i + 1)
            optim.step()

    p, q = model(), model()
    bare = Adam([p])
    steps(p, bare, 3)
    loaded = OptimLP(Adam([q]), update="nearest")
    loaded.load_state_dict(copy.deepcopy(bare.state_dict()))
    with torch.no_grad():
        q.copy_(p)
    wrapped = OptimLP(bare, update="nearest")
    steps(p, wrapped, 2)
    steps(q, loaded, 2)
    for key in ("exp_avg", "exp_avg_sq"):
        assert wrapped.state[p][key].format is None and loaded.state[q][key].format is None
        assert torch.equal(wrapped.state[p][key].dequantize(), loaded.state[q][key].dequantize())
    assert torch.equal(p.dequantize(), q.dequantize())


def test_a_momentum_of_a_gradient_in_another_format_is_in_the_parameters() -> None:
    w = nn.Parameter(torch.randn(2, 3).to_lp(E4M3))
    optim = SGD([w], lr=0.1, momentum=0.9)
    nn.functional.linear(torch.randn(5, 3).to_lp(BF16), w).sum().backward()
    assert w.grad.format == BF16
    optim.step()
    assert optim.state[w]["momentum_buffer"].format == E4M3


def test_state_from_before_the_first_step_follows_a_parameter_that_is_plain_again() -> None:
    model = convert(nn.Linear(2, 1), E4M3)
    inner = Adagrad(model.parameters())
    convert(model, None)
    optim = OptimLP(inner, acc_quant=FP32)
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    assert not isinstance(optim.state[model.weight]["sum"], LPTensor)


def test_formats_that_state_has_of_its_own_outlive_a_load_and_a_new_group() -> None:
    def step(model: nn.Module, optim: Any) -> None:
        optim.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optim.step()

    model = convert(nn.Linear(4, 4), E4M3)
    optim = Adam(model.parameters(), 0.01, eps=0.1)
    convert(optim, FP16)
    step(model, optim)
    twin, copied = copy.deepcopy((model, optim))
    copied.load_state_dict(optim.state_dict())
    step(twin, copied)
    assert {copied.state[twin.weight][key].format for key in ("exp_avg", "exp_avg_sq")} == {FP16}
    optim.add_param_group({"params": [nn.Parameter(torch.ones(3).to_lp(E4M3))]})
    step(model, optim)
    assert optim.state[model.weight]["exp_avg"].format == FP16


def test_a_copy_made_before_the_first_step_follows_its_accumulators_too() -> None:
    model = convert(nn.Linear(4, 4), E4M3)
    inner = Adagrad(model.parameters())
    twin, optim = copy.deepcopy((model, OptimLP(inner, acc_quant=BF16)))
    twin(torch.ones(2, 4)).sum().backward()
    optim.step()
    assert optim.state[twin.weight]["sum"].format == BF16


def test_an_optimizer_that_its_parameters_hold_is_freed() -> None:
    def train() -> Any:
        w = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        w.optimizer = optimizer
        w.sum().backward()
        optimizer.step()
        return weakref.ref(optimizer)

    kept = train()
    gc.collect()
    assert kept() is None


def test_formats_given_once_more_hold_for_the_state_there_is_and_what_comes() -> None:
    model = net()
    optimizer = Adam(model.parameters())
    convert(optimizer, {"exp_avg": BF16})
    step(model, optimizer)
    convert(optimizer, {"exp_avg": FP16})
    assert all(is_low(s, FP16) for s in state_of(optimizer, "exp_avg"))
    step(model, optimizer)
    for entries in optimizer.state.values():
        entries["exp_avg"] = values(entries["exp_avg"])  # what an optimizer puts there anew
        assert is_low(entries["exp_avg"], FP16)


class Averaging(SGD):
    """Keeps a mean of its gradients, as an optimizer from elsewhere may."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("mean", torch.zeros(p.shape))
            mean.mul_(0.5).add_(p.grad, alpha=0.5)
        return super().step(closure)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_state_by_setdefault_has_the_format_of_its_key(shape: tuple[int, ...]) -> None:
    p = nn.Parameter(torch.ones(shape))
    optimizer = Averaging([p], lr=0.1)
    convert(optimizer, {"mean": E5M2})
    p.grad = torch.full(shape, 0.6)
    optimizer.step()
    mean = optimizer.state[p]["mean"]
    assert is_low(mean, E5M2) and values(mean).flatten()[0] == 0.3125  # of 0.3


@pytest.mark.parametrize(("cls", "more"), [(Madam, {}), (torch.optim.NAdam, {"eps": 0.01}), (torch.optim.ASGD, {})])
def test_what_optimizers_schedule_and_bound_with_is_not_rounded(cls: Any, more: dict[str, float]) -> None:
    twins = [nn.Parameter(torch.linspace(0.1, 0.7, 5)) for _ in range(2)]
    optimizers = [cls([w], lr=0.01, **more) for w in twins]
    convert(optimizers[1], E4M3)
    for _ in range(3):
        for w, optimizer in zip(twins, optimizers, strict=True):
            w.grad = torch.full((5,), 0.25)
            optimizer.step()
    plain, low = (optimizer.state[w] for w, optimizer in zip(twins, optimizers, strict=True))
    scalars = [key for key, value in plain.items() if isinstance(value, Tensor) and not value.dim()]
    assert scalars and all(type(low[key]) is Tensor and torch.equal(low[key], plain[key]) for key in scalars)


def test_state_from_a_step_that_raised_is_fit_before_the_next() -> None:
    """Of a gradient in E5M2 the momentum of a plain weight is plain: 0.9 * 0.3125 + 0.3125, not rounded to 0.625."""

    class Raising(torch.optim.Optimizer):
        raises = True

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                if self.state[p]:
                    self.state[p]["momentum_buffer"].mul_(0.9).add_(p.grad)
                else:
                    self.state[p]["momentum_buffer"] = p.grad.clone()
            if self.raises:
                raise ArithmeticError

    Raising.__module__ = "torch.optim.sgd"
    p = nn.Parameter(torch.ones(2))
    optimizer = Raising([p], {})
    p.grad = torch.full((2,), 0.3125).to_lp(E5M2)  # type: ignore[attr-defined]
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.raises = False
    optimizer.step()
    momentum = optimizer.state[p]["momentum_buffer"]
    assert type(momentum) is Tensor and torch.allclose(momentum, torch.full((2,), 0.59375))
