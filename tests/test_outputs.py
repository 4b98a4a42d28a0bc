"""Outputs that lower rounds where they lie, or need not round: the bits, gradients and random words of copies."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allocations import peak
from lptensor import (
    E4M3,
    E5M2,
    FP16,
    MX,
    Accumulator,
    FixedPoint,
    FloatingPoint,
    Format,
    lower,
    matmul,
    round as lp_round,
)
from lptensor.lower import RoundOutput
from lptensor.observe import Observer, observing
from lptensor.quantizer import quantizer

NO_ZERO = FloatingPoint(4, 3, specials="fn", subnormals=False, zero=False)  # what ReLU makes zero becomes NaN


class Aside(nn.Module):
    """Adds what a layer makes of its input to that, so that both ways bring a gradient."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * 0.75 + self.layer(x)
        return result


def images() -> nn.Sequential:
    around = [nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1)]
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *around),
        *(nn.ConvTranspose2d(8, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(True), nn.Conv2d(4, 4, 1), nn.Dropout(0.3)),
        *(Aside(nn.Dropout(0.0)), Aside(nn.ReLU()), Aside(nn.Dropout(0.5)), nn.Flatten(), nn.Linear(784, 5)),
    )


def words() -> nn.Sequential:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Embedding(11, 16), nn.LayerNorm(16), nn.Dropout(0.0), layer, nn.Linear(16, 5))


class Fork(nn.Module):
    """A norm whose output goes two ways, of which one is a ReLU: its gradients add up, in either order."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.norm, self.bend, self.first = nn.LayerNorm(6), nn.ReLU(), first

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        parts = (self.bend(y), y * 0.7) if self.first else (y * 0.7, self.bend(y))
        return parts[0] - parts[1]


def forks() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), *(Fork(first) for first in (True, False)), nn.LayerNorm(6), nn.ReLU())


def volumes() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.MaxPool3d(2), nn.ConvTranspose3d(2, 1, 2), nn.ReLU())


def lines() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(3, 2), nn.ConvTranspose1d(4, 2, 3)
    )


def bends() -> nn.Sequential:
    """Activations, also those that work in place, behind a norm, and behind sums."""
    new = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU()]
    new += [nn.PReLU(6), nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.LogSigmoid(), nn.Dropout(0.2), nn.ReLU()]
    written = [nn.SiLU(True), nn.Mish(True), nn.Hardswish(True), nn.Hardtanh(inplace=True), nn.ReLU6(True)]
    written += [nn.LeakyReLU(inplace=True), nn.ELU(inplace=True), nn.SELU(True), nn.CELU(inplace=True)]
    layers = [part for bend in [*new, *written, nn.Dropout(0.2, True)] for part in (bend, nn.LayerNorm(6))]
    return nn.Sequential(
        nn.Linear(5, 6), *layers, *(Aside(bend) for bend in new), nn.Tanh(), nn.Sigmoid(), nn.Softmax(1)
    )


def pools() -> nn.Sequential:
    """Means and maxima of what is in no format, behind sums."""
    lines = (nn.AvgPool1d(1), nn.MaxPool1d(1), nn.AdaptiveAvgPool1d(9))
    planes = (nn.AvgPool2d(1), nn.MaxPool2d(1), nn.AdaptiveAvgPool2d((None, 9)), nn.ZeroPad2d(0), nn.ReflectionPad2d(0))
    asides = (*map(Aside, lines), nn.Unflatten(1, (2, 2)), *map(Aside, (*planes, nn.AdaptiveAvgPool3d((2, 2, None)))))
    return nn.Sequential(nn.LayerNorm(9), *asides, nn.AvgPool2d(2), nn.AvgPool3d((2, 1, 1)), nn.AdaptiveAvgPool2d(1))


NETS: dict[str, tuple[Callable[[], nn.Sequential], Callable[[], Tensor]]] = {
    "images": (images, lambda: torch.randn(2, 3, 14, 14)),
    "words": (words, lambda: torch.randint(0, 11, (3, 7))),
    "forks": (forks, lambda: torch.randn(7, 5)),
    "volumes": (volumes, lambda: torch.randn(2, 1, 7, 7, 7)),
    "lines": (lines, lambda: torch.randn(2, 2, 20)),
    "bends": (bends, lambda: torch.randn(7, 5)),
    "pools": (pools, lambda: torch.randn(2, 4, 9)),
}


class Counting(Observer):
    active = True
    roundings = 0

    def rounded(self, *_: object) -> None:
        self.roundings += 1


def watched(net: nn.Sequential) -> nn.Sequential:
    """The same network, of which all outputs are rounded as copies, because another hook sees them."""
    for module in net.modules():
        module.register_forward_hook(lambda module, args, output: None)
    return net


def trained(net: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    y = net(x)
    (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), torch.rand(3), *(p.grad for p in net.parameters() if p.grad is not None)]


def lowered(make: Callable[[], nn.Sequential], *how: object, layers: str = "all") -> nn.Sequential:
    torch.manual_seed(0)
    return lower(make(), layers, *how)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, FixedPoint(8, 5), MX(E4M3), NO_ZERO, None], ids=repr)
@pytest.mark.parametrize("name", NETS)
def test_a_step_has_the_bits_and_random_words_of_copies(name: str, format: Format | None, rounding: str) -> None:
    make, inputs = NETS[name]
    how = (format, E5M2, rounding, rounding)
    x = inputs()
    pairs = zip(trained(lowered(make, *how), x), trained(watched(lowered(make, *how)), x), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("format", [E4M3, MX(E4M3)], ids=repr)
def test_channels_last_has_the_bits_of_copies(format: Format) -> None:
    x, how = torch.randn(2, 3, 14, 14).to(memory_format=torch.channels_last), (format, E5M2)
    for got, wanted in zip(trained(lowered(images, *how), x), trained(watched(lowered(images, *how)), x), strict=True):
        assert torch.equal(got, wanted)


def test_layers_of_a_chain_are_rounded_without_a_copy() -> None:
    """Of norm and ReLU the outputs are saved for the backward pass, once each, as in the plain network."""

    def chain() -> nn.Sequential:
        return nn.Sequential(
            *(m for _ in range(4) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
        )

    x = torch.randn(4, 8, 32, 32)
    plain, low = (peak(lambda net=net: net(x)) for net in (chain(), lowered(chain, E4M3, E5M2)))
    assert low < plain * 1.01


ALONE = (
    nn.Conv2d(8, 8, 1),
    nn.BatchNorm2d(8),
    nn.GELU(),
    nn.SiLU(),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.ELU(),
    nn.Softplus(),
)
ALONE += (nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.ZeroPad2d(1), nn.Dropout(0.1))


@pytest.mark.parametrize("layer", ALONE, ids=repr)
def test_a_layer_whose_output_is_new_takes_no_more_memory(layer: nn.Module) -> None:
    x = torch.randn(4, 8, 32, 32)
    plain, low = (peak(lambda net=net: net(x)) for net in (layer, lower(deepcopy(layer), "all", E4M3, E5M2)))
    assert low < plain + 1000


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_outputs_lie_in_the_format_in_every_mode(mode: Callable[[], torch.no_grad]) -> None:
    x = torch.randn(2, 3, 14, 14)
    with mode():
        for layer in lowered(images, E4M3, E5M2, "nearest"):
            x = layer(x)
            assert isinstance(layer, Aside | nn.Flatten) or torch.equal(x, lp_round(x, E4M3))


def test_what_a_person_changes_between_two_layers_is_rounded_again() -> None:
    norm, bend = nn.BatchNorm1d(6), nn.ReLU()
    lower(nn.Sequential(norm, bend), "all", E4M3, E5M2, "nearest", "nearest")
    x = norm(torch.randn(9, 6))
    assert torch.equal(bend(x), lp_round(x, E4M3).relu())
    x = norm(torch.randn(9, 6))
    with torch.no_grad():
        x.mul_(1.03)
    y = bend(x)
    assert torch.equal(y, lp_round(x.relu(), E4M3)) and not torch.equal(y, x.relu())


def test_layers_of_two_formats_do_not_take_each_others_values_for_theirs() -> None:
    net = nn.Sequential(nn.LayerNorm(32), nn.ReLU())
    lower(net, "normalization", E5M2, None, "nearest"), lower(net, "activation", FixedPoint(4, 3), None, "nearest")
    y = net(torch.randn(8, 32))
    assert torch.equal(y, lp_round(y, FixedPoint(4, 3))) and y.max() > 0


def test_outputs_that_someone_else_has_stay_what_they_were() -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kept.append(nn.functional.linear(x, weight, bias))
        return kept[-1]

    x = torch.randn(5, 4)
    for how in ("hook", "global hook", "forward of the layer", "forward of the class"):
        layer = nn.Linear(4, 4)
        exact = layer(x)
        undo: Callable[[], object] = lambda: None  # noqa: E731
        if how == "hook":
            layer.register_forward_hook(lambda module, args, output: kept.append(output))
        elif how == "global hook":
            undo = nn.modules.module.register_module_forward_hook(
                lambda module, args, output: kept.append(output)
            ).remove
        elif how == "forward of the layer":
            layer.forward = lambda x, layer=layer: keep(x, layer.weight, layer.bias)  # type: ignore[method-assign]
        else:
            before, nn.Linear.forward = nn.Linear.forward, lambda self, x: keep(x, self.weight, self.bias)
            undo = partial(setattr, nn.Linear, "forward", before)
        try:
            y = lower(layer, "linear", E4M3, E5M2, "nearest")(x)
        finally:
            undo()
        assert torch.equal(kept[-1], exact) and torch.equal(y, lp_round(exact, E4M3)), how


def test_the_graph_of_a_layer_whose_output_is_a_view_stays_what_it_is() -> None:
    """Of rows of rows a linear layer returns a view: one that autograd thinks written to costs its backward a copy."""
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 3, 4)
    node = layer(x).grad_fn
    assert type(lower(layer, "linear", E4M3, E5M2)(x).grad_fn) is type(node)


def test_whoever_looks_on_sees_every_rounding() -> None:
    counts = []
    for watch in (lambda net: net, watched):
        net = watch(lowered(lines, E4M3, E5M2, "nearest", "nearest"))
        seen, later = Counting(), Counting()
        with observing(seen):
            net(torch.randn(2, 2, 20)).sum().backward()
        y = net(torch.randn(2, 2, 20)).sum()
        with observing(later):
            y.backward()
        counts += [seen.roundings, 2 * later.roundings]
    assert counts == [2 * len(net)] * 4


@pytest.mark.filterwarnings("ignore:.torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_a_graph_that_torch_traces_holds_the_roundings() -> None:
    net = lowered(lines, E4M3, E5M2, "nearest")
    rows = torch.randn(3, 2, 20)
    graph = torch.jit.trace(net, rows, check_trace=False).inlined_graph
    assert str(graph).count("_Rounded") == len(net)


def test_a_gradient_that_counts_limits_needs_a_copy() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(9, 4) * 500
    quantize = quantizer(E4M3, None, "nearest", clamping_grad_zero=True)
    expected = torch.autograd.grad(quantize(layer(x)).sum(), layer.bias)[0]
    layer.register_forward_hook(RoundOutput(quantize))
    assert torch.equal(torch.autograd.grad(layer(x).sum(), layer.bias)[0], expected) and (expected < 9).any()


def test_functions_of_gradients_are_called_for_every_layer() -> None:
    seen: list[Tensor] = []
    quantize = quantizer(E4M3, E5M2, "nearest", "nearest", backward_hooks=[lambda grad: seen.append(grad) or grad * 3])
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for layer in net:
        layer.register_forward_hook(RoundOutput(quantize))
    net(torch.randn(3, 4)).sum().backward()
    assert [grad.max().item() for grad in seen] == [1.0, 3.0]


def test_what_a_node_of_the_graph_is_made_to_hand_on_is_rounded() -> None:
    """A person's own hook on the node of a ReLU changes the gradient after it was rounded."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    lower(net, "all", E4M3, E5M2, "nearest", "nearest")
    x, grad = torch.randn(3, 4), torch.linspace(0.1, 1.3, 12).view(3, 4)
    y = net(x)
    y.grad_fn.register_prehook(lambda grads: (grads[0] * 1.1,))
    y.backward(grad)
    expected = lp_round(lp_round(grad, E5M2) * 1.1 * (y > 0), E5M2).sum(0)
    assert torch.equal(net[0].bias.grad, expected)


def test_hooks_on_an_output_see_its_gradient_before_it_is_rounded() -> None:
    seen: list[Tensor] = []
    for watch in (lambda net: net, watched):
        net = watch(lowered(lambda: nn.Sequential(nn.Linear(4, 4)), None, E5M2, "nearest", "nearest"))
        y = net(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
        y.retain_grad()
        y.register_hook(seen.append)
        grad = torch.linspace(0.1, 1.3, 12).view(3, 4)
        y.backward(grad)
        assert torch.equal(y.grad, grad) and torch.equal(seen[-1], grad)
        assert torch.equal(net[0].bias.grad, lp_round(grad, E5M2).sum(0))


def test_a_checkpoint_that_begins_between_two_layers_draws_the_same_words_again() -> None:
    x, grads = torch.randn(6, 5), []
    for through in (lambda net, x: net(x), partial(checkpoint, use_reentrant=False)):
        net = lowered(lambda: nn.Sequential(nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 5), nn.LayerNorm(5)), E4M3, E5M2)
        torch.manual_seed(3)
        y = through(net[1:], net[0](x))
        torch.manual_seed(4)
        grads.append(torch.autograd.grad(y.pow(2).sum(), net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_transformations_of_torch_func_go_by_copies() -> None:
    net, x = (
        lowered(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), E4M3, E5M2, "nearest", "nearest"),
        torch.randn(3, 4),
    )
    assert torch.equal(torch.func.vmap(net)(x), net(x))
    tangent = torch.randn(3, 4)
    y, moved = torch.func.jvp(net, (x,), (tangent,))
    assert torch.equal(y, net(x)) and torch.equal(moved, (tangent @ net[0].weight.mT) * (net[0](x) > 0))
    expected = torch.autograd.grad(net(x.requires_grad_()).sum(), x)[0]
    assert torch.equal(torch.func.grad(lambda x: net(x).sum())(x.detach()), expected)


def test_second_derivatives_are_those_of_copies() -> None:
    results = []
    for watch in (lambda net: net, watched):
        net = watch(lowered(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), E4M3, E5M2, "nearest"))
        x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
        torch.manual_seed(5)
        (first,) = torch.autograd.grad(net(x).pow(2).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), net[0].weight)[0])
    assert torch.equal(*results) and results[0].abs().sum() > 0


def test_sums_in_a_format_of_their_own_are_rounded_too() -> None:
    net = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU())
    lower(net, "all", E4M3, E5M2, "nearest", "nearest", accumulator=Accumulator(FP16))
    x = torch.randn(3, 8)
    products = matmul(x, net[0].weight.mT, accumulator=Accumulator(FP16))
    assert torch.equal(net(x), lp_round(products, E4M3).relu())
