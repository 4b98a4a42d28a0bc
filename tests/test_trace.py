"""What a trace lists, against the ops that PyTorch's own dispatch modes see."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

import lptensor
from low import same
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, Stochastic, watch
from lptensor.rounding import Rounding
from lptensor.rules import Kind
from lptensor.trace import _KINDS, Trace, _frames, trace

ROLES = Arithmetic(BF16, backward=E5M2)


class Seen(TorchDispatchMode):
    """The aten ops that get an LPTensor, as PyTorch hands them out."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(type(x) is LPTensor for x in tree_flatten((args, kwargs))[0]):
            self.ops.append(str(func).removeprefix("aten.").removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def low(*shape: int, grad: bool = False, arithmetic: Any = ROLES) -> Any:
    return torch.randn(shape).to_lp(arithmetic).requires_grad_(grad)  # type: ignore[attr-defined]


def shown(t: Trace) -> list[tuple[str, str, int]]:
    return [(row.op, row.kind, len(row.rounded)) for row in t]


def mlp(x: Any, w: Any) -> Any:
    return F.relu(F.linear(x, w)).square().sum().backward()


def views(x: Any, w: Any) -> Any:
    return torch.cat([x.t()[1:], w.view(-1)[:4].reshape(2, 2)]).contiguous().softmax(0)


def in_place(x: Any, w: Any) -> Any:
    y = x.detach().clone()
    y.mul_(3).t_().add_(1)
    y[0] = 0.3
    return torch.add(y, y, out=y)


def attention(x: Any, w: Any) -> Any:
    q = w.expand(2, 1, 3, 2)
    return F.layer_norm(F.scaled_dot_product_attention(q, q, q), (2,)).amax().backward()


FUNCTIONS = {f.__name__: f for f in (mlp, views, in_place, attention)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trace_lists_the_ops_that_a_dispatch_mode_sees(name: str) -> None:
    def operands() -> tuple[Any, Any]:
        torch.manual_seed(1)
        return low(2, 2, grad=True), low(3, 2, grad=True)

    args = operands()
    with Seen() as seen:
        FUNCTIONS[name](*args)
    args = operands()
    with trace() as t:
        FUNCTIONS[name](*args)
    assert [row.op for row in t] == seen.ops
    assert len(seen.ops) > 5


def test_each_row_says_what_the_contract_says_of_its_op() -> None:
    x, y = low(2, 3), low(2, 3)
    with trace() as t:
        z = x * y
        z.view(3, 2)
        z.clamp(min=0)
        z.clamp(min=0.1)
        torch.cat([x, y])
        torch.sort(z)
        z.add_(1)
        z.copy_(x)
        z.gt(0)
        z.unsqueeze_(0)
        z.double()
    assert shown(t) == [
        ("mul.Tensor", "rounded", 1),
        ("view", "viewed", 0),
        ("clamp", "kept", 0),
        ("clamp", "rounded", 1),  # 0.1 need not be on the grid
        ("cat", "kept", 0),
        ("sort", "kept", 0),
        ("add_.Tensor", "written", 1),
        ("copy_", "written", 0),
        ("gt.Scalar", "computed", 0),
        ("unsqueeze_", "reshaped", 0),
        ("_to_copy", "kept", 0),
    ]
    assert [row.shape for row in t][:3] == [(2, 3), (3, 2), (2, 3)]
    assert not any(row.backward for row in t)


def test_gradients_are_backward_rows_in_the_backward_format() -> None:
    x, w = low(2, 3, grad=True), low(4, 3, grad=True)
    with trace() as t:
        y = F.linear(x, w).tanh()
        y.backward(torch.ones(2, 4).to_lp(E5M2))  # type: ignore[attr-defined]
    rows = [row for row in t if row.rounded]
    assert [(row.op, row.backward) for row in rows] == [
        ("mm", False),
        ("tanh", False),
        ("to_lp", False),
        ("tanh_backward", True),
        ("mm", True),
        ("mm", True),
    ]
    assert {(row.backward, r.format) for row in rows for r in row.rounded if row.op != "to_lp"} == {
        (False, BF16),
        (True, E5M2),
    }
    assert t.count() == {"mm": 3, "tanh": 1, "to_lp": 1, "tanh_backward": 1}
    assert t.count(backward=True) == {"mm": 2, "tanh_backward": 1}
    assert t.count(backward=False).total() + t.count(backward=True).total() == t.count().total() == 6


def test_a_gradient_that_a_function_lets_through_is_not_rounded_again() -> None:
    x = (16 * torch.rand(40) - 8).to_lp(E4M3, grad=E5M2).requires_grad_()
    for function in (F.relu, F.relu6, F.hardtanh, F.softshrink, F.hardshrink, lambda x: F.threshold(x, 1.0, 2.0)):
        seed = torch.rand(40).to_lp(E5M2).dequantize()
        y = function(x)
        with lptensor.trace() as t:
            (grad,) = torch.autograd.grad(y, x, seed)
        assert [row.kind for row in t if row.op.endswith("_backward")] == ["kept"], t
        inner = x.detach().dequantize().requires_grad_()
        (expected,) = torch.autograd.grad(function(inner), inner, seed)
        assert same(grad, expected) and grad.format == E5M2


def test_the_boundaries_are_listed() -> None:
    x = torch.ones(2, requires_grad=True)
    with trace() as t:
        y = x.to_lp(Arithmetic(BF16, backward=E5M2, rounding=Stochastic(8)))  # type: ignore[attr-defined]
        y.dequantize().sum().backward()
    rows = [row for row in t if row.rounded]
    assert [(row.op, row.backward, str(row.rounded[0])) for row in rows] == [
        ("to_lp", False, f"BF16 {Stochastic(8)!r}"),
        ("dequantize", True, f"E5M2 {Stochastic(8)!r}"),
    ]


def test_several_results_round_several_times() -> None:
    x = low(2, 3)
    with trace() as t:
        torch._foreach_add([x, x], 1.0)
        torch.var_mean(x)
    assert shown(t) == [("_foreach_add.Scalar", "rounded", 2), ("var_mean.correction", "rounded", 2)]


def test_arithmetic_without_a_format_rounds_nothing() -> None:
    x = torch.ones(2).to_lp(Arithmetic())  # type: ignore[attr-defined]
    with trace() as t:
        x + x
    assert shown(t) == [("add.Tensor", "computed", 0)]


def test_a_row_knows_its_line_and_its_module() -> None:
    net = lptensor.convert(nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"a": nn.Tanh()})["a"]), BF16)
    x = low(2, 3, arithmetic=BF16)
    with trace() as t:
        y = net(x)
        here = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
        y.sum().backward()
    where = {row.op: (row.where, row.module) for row in t if row.rounded and not row.backward}
    assert where["addmm"] == (f"{__file__}:{here}", "Sequential.0")
    assert where["tanh"] == (f"{__file__}:{here}", "Sequential.1")
    assert where["sum"] == (f"{__file__}:{here + 2}", "")
    backward = {row.op: (row.where, row.module) for row in t if row.rounded and row.backward}
    assert backward["tanh_backward"] == (f"{__file__}:{here}", "Sequential.1")  # the line of the forward op
    assert backward["mm"] == (f"{__file__}:{here}", "Sequential.0")


def test_a_gradient_of_an_older_graph_has_the_line_of_the_backward_call() -> None:
    x = low(2, 3, grad=True)
    y = x.tanh()
    with trace() as t:
        x.detach()  # runs next to the node of tanh, and is not its origin
        y.backward(torch.ones(2, 3))
        here = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    assert {row.where for row in t if row.backward} == {f"{__file__}:{here}"}


def test_what_runs_after_an_op_is_not_the_origin_of_its_gradient() -> None:
    x, seed = low(2, 3, grad=True), torch.ones(2, 3)
    with trace() as t:
        y = x.tanh()
        x.detach().exp()  # makes no node of its own
        y.backward(seed)
    forward = {row.op: row.where for row in t if not row.backward}
    assert {row.where for row in t if row.op == "tanh_backward"} == {forward["tanh"]} != {forward["exp"]}


def _two_lines(x: Tensor) -> Tensor:
    y = x.exp()
    return torch.tanh(y)


def test_a_checkpoint_recomputes_forward_rows() -> None:
    x = low(2, 3, grad=True)
    with trace() as t:
        checkpoint(_two_lines, x, use_reentrant=False).sum().backward()
    line = _two_lines.__code__.co_firstlineno + 1
    assert [row.where for row in t if row.op == "exp"] == [f"{__file__}:{line}"] * 2
    assert [row.where for row in t if row.op == "tanh"] == [f"{__file__}:{line + 1}"] * 2
    assert [row.backward for row in t if row.op == "tanh"] == [False, False]
    assert [row.backward for row in t if row.op == "tanh_backward"] == [True]


def test_inference_mode_lists_the_same_roundings() -> None:
    x, w = low(2, 5, 3).transpose(0, 1), low(4, 3)
    with torch.no_grad(), trace() as plain:
        F.softmax(F.linear(x, w), -1)
    with torch.inference_mode(), trace() as inference:
        F.softmax(F.linear(x, w), -1)
    assert inference.count() == plain.count() != {}
    assert not any(row.kind == "composite" for row in inference)


def test_traces_that_close_in_the_order_in_which_they_opened_list_what_runs_within_each() -> None:
    """As those of two tasks of asyncio do."""
    x, a, b = low(3), trace(), trace()
    first, second = a.__enter__(), b.__enter__()
    x * 2
    a.__exit__()
    x * 3
    b.__exit__()
    with trace() as last:
        x * 4
    assert [len(t) for t in (first, second, last)] == [1, 2, 1]
    gone = weakref.ref(first)
    del first
    assert gone() is None


def test_traces_nest_and_end() -> None:
    x = low(2)
    with trace() as outer:
        x.exp()
        with trace() as inner:
            x.sin()
        x.cos()
    x.tan()
    assert [row.op for row in outer] == ["exp", "sin", "cos"]
    assert [row.op for row in inner] == ["sin"]
    assert watch.watcher is None


def test_one_object_is_not_entered_within_itself() -> None:
    traced, x = trace(), low(2)
    for _ in range(2):  # but again afterwards
        with traced as t:
            with pytest.raises(RuntimeError, match="another trace"), traced:
                pass
            x.exp()
        with trace():
            x.sin()
        assert [row.op for row in t] == ["exp"] and watch.watcher is None


def test_a_trace_survives_errors() -> None:
    x, y, other = low(2), low(3), low(2, arithmetic=E4M3)
    with pytest.raises(ZeroDivisionError), trace() as t:
        with pytest.raises(RuntimeError):
            x + y
        x.exp()
        raise ZeroDivisionError
    assert [row.op for row in t] == ["exp"]
    assert watch.watcher is None
    other.exp()
    assert len(t) == 1


def test_other_threads_are_not_listed() -> None:
    x = low(2)
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.wait(10)
        x.sin()
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with trace() as t:
        begun.set()
        assert done.wait(10)
        x.cos()
    thread.join()
    assert [row.op for row in t] == ["cos"]


def test_threads_trace_each_their_own() -> None:
    """Many threads open and close traces at once; none loses a row, none sees another's."""
    x = low(2)
    ops: list[Callable[[Tensor], Tensor]] = [torch.sin, torch.cos, torch.exp, torch.tanh]
    seen: dict[str, list[list[str]]] = {op.__name__: [] for op in ops}

    def work(op: Callable[[Tensor], Tensor]) -> None:
        for _ in range(50):
            with trace() as t:
                op(x)
            op(x)
            seen[op.__name__].append([row.op for row in t])

    threads = [threading.Thread(target=work, args=(op,)) for op in ops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {op.__name__: [[op.__name__]] * 50 for op in ops}
    assert watch.watcher is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_do_not_change(name: str) -> None:
    def run() -> list[Any]:
        torch.manual_seed(1)
        x, w = low(2, 2, grad=True), low(3, 2, grad=True)
        return [FUNCTIONS[name](x, w), x.grad, w.grad]

    plain = run()
    with trace():
        traced = run()
    for a, b in zip(plain, traced, strict=True):
        assert a is b is None or same(a, b)


def test_it_prints_as_a_table() -> None:
    x = low(2, 3, arithmetic=E5M2)
    with trace() as t:
        (x + 1).t()
    head, add, transpose, total = str(t).splitlines()
    assert head.split() == ["op", "kind", "pass", "shape", "rounded", "to", "where", "module"]
    assert add.split()[:4] == ["add.Tensor", "rounded", "forward", "2x3"]
    assert add.split()[4] == "E5M2" and "test_trace.py:" in add
    assert transpose.split()[:4] == ["t", "viewed", "forward", "3x2"]
    assert total == "1 rounding in 2 ops"
    assert t.rows[0].rounded[0].rounding == Rounding()


@pytest.mark.gpu
def test_gradients_on_a_gpu_are_listed_too() -> None:
    x = torch.randn(2, 3, device="cuda").to_lp(ROLES).requires_grad_()  # type: ignore[attr-defined]
    with trace() as t:
        x.tanh().sum().backward()
    assert "tanh_backward" in t.count(backward=True)


def test_every_kind_of_op_has_a_name() -> None:
    assert set(_KINDS) == set(Kind)


def test_ops_that_fail_leave_nothing_open_and_few_are_counted_in_words() -> None:
    assert str(Trace()).splitlines()[-1] == "0 roundings in 0 ops"
    x = torch.ones(2, 3).to_lp(E4M3)
    with trace() as t:
        with pytest.raises(RuntimeError):
            x @ x
        assert _frames() == []
        x.sum()
    assert [line.split()[:4] for line in str(t).splitlines()[1:]][-2] == ["sum", "rounded", "forward", "scalar"]
    assert str(t).endswith("1 rounding in 1 op")
