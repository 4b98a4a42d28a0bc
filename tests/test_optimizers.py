"""Every optimizer of PyTorch on a converted model: parameters and state stay on their grids."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from low import is_low, rounded, same, values
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    FP32,
    MX,
    NF4,
    Arithmetic,
    FixedPoint,
    FloatingPoint,
    LogNumber,
    LPTensor,
    OptimLP,
    Posit,
    convert,
)
from oracles.aten_reference import AtenReference, by_cast

BOTH = Arithmetic(BF16, backward=E5M2)
OPTIMIZERS = sorted(
    (
        kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    ),
    key=lambda kind: kind.__name__,
)


def model_and_optimizer(kind: Any, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    bias = kind.__name__ != "Muon"  # it works on matrices alone
    model = convert(nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias)), BOTH)
    return model, kind(model.parameters(), **options)


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for i in range(steps):
        torch.manual_seed(i)
        x = torch.randn(5, 6).to_lp(BOTH)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def state_tensors(optimizer: Any) -> list[Any]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]


def assert_on_grid(model: nn.Module, optimizer: Any) -> None:
    assert all(is_low(p, BF16) and values(p).isfinite().all() for p in model.parameters())
    for value in state_tensors(optimizer):
        assert is_low(value, BF16) and not value._gradient


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k.__name__ != "SparseAdam"], ids=lambda k: k.__name__)
@pytest.mark.parametrize("foreach", [False, True])
def test_three_steps_stay_on_the_grid(kind: Any, foreach: bool) -> None:
    options: dict[str, Any] = {}
    if "foreach" in inspect.signature(kind).parameters:
        options["foreach"] = foreach
    elif foreach:
        options["lr"] = 0.5  # it has no such choice: another rate is tried
    model, optimizer = model_and_optimizer(kind, **options)
    before = [values(p).clone() for p in model.parameters()]
    train(model, optimizer)
    assert_on_grid(model, optimizer)
    assert not all(same(p, b) for p, b in zip(model.parameters(), before, strict=True))


SAME_FORMULA = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop),
    *(torch.optim.Adadelta, torch.optim.Adamax, torch.optim.Rprop),
)


@pytest.mark.parametrize("kind", SAME_FORMULA, ids=lambda k: k.__name__)
def test_foreach_gives_the_bits_of_the_loop(kind: Any) -> None:
    runs = []
    for foreach in (False, True):
        model, optimizer = model_and_optimizer(kind, foreach=foreach)
        train(model, optimizer)
        runs.append([*model.parameters(), *state_tensors(optimizer)])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9, dampening=0.5, maximize=True)),
        (torch.optim.Adam, dict(amsgrad=True, weight_decay=0.01)),
        (torch.optim.AdamW, dict(fused=True)),
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9, fused=True)),
        (torch.optim.Adam, dict(lr=torch.tensor(0.01))),
        (torch.optim.Adam, dict(lr=torch.tensor(0.01), fused=True)),
        (torch.optim.Adagrad, dict(fused=True)),
        (torch.optim.AdamW, dict(amsgrad=True, maximize=True)),
        (torch.optim.LBFGS, dict(line_search_fn="strong_wolfe", max_iter=4)),
        (torch.optim.RMSprop, dict(momentum=0.9, centered=True)),
    ],
    ids=str,
)
def test_options_stay_on_the_grid(kind: Any, options: Any) -> None:
    model, optimizer = model_and_optimizer(kind, **options)
    train(model, optimizer)
    assert_on_grid(model, optimizer)


def sparse_gradient(rows: Tensor, kind: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    table = convert(nn.Embedding(9, 4, sparse=True), BOTH)
    optimizer = kind(table.parameters(), lr=0.125)
    (table(rows) * 0.3).sum().backward()
    return table, optimizer


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_plain_and_what_they_update_is_low(kind: Any) -> None:
    table, optimizer = sparse_gradient(torch.tensor([1, 4, 4]), kind)
    grad, before = table.weight.grad, values(table.weight).clone()
    assert type(grad) is Tensor and grad.layout is torch.sparse_coo
    assert same(grad._values(), rounded(torch.full((3, 4), 0.3), E5M2))  # each on the backward format
    for _ in range(3):
        optimizer.step()
    assert is_low(table.weight, BF16) and not same(table.weight[[1, 4]], before[[1, 4]])
    assert same(table.weight[[0, 2, 3, 5, 6, 7, 8]], before[[0, 2, 3, 5, 6, 7, 8]])
    for value in state_tensors(optimizer):
        assert is_low(value, BF16)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_sparse_gradient_of_bags_has_entries_in_the_backward_format(mode: str) -> None:
    bags = convert(nn.EmbeddingBag(9, 4, mode=mode, sparse=True), BOTH)
    indices, offsets = torch.tensor([1, 4, 4, 7, 2]), torch.tensor([0, 3, 3])  # the second bag is empty
    seeds = rounded(torch.randn(3, 4), E5M2)
    bags(indices, offsets).backward(seeds)
    want = seeds[[0, 0, 0, 2, 2]]
    if mode == "mean":  # times the reciprocal of how many there are in a bag
        want = rounded(want * (1 / torch.tensor([3.0, 3, 3, 2, 2]))[:, None], E5M2)
    grad = bags.weight.grad
    assert type(grad) is Tensor and grad._indices().tolist() == [indices.tolist()] and same(grad._values(), want)
    torch.optim.SparseAdam(bags.parameters()).step()
    assert is_low(bags.weight, BF16)


def test_a_sparse_step_rounds_once() -> None:
    table, optimizer = sparse_gradient(torch.tensor([1, 4, 4]), torch.optim.SGD)
    before, g = values(table.weight).clone(), rounded(torch.tensor(0.3), E5M2).item()
    optimizer.step()
    for row, times in ((1, 1), (4, 2)):  # the sum of a row's gradients is exact
        assert same(table.weight[row], rounded(before[row] - 0.125 * (times * g), BF16))


def test_muon_computes_its_update_in_bfloat16_as_it_says_and_autocast_around_it_is_no_excuse() -> None:
    model, optimizer = model_and_optimizer(torch.optim.Muon)
    train(model, optimizer)
    assert_on_grid(model, optimizer)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast"):
        optimizer.step(lambda: model(torch.ones(1, 6)).sum())


@pytest.mark.parametrize(
    "mode", [lambda: torch.device("cpu"), lambda: FlopCounterMode(display=False)], ids=["device", "flops"]
)
def test_muon_does_so_too_while_a_mode_hands_on_what_it_calls(mode: Any) -> None:
    model, optimizer = model_and_optimizer(torch.optim.Muon)
    same_model, same_optimizer = model_and_optimizer(torch.optim.Muon)
    train(same_model, same_optimizer)
    with mode():
        train(model, optimizer)
    assert all(same(p, q) for p, q in zip(model.parameters(), same_model.parameters(), strict=True))


def test_a_step_rounds_once_per_op_to_the_forward_format() -> None:
    """SGD by hand: p = round(p - lr * g), as one op."""
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=0.3)
    model(torch.randn(5, 6).to_lp(BOTH)).sum().backward()
    want = [(values(p) - 0.3 * values(p.grad)).bfloat16() for p in model.parameters()]
    fused = [values(p).add(values(p.grad), alpha=-0.3).bfloat16() for p in model.parameters()]
    optimizer.step()
    for p, w, f in zip(model.parameters(), want, fused, strict=True):
        assert same(p, f) and torch.allclose(f.float(), w.float(), rtol=2**-7)


def test_what_is_added_to_the_low_gradient_of_a_plain_parameter_rounds_and_a_boundary_prevents_it() -> None:
    x = torch.tensor([0.5, -0.75, 1.0, 0.375]).to_lp(E5M2)
    start = torch.tensor([0.3, 1.1, -0.7, 0.9])
    low, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (low * x).sum().backward()
    (plain * x.dequantize()).sum().backward()
    for w in (low, plain):
        torch.optim.SGD([w], lr=1.0, weight_decay=0.25).step()
    exact = x.dequantize() + 0.25 * start
    assert torch.equal(low.detach(), start - exact.to(torch.float8_e5m2).float())
    assert torch.equal(plain.detach(), start - exact)


def test_a_step_that_raised_leaves_gradients_what_they_are() -> None:
    """2**-12 is a number of E5M2 and none of E4M3."""
    w = torch.nn.Parameter(torch.ones(2).to_lp(Arithmetic(E4M3, backward=E5M2)))
    optim = torch.optim.SGD([w], lr=0.5)
    w.sum().backward()

    def fail() -> float:
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        optim.step(fail)
    w.grad.fill_(2.0**-12)
    copied = w.grad.clone()
    assert copied.format == E5M2 and copied.tolist() == [2.0**-12] * 2


def test_a_saved_state_resumes_with_the_same_bits() -> None:
    model, optimizer = model_and_optimizer(torch.optim.Adam)
    train(model, optimizer, 2)
    other, fresh = model_and_optimizer(torch.optim.Adam)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors otherwise
    for m, o in ((model, optimizer), (other, fresh)):
        train(m, o)
    assert all(same(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(type(a) is LPTensor for a in state_tensors(fresh))


# -- what surrounds an optimizer -------------------------------------------------------------------------

SCHEDULES: dict[str, dict[str, Any]] = {
    "LambdaLR": dict(lr_lambda=lambda i: 0.9**i),
    "MultiplicativeLR": dict(lr_lambda=lambda i: 0.9),
    "StepLR": dict(step_size=1),
    "MultiStepLR": dict(milestones=[1, 2]),
    "ConstantLR": dict(total_iters=2),
    "LinearLR": dict(total_iters=3),
    "ExponentialLR": dict(gamma=0.9),
    "PolynomialLR": dict(total_iters=4),
    "CosineAnnealingLR": dict(T_max=5),
    "CosineAnnealingWarmRestarts": dict(T_0=3),
    "CyclicLR": dict(base_lr=0.01, max_lr=0.2, cycle_momentum=False),
    "OneCycleLR": dict(max_lr=0.2, total_steps=9, cycle_momentum=False),
    "ReduceLROnPlateau": dict(patience=0, threshold=10.0),
    "SequentialLR": dict(),
    "ChainedScheduler": dict(),
    "SWALR": dict(swa_lr=0.05),
}
OF_SCHEDULERS = {"LRScheduler", "SequentialLR", "ChainedScheduler"}


def schedule_of(name: str, optimizer: Any) -> Any:
    import torch.optim.lr_scheduler as known

    if name in OF_SCHEDULERS:
        parts = [known.ExponentialLR(optimizer, 0.9), known.ConstantLR(optimizer, 0.5, 2)]
        return known.SequentialLR(optimizer, parts, [2]) if name == "SequentialLR" else known.ChainedScheduler(parts)
    kind = torch.optim.swa_utils.SWALR if name == "SWALR" else getattr(known, name)
    return kind(optimizer, **SCHEDULES[name])


def test_every_schedule_of_torch_is_tried() -> None:
    known = vars(torch.optim.lr_scheduler).items()
    base = torch.optim.lr_scheduler.LRScheduler
    classes = {n for n, c in known if inspect.isclass(c) and issubclass(c, base) and not n.startswith("_")}
    assert classes - {"LRScheduler"} == set(SCHEDULES) - {"SWALR"}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_schedule_changes_the_rate_that_a_step_uses(name: str, tensor: bool) -> None:
    """After every turn of the schedule a step is p - lr * g, rounded once."""
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=torch.tensor(0.1) if tensor else 0.1)
    schedule, rates = schedule_of(name, optimizer), set()
    for _ in range(4):
        model.zero_grad()
        model(torch.ones(1, 6).to_lp(BOTH)).sum().backward()
        rate = float(optimizer.param_groups[0]["lr"])
        want = [rounded(values(p).add(values(p.grad), alpha=-rate), BF16) for p in model.parameters()]
        optimizer.step()
        schedule.step(*((1.0,) if name == "ReduceLROnPlateau" else ()))
        assert all(same(p, w) for p, w in zip(model.parameters(), want, strict=True))
        rates.add(rate)
    assert len(rates) > 1


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
def test_clipping_by_norm_rounds_where_the_contract_says(foreach: Any, norm: float) -> None:
    model, _ = model_and_optimizer(torch.optim.SGD)
    model(torch.randn(5, 6).to_lp(BOTH)).square().sum().backward()
    reference = AtenReference(by_cast(torch.bfloat16), by_cast(torch.float8_e5m2))
    twins = [nn.Parameter(reference.low(values(p))) for p in model.parameters()]
    for p, twin in zip(model.parameters(), twins, strict=True):
        with reference.gradients():
            twin.grad = values(p.grad).clone()
            reference._add(twin.grad)
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3, norm, foreach=foreach)
    with reference:
        want = torch.nn.utils.clip_grad_norm_(twins, 0.3, norm, foreach=foreach)
    assert same(total, want) and total.item() > 0.3 and is_low(total, BF16)
    for p, twin in zip(model.parameters(), twins, strict=True):
        assert is_low(p.grad, E5M2) and same(p.grad, twin.grad)


class TestFormatsOfWhichNeitherHoldsTheOther:
    """BF16 and FP16: torch's dtypes meet in fp32; formats do if asked, in the ways that the errors name."""

    def parameters(self) -> list[Any]:
        made = [nn.Parameter(torch.ones(n).to_lp(format)) for n, format in ((2, BF16), (3, FP16))]  # type: ignore[attr-defined]
        for p, value in zip(made, (3.0, 4.0), strict=True):
            p.grad = torch.full(p.shape, value).to_lp(p.format)  # type: ignore[attr-defined]
        return made

    @pytest.mark.parametrize("foreach", [None, False, True])
    def test_their_gradients_are_clipped_by_a_norm_of_plain_ones(self, foreach: Any) -> None:
        parameters = self.parameters()
        with pytest.raises(TypeError, match=r"neither of .* get_total_norm\(.* clip_grads_with_norm_ clips"):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=foreach)
        assert [p.grad[0].item() for p in parameters] == [3.0, 4.0]
        norm = torch.nn.utils.get_total_norm([p.grad.dequantize() for p in parameters])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=foreach)
        assert norm.item() == torch.tensor(66.0).sqrt().item()
        for p, cast, value in zip(parameters, (torch.bfloat16, torch.float16), (3.0, 4.0), strict=True):
            assert torch.equal(p.grad.dequantize(), (value / (norm + 1e-6)).to(cast).float().expand(p.shape))

    def test_lbfgs_takes_them_within_optimlp(self) -> None:
        parameters = self.parameters()

        def closure() -> Tensor:
            for p in parameters:
                p.grad = None
            loss = sum((p.dequantize() - 2).square().sum() for p in parameters)
            loss.backward()
            return loss

        bare = torch.optim.LBFGS(parameters, lr=0.5)
        with pytest.raises(TypeError, match=r"LBFGS takes such within OptimLP\(\.\.\., update='nearest'\)"):
            bare.step(closure)
        OptimLP(torch.optim.LBFGS(parameters, lr=0.5), update="nearest").step(closure)
        assert all(
            is_low(p, format) and (p - 2).abs().max() < 0.02 for p, format in zip(parameters, (BF16, FP16), strict=True)
        )


@pytest.mark.parametrize("foreach", [None, False, True])
def test_clipping_by_value_keeps_gradients_on_their_grid(foreach: Any) -> None:
    model, _ = model_and_optimizer(torch.optim.SGD)
    model(torch.randn(5, 6).to_lp(BOTH)).square().sum().backward()
    want = [rounded(values(p.grad).clamp(-0.3, 0.3), E5M2) for p in model.parameters()]
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.3, foreach=foreach)
    assert all(is_low(p.grad, E5M2) and same(p.grad, w) for p, w in zip(model.parameters(), want, strict=True))


def test_a_gradient_scaler_skips_overflows_and_divides_by_its_scale() -> None:
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=0.125)
    convert(model, BF16)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    model(torch.ones(1, 6).to_lp(BF16)).sum().backward()
    want = [rounded(values(p).add(values(p.grad), alpha=-0.125), BF16) for p in model.parameters()]
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(1, 6).to_lp(BF16)).sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    scaler.step(optimizer)
    scaler.update()
    assert all(is_low(p, BF16) and same(p, w) for p, w in zip(model.parameters(), want, strict=True))
    assert scaler.get_scale() == 8.0
    scaler.scale(model(torch.full((1, 6), torch.inf).to_lp(BF16)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(same(p, w) for p, w in zip(model.parameters(), want, strict=True)) and scaler.get_scale() == 4.0


def test_a_gradient_scaler_is_refused_where_what_it_divides_would_vanish() -> None:
    """As torch refuses to unscale float16 gradients, which may be too small for it then."""
    model, optimizer = model_and_optimizer(torch.optim.SGD)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 6).to_lp(BOTH)).sum()).backward()
    with pytest.raises(ValueError, match="LossScaler"):
        scaler.step(optimizer)


AVERAGES: dict[str, Any] = {
    "swa": {},
    "swa foreach": dict(multi_avg_fn=torch.optim.swa_utils.get_swa_multi_avg_fn()),
    "ema": dict(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.7)),
    "ema foreach": dict(multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_models_stay_on_the_grid(name: str) -> None:
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(model, **AVERAGES[name])
    average.update_parameters(model)
    first = [values(p).clone() for p in model.parameters()]
    train(model, optimizer, 1)
    average.update_parameters(model)
    for a, old, p in zip(average.parameters(), first, model.parameters(), strict=True):
        want = rounded(old.lerp(values(p), 0.3), BF16) if "ema" in name else rounded((old + values(p)) / 2, BF16)
        assert is_low(a, BF16)
        torch.testing.assert_close(values(a), want, rtol=2**-7, atol=0)  # a mean by two ops rounds twice


def test_an_average_kept_in_fp32_moves_where_a_low_one_stands_still() -> None:
    """The way to average below the resolution of a format: convert the average back, and let it be written in place.

    An ``avg_fn`` computes with the low-precision parameter first, and what it returns is rounded.
    """
    model, _ = model_and_optimizer(torch.optim.SGD)
    lows, fine = (torch.optim.swa_utils.AveragedModel(model, **AVERAGES["ema foreach"]) for _ in range(2))
    convert(fine, None)
    for average in (lows, fine):
        average.update_parameters(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 2**-7)
    for average in (lows, fine):
        average.update_parameters(model)
    assert all(type(p) is nn.Parameter for p in fine.parameters())
    assert all(is_low(p, BF16) for p in lows.parameters())
    assert any(not same(p, rounded(values(p), BF16)) for p in fine.parameters())


def test_batch_statistics_can_be_renewed() -> None:
    model = convert(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), BOTH)
    batches = [torch.randn(5, 6) for _ in range(3)]
    torch.optim.swa_utils.update_bn(batches, model)
    want = torch.stack([values(model[0](b)).mean(0) for b in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, want)
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adadelta])
def test_a_differentiable_step_gives_the_same_bits_and_a_gradient(kind: Any) -> None:
    start, grad = torch.randn(6).to_lp(BOTH), torch.randn(6).to_lp(BOTH)
    leaf = start.clone().requires_grad_()
    p, q = leaf.clone(), start.clone().requires_grad_()
    p.grad, q.grad = grad.clone(), grad.clone()
    kind([p], lr=0.125, differentiable=True).step()
    kind([q], lr=0.125).step()
    assert is_low(p, BF16) and same(p, q)
    p.sum().backward()
    assert is_low(leaf.grad, E5M2) and same(leaf.grad, torch.ones(6))


def test_capturable_is_refused_on_the_cpu_as_for_any_tensor() -> None:
    model, optimizer = model_and_optimizer(torch.optim.Adam, capturable=True)
    with pytest.raises(AssertionError, match="capturable"):
        train(model, optimizer, 1)


def test_a_list_of_weights_and_gradients_rounds_each_to_its_side() -> None:
    w = torch.full((1,), 1.0).to_lp(Arithmetic(BF16, E5M2)).requires_grad_()
    w.backward(torch.ones(1))
    torch._foreach_mul_([w.detach(), w.grad], 1.0625)
    assert w.item() == 1.0625 and w.grad.item() == 1.0  # E5M2 has 1 and 1.25


def test_the_eps_of_adafactor_counts_as_the_square_that_it_bounds() -> None:
    """Its root is held above eps[0], so its square above eps[0]**2."""
    w = nn.Parameter(torch.ones(4, 4).to_lp(BF16))
    w.grad = torch.full((4, 4), 0.5).to_lp(BF16)
    optimizer = torch.optim.Adafactor([w], eps=(1e-15, 1e-3))  # 1e-30 is a number of BF16, as 1e-15 is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    narrow = nn.Parameter(torch.ones(4, 4).to_lp(FloatingPoint(16)))
    narrow.grad = torch.full((4, 4), 0.5).to_lp(FloatingPoint(16))
    with pytest.warns(RuntimeWarning, match="Adafactor divides"):  # 1e-3 is one of FP16, its square underflows not
        torch.optim.Adafactor([narrow], eps=(1e-6, 1e-3)).step()


@pytest.mark.parametrize(
    "format", [Posit(8, 0), NF4, LogNumber(8), FloatingPoint(8), FloatingPoint(16), FixedPoint(8, 4)], ids=repr
)
def test_a_gradient_scaler_is_refused_in_every_kind_of_narrow_format(format: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), 0.25).to_lp(format)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    with pytest.raises(ValueError, match="LossScaler"):
        scaler.unscale_(torch.optim.SGD([w]))


@pytest.mark.parametrize("format", [BF16, FP32, Posit(28), MX(E4M3), LogNumber(16, gamma=140)], ids=repr)
def test_a_gradient_scaler_is_taken_where_there_is_room(format: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.full((2,), 0.25).to_lp(format)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    scaler.unscale_(torch.optim.SGD([w]))
    assert w.grad.tolist() == [2.0**-12] * 2
