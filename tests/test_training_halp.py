"""HALP: bit-centred SVRG."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lptensor.training import HALP


class LeastSquares:
    """A mean of N squares (a_i w - b_i)**2 / 2 with a given strong convexity, in float64."""

    def __init__(self, n: int = 200, d: int = 5, condition: float = 5.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64))
        self.a = q * torch.linspace(1, condition, d, dtype=torch.float64).sqrt() * math.sqrt(n)
        self.b = self.a @ torch.randn(d, generator=generator, dtype=torch.float64)
        self.b += 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
        self.best = torch.linalg.lstsq(self.a, self.b).solution
        self.w = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.n = n

    def gradient(self, w: Tensor, rows: Any = slice(None)) -> Tensor:
        a = self.a[rows]
        return a.T @ (a @ w - self.b[rows]) / len(a)

    def closure(self, rows: Any = slice(None)) -> Callable[[], None]:
        def evaluate() -> None:
            self.w.grad = self.gradient(self.w.detach(), rows)

        return evaluate

    @property
    def error(self) -> float:
        return float((self.w.detach() - self.best).norm())


def test_one_step_is_its_formula() -> None:
    """Rounding is random between the two neighbours on the grid, so both must show, and nothing else."""
    task = LeastSquares()
    full = task.gradient(task.w.detach())
    spacing = float(full.norm()) / (1.0 * 127)
    rows = slice(3, 4)
    exact = -0.02 * (task.gradient(torch.zeros(5).double(), rows) * 0 + full)  # z = 0: the two part gradients cancel
    ups = torch.zeros(5).double()
    for _ in range(400):
        task.w.data.zero_()
        optim = HALP([task.w], lr=0.02, mu=1.0, bits=8)
        optim.recenter(task.closure())
        optim.step(task.closure(rows))
        steps = optim.state[task.w]["offset"] / spacing
        assert torch.allclose(steps, steps.round(), atol=1e-9)
        up = steps.round() - (exact / spacing).floor()
        assert bool(((up == 0) | (up == 1)).all())
        assert torch.equal(task.w, optim.state[task.w]["center"] + optim.state[task.w]["offset"])
        ups += up
    share = exact / spacing - (exact / spacing).floor()
    assert bool(((ups / 400 - share).abs() < 4 * (share * (1 - share) / 400).sqrt() + 1e-9).all())


def test_the_second_step_uses_both_part_gradients() -> None:
    task = LeastSquares()
    optim = HALP([task.w], lr=0.02, mu=1.0, bits=24)  # a fine grid: rounding is below the tolerance
    optim.recenter(task.closure())
    full = task.gradient(torch.zeros(5).double())
    z = torch.zeros(5).double()
    for i in (7, 90, 13):
        rows = slice(i, i + 1)
        z = z - 0.02 * (task.gradient(z, rows) - task.gradient(torch.zeros(5).double(), rows) + full)
        optim.step(task.closure(rows))
    assert torch.allclose(task.w.detach(), z, atol=1e-4 * float(full.norm()))


def test_closures_need_not_zero_the_gradients_that_backward_adds_to() -> None:
    runs = []
    for derive in (False, True):
        torch.manual_seed(2)
        task = LeastSquares()
        optim = HALP([task.w], lr=0.02, mu=1.0)

        def closure(rows: Any, task: LeastSquares = task, derive: bool = derive) -> None:
            if derive:
                (0.5 * (task.a[rows] @ task.w - task.b[rows]).square().mean()).backward()
            else:
                task.closure(rows)()

        optim.recenter(lambda closure=closure: closure(slice(None)))  # type: ignore[misc]
        for i in range(20):
            optim.step(lambda i=i, closure=closure: closure(slice(i, i + 1)))  # type: ignore[misc]
        runs.append(task.w.detach())
    assert torch.allclose(*runs, rtol=1e-9)


def test_the_offset_stays_within_its_bits() -> None:
    """Too large a mu makes a grid that is too short: it saturates at -2**(b-1) and 2**(b-1) - 1."""
    task = LeastSquares()
    optim = HALP([task.w], lr=0.1, mu=50.0, bits=4)
    optim.recenter(task.closure())
    for _ in range(50):
        optim.step(task.closure())
    steps = (optim.state[task.w]["offset"] / optim.param_groups[0]["spacing"]).round()
    assert steps.min() >= -8 and steps.max() <= 7 and {-8.0, 7.0} & set(steps.tolist())


def run(bits: int, outer: int, recenter: bool = True, seed: int = 0) -> list[float]:
    torch.manual_seed(seed)
    task = LeastSquares()
    optim = HALP([task.w], lr=0.01, mu=1.0, bits=bits)
    errors = []
    for epoch in range(outer):
        if recenter or epoch == 0:
            optim.recenter(task.closure())
        for i in torch.randint(task.n, (1000,)).tolist():
            optim.step(task.closure(slice(i, i + 1)))
        errors.append(task.error)
    return errors


@pytest.mark.slow
def test_eight_bits_converge_linearly_and_a_fixed_grid_does_not() -> None:
    """HALP at 8 bits reaches 1e-10; variance reduction on the first grid (LP-SVRG) stays at that grid's floor."""
    errors = run(8, 24)
    assert errors[-1] < 1e-10
    rates = [later / earlier for earlier, later in zip(errors[2:-1], errors[3:], strict=True)]
    assert max(rates) < 0.8 and sum(map(math.log, rates)) / len(rates) < math.log(0.5)
    assert run(8, 6, recenter=False)[-1] > 1e-2


def test_a_few_outer_iterations_gain_decades() -> None:
    errors = run(8, 5)
    assert errors[-1] < 0.05 * errors[0]


def test_a_resumed_run_repeats_every_bit() -> None:
    runs = []
    for stop in (False, True):
        torch.manual_seed(3)
        task = LeastSquares()
        optim = HALP([task.w], lr=0.01, mu=1.0)
        optim.recenter(task.closure())
        for i in range(40):
            if stop and i == 17:
                fresh = LeastSquares()
                fresh.w.data.copy_(task.w.data)
                saved = optim.state_dict()
                task, optim = fresh, HALP([fresh.w], lr=0.5, mu=9.0)
                optim.load_state_dict(saved)
            optim.step(task.closure(slice(i, i + 1)))
        runs.append(task.w.detach().clone())
    assert torch.equal(*runs)


def test_at_the_minimum_nothing_moves() -> None:
    w = nn.Parameter(torch.ones(2))
    optim = HALP([w], lr=0.1, mu=1.0)

    def closure() -> None:
        w.grad = torch.zeros(2)

    optim.recenter(closure)
    optim.step(closure)
    assert w.tolist() == [1.0, 1.0]


def test_parts_that_leave_a_parameter_without_a_gradient_do_not_depend_on_it() -> None:
    """What closures leave as None and as zeros is the same, at the centre and at the iterate."""
    finals = []
    for absent in (None, torch.zeros(2)):
        torch.manual_seed(5)
        a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 2.0))
        optim = HALP([a, b], lr=0.25, mu=1.0)

        def closure(parts: str, a: Tensor = a, b: Tensor = b, absent: Tensor | None = absent) -> None:
            a.grad = a.detach().clone() if "a" in parts else absent
            b.grad = b.detach().clone() if "b" in parts else absent

        for parts in ("ab", "a", "ab"):
            optim.recenter(lambda parts=parts: closure(parts))  # type: ignore[misc]
            optim.step(lambda: closure("a"))
            optim.step(lambda: closure("b"))
        finals.append((a.tolist(), b.tolist()))
    assert finals[0] == finals[1]


class BrokenOff(dict[str, Tensor]):
    """What is kept of a parameter, which Ctrl-C breaks off when it is first asked for."""

    asked = False

    def __getitem__(self, key: str) -> Tensor:
        if not self.asked:
            self.asked = True
            raise KeyboardInterrupt
        return super().__getitem__(key)


def test_ctrl_c_on_the_way_to_the_centre_leaves_the_iterate() -> None:
    first, last = (nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0))
    optim = HALP([first, last], lr=0.5, mu=1.0)

    def closure() -> None:
        for w in (first, last):
            w.grad = w.detach().clone()

    optim.recenter(closure)
    optim.step(closure)
    before = [w.detach().clone() for w in (first, last)]
    assert not torch.equal(before[0], torch.ones(3))
    optim.state[last] = BrokenOff(optim.state[last])
    with pytest.raises(KeyboardInterrupt):
        optim.step(closure)
    assert torch.equal(first, before[0]) and torch.equal(last, before[1])


def test_a_closure_that_raises_leaves_the_iterate() -> None:
    task = LeastSquares()
    optim = HALP([task.w], lr=0.02, mu=1.0)
    optim.recenter(task.closure())
    optim.step(task.closure())
    before = task.w.detach().clone()
    for good in (0, 1):  # evaluations at the centre, then at the iterate
        calls = [task.closure()] * good

        def evaluate(calls: list[Callable[[], None]] = calls) -> None:
            calls.pop()()

        with pytest.raises(IndexError):
            optim.step(evaluate)
        assert torch.equal(task.w, before) and not torch.equal(before, optim.state[task.w]["center"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_full_gradient_that_is_no_number_is_not_passed_over(bad: float) -> None:
    w = nn.Parameter(torch.ones(2))
    optim = HALP([w], lr=0.1, mu=1.0)

    def closure() -> None:
        w.grad = torch.tensor([bad, 1.0])

    optim.recenter(closure)
    optim.step(closure)
    assert w.isnan().all()


def test_bad_input_is_named() -> None:
    w = nn.Parameter(torch.ones(1))
    for arguments, says in (
        (dict(lr=0.0, mu=1.0), "lr"),
        (dict(lr=1.0, mu=math.inf), "mu"),
        (dict(lr=1.0, mu=1.0, bits=1), "bits"),
    ):
        with pytest.raises(ValueError, match=f"{says} must be"):
            HALP([w], **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="bfloat16"):
        HALP([nn.Parameter(torch.ones(1, dtype=torch.bfloat16))], 0.1, 1.0)
    optim = HALP([w], 0.1, 1.0)
    with pytest.raises(TypeError, match="float16"):
        optim.add_param_group({"params": [nn.Parameter(torch.ones(1, dtype=torch.float16))]})
    assert len(optim.param_groups) == 1
    with pytest.raises(RuntimeError, match="recenter"):
        optim.step(lambda: None)
