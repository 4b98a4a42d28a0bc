"""Every way autograd runs, against the contract on plain tensors, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from low import is_low, same, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, convert
from op_samples import bits
from oracles.aten_reference import AtenReference, by_cast
from twins import saturating

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

BOTH = Arithmetic(BF16, backward=E5M2)


def block(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """Every kind of use: twice the same value, a norm, products, an in-place write, a view."""
    y = F.layer_norm(F.gelu(x @ w), (8,))
    y[:, :4].mul_(0.3)
    y = torch.softmax(y @ v + x, -1)
    return y * x.sigmoid() + y.roll(1, 0)


def operands() -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(5, 8), torch.randn(8, 8), torch.randn(8, 8)]


Work = Callable[..., Any]


def compare(work: Work, arithmetic: Arithmetic = BOTH) -> list[Any]:
    """Run ``work`` on leaves in low precision and on the reference's; all it returns must have the same bits.

    ``work`` gets the leaves, and a function that computes gradients by a function of its own.
    """
    backward = by_cast(torch.float8_e5m2) if arithmetic.backward is not None else by_cast(torch.bfloat16)
    reference = AtenReference(by_cast(torch.bfloat16), backward)
    given = operands()
    ours = [x.to_lp(arithmetic).requires_grad_() for x in given]  # type: ignore[attr-defined]
    theirs = [reference.low(x).requires_grad_() for x in given]
    torch.manual_seed(0)
    mine = work(ours, lambda f: f())

    def within(f: Callable[[], Any]) -> Any:
        with reference.gradients():
            return f()

    torch.manual_seed(0)
    with reference:
        other = work(theirs, within)
    assert len(mine) == len(other) > 0
    for a, b in zip(mine, other, strict=True):
        assert isinstance(a, LPTensor) and reference.is_low(b)
        assert torch.equal(bits(values(a)), bits(b.detach()))
    return list(mine)


def seeded(y: Tensor) -> Tensor:
    """The same seed for both: ones, which every format has."""
    return torch.ones_like(y)


# -- backward, whichever way --------------------------------------------------------------------------


def plain_backward(leaves: list[Tensor], gradients: Work) -> list[Any]:
    y = block(*leaves)
    seed = seeded(y)
    gradients(lambda: y.backward(seed))
    return [y, *(x.grad for x in leaves)]


def by_grad(leaves: list[Tensor], gradients: Work) -> list[Any]:
    y = block(*leaves)
    seed = seeded(y)
    return [y, *gradients(lambda: torch.autograd.grad(y, leaves, seed))]


def accumulated(leaves: list[Tensor], gradients: Work) -> list[Any]:
    y = block(*leaves)
    seed = seeded(y)
    gradients(lambda: y.backward(seed, retain_graph=True))
    gradients(lambda: y.backward(seed))
    return [x.grad for x in leaves]


def under_checkpoint(reentrant: bool) -> Work:
    def work(leaves: list[Tensor], gradients: Work) -> list[Any]:
        y = checkpoint(block, *leaves, use_reentrant=reentrant)
        seed = seeded(y)
        gradients(lambda: y.backward(seed))
        return [y, *(x.grad for x in leaves)]

    return work


def offloaded(leaves: list[Tensor], gradients: Work) -> list[Any]:
    with save_on_cpu():
        y = block(*leaves)
    seed = seeded(y)
    gradients(lambda: y.backward(seed))
    return [y, *(x.grad for x in leaves)]


def packed(leaves: list[Tensor], gradients: Work) -> list[Any]:
    with saved_tensors_hooks(lambda t: [t.detach()], lambda box: box[0]):
        y = block(*leaves)
    seed = seeded(y)
    gradients(lambda: y.backward(seed))
    return [y, *(x.grad for x in leaves)]


@pytest.mark.parametrize("work", [plain_backward, by_grad, accumulated, offloaded, packed], ids=lambda w: w.__name__)
@pytest.mark.parametrize("arithmetic", [BOTH, Arithmetic(BF16)], ids=["two formats", "one"])
def test_gradients_have_the_bits_of_the_reference(work: Work, arithmetic: Arithmetic) -> None:
    for x in compare(work, arithmetic)[-3:]:
        assert is_low(x, arithmetic.gradient_format)  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_has_the_bits_of_the_reference_without_one(reentrant: bool) -> None:
    """The reference needs no checkpoint, which in it would recompute as backward work."""
    want = compare(plain_backward)
    leaves = [x.to_lp(BOTH).requires_grad_() for x in operands()]  # type: ignore[attr-defined]
    got = under_checkpoint(reentrant)(leaves, lambda f: f())
    assert all(same(a, b) and a.format == b.format for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_in_checkpoints_and_in_sequence_change_no_bit(reentrant: bool) -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(4)]
    model = convert(nn.Sequential(*parts), BOTH)
    results = []
    for how in ("plain", "sequence", "nested"):
        model.zero_grad()
        x = operands()[0].to_lp(BOTH).requires_grad_()  # type: ignore[attr-defined]
        if how == "plain":
            y = model(x)
        elif how == "sequence":
            y = checkpoint_sequential(model, 2, x, use_reentrant=reentrant)
        else:
            inner = lambda x: model[1](checkpoint(model[0], x, use_reentrant=reentrant))  # noqa: E731
            y = model[3](model[2](checkpoint(inner, x, use_reentrant=reentrant)))
        y.sum().backward()
        results.append([y, x.grad, *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        assert all(same(a, b) and a.format == b.format for a, b in zip(results[0], other, strict=True))


# -- hooks ------------------------------------------------------------------------------------------------


def with_tensor_hooks(leaves: list[Tensor], gradients: Work) -> list[Any]:
    x, w, v = leaves
    y = x @ w
    y.register_hook(lambda g: g * 0.3)
    w.register_hook(lambda g: g + 0.1)
    z = y.sin() @ v
    seed = seeded(z)
    gradients(lambda: z.backward(seed))
    return [z, *(t.grad for t in leaves)]


class Layer(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).tanh()


def with_module_hooks(leaves: list[Tensor], gradients: Work) -> list[Any]:
    x, w, v = leaves
    first, second, seen = Layer(), Layer(), []
    first.register_forward_hook(lambda m, args, out: out * 1.7)
    first.register_forward_pre_hook(lambda m, args: (args[0] * 0.7, args[1]))
    second.register_full_backward_pre_hook(lambda m, out: (out[0] * 0.3,))
    first.register_full_backward_hook(lambda m, given, out: (given[0] * 1.3, given[1]))
    second.register_full_backward_hook(lambda m, given, out: seen.extend((*given, *out)))
    y = second(first(x, w), v)
    seed = seeded(y)
    gradients(lambda: y.backward(seed))
    return [y, *(t.grad for t in leaves), *seen]


def with_hooks_on_nodes(leaves: list[Tensor], gradients: Work) -> list[Any]:
    seen: list[Any] = []
    y = block(*leaves)
    y.grad_fn.register_hook(lambda given, out: seen.extend((*(g for g in given if g is not None), *out)))  # type: ignore[union-attr]
    seed = seeded(y)
    gradients(lambda: y.backward(seed))
    return [*(x.grad for x in leaves), *seen]


@pytest.mark.parametrize("work", [with_tensor_hooks, with_module_hooks, with_hooks_on_nodes], ids=lambda w: w.__name__)
def test_hooks_see_and_change_gradients_as_the_reference_does(work: Work) -> None:
    for x in compare(work)[1:3]:  # the last may be the seed, which came from outside
        assert is_low(x, E5M2)


# -- custom functions -----------------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    """With saved tensors, a setup of its own, several results and one that has no gradient."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        return (x @ w) * factor, x.argmax(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, ctx.factor = inputs
        ctx.save_for_backward(x, w)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        g = grads[0] * ctx.factor
        return g @ w.t(), x.t() @ g, None


def with_custom_function(leaves: list[Tensor], gradients: Work) -> list[Any]:
    x, w, v = leaves
    y, best = Scaled.apply(x, w, 0.3)
    assert best.dtype == torch.int64
    z = y.sin() @ v
    seed = seeded(z)
    gradients(lambda: z.backward(seed))
    return [z, *(t.grad for t in leaves)]


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(0.3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 0.3


def with_in_place_function(leaves: list[Tensor], gradients: Work) -> list[Any]:
    x, w, _ = leaves
    y: Any = x @ w
    z = InPlace.apply(y) * 1.7
    seed = seeded(z)
    gradients(lambda: z.backward(seed))
    return [z, x.grad, w.grad]


@pytest.mark.parametrize("work", [with_custom_function, with_in_place_function], ids=lambda w: w.__name__)
def test_custom_functions_round_as_the_reference_does(work: Work) -> None:
    compare(work)


# -- gradients of gradients -----------------------------------------------------------------------------


def twice(leaves: list[Tensor], gradients: Work) -> list[Any]:
    """A penalty on a gradient: what computes the first gradient is differentiated itself."""
    y = block(*leaves)
    first = torch.autograd.grad(y, leaves, seeded(y), create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    assert isinstance(penalty, Tensor)
    second = torch.autograd.grad(penalty, leaves, torch.ones_like(penalty))
    return [*first, penalty, *second]


def thrice(leaves: list[Tensor], gradients: Work) -> list[Any]:
    x, *_ = leaves
    y, found = x.sin() * x, []
    for _ in range(3):
        (y,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        found.append(y)
    return found


def retained(leaves: list[Tensor], gradients: Work) -> list[Any]:
    y = block(*leaves)
    y.backward(seeded(y), create_graph=True)
    found = [x.grad.clone() for x in leaves if x.grad is not None]
    for x in leaves:
        x.grad = None
    return found


@pytest.mark.parametrize("work", [twice, thrice], ids=lambda w: w.__name__)
def test_gradients_of_gradients_have_the_bits_of_the_reference(work: Work) -> None:
    for x in compare(work, Arithmetic(BF16)):
        assert is_low(x, BF16)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_backward_with_create_graph_has_the_bits_of_the_reference() -> None:
    compare(retained, Arithmetic(BF16))


def test_a_gradient_that_is_differentiated_is_a_gradient() -> None:
    """It rounds to the backward format once; so does its own gradient."""
    x = torch.randn(20).to_lp(BOTH).requires_grad_()  # type: ignore[attr-defined]
    (first,) = torch.autograd.grad(x.sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert is_low(first, E5M2) and is_low(second, E5M2)
    want = values(x).detach().cos().to(torch.float8_e5m2).float()
    assert same(first, want)


# -- saved tensors ---------------------------------------------------------------------------------------


def test_saved_tensors_can_be_packed_as_codes() -> None:
    """What backward needs may be kept in as many bits as the format has."""
    import lptensor

    arithmetic = Arithmetic(E4M3, backward=E5M2)

    def pack(t: Tensor) -> Any:
        if type(t) is LPTensor and not t.requires_grad:
            return t.arithmetic, lptensor.encode(t.dequantize(), E4M3)
        return t

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, tuple):
            assert kept[1].dtype == torch.uint8
            return lptensor.decode(kept[1], E4M3).to_lp(kept[0])  # type: ignore[attr-defined, no-any-return]
        return kept  # type: ignore[no-any-return]

    results = []
    for hooks in (True, False):
        x, w, v = (t.to_lp(arithmetic).requires_grad_() for t in operands())  # type: ignore[attr-defined]
        with saved_tensors_hooks(pack if hooks else lambda t: t, unpack if hooks else lambda t: t):
            y = block(x, w, v)
        y.sum().backward()
        results.append([y, x.grad, w.grad, v.grad])
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    assert same(results[0][0], saturating(values(results[0][0])))


def test_inference_and_no_grad_give_the_bits_of_a_graph() -> None:
    leaves = [x.to_lp(BOTH).requires_grad_() for x in operands()]  # type: ignore[attr-defined]
    want = block(*leaves)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert same(block(*(x.clone() for x in leaves)), want)
