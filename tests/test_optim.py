"""OptimLP steps any optimizer in low precision."""

import contextlib
import copy
import inspect
import io
import pickle
import types
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import lptensor
from lptensor import (
    FP32,
    HIF8,
    INT8,
    NF4,
    NVFP4,
    Channel,
    CurrentMaximum,
    Format,
    LogNumber,
    Posit,
    Scaled,
    round as lp_round,
)
from lptensor.arithmetic import Arithmetic
from lptensor.convert import convert
from lptensor.formats import BF16, E4M3, E5M2, FP16, FixedPoint, FloatingPoint
from lptensor.lower import lower
from lptensor.optim import OptimLP
from lptensor.quantizer import quantizer
from oracles.low_precision import HandLP, fixed, sgd, through

FP8, HALF = through(torch.float8_e5m2), through(torch.float16)

# Every optimizer of torch, with settings, and its states that are as large as the parameter.
OPTIMIZERS = {
    "SGD": (dict(lr=0.1, momentum=0.9, nesterov=True), ["momentum_buffer"]),
    "Adam": (dict(lr=0.05, amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    "AdamW": (dict(lr=0.05), ["exp_avg", "exp_avg_sq"]),
    "RMSprop": (dict(lr=0.01, momentum=0.5, centered=True), ["square_avg", "momentum_buffer", "grad_avg"]),
    "Adagrad": (dict(lr=0.1), ["sum"]),
    "Adadelta": (dict(lr=1.0), ["square_avg", "acc_delta"]),
    "Adamax": (dict(lr=0.05), ["exp_avg", "exp_inf"]),
    "NAdam": (dict(lr=0.05), ["exp_avg", "exp_avg_sq"]),
    "RAdam": (dict(lr=0.05), ["exp_avg", "exp_avg_sq"]),
    "Rprop": (dict(lr=0.05), ["prev", "step_size"]),
    "ASGD": (dict(lr=0.1), ["ax"]),
    "Adafactor": (dict(lr=0.1), []),
    "LBFGS": (dict(lr=0.5, max_iter=4, line_search_fn="strong_wolfe"), []),
    "Muon": (dict(lr=0.05), ["momentum_buffer"]),
    "SparseAdam": (dict(lr=0.05), ["exp_avg", "exp_avg_sq"]),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def on_grid(x, cast=FP8):
    return torch.equal(x, cast(x))


class Task:
    """A small regression whose parameters suit the optimizer, and a closure for it."""

    def __init__(self, name="SGD"):
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = (torch.randn(32, n, generator=generator) for n in (6, 3))
        if name == "SparseAdam":
            self.rows = torch.randint(6, (32, 2), generator=generator)
            self.net = nn.EmbeddingBag(6, 3, sparse=True)
        else:
            self.net = nn.Sequential(
                nn.Linear(6, 5, bias=name != "Muon"), nn.Tanh(), nn.Linear(5, 3, bias=name != "Muon")
            )
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 2)
        self.optim = getattr(torch.optim, name)(self.net.parameters(), **OPTIMIZERS[name][0])

    @property
    def params(self):
        return list(self.net.parameters())

    def closure(self):
        self.optim.zero_grad()
        loss = F.mse_loss(self.net(self.rows if hasattr(self, "rows") else self.x), self.y)
        loss.backward()
        return loss

    def train(self, optim, steps):
        for _ in range(steps):
            if isinstance(getattr(optim, "optim", optim), torch.optim.LBFGS):
                optim.step(self.closure)
            else:
                self.closure()
                optim.step()


def snapshot(optim, params):
    """Everything that a run consists of, as a list of tensors."""
    states = [value for p in params for value in optim.state.get(p, {}).values()]
    flat = [t for value in states for t in (value if isinstance(value, list) else [value])]
    return [p.detach().clone() for p in params] + [torch.as_tensor(t).clone() for t in flat if t is not None]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_poster():
    def net():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    prec = FloatingPoint(bit=8)
    acc_prec = FloatingPoint(bit=16)
    model = net()
    model = lower(model, layer_type=["conv"], forward_number=prec, backward_number=prec)
    optim = SGD(model.parameters(), lr=0.01)
    optim = OptimLP(optim, weight_quant=prec, grad_quant=prec, acc_quant=acc_prec)

    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    plain = lower(copy.deepcopy(model), "conv")
    gains = []
    for network, optimizer in ((plain, SGD(plain.parameters(), lr=0.01)), (model, optim)):
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        gains.append(sum(losses[:5]) - sum(losses[-5:]))
    assert gains[0] > 0 and abs(gains[1] / gains[0] - 1) < 0.2, "it learns as the fp32 network does"
    assert all(on_grid(p) and on_grid(p.grad) for p in model.parameters())
    accumulators = [state["weight_accumulator"] for state in optim.state_dict()["state"].values()]
    assert all(on_grid(a, HALF) for a in accumulators) and not all(on_grid(a) for a in accumulators)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.0625])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sgd_follows_its_closed_form(momentum, weight_decay, scale):
    """In fixed point every product and sum fits fp32, so that the formula holds to the last bit."""
    w = nn.Parameter(torch.randn(200))
    w.data = fixed(8, 12)(w.data)
    gradients = [fixed(9, 14)(torch.randn(200)) for _ in range(6)]
    expected = sgd(
        w.detach(),
        gradients,
        0.125,
        momentum,
        weight_decay,
        fixed(4, 10),
        fixed(8, 12),
        fixed(3, 6),
        fixed(6, 10),
        scale,
    )
    optim = OptimLP(
        SGD([w], lr=0.125, momentum=momentum, weight_decay=weight_decay),
        grad_quant=quantizer(FixedPoint(10, 4), forward_rounding="nearest"),
        acc_quant=quantizer(FixedPoint(12, 8), forward_rounding="nearest"),
        weight_quant=quantizer(FixedPoint(6, 3), forward_rounding="nearest"),
        momentum_quant=quantizer(FixedPoint(10, 6), forward_rounding="nearest") if momentum else None,
        grad_scaling=scale,
    )
    for g, weight in zip(gradients, expected, strict=True):
        w.grad = g.clone()
        optim.step()
        assert torch.equal(w.detach().double(), weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_covered_and_unchanged_without_quantizers(name):
    assert {
        n for n in torch.optim.__all__ if n not in ("Optimizer",) and isinstance(getattr(torch.optim, n), type)
    } == set(OPTIMIZERS)
    bare, wrapped = Task(name), Task(name)
    bare.train(bare.optim, 4)
    optim = OptimLP(wrapped.optim)
    wrapped.train(optim, 4)
    assert same(snapshot(bare.optim, bare.params), snapshot(optim, wrapped.params))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11 says so though they are asked for
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kernel", ["loop", "foreach", "fused"])
def test_every_optimizer_steps_as_by_hand(name, kernel):
    task, by_hand = Task(name), Task(name)
    for t in (task, by_hand):
        if kernel in t.optim.param_groups[0]:
            t.optim.param_groups[0][kernel] = True
    keys = OPTIMIZERS[name][1]
    bf16 = through(torch.bfloat16)
    hand = HandLP(by_hand.optim, by_hand.params, sparse(FP8), HALF, FP8, bf16, keys, 2.0)
    optim = OptimLP(task.optim, FP8, FP8, {key: bf16 for key in keys}, HALF, 2.0)
    for _ in range(4):
        hand.step(by_hand.closure)
        optim.step(task.closure)
        assert same(snapshot(by_hand.optim, by_hand.params), snapshot(optim, task.params))
    assert all(on_grid(p) for p in task.params)


def sparse(cast):
    """The cast, done on the summed entries of a sparse gradient."""
    return lambda g: _cast_sparse(g, cast)


def _cast_sparse(g, cast):
    if not g.is_sparse:
        return cast(g)
    g = g.coalesce()
    return torch.sparse_coo_tensor(g.indices(), cast(g.values()), g.shape, check_invariants=True)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("LBFGS", "Adafactor")])
def test_one_momentum_quantizer_rounds_every_state_of_the_parameters_shape(name):
    task = Task(name)
    optim = OptimLP(task.optim, momentum_quant=BF16)
    task.train(optim, 3)
    for p in task.params:
        for key, value in optim.state[p].items():
            if key in OPTIMIZERS[name][1]:
                assert on_grid(value, through(torch.bfloat16)), key
            elif isinstance(value, torch.Tensor):
                assert value.numel() == 1, key


@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "RAdam"])
def test_a_scalar_parameters_step_count_is_no_momentum(name):
    p = nn.Parameter(torch.tensor(2.0))
    optim = OptimLP(getattr(torch.optim, name)([p], lr=0.01), momentum_quant=lambda t: torch.full_like(t, 0.5))
    for _ in range(3):
        p.grad = torch.tensor(1.0)
        optim.step()
    assert optim.state[p]["step"] == 3


def test_states_of_another_shape_are_no_momenta_unless_named():
    for quant, rows_left in ((torch.zeros_like, True), ({"row_var": torch.zeros_like}, False)):
        task = Task("Adafactor")
        optim = OptimLP(task.optim, momentum_quant=quant)
        task.train(optim, 1)
        matrix, vector = (optim.state[p] for p in task.params[:2])
        assert matrix["row_var"].any() == rows_left
        assert vector["variance"].any() != rows_left


def test_the_order_is_qpytorchs():
    task, calls = Task(), []

    def note(name):
        return lambda t: calls.append((name, t.clone())) or t + 1

    task.optim.register_step_pre_hook(lambda *_: calls.append(("step", task.params[0].detach().clone())))
    optim = OptimLP(task.optim, note("weight"), note("grad"), note("momentum"), note("acc"), 3.0)
    before = [p.detach().clone() for p in task.params]
    task.closure()
    grads = [p.grad.clone() for p in task.params]
    optim.step()
    assert [name for name, _ in calls] == ["grad"] * 4 + ["step"] + ["acc"] * 4 + ["weight"] * 4 + ["momentum"] * 4
    given = [t for _, t in calls]
    assert same(given[:4], [g * 3 for g in grads])
    assert torch.equal(given[4], before[0])
    assert same(given[9:13], [a + 1 for a in given[5:9]]), "weights are rounded accumulators"
    assert same([p.detach() for p in task.params], [w + 1 for w in given[9:13]])
    task.closure()
    optim.step()
    assert torch.equal(given[5] + 1, calls[17 + 4][1]), "the step starts from the accumulator, not the weight"


@pytest.mark.parametrize("scaled_only", [True, False])
def test_gradients_are_scaled_with_and_without_rounding(scaled_only):
    task = Task()
    optim = OptimLP(task.optim, grad_quant=None if scaled_only else FP8, grad_scaling=1000.0)
    task.closure()
    grads = [p.grad.clone() * 1000 for p in task.params]
    optim.step()
    assert same([p.grad for p in task.params], grads if scaled_only else [FP8(g) for g in grads])


def test_formats_round_stochastically():
    w = nn.Parameter(torch.zeros(10_000))
    optim = OptimLP(SGD([w], lr=1.0), weight_quant=FloatingPoint(8), acc_quant=FP16)
    w.grad = torch.full_like(w, -1.0625)
    optim.step()
    assert set(w.tolist()) == {1.0, 1.25}
    assert abs((w == 1.25).double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 10_000) ** 0.5
    assert optim.state_dict()["state"][0]["weight_accumulator"].unique().tolist() == [1.0625]


def test_small_updates_survive_in_the_accumulator_alone():
    finals = []
    for acc in (None, HALF):
        w = nn.Parameter(torch.ones(1))
        optim = OptimLP(SGD([w], lr=2.0**-6), FP8, acc_quant=acc)
        for _ in range(32):
            w.grad = torch.ones(1)
            optim.step()
        finals.append(w.item())
    assert finals == [1.0, 0.5]


class Wandering(torch.optim.Optimizer):
    """Evaluates its closure three times in a step, at three points, and notes what it sees."""

    def __init__(self, params):
        super().__init__(params, {})
        self.points, self.grads = [], []

    @torch.no_grad()
    def step(self, closure):
        (p,) = self.param_groups[0]["params"]
        for _ in range(3):
            with torch.enable_grad():
                loss = closure()
            self.points.append(p.detach().clone())
            self.grads.append(p.grad.clone())
            p.add_(0.013)
        return loss


@pytest.mark.parametrize("acc", [None, FP16])
def test_every_evaluation_of_a_closure_sees_rounded_weights(acc):
    w, seen = nn.Parameter(torch.randn(50)), []
    optim = OptimLP(Wandering([w]), weight_quant=FloatingPoint(8), grad_quant=E5M2, acc_quant=acc)

    def closure():
        optim.zero_grad()
        seen.append(w.detach().clone())
        loss = (w - 1).pow(2).sum()
        loss.backward()
        return loss

    first = w.detach().clone()
    optim.step(closure)
    optim.step(closure)
    assert torch.equal(seen[0], first), "nothing is rounded before the first step"
    assert all(on_grid(point) for point in seen[1:])
    assert all(on_grid(grad) for grad in optim.optim.grads)
    points = optim.optim.points
    for start in (0, 3):
        assert torch.equal(points[start + 1], points[start] + 0.013), "the optimizer goes on from its own point"
    assert not on_grid(points[1])


def test_a_closure_sees_rounded_accumulators_where_weights_are_not_rounded():
    w, seen = nn.Parameter(HALF(torch.randn(50))), []
    OptimLP(Wandering([w]), acc_quant=FP16).step(lambda: seen.append(w.detach().clone()) or w.sum().backward())
    assert len(seen) == 3 and all(on_grid(point, HALF) for point in seen)
    assert not torch.equal(seen[0], seen[1])


def test_a_closure_comes_to_the_same_as_none_stochastically_too():
    runs = []
    for with_closure in (True, False):
        torch.manual_seed(2)
        task = Task()
        optim = OptimLP(task.optim, FloatingPoint(8), FloatingPoint(8), BF16, FP16)
        for _ in range(5):
            loss = optim.step(task.closure) if with_closure else (task.closure(), optim.step())[0]
        runs.append([loss.detach(), *snapshot(optim, task.params)])
    assert same(*runs)


def stochastic(task):
    momenta = {key: BF16 for key in OPTIMIZERS[type(task.optim).__name__][1]}
    return OptimLP(task.optim, FloatingPoint(8), FloatingPoint(8), momenta, FP16, 2.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_the_one_that_never_stopped(name):
    straight = Task(name)
    optim = stochastic(straight)
    torch.manual_seed(3)
    straight.train(optim, 3)
    buffer = io.BytesIO()
    torch.save({"net": straight.net.state_dict(), "optim": optim.state_dict(), "rng": torch.get_rng_state()}, buffer)
    straight.train(optim, 3)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = Task(name)
    fresh = stochastic(resumed)
    fresh.load_state_dict(saved["optim"])
    resumed.net.load_state_dict(saved["net"])
    torch.set_rng_state(saved["rng"])
    resumed.train(fresh, 3)
    assert same(snapshot(optim, straight.params), snapshot(fresh, resumed.params))
    pairs = [o.state_dict()["state"] for o in (optim, fresh)]
    accumulators = [[entry["weight_accumulator"] for entry in state.values()] for state in pairs]
    assert same(*accumulators) and len(accumulators[0]) == len(straight.params)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike_and_apart(again):
    task = Task("Adam")
    optim = OptimLP(task.optim, E5M2, E5M2, {"exp_avg": BF16}, FP16)
    task.train(optim, 2)
    task.optim = optim
    twin = again(task)
    for t in (task, twin):
        torch.manual_seed(4)
        t.train(t.optim, 2)
    assert same(snapshot(task.optim, task.params), snapshot(twin.optim, twin.params))
    task.train(optim, 1)
    assert not same(snapshot(task.optim, task.params), snapshot(twin.optim, twin.params))


def test_the_state_of_a_bare_optimizer_can_be_taken_over():
    bare, task = Task("Adam"), Task("Adam")
    bare.train(bare.optim, 2)
    task.net.load_state_dict(bare.net.state_dict())
    optim = OptimLP(task.optim, acc_quant=HALF)
    with pytest.warns(RuntimeWarning, match="holds no weight_accumulator: each begins anew") as warned:
        optim.load_state_dict(bare.optim.state_dict())
    assert [warning.filename for warning in warned] == [__file__]
    assert same(snapshot(bare.optim, bare.params), snapshot(optim, task.params))
    assert "weight_accumulator" not in str(bare.optim.state_dict())
    task.train(optim, 1)
    assert optim.state_dict()["state"].keys() == bare.optim.state_dict()["state"].keys()


def test_the_state_loads_into_a_bare_optimizer_by_torchs_rules():
    task, bare = Task("SGD"), Task("SGD")
    optim = OptimLP(task.optim, acc_quant=HALF)
    task.train(optim, 2)
    bare.optim.load_state_dict(optim.state_dict())
    assert torch.equal(
        bare.optim.state[bare.params[0]]["momentum_buffer"], optim.state[task.params[0]]["momentum_buffer"]
    )


def test_loading_what_does_not_fit_changes_nothing():
    task, other = Task(), Task()
    optim = OptimLP(task.optim, acc_quant=HALF)
    task.train(optim, 1)
    before = snapshot(optim, task.params)
    with pytest.raises(ValueError, match="needs an acc_quant"):
        OptimLP(other.optim).load_state_dict(optim.state_dict())
    saved = optim.state_dict()
    saved["state"][0] = {**saved["state"][0], "weight_accumulator": torch.ones(3)}
    with pytest.raises(ValueError, match=r"shape \(5, 6\), its weight_accumulator \(3,\)"):
        optim.load_state_dict(saved)
    with pytest.raises(ValueError, match="group"):
        optim.load_state_dict(SGD([nn.Parameter(torch.ones(1))], lr=0.1).state_dict())
    assert same(before, snapshot(optim, task.params))
    assert not snapshot(other.optim, [])


def test_an_accumulator_follows_a_weight_that_is_changed_by_hand():
    w = nn.Parameter(torch.ones(4))
    optim = OptimLP(SGD([w], lr=2.0**-5), weight_quant=FP8, acc_quant=HALF)
    w.grad = torch.ones(4)
    optim.step()
    with torch.no_grad():
        w[0] = 0.0  # pruned
        w[1] = w[1].clone()  # written, not changed
    acc = optim.state_dict()["state"][0]["weight_accumulator"]
    assert acc.tolist() == [0.0] + [1 - 2.0**-5] * 3
    optim.step()
    acc = optim.state_dict()["state"][0]["weight_accumulator"]
    assert acc.tolist() == [-(2.0**-5)] + [1 - 2.0**-4] * 3


def test_an_accumulator_goes_on_where_a_function_writes_again_to_what_it_returned():
    w, returned = nn.Parameter(torch.ones(1)), []

    def whole(x):
        returned.append(x.round())
        return returned[-1]

    optim = OptimLP(SGD([w], lr=0.25), weight_quant=whole, acc_quant=lambda x: x)
    for accumulator in (0.75, 0.5):
        w.grad = torch.ones(1)
        optim.step()
        returned[-1].fill_(7.0)
        assert optim.state_dict()["state"][0]["weight_accumulator"].item() == accumulator


def test_a_model_loaded_after_the_optimizer_was_made_is_not_forgotten():
    task = Task()
    optim = OptimLP(task.optim, acc_quant=HALF)
    with torch.no_grad():
        task.params[0].fill_(8.0)
    task.closure()
    optim.step()
    assert (task.params[0] > 4).all()


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
    before = unused.detach().clone()
    optim = OptimLP(torch.optim.Adam([used, unused]), E5M2, E5M2, E5M2, FP16)
    for _ in range(2):
        optim.zero_grad()
        used.sum().backward()
        optim.step()
    assert torch.equal(unused, before) and on_grid(used)


def test_a_parameter_that_gets_no_gradient_any_more_keeps_its_weight():
    w = nn.Parameter(torch.ones(1))
    optim = OptimLP(SGD([w], lr=2.0**-5), weight_quant=FP8, acc_quant=HALF)
    for grad in (torch.ones(1), None, torch.ones(1)):
        w.grad = grad
        optim.step()
        assert w.item() == 1.0
    saved = optim.state_dict()
    assert saved["state"][0]["weight_accumulator"].item() == 1 - 2.0**-4
    optim.load_state_dict(saved)
    assert not optim.state, "plain SGD has no state of its own"


def test_groups_can_be_added_and_schedulers_and_hooks_attached():
    a, b, seen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), []
    optim = OptimLP(SGD([a], lr=0.5), weight_quant=FP8, acc_quant=HALF)
    assert isinstance(optim, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optim, 1, 0.5)
    optim.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    optim.register_step_post_hook(lambda o, args, kwargs: seen.append(on_grid(a)))
    optim.register_state_dict_post_hook(lambda o, saved: {**saved, "note": "noted"})
    optim.register_load_state_dict_pre_hook(lambda o, saved: seen.append(saved["note"]))
    optim.add_param_group({"params": [b], "lr": 1.0})
    a.grad, b.grad = torch.full((2,), 0.3), torch.full((2,), 0.3)
    optim.step()
    scheduler.step()
    assert seen == ["before", True]
    assert optim.param_groups is optim.optim.param_groups and optim.defaults is optim.optim.defaults
    assert [group["lr"] for group in optim.param_groups] == [0.5 / 2, 1.0 / 2]
    assert on_grid(b) and b[0] != a[0]
    optim.load_state_dict(optim.state_dict())
    assert seen[-1] == "noted"
    optim.zero_grad()
    assert a.grad is None
    optim.zero_grad(set_to_none=False)


def test_one_cycle_and_grad_scaler_take_it():
    task = Task()
    optim = OptimLP(task.optim, E5M2, E5M2, acc_quant=FP16)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optim, 0.1, total_steps=5)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(4):
        optim.zero_grad()
        scaler.scale(F.mse_loss(task.net(task.x), task.y)).backward()
        scaler.step(optim)
        scaler.update()
        scheduler.step()
    assert all(on_grid(p) for p in task.params)


def test_a_step_that_fails_puts_the_weights_back():
    task = Task()
    optim = OptimLP(task.optim, E5M2, acc_quant=FP16)
    task.train(optim, 2)
    before, accumulators = snapshot(optim, task.params), optim.state_dict()["state"][0]["weight_accumulator"]

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.step(broken)
    assert same(before, snapshot(optim, task.params))
    assert torch.equal(accumulators, optim.state_dict()["state"][0]["weight_accumulator"])


@pytest.mark.parametrize("settings", [dict(acc_quant=FP16), dict(update="nearest"), dict(update="kahan")], ids=str)
@pytest.mark.parametrize("low", [False, True])
def test_ctrl_c_between_two_accumulators_puts_the_weights_back(low: bool, settings: dict[str, Any]) -> None:
    net = nn.Linear(3, 2)
    params = list((convert(net, E4M3) if low else net).parameters())
    optim = OptimLP(SGD(params, lr=0.1), None if low else E4M3, **settings)
    for loads in (None, 1, 0):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.randn(p.shape)
        if loads is None:
            optim.step()
            continue
        effects = [mock.DEFAULT] * loads + [KeyboardInterrupt]
        with mock.patch.object(optim, "_load", wraps=optim._load, side_effect=effects):
            with pytest.raises(KeyboardInterrupt):
                optim.step()
        assert same(before, params) and all(getattr(p, "format", E4M3) == E4M3 for p in params)


class Interrupted(dict[Any, Any]):
    """A dict that Ctrl-C breaks off once it has let go of something."""

    waits = True

    def pop(self, key: Any) -> Any:
        value = self[key]
        del self[key]
        return value

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        if self.waits:
            self.waits = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("lent", ["_parameters", "_gradients"])
def test_ctrl_c_while_a_weight_takes_back_its_format_leaves_it_that_format(lent: str) -> None:
    net = convert(nn.Linear(3, 2), Arithmetic(E4M3, backward=E5M2))
    optim = OptimLP(SGD(net.parameters(), lr=0.1), update="stochastic")
    setattr(optim._loans, lent, Interrupted())
    net(torch.ones(1, 3)).sum().backward()
    with pytest.raises(KeyboardInterrupt):
        optim.step()
    for p in net.parameters():
        assert p.format == E4M3 and p.grad.arithmetic == p.arithmetic
    optim.step()


def test_an_accumulator_that_fits_its_weight_no_more_leaves_the_other_weights_alone() -> None:
    first, last = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optim = OptimLP(torch.optim.SGD([first, last], lr=0.01), weight_quant=E4M3, acc_quant=FP16)
    for size in (3, 4):
        last.data = torch.ones(size)
        for p in (first, last):
            p.grad = torch.ones_like(p)
        before = first.detach().clone()
        if size == 3:
            optim.step()
    with pytest.raises(RuntimeError, match="size"):
        optim.step()
    assert torch.equal(first, before)


def test_sparse_gradients_are_summed_before_they_are_rounded():
    table = nn.Embedding(4, 2, sparse=True)
    optim = OptimLP(torch.optim.SparseAdam(table.parameters()), grad_quant=FP8)
    (table(torch.tensor([1, 1, 1, 3])) * torch.tensor([[0.25], [0.25], [0.06], [0.3]])).sum().backward()
    optim.step()
    dense = table.weight.grad.to_dense()
    assert torch.equal(dense[1], FP8(torch.full((2,), 0.25 + 0.25 + 0.06)))
    assert torch.equal(dense[3], FP8(torch.full((2,), 0.3)))
    assert not dense[[0, 2]].any()


def test_functions_may_work_in_place_or_return_their_argument():
    w = nn.Parameter(torch.full((3,), 1.3))
    optim = OptimLP(SGD([w], lr=0.5), weight_quant=lambda t: t.round_(), acc_quant=lambda t: t)
    w.grad = torch.full((3,), 0.1)
    optim.step()
    assert w.tolist() == [1.0] * 3
    assert torch.equal(
        optim.state_dict()["state"][0]["weight_accumulator"], torch.full((3,), 1.3) - 0.5 * torch.tensor(0.1)
    )


@pytest.mark.parametrize("argument", ["weight_quant", "grad_quant", "momentum_quant", "acc_quant"])
@pytest.mark.parametrize("bad", [8, "fp8", FloatingPoint, 1024.0])
def test_a_quantizer_that_is_none_is_named(argument, bad):
    with pytest.raises(TypeError, match=argument):
        OptimLP(Task().optim, **{argument: bad})


def test_other_bad_input_is_named():
    task = Task("Adam")
    with pytest.raises(TypeError, match=r"momentum_quant\['exp_avg'\]"):
        OptimLP(task.optim, momentum_quant={"exp_avg": 8})
    for bad in (task.net, None, OptimLP(task.optim)):
        with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
            OptimLP(bad)
    for scaling in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=str(scaling)):
            OptimLP(task.optim, grad_scaling=scaling)
    for scaling in ("2", True, None):
        with pytest.raises(TypeError, match="grad_scaling"):
            OptimLP(task.optim, grad_scaling=scaling)
    with pytest.raises(TypeError, match="bfloat16"):
        OptimLP(SGD([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]), weight_quant=E4M3)
    optim = OptimLP(task.optim, weight_quant=E4M3)
    with pytest.raises(TypeError, match="float16"):
        optim.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float16))]})
    assert len(optim.param_groups) == 1


def test_a_momentum_that_the_optimizer_does_not_keep_is_named():
    """At once, when nothing has changed yet; of an optimizer that nobody knows, when its first step has shown."""

    class Own(torch.optim.Adam):
        pass

    task = Task("Adam")
    says = r"'exp_avg_seq', {} keeps \['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'step'\]"
    with pytest.raises(ValueError, match=says.format("Adam")):
        OptimLP(task.optim, momentum_quant={"exp_avg_seq": BF16})
    optim = OptimLP(Own(task.params, amsgrad=True), momentum_quant={"exp_avg_seq": BF16})
    task.closure()
    with pytest.raises(ValueError, match=says.format("Own")):
        optim.step()
    with pytest.raises(ValueError, match=r"'sum', SGD keeps \['momentum_buffer'\]"):
        OptimLP(SGD(task.params), momentum_quant={"sum": BF16})  # which keeps none without a momentum


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "LBFGS"])
def test_every_state_of_torchs_optimizers_may_be_named(name):
    """Under all options that make states, on a matrix and on a vector."""
    task, seen = Task(name), set()
    known = inspect.signature(getattr(torch.optim, name)).parameters.keys()
    for options in ({}, {"amsgrad": True}, {"momentum": 0.5}, {"centered": True}):
        if options.keys() <= known:
            task.optim = getattr(torch.optim, name)(task.params, **options)
            task.train(task.optim, 2)
            seen |= {key for entries in task.optim.state.values() for key in entries}
    assert seen
    OptimLP(getattr(torch.optim, name)(task.params), momentum_quant=dict.fromkeys(seen, BF16))
    with pytest.raises(ValueError, match="typo") as error:
        OptimLP(getattr(torch.optim, name)(task.params), momentum_quant={"typo": BF16})
    assert str(sorted(seen)) in str(error.value)


def test_a_function_of_the_wrong_shape_is_named_and_the_weights_stay():
    task = Task()
    optim = OptimLP(task.optim, weight_quant=lambda t: t.sum(), acc_quant=HALF)
    before = [p.detach().clone() for p in task.params]
    task.closure()
    with pytest.raises(ValueError, match=r"weight_quant must return a tensor of shape \(5, 6\), got shape \(\)"):
        optim.step()
    assert same(before, [p.detach() for p in task.params])


def test_the_repr_tells_what_rounds():
    optim = OptimLP(Task().optim, weight_quant=E4M3, momentum_quant={"momentum_buffer": BF16}, grad_scaling=2)
    for part in (
        "SGD",
        "weight_quant=E4M3",
        "momentum_quant['momentum_buffer']",
        "grad_scaling=2.0",
    ):
        assert part in repr(optim)
    assert isinstance(optim.step, types.MethodType)


def lp_task(name="SGD"):
    task = Task(name)
    convert(task.net, Arithmetic(E5M2, BF16))
    task.optim = getattr(torch.optim, name)(task.net.parameters(), **OPTIMIZERS[name][0])
    return task


def test_lp_parameters_step_in_the_accumulators_format():
    w = nn.Parameter(torch.ones(3).to_lp(E5M2))
    seen = []
    inner = SGD([w], lr=2.0**-6)
    inner.register_step_post_hook(lambda *_: seen.append((w.format, w.dequantize().detach()[0].item())))
    optim = OptimLP(inner, acc_quant=FP16)
    for _ in range(32):
        optim.zero_grad()
        w.sum().backward()
        optim.step()
        assert w.format == E5M2 and on_grid(w.dequantize().detach())
    assert [format for format, _ in seen] == [FP16] * 32
    assert [value for _, value in seen] == [1 - i / 64 for i in range(1, 33)]
    assert w.tolist() == [0.5] * 3
    accumulator = optim.state_dict()["state"][0]["weight_accumulator"]
    assert type(accumulator) is torch.Tensor


CLASHING = [
    (name, options)
    for name in OPTIMIZERS
    if name not in ("SparseAdam", "LBFGS")  # plain gradients; none that is added to weights
    for options in ({}, {"weight_decay": 0.0625}, {"maximize": True})
    if options.keys() <= inspect.signature(getattr(torch.optim, name)).parameters.keys()
]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("name", "options"), CLASHING, ids=str)
def test_gradients_in_a_format_that_clashes_with_the_accumulators_step_in_the_accumulators(name, options, foreach):
    known = inspect.signature(getattr(torch.optim, name)).parameters
    task = Task(name)
    convert(task.net, BF16)
    options = {**OPTIMIZERS[name][0], **options, **({"foreach": foreach} if "foreach" in known else {})}
    if name == "Adamax":  # it adds eps to gradients, where the others add it to their state
        options["eps"] = 2.0**-8
    task.optim = getattr(torch.optim, name)(task.net.parameters(), **options)
    if name not in ("Rprop", "SGD"):  # a narrow exponent takes eps to zero
        convert(task.optim, None)
    optim = OptimLP(task.optim, acc_quant=FP16)
    task.train(optim, 2)
    for p in task.params:
        assert p.arithmetic == p.grad.arithmetic == Arithmetic(BF16)
        assert all(on_grid(x.dequantize().detach(), through(torch.bfloat16)) for x in (p, p.grad))
        states = [x for x in optim.state[p].values() if torch.is_tensor(x) and x.shape == p.shape]
        assert name not in ("Rprop", "SGD") or states and all(x.format == FP16 for x in states)


def test_a_step_uses_gradients_exactly_and_rounds_once_to_the_accumulators_format():
    w, tiny = nn.Parameter(torch.zeros(1).to_lp(BF16)), 2.0**-30  # FP16 has no such number, nor half of it
    optim = OptimLP(SGD([w], lr=2.0**20, momentum=0.5, nesterov=True), acc_quant=lambda x: x)
    (w * tiny).sum().backward()
    optim.step()
    assert w.item() == -(2.0**-10) * 1.5
    w = nn.Parameter(torch.zeros(1).to_lp(BF16))
    optim = OptimLP(SGD([w], lr=2.0**20), acc_quant=FP16)
    (w * tiny).sum().backward()
    optim.step()
    assert w.item() == -(2.0**-10) and w.grad.item() == tiny


def test_the_momentum_of_lp_parameters_is_the_accumulators_like_every_other_state():
    w = nn.Parameter(torch.ones(4).to_lp(Arithmetic(E5M2, backward=BF16)))
    optim = OptimLP(SGD([w], lr=0.125, momentum=0.5), acc_quant=FP16)
    for _ in range(2):
        optim.zero_grad()
        (w * 0.3).sum().backward()
        optim.step()
    momentum = optim.state[w]["momentum_buffer"]
    assert momentum.format == FP16 and not on_grid(momentum.dequantize())


@pytest.mark.parametrize("name", ["SGD", "Rprop", "ASGD"])
def test_state_from_steps_without_us_follows_the_accumulators(name):
    task = Task(name)
    convert(task.net, BF16)
    task.optim = getattr(torch.optim, name)(task.net.parameters(), **OPTIMIZERS[name][0])
    task.train(task.optim, 2)
    optim = OptimLP(task.optim, acc_quant=FP16)
    task.train(optim, 2)
    states = [x for p in task.params for x in optim.state[p].values() if torch.is_tensor(x) and x.dim()]
    assert states and all(x.format == FP16 for x in states)


def test_state_that_is_loaded_from_steps_without_us_follows_the_accumulators_too():
    bare, ours = (nn.Parameter(torch.ones(2).to_lp(BF16)) for _ in range(2))
    without, optim = SGD([bare], lr=0.5, momentum=0.5), OptimLP(SGD([ours], lr=0.5, momentum=0.5), acc_quant=FP16)
    for w, step in ((bare, without.step), (ours, optim.step)):
        w.grad = torch.ones(2).to_lp(BF16)
        step()
    with pytest.warns(RuntimeWarning, match="begins anew"):
        optim.load_state_dict(without.state_dict())
    optim.step()
    assert optim.state[ours]["momentum_buffer"].format == FP16


def test_lp_parameters_with_a_function_step_in_fp32():
    w = nn.Parameter(torch.ones(3).to_lp(E5M2))
    optim = OptimLP(SGD([w], lr=1e-3), acc_quant=lambda t: t)
    w.sum().backward()
    optim.step()
    assert torch.equal(optim.state_dict()["state"][0]["weight_accumulator"], torch.full((3,), 1 - torch.tensor(1e-3)))
    assert w.tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
def test_a_model_of_lp_parameters_trains_and_resumes(name):
    task, resumed = lp_task(name), lp_task(name)
    optim, fresh = (OptimLP(t.optim, E5M2, E5M2, acc_quant=BF16) for t in (task, resumed))
    task.train(optim, 2)
    saved = copy.deepcopy((task.net.state_dict(), optim.state_dict(), torch.get_rng_state()))
    task.train(optim, 2)
    resumed.net.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    resumed.train(fresh, 2)
    for p, q in zip(task.params, resumed.params, strict=True):
        assert p.arithmetic == q.arithmetic == Arithmetic(E5M2, BF16)
        assert torch.equal(p.dequantize(), q.dequantize()) and on_grid(p.dequantize().detach())


def test_lp_parameters_may_step_within_the_backward_pass():
    results = []
    for within in (False, True):
        w = nn.Parameter(torch.ones(4).to_lp(Arithmetic(E5M2, BF16)))
        keeps = {"momentum_buffer": BF16}
        optim = OptimLP(SGD([w], lr=0.25, momentum=0.5), grad_quant=HALF, momentum_quant=keeps, acc_quant=HALF)
        for _ in range(2):
            handle = w.register_post_accumulate_grad_hook(lambda p, optim=optim: optim.step()) if within else None
            (w * torch.tensor([0.3, 0.21, 0.57, 0.11])).sum().backward()
            if handle is None:
                optim.step()
            else:
                handle.remove()
            optim.zero_grad()
        assert w.format == E5M2 and on_grid(w.dequantize().detach())
        results.append([w.dequantize().detach(), optim.state_dict()["state"][0]["weight_accumulator"]])
    assert same(*results)


def test_lp_parameters_come_back_from_a_step_that_fails():
    task = lp_task()
    optim = OptimLP(task.optim, acc_quant=FP16)
    with pytest.raises(ZeroDivisionError):
        optim.step(lambda: 1 / 0)
    assert all(p.arithmetic == Arithmetic(E5M2, BF16) for p in task.params)


def test_an_optimizer_whose_step_takes_no_closure_can_be_wrapped() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.data.sub_(p.grad, alpha=0.3)

    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    OptimLP(Plain([w]), weight_quant=lambda x: lptensor.round(x, E4M3)).step()
    assert w.tolist() == [0.6875] * 2


def test_a_weight_rounding_that_raises_leaves_the_weights_as_they_were() -> None:
    def boom(x: torch.Tensor) -> torch.Tensor:
        raise KeyError

    w = nn.Parameter(torch.ones(2))
    optimizer = OptimLP(SGD([w], lr=1.0), weight_quant=boom)
    w.grad = torch.ones(2)
    with pytest.raises(KeyError):
        optimizer.step()
    assert w.tolist() == [1.0, 1.0]


class Two(torch.optim.SGD):
    """SGD that keeps its last two gradients, in a list."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("last", []).insert(0, p.grad.clone())
            del self.state[p]["last"][2:]
        return super().step(closure)


def test_state_in_a_list_is_rounded_by_its_key() -> None:
    w = torch.nn.Parameter(torch.ones(1))
    optim = OptimLP(Two([w], lr=0.5), momentum_quant={"last": E4M3})
    for gradient in (500.0, 1000.0):
        w.grad = torch.tensor([gradient])
        optim.step()
    assert [x.item() for x in optim.state[w]["last"]] == [448.0, 448.0]


class Foreign(SGD):
    """An optimizer from elsewhere, of whose state nothing is known beforehand."""

    __module__ = "elsewhere"


@pytest.mark.parametrize("acc_quant", [None, FP16])
def test_momenta_that_cannot_be_rounded_leave_the_weights_where_they_were(acc_quant):
    def raises(x):
        raise ArithmeticError

    for kind, quant in ((Foreign, {"nonsense": BF16}), (SGD, {"momentum_buffer": raises}), (SGD, raises)):
        w = nn.Parameter(torch.ones(2))
        optim = OptimLP(kind([w], lr=0.5, momentum=0.9), momentum_quant=quant, acc_quant=acc_quant)
        for _ in range(2):
            w.grad = torch.ones(2)
            with pytest.raises((ValueError, ArithmeticError)):
                optim.step()
            assert w.tolist() == [1.0, 1.0]
            accumulators = optim.state_dict()["state"].get(0, {}).get("weight_accumulator", w.detach())
            assert accumulators.tolist() == [1.0, 1.0]


def test_momenta_that_are_not_there_are_told_of():
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    with pytest.warns(UserWarning, match="momentum_quant rounds nothing: SGD keeps no state"):
        OptimLP(SGD([w], lr=0.5), momentum_quant=BF16).step()


def test_a_gradient_scaler_divides_after_gradients_are_rounded():
    """2**-12 is no E4M3 number; 2**-4, what the scaled loss makes of it, is."""
    w = nn.Parameter(torch.ones(2))
    optim = OptimLP(SGD([w], lr=1.0), grad_quant=quantizer(E4M3, forward_rounding="nearest"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    scaler.scale((w * 2.0**-12).sum()).backward()
    scaler.step(optim)
    scaler.update()
    assert w.tolist() == [1 - 2.0**-12] * 2 and scaler.get_scale() == 2.0**9
    optim.zero_grad()
    scaler.scale((w * torch.inf).sum()).backward()
    scaler.step(optim)
    scaler.update()
    assert w.tolist() == [1 - 2.0**-12] * 2 and scaler.get_scale() == 2.0**8
    optim.zero_grad()
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optim)
    with pytest.raises(RuntimeError, match="LossScaler"):
        scaler.step(optim)


MOVES = Scaled(INT8, CurrentMaximum(Channel(0)))  # rounding down finds other scales each time


@pytest.mark.parametrize("format", [NVFP4, MOVES], ids=["NVFP4", "Scaled"])
def test_a_weight_that_nothing_steps_keeps_its_bits_in_every_format(format: Format) -> None:
    arithmetic = Arithmetic(format, rounding="down")
    stepped, frozen = (nn.Parameter(torch.randn(4, 32).to_lp(arithmetic)) for _ in range(2))
    before = frozen.dequantize().detach()
    optim = OptimLP(SGD([stepped, frozen], lr=0.1), acc_quant=FP32)
    for _ in range(20):
        stepped.grad = torch.randn(4, 32)
        optim.step()
    assert torch.equal(frozen.dequantize(), before)
    start = stepped.dequantize().detach()
    stepped.grad = torch.randn(4, 32)
    with mock.patch.object(optim.optim, "step", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        optim.step()
    assert torch.equal(stepped.dequantize(), start)


def test_an_update_rounds_the_weight_once_on_its_way_back() -> None:
    p = nn.Parameter(torch.randn(16, 32).to_lp(NVFP4))
    optim = OptimLP(SGD([p], lr=0.1), update="nearest")
    for _ in range(60):
        w, p.grad = p.dequantize().detach(), torch.randn(16, 32)
        wanted = lp_round(w - 0.1 * p.grad.to_lp(Arithmetic(NVFP4)).dequantize(), NVFP4)
        optim.step()
        assert torch.equal(p.dequantize(), wanted)


def test_a_conversion_that_clashes_with_the_weights_format_is_refused_at_the_next_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    optim = OptimLP(SGD(model.parameters(), lr=2**-10), weight_quant=BF16, update="kahan")
    convert(model, E4M3)
    model.weight.grad = torch.ones(1, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="weights would be rounded to weight_quant"):
            optim.step()


def test_an_update_waits_for_lazy_parameters() -> None:
    model = convert(nn.Sequential(nn.LazyLinear(4)), BF16)
    optim = OptimLP(SGD(model.parameters(), lr=0.5), update="kahan")
    model(torch.ones(2, 3)).sum().backward()
    optim.step()
    assert model[0].bias.format == BF16


@pytest.mark.parametrize("own", [Posit(8), NF4, HIF8, LogNumber(8), FloatingPoint(8)], ids=repr)
def test_weights_of_every_kind_of_format_are_not_rounded_twice(own: Any) -> None:
    w = nn.Parameter(torch.ones(2).to_lp(own))
    with pytest.raises(ValueError, match="leave weight_quant out"):
        lptensor.OptimLP(torch.optim.SGD([w]), weight_quant=E4M3)


def test_momenta_that_cannot_be_rounded_leave_accumulators_their_rests() -> None:
    raises = False

    def perhaps(x: torch.Tensor) -> torch.Tensor:
        if raises:
            raise ArithmeticError
        return x

    w = nn.Parameter(torch.ones(2))
    optim = OptimLP(SGD([w], lr=2.0**-6, momentum=0.5), quantizer(E4M3, None, "nearest"), None, perhaps, FP16)
    for raises in (False, True, True):
        w.grad = torch.ones(2)
        with pytest.raises(ArithmeticError) if raises else contextlib.nullcontext():
            optim.step()
        assert w.tolist() == [1.0, 1.0]
        assert optim.state_dict()["state"][0]["weight_accumulator"].tolist() == [1 - 2.0**-6] * 2


def test_gradients_may_be_divided_beforehand_where_none_is_rounded() -> None:
    """As clipping asks for: what GradScaler does with a bare optimizer."""
    weights = []
    for wrap in (lambda optim: optim, lambda optim: OptimLP(optim, acc_quant=FP32)):
        w = nn.Parameter(torch.ones(3))
        optim = wrap(SGD([w], lr=0.5))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        scaler.scale((w * torch.tensor([1.0, 2.0, 3.0])).sum()).backward()
        scaler.unscale_(optim)
        nn.utils.clip_grad_norm_([w], 1.0)
        scaler.step(optim)
        weights.append(w.tolist())
    assert weights[0] == weights[1] != [1.0] * 3


def test_lp_parameters_may_have_weights_in_a_narrower_format() -> None:
    w = nn.Parameter(torch.tensor([1.0, 3.0]).to_lp(BF16))
    optim = OptimLP(SGD([w], lr=1.0), weight_quant=quantizer(E5M2, None, "nearest"))
    assert OptimLP(SGD([w], lr=1.0), weight_quant=E5M2).weight_quant.format == E5M2
    w.grad = torch.full((2,), 0.3).to_lp(BF16)
    optim.step()
    assert w.tolist() == [0.75, 2.5] and w.format == BF16  # of 0.7 and 2.7, in units of 1/8 and 1/2


def test_lp_parameters_draw_nothing_in_an_update_to_nearest() -> None:
    w = nn.Parameter(torch.randn(100).to_lp(BF16))
    optim = OptimLP(SGD([w], lr=0.3, momentum=0.7), acc_quant=FP16, update="nearest")
    before = torch.get_rng_state()
    for _ in range(2):
        w.grad = torch.full((100,), 0.1).to_lp(BF16)
        optim.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_assigned_by_hand_is_on_the_weights_format_not_the_accumulators() -> None:
    w = nn.Parameter(torch.ones(1).to_lp(E5M2))
    optim = OptimLP(SGD([w], lr=1.0), acc_quant=FP16)
    w.grad = torch.tensor([0.3])
    optim.step()
    assert optim.state_dict()["state"][0]["weight_accumulator"].item() == 1 - 0.3125
    assert w.grad.arithmetic == w.arithmetic and w.grad.item() == 0.3125


def test_whole_numbers_that_an_optimizer_counts_are_no_momenta() -> None:
    class Counting(SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("updates", torch.full(p.shape, 1000)).add_(1)
            return super().step(closure)

    w = nn.Parameter(torch.ones(2))
    optim = OptimLP(Counting([w], lr=1.0, momentum=0.5), momentum_quant=E4M3)
    w.grad = torch.ones(2)
    optim.step()
    assert optim.state[w]["updates"].tolist() == [1001, 1001]
