"""Every operator gets a rule, the list of ops that keep values is true, and writes are marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lptensor
from lptensor import E4M3, Accumulator, Arithmetic, FloatingPoint
from lptensor.operands import Gemm
from lptensor.rules import Kind, Rule, argument, rule_for
from op_samples import attempt, bits, is_operand, op_database, samples_of, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # the samples use what torch deprecates

aten = torch.ops.aten


def every_overload() -> list[Any]:
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if space == "aten":
            packet = getattr(aten, base, None)
            op = None if packet is None else getattr(packet, overload or "default", None)
            if isinstance(op, torch._ops.OpOverload):
                found.append(op)
    return found


def test_every_overload_of_aten_gets_a_decision() -> None:
    rules = [rule_for(op) for op in every_overload()]
    assert len(rules) > 2500 and all(isinstance(rule, Rule) for rule in rules)


def test_every_argument_that_a_schema_marks_is_written() -> None:
    for op in every_overload():
        if op._schema.is_mutable:
            assert rule_for(op).kind in (Kind.MUTATE, Kind.RESHAPE, Kind.DECOMPOSE, Kind.REFUSE), op
            if rule_for(op).kind is Kind.MUTATE:
                marked = [a for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
                assert len(set(rule_for(op).writes)) >= len(marked), op


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        (aten.tanh.default, Kind.ROUND),
        (aten.add.Tensor, Kind.ROUND),
        (aten.sum.default, Kind.ROUND),
        (aten.ones_like.default, Kind.ROUND),
        (aten.rand_like.default, Kind.ROUND),
        (aten.full_like.default, Kind.ROUND),
        (aten.zeros_like.default, Kind.KEEP),
        (aten.empty_like.default, Kind.KEEP),
        (aten.relu.default, Kind.KEEP),
        (aten.cat.default, Kind.KEEP),
        (aten.view.default, Kind.VIEW),
        (aten.t.default, Kind.VIEW),
        (aten.add_.Tensor, Kind.MUTATE),
        (aten.add.out, Kind.MUTATE),
        (aten.squeeze_.default, Kind.RESHAPE),
        (aten.linear.default, Kind.DECOMPOSE),
    ],
    ids=str,
)
def test_the_kind_of_well_known_ops(op: Any, kind: Kind) -> None:
    assert rule_for(op).kind is kind


class Watch(TorchDispatchMode):
    """Holds every op to its rule: who keeps values makes none, who does not write writes nothing."""

    def __init__(self, rules: Callable[[Any], Rule] = rule_for) -> None:
        super().__init__()
        self.rules = rules
        self.kept: set[str] = set()
        self.invented: set[str] = set()
        self.wrote: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self.rules(func)
        given = [x for x in tensors((args, kwargs)) if is_operand(x)]
        before = [x.clone() for x in given]
        out = func(*args, **kwargs)
        if rule.kind is not Kind.MUTATE and rule.kind is not Kind.RESHAPE:
            for old, new in zip(before, given, strict=True):
                if not torch.equal(old, new) and not torch.equal(bits(old), bits(new)):  # NaN equals NaN in bits
                    self.wrote.add(str(func))
        numbers = [args[p] if isinstance(p, int) and p < len(args) else kwargs.get(p) for p in rule.scalars]
        brought = [x for p in rule.values for x in tensors(argument(p, args, kwargs))]
        keeps = (rule.kind is Kind.KEEP or rule.selects) and all(map(is_operand, brought))
        small = given and sum(x.numel() for x in given) < 4096
        if keeps and small and not any(numbers) and "empty" not in func._schema.name:
            self.kept.add(str(func))
            known = torch.cat([torch.zeros(1), *(x.flatten() for x in before)])
            for x in tensors(out):
                if is_operand(x) and not (torch.isin(x, known) | ~x.isfinite()).all():
                    self.invented.add(str(func))
        return out


def run_all(watch: TorchDispatchMode, count: int) -> None:
    for op in op_database():
        for sample in samples_of(op, count, requires_grad=op.supports_autograd):
            with watch:
                out, error = attempt(lambda o=op, s=sample: o(s[0], *s[1], **s[2]))
                if error is None and op.supports_autograd:
                    outs = [x for x in tensors(out) if x.requires_grad and not x.is_complex()]
                    ins = [x for x in tensors(sample) if x.requires_grad]
                    if outs and ins and all(x.layout is torch.strided for x in outs):
                        seeds = [torch.randn_like(x) for x in outs]
                        attempt(lambda o=outs, i=ins, g=seeds: torch.autograd.grad(o, i, g, allow_unused=True))


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.slow, id="whole")])
@pytest.mark.timeout(900)
def test_ops_that_keep_values_make_none_and_nothing_writes_unmarked(
    count: int, record_property: Callable[[str, object], None]
) -> None:
    watch = Watch()
    run_all(watch, count)
    record_property("count", f"ops that keep values, seen: {len(watch.kept)}")
    assert len(watch.kept) > 100
    assert not watch.invented
    assert not watch.wrote


def test_the_watch_sees_an_invented_value_and_an_unmarked_write() -> None:
    """The scan above fails when it should: two rules are bent, and it says so."""
    bent = {"aten.sin.default": Rule(Kind.KEEP), "aten.native_batch_norm.default": Rule(Kind.ROUND)}
    watch = Watch(lambda f: bent.get(str(f)) or rule_for(f))
    with watch:
        torch.randn(3).sin()
        mean, var = torch.zeros(3), torch.ones(3)
        torch.native_batch_norm(torch.randn(4, 3), None, None, mean, var, True, 0.1, 1e-5)
    assert watch.invented == {"aten.sin.default"}
    assert watch.wrote == {"aten.native_batch_norm.default"}


def test_every_operator_between_processes_gets_a_decision() -> None:
    """By torch.distributed's documentation: which of them write into a tensor that they are given."""
    write = """allreduce_ allreduce_coalesced_ broadcast_ reduce_ gather_ scatter_ alltoall_ alltoall_base_ allgather_
        allgather_coalesced_ allgather_into_tensor_coalesced_ _allgather_base_ reduce_scatter_ _reduce_scatter_base_
        reduce_scatter_tensor_coalesced_""".split()
    kinds = dict.fromkeys(write, Kind.COLLECT) | dict.fromkeys(("recv_", "recv_any_source_"), Kind.REFUSE)
    kinds |= dict.fromkeys(("send", "barrier", "monitored_barrier_", "check_for_nan"), Kind.ROUND)
    names = {name.removeprefix("c10d::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("c10d::")}
    assert names and names <= kinds.keys()
    for name in names:
        rule = rule_for(getattr(torch.ops.c10d, name).default)
        assert rule.kind is kinds[name] and (rule.writes == (0,)) == (rule.kind is Kind.COLLECT), name


# Results that torch's own derivatives save, by the formulas of the ops.
SAVED: dict[str, tuple[Callable[[Callable[[Tensor], Any]], Any], int]] = {
    "_weight_norm_interface": (
        lambda low: aten._weight_norm_interface(low(torch.randn(3, 7)), low(torch.ones(3, 1)), 0),
        1,
    ),
    "nll_loss2d_forward": (
        lambda low: aten.nll_loss2d_forward(low(torch.randn(2, 4, 5, 7)), torch.zeros(2, 5, 7).long(), None, 1, -100),
        1,
    ),
    "nll_loss_forward": (
        lambda low: aten.nll_loss_forward(low(torch.randn(77, 4)), torch.zeros(77).long(), None, 1, -100),
        1,
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_an_op_saves_for_its_gradient_is_plain_and_exact(name: str) -> None:
    call, place = SAVED[name]
    torch.manual_seed(0)
    low = call(lambda x: x.to_lp(FloatingPoint(8)))
    torch.manual_seed(0)
    plain = call(lambda x: x.to_lp(FloatingPoint(8)).dequantize())
    assert type(low[place]) is Tensor and torch.equal(low[place], plain[place])


# Ops of a user's, two of them with names of aten's that select values.
MINE = torch.library.Library("lptensor_test_rules", "DEF")
MINE.define("clamp(Tensor x) -> Tensor")
MINE.define("clamp_(Tensor(a!) x) -> Tensor(a!)")
MINE.define("copy_(Tensor(a!) x) -> Tensor(a!)")
MINE.define("topk(Tensor x) -> (Tensor, Tensor)")
MINE.define("total(Tensor x) -> Tensor")
MINE.define("composite(Tensor x) -> Tensor")
MINE.define("product(Tensor a, Tensor b) -> Tensor")
MINE.impl("clamp", lambda x: x / 3, "CompositeExplicitAutograd")
MINE.impl("clamp_", lambda x: x.div_(3), "CompositeExplicitAutograd")
MINE.impl("copy_", lambda x: x.div_(3), "CompositeExplicitAutograd")
MINE.impl("topk", lambda x: (x / 3, x.argsort()), "CompositeExplicitAutograd")
MINE.impl("total", lambda x: x.sum(), "CompositeExplicitAutograd")
MINE.impl("composite", lambda x: x.sum())
MINE.impl("product", lambda a, b: a @ b, "CompositeExplicitAutograd")
mine = torch.ops.lptensor_test_rules


def in_e4m3(x: Tensor) -> Tensor:
    """Rounded by ml_dtypes."""
    return torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("op", [mine.clamp, mine.clamp_, mine.copy_, lambda x: mine.topk(x)[0]])
def test_an_op_of_ones_own_rounds_whatever_its_name(op: Callable[[Tensor], Tensor]) -> None:
    x = lptensor.round(torch.randn(1000), E4M3)
    thirds = op(x.to_lp(E4M3))  # type: ignore[attr-defined]
    assert torch.equal(thirds.dequantize(), in_e4m3(x / 3))
    assert not torch.equal(in_e4m3(x / 3), x / 3)


def test_an_op_of_ones_own_takes_no_part_in_accumulators_and_operand_formats() -> None:
    few = Arithmetic(E4M3, accumulator=Accumulator(FloatingPoint(4, 2)), operands=Gemm(FloatingPoint(3, 1)))
    x = lptensor.round(torch.rand(100), E4M3)
    low = x.to_lp(few)  # type: ignore[attr-defined]
    total, product = mine.total(low).dequantize(), mine.product(low, low).dequantize()
    assert torch.equal(total, in_e4m3(x.sum())) and total != low.sum()
    assert torch.equal(product, in_e4m3(x @ x)) and product != low @ low
    assert mine.composite(low) == low.sum()  # which is taken apart
