"""What PyTorch does with whole modules and their parameters: initialisers, vectors of parameters, fusion, tracing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from low import is_low, rounded, same, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, Gemm, LPTensor, convert
from op_samples import bits
from oracles.aten_reference import AtenReference
from twins import saturating

BOTH = Arithmetic(E4M3, backward=E5M2)

INITIALISERS: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda w: nn.init.uniform_(w, -0.3, 0.3),
    "normal": lambda w: nn.init.normal_(w),
    "trunc_normal": lambda w: nn.init.trunc_normal_(w),
    "constant": lambda w: nn.init.constant_(w, 0.3),
    "ones": nn.init.ones_,
    "zeros": nn.init.zeros_,
    "eye": nn.init.eye_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
    "sparse": lambda w: nn.init.sparse_(w, 0.5),
    "dirac": lambda w: nn.init.dirac_(w.unflatten(1, (2, 2))),
}


def test_every_initialiser_of_torch_is_tried() -> None:
    known = {n.removesuffix("_") for n in dir(nn.init) if n.endswith("_") and not n.startswith("_")}
    assert known == set(INITIALISERS)


@pytest.mark.parametrize("name", INITIALISERS)
def test_an_initialiser_writes_what_the_reference_writes(name: str) -> None:
    layer = convert(nn.Linear(4, 4), E4M3)
    reference = AtenReference(saturating)
    twin = reference.low(values(layer.weight))
    torch.manual_seed(1)
    with torch.no_grad():
        INITIALISERS[name](layer.weight)
    torch.manual_seed(1)
    with torch.no_grad(), reference:
        INITIALISERS[name](twin)
    assert is_low(layer.weight, E4M3) and isinstance(layer.weight, nn.Parameter)
    assert torch.equal(bits(values(layer.weight)), bits(twin))


@pytest.mark.parametrize("kind", ["plain", "low"])
def test_parameters_go_into_a_vector_and_back(kind: str) -> None:
    layer = convert(nn.Linear(3, 2), E4M3)
    vector = nn.utils.parameters_to_vector(layer.parameters())
    assert is_low(vector, E4M3) and same(vector[:6], values(layer.weight).flatten())
    new = torch.randn(8)
    ids = [id(p) for p in layer.parameters()]
    nn.utils.vector_to_parameters(new.to_lp(E4M3) if kind == "low" else new, layer.parameters())  # type: ignore[attr-defined]
    assert all(is_low(p, E4M3) and p.requires_grad for p in layer.parameters())
    assert same(layer.weight, rounded(new[:6].view(2, 3), E4M3)) and ids == [id(p) for p in layer.parameters()]


def test_a_convolution_fuses_with_its_norm() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    model[1].running_var.fill_(1.7)
    model = convert(model, BF16).eval()
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    x = torch.randn(2, 2, 6, 6).to_lp(BF16)  # type: ignore[attr-defined]
    assert is_low(fused.weight, BF16) and is_low(fused.bias, BF16)
    torch.testing.assert_close(values(fused(x)), values(model(x)), rtol=2**-6, atol=2**-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
@pytest.mark.parametrize("make", [lambda m, x: torch.jit.trace(m, (x,)), lambda m, x: torch.fx.symbolic_trace(m)])
def test_a_trace_of_a_model_rounds_alike(make: Callable[..., Any]) -> None:
    model = convert(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), BOTH)
    x = torch.randn(5, 3).to_lp(BOTH)  # type: ignore[attr-defined]
    assert same(make(model, x)(x), model(x)) and is_low(make(model, x)(x), E4M3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv1d(2, 3, 2), (2, 2, 5)),
        (nn.Conv2d(2, 4, 3, 2, padding=1, groups=2), (1, 2, 5, 5)),
        (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
        (nn.ConvTranspose2d(2, 3, 2), (1, 2, 3, 3)),
    ],
)
@pytest.mark.parametrize("operands", [None, Gemm(forward=(E5M2, E4M3), grad_weight=(E5M2, E4M3))])
def test_a_trace_has_the_convolutions(layer: nn.Module, shape: tuple[int, ...], operands: Any) -> None:
    model, x = convert(copy.deepcopy(layer), replace(BOTH, operands=operands)), torch.randn(shape)
    traced = torch.jit.trace(model, (x,))
    grads = []
    for run in (model, traced):
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert same(traced(x), model(x)) and is_low(traced(x), E4M3) and all(map(same, *grads))


def test_a_functional_call_takes_parameters_of_any_format() -> None:
    model = convert(nn.Linear(3, 2), E4M3)
    x = torch.randn(5, 3).to_lp(E4M3)  # type: ignore[attr-defined]
    given = {name: p * 1.3 for name, p in model.named_parameters()}
    got = torch.func.functional_call(model, given, (x,))
    assert same(got, nn.functional.linear(x, given["weight"], given["bias"]))
    fine = {name: p.to_lp(BF16) for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    assert is_low(torch.func.functional_call(model, fine, (x,)), BF16)


def test_an_embedding_with_a_largest_norm_writes_into_its_table() -> None:
    table = convert(nn.Embedding(5, 3, max_norm=1.0), BF16)
    with torch.no_grad():
        table.weight.mul_(9)
    before = values(table.weight).clone()
    out = table(torch.tensor([1, 2]))
    assert is_low(table.weight, BF16) and same(out, values(table.weight)[1:3])
    assert (values(table.weight)[1:3].norm(dim=-1) < 1.02).all() and same(table.weight[3:], before[3:])


def test_a_plain_parameter_beside_low_precision_gets_a_low_gradient_and_stays_plain() -> None:
    p, x = nn.Parameter(torch.randn(4)), torch.randn(4).to_lp(BOTH)  # type: ignore[attr-defined]
    (p * x * 0.3).sum().backward()
    assert is_low(p.grad, E5M2)
    before = p.detach().clone()
    torch.optim.SGD([p], lr=0.1).step()
    assert type(p) is nn.Parameter and torch.equal(p.detach(), before - 0.1 * values(p.grad))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_of_low_precision_is_refused(layout: Any) -> None:
    rows = [torch.randn(n, 2).to_lp(BF16) for n in (2, 3)]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        torch.nested.as_nested_tensor(rows, layout=layout)


def test_a_parameter_replaced_by_hand_is_used() -> None:
    """In an RNN too, which keeps a list of its weights."""
    for layer, x in ((nn.GRU(3, 3), torch.randn(4, 1, 3)), (nn.Linear(3, 3), torch.randn(4, 3))):
        convert(layer, BF16)
        name = next(iter(dict(layer.named_parameters())))
        low: Tensor = x.to_lp(BF16)  # type: ignore[attr-defined]
        first = values(layer(low)[0] if isinstance(layer, nn.GRU) else layer(low))
        setattr(layer, name, nn.Parameter(torch.zeros_like(values(getattr(layer, name))).to_lp(BF16)))  # type: ignore[attr-defined]
        assert isinstance(getattr(layer, name), LPTensor)
        assert not same(first, layer(low)[0] if isinstance(layer, nn.GRU) else layer(low))


def _by_name(name: str, *args: Any) -> Any:
    return getattr(torch.ops.higher_order, name)(*args)


def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.randn(1, 1, 16, 16).to_lp(BF16)  # type: ignore[attr-defined]
    return flex_attention(q, q, q)


FUNCTIONS_OF_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "cond": lambda x: _by_name("cond", torch.tensor(True), lambda a: (a.sin(),), lambda a: (a.cos(),), (x,)),
    "while_loop": lambda x: _by_name("while_loop", lambda a: a.sum() < 9, lambda a: (a + 1,), (x,), ()),
    "scan": lambda x: _by_name("scan", lambda a, b: (a + b, b), (x[0],), (x,), ()),
    "map": lambda x: _by_name("map_impl", lambda a: (a.sin(),), (x,), ()),
    "flex_attention": lambda x: _flex(),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_FUNCTIONS)
@pytest.mark.filterwarnings("ignore")
def test_operators_that_take_functions_are_refused_with_a_way_out(name: str) -> None:
    with pytest.raises((NotImplementedError, RuntimeError), match=r"dequantize"):
        FUNCTIONS_OF_FUNCTIONS[name](torch.randn(3).to_lp(BF16))  # type: ignore[attr-defined]
