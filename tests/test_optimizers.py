"""Every optimizer of PyTorch on a converted model: parameters and state stay on their grids."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from low import is_low, same, values
from lptensor import BF16, E5M2, Arithmetic, LPTensor, convert, escapes

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
    with escapes("allow" if kind.__name__ == "Muon" else "error"):  # it asks for bfloat16 inside
        train(model, optimizer)
    assert_on_grid(model, optimizer)
    assert not all(same(p, b) for p, b in zip(model.parameters(), before, strict=True))


SAME_FORMULA = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adadelta)


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
        (torch.optim.RMSprop, dict(momentum=0.9, centered=True)),
    ],
    ids=str,
)
def test_options_stay_on_the_grid(kind: Any, options: Any) -> None:
    model, optimizer = model_and_optimizer(kind, **options)
    train(model, optimizer)
    assert_on_grid(model, optimizer)


def test_sparse_gradients_are_let_out_and_written_back() -> None:
    with escapes("allow"):
        table = convert(nn.Embedding(9, 4, sparse=True), BOTH)
        optimizer = torch.optim.SparseAdam(table.parameters())
        before = values(table.weight).clone()
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 4])).sum().backward()
            optimizer.step()
    assert is_low(table.weight, BF16) and not same(table.weight, before)


def test_a_step_rounds_once_per_op_to_the_forward_format() -> None:
    """SGD by hand: p = round(p - lr * g), as one op."""
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=0.3)
    model(torch.randn(5, 6).to_lp(BOTH)).sum().backward()
    want = [(values(p) - 0.3 * values(p.grad)).bfloat16() for p in model.parameters()]
    fused = [values(p).add(values(p.grad), alpha=-0.3).bfloat16() for p in model.parameters()]
    optimizer.step()
    for p, w, f in zip(model.parameters(), want, fused, strict=True):
        assert same(p, f) and torch.allclose(f.float(), w.float(), rtol=2**-7)


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


def test_schedulers_and_averages_run() -> None:
    model, optimizer = model_and_optimizer(torch.optim.SGD, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(2):
        train(model, optimizer, 1)
        schedule.step()
        average.update_parameters(model)
    assert all(is_low(p, BF16) for p in average.parameters())
