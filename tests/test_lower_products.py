"""lower() with operands and accumulators: plain models whose layers form their products another way."""

from __future__ import annotations

import copy
import pickle
import threading
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from low import through_file
from lptensor import (
    BF16,
    E4M3,
    MXFP4,
    MXFP8_E4M3,
    MXFP8_E5M2,
    Arithmetic,
    FloatingPoint,
    LPTensor,
    _compat,
    convert,
    layer_products,
    lower,
    round as lp_round,
)
from lptensor.accumulator import Accumulator
from lptensor.gemm import gemm
from lptensor.operands import Gemm
from oracles import gemm_reference

OPERANDS = Gemm((MXFP8_E4M3, MXFP4), (MXFP8_E5M2, MXFP4), (MXFP8_E5M2, MXFP8_E4M3))
ACC = Accumulator(FloatingPoint(6, 9), chunk=8)


def along(x: Tensor, format: Any, axis: int) -> Tensor:
    return lp_round(x.detach().movedim(axis, -1).contiguous(), format).movedim(-1, axis)


def test_a_linear_layer_rounds_the_operands_of_its_three_products() -> None:
    layer = nn.Linear(64, 40)
    lower(layer, ["linear"], operands=OPERANDS)
    x, g = torch.randn(16, 64, requires_grad=True), torch.randn(16, 40)
    y = layer(x)
    y.backward(g)
    w = layer.weight
    assert all(type(t) is Tensor for t in (y, x.grad, w.grad)) and type(w) is nn.Parameter
    true = torch.addmm(layer.bias.detach(), along(x, MXFP8_E4M3, -1), along(w, MXFP4, -1).T)
    torch.testing.assert_close(y.detach(), true)
    torch.testing.assert_close(x.grad, along(g, MXFP8_E5M2, -1) @ along(w, MXFP4, 0))
    torch.testing.assert_close(w.grad, along(g, MXFP8_E5M2, 0).T @ along(x, MXFP8_E4M3, 0))
    torch.testing.assert_close(layer.bias.grad, g.sum(0))


def test_an_accumulator_adds_up_within_the_layer() -> None:
    layer = lower(nn.Linear(64, 40), ["linear"], accumulator=ACC)
    x, g = torch.randn(16, 64, requires_grad=True), torch.randn(16, 40)
    y = layer(x)
    y.backward(g)
    assert torch.equal(y.detach(), gemm(x, layer.weight.T, ACC, layer.bias[None]))
    assert torch.equal(x.grad, gemm(g, layer.weight, ACC))  # type: ignore[arg-type]
    # The weight's gradient is formed as the transpose of this, term by term the same sums.
    assert torch.equal(layer.weight.grad, gemm(g.T, x, ACC))  # type: ignore[arg-type]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))


def test_first_and_last_layer_are_exempt_by_path() -> None:
    model, twin = net(), net()
    twin.load_state_dict(model.state_dict())
    lower(model, ["linear"], operands=OPERANDS, exempt=["0", "4"])
    x = torch.randn(8, 32)
    assert torch.equal(model[0](x), twin[0](x)) and torch.equal(model[4](x), twin[4](x))
    assert not torch.equal(model[2](x), twin[2](x))
    with pytest.raises(ValueError, match="'head' matches no module"):
        lower(model, ["linear"], operands=OPERANDS, exempt=["head"])
    with pytest.raises(TypeError, match=r"say exempt=\['0'\]"):
        lower(model, ["linear"], operands=OPERANDS, exempt="0")
    with pytest.raises(ValueError, match=r"exempt=.* leaves no layer of linear"):
        lower(model, ["linear"], BF16, exempt=["*"])


@pytest.mark.parametrize("first", ["lowered", "converted"])
def test_a_plain_layer_of_a_converted_model_gives_its_output_back_in_the_rule_of_the_model(first: str) -> None:
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8))
    twin = lower(copy.deepcopy(model[0]), [nn.Linear], operands=OPERANDS)
    if first == "lowered":
        lower(model, [nn.Linear], operands=OPERANDS, exempt=["1"])
    convert(model, {"0": None, "": BF16})
    if first == "converted":
        lower(model, [nn.Linear], operands=OPERANDS, exempt=["1"])
    x = torch.randn(4, 32).to_lp(BF16)  # type: ignore[attr-defined]
    y = model[0](x)
    assert type(y) is LPTensor and y.format == BF16
    assert torch.equal(y.dequantize(), lp_round(twin(x.dequantize()), BF16))
    y.sum().backward()
    assert type(model[0].weight.grad) is Tensor


def test_a_layer_with_products_of_its_own_does_not_become_low_precision_and_the_way_out_works() -> None:
    model = lower(net(), ["linear"], operands=OPERANDS, exempt=["0"])
    x = torch.randn(8, 32)
    before = model(x)
    with pytest.raises(TypeError, match=r"the layer '2' .*lower\(layer, type\(layer\)\)"):
        convert(model, BF16)
    assert torch.equal(model(x), before)
    lower(model[2], type(model[2]))
    convert(model, {"4": None, "*": Arithmetic(BF16, operands=OPERANDS)})
    assert model[2].weight.arithmetic == Arithmetic(BF16, operands=OPERANDS) and type(model[4].weight) is nn.Parameter
    model(x.to_lp(BF16)).sum().backward()  # type: ignore[attr-defined]


def test_a_conversion_leaves_a_plain_layer_its_products() -> None:
    model = lower(nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8)), ["linear"], operands=OPERANDS, exempt=["1"])
    x = torch.randn(4, 32)
    expected = model[0](x)
    convert(model, {"0": None, "1": BF16})
    assert torch.equal(model[0](x), expected)


def test_exempt_holds_for_rounded_outputs_too_and_below_a_path() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4)), "head": nn.Linear(4, 4)})
    lower(model, ["linear"], BF16, forward_rounding="nearest", exempt=["body"])
    x = torch.randn(3, 4)
    y = model["head"](x)
    assert torch.equal(y, y.bfloat16().float())
    y = model["body"](x)
    assert not torch.equal(y, y.bfloat16().float())


def test_outputs_are_rounded_after_the_products_in_whatever_order_things_were_said() -> None:
    layer = nn.Linear(32, 8)
    x = torch.randn(4, 32)
    lower(layer, ["linear"], BF16, forward_rounding="nearest")
    lower(layer, ["linear"], BF16, forward_rounding="nearest", operands=OPERANDS, accumulator=ACC)
    y = layer(x)
    true = gemm(along(x, MXFP8_E4M3, -1), along(layer.weight, MXFP4, -1).T, ACC, layer.bias[None])
    assert type(y) is Tensor and torch.equal(y.detach(), true.bfloat16().float())
    lower(layer, ["linear"])
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 4, 3), lambda: (torch.randn(2, 3, 6, 6, requires_grad=True),)),
    "lstm": (lambda: nn.LSTM(6, 5), lambda: (torch.randn(3, 2, 6, requires_grad=True),)),
    "gru": (lambda: nn.GRU(6, 5, bidirectional=True), lambda: (torch.randn(3, 2, 6, requires_grad=True),)),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2),
        lambda: (lambda x: (x, x, x))(torch.randn(3, 2, 8, requires_grad=True)),
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
        lambda: (torch.randn(3, 8, requires_grad=True),),
    ),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.3),
        lambda: (torch.randn(3, 8, requires_grad=True),),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16), lambda: (torch.randn(3, 2, 8, requires_grad=True),)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_stays_plain_outside_and_gets_plain_gradients(name: str) -> None:
    layer, args = (make() for make in LAYERS[name])
    layer.eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    true = layer(*args)
    lower(layer, [type(layer)], operands=OPERANDS)
    y = layer(*args)
    true, y = (t[0] if isinstance(t, tuple) else t for t in (true, y))
    assert type(y) is Tensor and not torch.equal(y, true)
    torch.testing.assert_close(y, true, rtol=0.5, atol=0.5)
    y.sum().backward()
    assert type(args[0].grad) is Tensor
    assert all(type(p) is nn.Parameter and type(p.grad) is Tensor for p in layer.parameters())
    assert layer.state_dict().keys() == before.keys()
    assert not any(type(value) is LPTensor for part in layer.modules() for value in vars(part).values())
    again = [p.grad.clone() for p in layer.parameters()]  # type: ignore[union-attr]
    layer.zero_grad()
    out = checkpoint(layer, *args, use_reentrant=False)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    for p, grad in zip(layer.parameters(), again, strict=True):
        torch.testing.assert_close(p.grad, grad)


SLOTS = {
    "forward 0": MXFP8_E4M3,
    "forward 1": MXFP4,
    "grad_input 0": MXFP8_E5M2,
    "grad_input 1": MXFP4,
    "grad_weight 0": MXFP8_E5M2,
    "grad_weight 1": MXFP8_E4M3,
}


def quantize(x: Tensor, slot: str, axis: int) -> Tensor:
    return along(x, SLOTS[slot], axis)


def by_hand(name: str, layer: Any, x: Tensor) -> Tensor:
    """Layers from their formulas, by products whose operands are rounded, forward and backward."""

    def mm(a: Tensor, b: Tensor) -> Tensor:
        return gemm_reference.product(a, b, quantize)

    p = dict(layer.named_parameters())
    if name == "attention":
        q, k, v = (mm(x.flatten(0, 1), p["in_proj_weight"].T) + p["in_proj_bias"]).view(3, 2, 3, 2, 4).unbind(2)
        heads = []
        for sample in range(2):
            for head in range(2):
                scores = mm(q[:, sample, head], k[:, sample, head].T) / 2
                heads.append(mm(scores.softmax(-1), v[:, sample, head]))
        joined = torch.stack(heads).view(2, 2, 3, 4).permute(2, 0, 1, 3).reshape(6, 8)
        return (mm(joined, p["out_proj.weight"].T) + p["out_proj.bias"]).view(3, 2, 8)
    h, c, out = torch.zeros(2, 5), torch.zeros(2, 5), []
    gates_of_x = mm(x.flatten(0, 1), p["weight_ih_l0"].T).view(3, 2, -1) + p["bias_ih_l0"]
    for of_x in gates_of_x:
        of_h = mm(h, p["weight_hh_l0"].T) + p["bias_hh_l0"]
        if name == "lstm":
            i, f, g, o = (of_x + of_h).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (r_h, z_h, n_h) = of_x.chunk(3, 1), of_h.chunk(3, 1)
            z = (z + z_h).sigmoid()
            h = (1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("name", ["lstm", "gru", "attention"])
def test_layers_of_many_products_round_the_operands_of_each(name: str) -> None:
    """By the distance of all numbers together, since a last bit may take one operand to its neighbour."""
    make = {
        "lstm": lambda: nn.LSTM(6, 5),
        "gru": lambda: nn.GRU(6, 5),
        "attention": lambda: nn.MultiheadAttention(8, 2),
    }
    layer: Any = make[name]()
    exact, hand = copy.deepcopy(layer), copy.deepcopy(layer)
    lower(layer, [type(layer)], operands=OPERANDS)
    x = torch.randn(3, 2, 8 if name == "attention" else 6)
    results = []
    for each in (layer, hand, exact):
        leaf = x.clone().requires_grad_()
        args = (leaf, leaf, leaf) if name == "attention" else (leaf,)
        y = by_hand(name, each, leaf) if each is hand else each(*args)[0]
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
        results.append(
            [y.detach(), leaf.grad, *(p.grad for key, p in each.named_parameters() if key != "out_proj.bias")]
        )
    for mine, true, unrounded in zip(*results, strict=True):
        assert (mine - true).norm() < 0.01 * true.norm() < (unrounded - true).norm()


def test_a_layer_that_raises_leaves_its_parameters_as_they_were() -> None:
    layer = lower(nn.Linear(8, 4), ["linear"], operands=OPERANDS)
    with pytest.raises(RuntimeError):
        layer(torch.randn(3, 7))
    assert type(layer.weight) is nn.Parameter and "weight" not in vars(layer)
    assert layer(torch.randn(3, 8)).shape == (3, 4)


class Interrupted(nn.Linear):
    """A layer in which somebody presses Ctrl-C."""

    armed = False

    def forward(self, input: Tensor) -> Tensor:
        if self.armed:
            raise KeyboardInterrupt
        return super().forward(input)


@pytest.mark.parametrize("way", ["next call", "next call of a model around it", "taken off"])
def test_an_interrupted_layer_finds_its_parameters_again(way: str) -> None:
    layer = lower(Interrupted(4, 4), [Interrupted], operands=OPERANDS)
    layer.armed = True
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            layer(torch.randn(2, 4))
    layer.armed = False
    if way == "taken off":
        lower(layer, [Interrupted])
    else:
        (layer if way == "next call" else nn.Sequential(nn.Sequential(layer)))(torch.randn(2, 4))
    assert layer.weight is layer._parameters["weight"] and not [k for k in vars(layer) if k.startswith("_lptensor")]
    other = threading.Thread(target=lambda: layer(torch.randn(2, 4)), daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive()


@pytest.mark.parametrize("way", ["next call", "taken off"])
def test_a_layer_that_is_interrupted_while_it_ends_finds_its_parameters_again(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def interrupted(changed: list[Any]) -> Any:
        monkeypatch.undo()
        yield changed[-1]
        raise KeyboardInterrupt

    layer = lower(nn.Linear(4, 4), [nn.Linear], operands=OPERANDS)
    monkeypatch.setattr(layer_products, "reversed", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        layer(torch.randn(2, 4))
    layer(torch.randn(2, 4)) if way == "next call" else lower(layer, [nn.Linear])
    assert layer.weight is layer._parameters["weight"] and layer.bias is layer._parameters["bias"]


def test_an_interrupted_layer_does_not_keep_other_threads_waiting() -> None:
    layer = lower(Interrupted(4, 4), [Interrupted], operands=OPERANDS)
    layer.armed = True
    with pytest.raises(KeyboardInterrupt):
        layer(torch.randn(2, 4))
    layer.armed = False
    other = threading.Thread(target=lambda: layer(torch.randn(2, 4)), daemon=True)
    other.start()
    other.join(30)
    assert not other.is_alive() and layer.weight is layer._parameters["weight"]


@pytest.mark.parametrize("way", ["next call", "taken off"])
def test_a_list_that_an_interrupted_layer_was_given_has_its_own_tensors_back(way: str) -> None:
    class OfList(Interrupted):
        def forward(self, input: list[Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(input[0])

    layer = lower(OfList(4, 4), [OfList], operands=OPERANDS)
    x = torch.randn(2, 4)
    held, layer.armed = [x], True
    with pytest.raises(KeyboardInterrupt):
        layer(held)
    layer.armed = False
    layer([x]) if way == "next call" else lower(layer, [OfList])
    assert held[0] is x


def test_threads_run_a_layer_one_after_the_other() -> None:
    begun, met, running = threading.Event(), threading.Event(), []

    class Shared(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            running.append(self)
            if len(running) == 2:
                met.set()
            if not begun.is_set():
                begun.set()
                met.wait(0.3)
            y = super().forward(input)
            running.pop()
            return y

    layer, x = lower(Shared(4, 4), [Shared], operands=OPERANDS), torch.randn(2, 4)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(layer(x)), daemon=True) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert not met.is_set() and len(results) == 2
    assert all(type(y) is Tensor and torch.equal(y, layer(x)) for y in results)


def test_a_thread_that_is_turned_away_before_a_layer_leaves_the_call_of_another_alone() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            begun.set()
            assert go_on.wait(10)
            return super().forward(input)

    def turn_away(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not other:
            raise RuntimeError("not now")

    layer, x, results = Slow(4, 4), torch.randn(2, 4), []
    layer.register_forward_pre_hook(turn_away)
    lower(layer, [Slow], operands=OPERANDS)
    other = threading.Thread(target=lambda: results.append(layer(x)), daemon=True)
    other.start()
    assert begun.wait(10)
    with pytest.raises(RuntimeError, match="not now"):
        layer(x)
    assert isinstance(layer.weight, LPTensor)  # the other's call goes on
    go_on.set()
    other.join(30)
    assert type(results[0]) is Tensor and layer.weight is layer._parameters["weight"]


def test_a_tensor_of_integers_among_the_attributes_of_a_layer_stays_what_it_is() -> None:
    layer = lower(nn.Linear(4, 4), ["linear"], operands=OPERANDS)
    x = torch.randn(2, 4)
    y = layer(x)
    layer.order = order = torch.tensor([1, 0])
    assert torch.equal(layer(x), y) and layer.order is order


def test_a_thread_that_ends_within_a_layer_leaves_it_to_those_that_wait() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Left(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if threading.current_thread() is first:
                begun.set()
                assert go_on.wait(10)
                raise SystemExit
            return super().forward(input)

    def run() -> None:
        with suppress(SystemExit):
            layer(torch.randn(2, 4))

    layer = lower(Left(4, 4), [Left], operands=OPERANDS)
    first, second = (threading.Thread(target=run, daemon=True) for _ in range(2))
    first.start()
    assert begun.wait(10)
    second.start()
    go_on.set()
    second.join(30)
    assert not second.is_alive() and layer.weight is layer._parameters["weight"]


def test_a_layer_that_calls_itself_is_not_taken_for_an_interrupted_one() -> None:
    class Twice(nn.Linear):
        def forward(self, input: Tensor, again: bool = True) -> Tensor:
            once = self(input.dequantize(), again=False) if again else input  # type: ignore[attr-defined]
            assert isinstance(self.weight, LPTensor)
            return super().forward(once)

    layer = lower(Twice(4, 4), [Twice], operands=OPERANDS)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), layer(layer(x, again=False), again=False))
    assert isinstance(layer.weight, nn.Parameter)


def test_a_lowered_layer_copies_and_pickles_with_its_products() -> None:
    layer = lower(nn.Linear(32, 8), ["linear"], operands=OPERANDS, accumulator=ACC)
    x = torch.randn(4, 32)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), through_file(layer, weights_only=False)):
        assert torch.equal(twin(x), layer(x))


def test_what_is_not_plain_is_refused_before_anything_changes() -> None:
    with pytest.raises(TypeError, match="give its Arithmetic the operands"):
        lower(convert(net(), BF16), ["linear"], operands=OPERANDS)
    with pytest.raises(TypeError, match="fp32 models, got torch.float64"):
        lower(net().double(), ["linear"], operands=OPERANDS)
    layer = lower(nn.Linear(8, 4), ["linear"], operands=OPERANDS)
    with pytest.raises(TypeError, match="for plain models"):
        layer(torch.randn(3, 8).to_lp(BF16))  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="operands must be Gemm"):
        lower(nn.Linear(8, 4), ["linear"], operands=MXFP4)  # type: ignore[arg-type]


def test_a_parameter_of_integers_is_left_alone() -> None:
    class Choosing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)[:, self.order]

    layer, plain = Choosing(8, 4), lower(nn.Linear(8, 4), ["linear"], operands=OPERANDS)
    layer.order = nn.Parameter(torch.tensor([2, 0]), requires_grad=False)
    plain.load_state_dict(layer.state_dict(), strict=False)
    lower(layer, [Choosing], operands=OPERANDS)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), plain(x)[:, [2, 0]])


def test_a_lowered_network_trains() -> None:
    model = lower(net(), ["linear"], operands=OPERANDS, accumulator=ACC, exempt=["0", "4"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(64, 32), torch.randn(64, 32)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_an_rnn_keeps_no_copies_of_its_weights() -> None:
    model = lower(nn.LSTM(2, 2), "rnn", operands=Gemm(BF16))
    for x in (torch.ones(1, 1, 2), torch.ones(1, 2)):
        model(x)
        assert all(w is p for w, p in zip(vars(model)[_compat.FLAT_WEIGHTS], model.parameters(), strict=True))


def test_a_recurrent_layer_leaves_onednn_on() -> None:
    model = lower(nn.LSTM(2, 2), "rnn", operands=Gemm(BF16))
    assert torch._C._get_mkldnn_enabled()
    model(torch.ones(1, 1, 2))
    assert torch._C._get_mkldnn_enabled()


def test_a_copy_of_an_interrupted_layer_runs_and_leaves_the_original_alone() -> None:
    layer = lower(Interrupted(4, 4), [Interrupted], operands=OPERANDS)
    layer.armed, x = True, torch.randn(2, 4)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        layer(x)
    layer.armed = False
    twin = copy.deepcopy(layer)
    for each in (twin, layer, twin):
        each(x)
        assert each.weight is each._parameters["weight"]


class Adapted(nn.Linear):
    """A linear layer with a bypass of two others."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.up(self.down(input))


def test_a_layer_within_another_is_refused_and_rounded_with_it_where_it_is_exempt() -> None:
    model, x = nn.Sequential(Adapted()), torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"0.down, 0.up lie within other layers.* say exempt=\['0.down', '0.up'\]"):
        lower(model, ["linear"], operands=Gemm((E4M3, E4M3)))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

    def product(t: Tensor, layer: nn.Linear) -> Tensor:
        return lp_round(t, E4M3, "nearest") @ lp_round(layer.weight, E4M3, "nearest").T + layer.bias

    want = product(x, model[0]) + product(product(x, model[0].down), model[0].up)
    lower(model, ["linear"], operands=Gemm((E4M3, E4M3)), exempt=["0.down", "0.up"])
    assert torch.allclose(model(x), want, atol=1e-6)
