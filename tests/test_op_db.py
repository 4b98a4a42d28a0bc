"""Every op of PyTorch's own database, forward, backward and in place, against the contract on plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import op_samples
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, escapes
from op_samples import (
    attempt,
    differences,
    each,
    foreach_database,
    full_name,
    is_operand,
    lowered,
    op_database,
    plain,
    report,
    samples_of,
    tensors,
)
from oracles.aten_reference import AtenReference, by_cast

pytestmark = pytest.mark.filterwarnings("ignore")  # the samples use what torch deprecates

WIDE = Arithmetic(BF16), by_cast(torch.bfloat16), by_cast(torch.bfloat16)
NARROW = Arithmetic(BF16, backward=E5M2), by_cast(torch.bfloat16), by_cast(torch.float8_e5m2)
Case = tuple[Arithmetic, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

# How many samples of each op, and in which formats: a look at every op always, all of it on demand.
DEPTHS = [
    pytest.param(1, NARROW, id="fast"),
    pytest.param(12, WIDE, id="whole", marks=pytest.mark.slow),
    pytest.param(12, NARROW, id="whole-narrow-gradients", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True, params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_samples, "DEVICE", request.param)


@pytest.fixture(autouse=True)
def _escapes() -> Iterator[None]:
    with escapes("allow"):  # complex results are compared too
        yield


class Pair:
    """One sample on LPTensors and on the reference's plain tensors."""

    def __init__(self, sample: Any, case: Case) -> None:
        arithmetic, forward, backward = case
        self.reference = AtenReference(forward, backward)
        self.ours = lowered(sample, lambda x: x.to_lp(arithmetic))  # type: ignore[attr-defined]
        self.theirs = lowered(sample, self.reference.low)

    def run(self, function: Any) -> tuple[Any, Any, str]:
        """Results of both, and what is wrong with them."""
        mine, my_error = attempt(lambda: _call(function, self.ours))
        with self.reference:
            other, other_error = attempt(lambda: _call(function, self.theirs))
        if my_error or other_error:
            same = type(my_error) is type(other_error)
            return None, None, "" if same else f"raises {my_error!r:.120} and {other_error!r:.120}"
        wrong = differences(mine, other)
        for a, b in zip(tensors(mine), tensors(other), strict=True):
            if (type(a) is LPTensor) != (self.reference.is_low(b) and b.dtype is torch.float32):
                wrong.append(f"{type(a).__name__} where low precision is {self.reference.is_low(b)}")
        return mine, other, "; ".join(wrong)

    def gradients(self, mine: Any, other: Any) -> str | None:
        """What is wrong with the gradients of all results by all operands; None if there are none."""
        outs, refs = ([x for x in tensors(t) if x.requires_grad and not x.is_complex()] for t in (mine, other))
        ins, others = ([x for x in tensors(t) if x.requires_grad] for t in (self.ours, self.theirs))
        if not outs or not ins or any(x.layout is not torch.strided for x in outs):
            return None
        torch.manual_seed(2)
        seeds = [torch.randn(x.shape, dtype=x.dtype).to(x.device) for x in outs]
        ours = [s.to_lp(x.arithmetic) if type(x) is LPTensor else s for s, x in zip(seeds, outs, strict=True)]
        theirs = [self.reference.low(s) if self.reference.is_low(x) else s for s, x in zip(seeds, refs, strict=True)]
        found, my_error = attempt(lambda: torch.autograd.grad(outs, ins, ours, allow_unused=True))
        with self.reference, self.reference.gradients():
            wanted, error = attempt(lambda: torch.autograd.grad(refs, others, theirs, allow_unused=True))
        if my_error or error:
            return "" if type(my_error) is type(error) else f"raises {my_error!r:.120} and {error!r:.120}"
        return "; ".join(differences(found, wanted))


def _call(function: Any, sample: Any) -> Any:
    input, args, kwargs = sample
    return function(input, *args, **kwargs)


@pytest.mark.parametrize(("count", "case"), DEPTHS)
@pytest.mark.timeout(900)
def test_forward_and_backward_round_where_the_contract_says(
    count: int, case: Case, record_property: Callable[[str, object], None]
) -> None:
    backward: dict[str, str] = {}
    with_gradient: set[str] = set()

    def check(op: Any) -> str:
        wrong = ""
        for sample in samples_of(op, count, requires_grad=op.supports_autograd):
            pair = Pair(sample, case)
            mine, other, why = pair.run(op)
            wrong = wrong or why
            if not why and op.supports_autograd and mine is not None:
                grad = pair.gradients(mine, other)
                if grad is not None:
                    with_gradient.add(full_name(op))
                if grad:
                    backward.setdefault(full_name(op), grad)
        return wrong

    forward, total = each(op_database(), check)
    record_property("count", f"op_db forward: {total - len(forward)} of {total}")
    record_property("count", f"op_db backward: {len(with_gradient) - len(backward)} of {len(with_gradient)}")
    assert total > 600 and len(with_gradient) > 450  # the database was found, and graphs were built
    assert not forward, report(forward, total, "forward")
    assert not backward, report(backward, len(with_gradient), "backward")


@pytest.mark.parametrize(("count", "case"), DEPTHS)
@pytest.mark.timeout(900)
def test_in_place_forms_round_where_the_contract_says(
    count: int, case: Case, record_property: Callable[[str, object], None]
) -> None:
    def check(op: Any) -> str | None:
        if op.inplace_variant is None:
            return None
        wrong = ""
        for sample in samples_of(op, count):
            if isinstance(sample[0], Tensor):
                pair = Pair(sample, case)
                mine, _, why = pair.run(op.inplace_variant)
                same_object = mine is None or mine is pair.ours[0]
                wrong = wrong or why or ("" if same_object else "the result is not its argument")
                wrong = wrong or "; ".join(differences(pair.ours, pair.theirs))
        return wrong

    failures, total = each(op_database(), check)
    record_property("count", f"op_db in place: {total - len(failures)} of {total}")
    assert total > 140 and not failures, report(failures, total, "in place")


@pytest.mark.parametrize(("count", "case"), DEPTHS)
@pytest.mark.timeout(900)
def test_out_arguments_take_the_result_in_their_own_format(
    count: int, case: Case, record_property: Callable[[str, object], None]
) -> None:
    """``out=`` an LPTensor of the narrow format gets the exact result rounded; a plain one stays plain and exact."""

    def check(op: Any) -> str | None:
        if not op.supports_out:
            return None
        wrong = ""
        for sample in samples_of(op, count):
            result, error = attempt(lambda s=sample: _call(op, s))
            if error or not is_operand(result):
                continue
            pair = Pair(sample, case)
            target = torch.zeros_like(result).to_lp(case[0])
            stand_in = pair.reference.low(torch.zeros_like(result))
            _, my_error = attempt(lambda p=pair, t=target: op(p.ours[0], *p.ours[1], **p.ours[2], out=t))
            with pair.reference:
                _, error = attempt(lambda p=pair, t=stand_in: op(p.theirs[0], *p.theirs[1], **p.theirs[2], out=t))
            if type(my_error) is not type(error):
                wrong = wrong or f"raises {my_error!r:.120} and {error!r:.120}"
            wrong = wrong or "; ".join(differences(target, stand_in))
        return wrong

    failures, total = each(op_database(), check)
    record_property("count", f"op_db out=: {total - len(failures)} of {total}")
    assert total > 250 and not failures, report(failures, total, "out=")


@pytest.mark.parametrize(("count", "case"), DEPTHS)
def test_foreach_ops_round_every_tensor_of_the_list(
    count: int, case: Case, record_property: Callable[[str, object], None]
) -> None:
    def check(op: Any) -> str | None:
        if torch.float32 not in op.dtypes:
            return None
        wrong = ""
        for sample in samples_of(op, 2 * count):
            sample = (sample[0], sample[1], {k: v for k, v in sample[2].items() if k != "disable_fastpath"})
            for form in (op.method_variant, op.inplace_variant):
                if form is not None:
                    pair = Pair(sample, case)
                    mine, _, why = pair.run(form)
                    wrong = wrong or why or "; ".join(differences(pair.ours, pair.theirs))
        return wrong

    failures, total = each(foreach_database(), check)
    record_property("count", f"foreach: {total - len(failures)} of {total}")
    assert total > 30 and not failures, report(failures, total, "foreach")


def test_results_are_on_the_grid_of_the_backward_format_in_backward() -> None:
    """The sweep would not notice a reference that rounds gradients to the forward format too."""
    x = torch.randn(64).to_lp(BF16, grad=E5M2).requires_grad_()
    (x * 1.7).sin().sum().backward()
    grad = plain(x.grad)
    assert torch.equal(grad, grad.to(torch.float8_e5m2).float())
    assert not torch.equal(plain(x), plain(x).to(torch.float8_e5m2).float())


def test_a_tensor_that_a_whole_list_shares_gives_its_format_to_all() -> None:
    products = torch._foreach_mul([torch.ones(2), torch.full((1,), 3.0)], torch.tensor(1.125).to_lp(E4M3))
    assert all(isinstance(y, LPTensor) and y.format == E4M3 for y in products)
    assert [y.tolist() for y in products] == [[1.125, 1.125], [3.5]]  # 3.375 is a tie between 3.25 and 3.5
