"""Modules of torch.nn in low precision: recurrent steps, attention, statistics, and a whole training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from low import is_low, rounded, same, values
from lptensor import BF16, E4M3, E5M2, FP16, Arithmetic, LPTensor, convert, escapes

BOTH = Arithmetic(BF16, backward=E5M2)


def r(x: Tensor) -> Tensor:
    return rounded(x, BF16)


# -- recurrent layers: every time step rounds ----------------------------------------------------------


def lstm_by_hand(x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One layer as PyTorch computes it, each op rounded: gates, then cell, then output."""
    w, u = weights["weight_ih_l0"], weights["weight_hh_l0"]
    b, c = weights["bias_ih_l0"], weights["bias_hh_l0"]
    h = state = torch.zeros(x.shape[1], u.shape[1])
    inputs = r(F.linear(x, w, b))
    outs = []
    for step in inputs:
        gates = r(r(F.linear(h, u, c)) + step)
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = r(i.sigmoid()), r(f.sigmoid()), r(g.tanh()), r(o.sigmoid())
        state = r(r(f * state) + r(i * g))
        h = r(o * r(state.tanh()))
        outs.append(h)
    return torch.stack(outs), h, state


def gru_by_hand(x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    w, u = weights["weight_ih_l0"], weights["weight_hh_l0"]
    b, c = weights["bias_ih_l0"], weights["bias_hh_l0"]
    h = torch.zeros(x.shape[1], u.shape[1])
    outs = []
    for step in r(F.linear(x, w, b)):
        (xr, xz, xn), (hr, hz, hn) = step.chunk(3, 1), r(F.linear(h, u, c)).chunk(3, 1)
        reset, update = r(r(hr + xr).sigmoid()), r(r(hz + xz).sigmoid())
        new = r(r(xn + r(hn * reset)).tanh())
        h = r(r(r(h - new) * update) + new)
        outs.append(h)
    return torch.stack(outs), h


def rnn_by_hand(x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    w, u = weights["weight_ih_l0"], weights["weight_hh_l0"]
    b, c = weights["bias_ih_l0"], weights["bias_hh_l0"]
    h = torch.zeros(x.shape[1], u.shape[1])
    outs = []
    for step in r(F.linear(x, w, b)):
        h = r(r(r(F.linear(h, u, c)) + step).tanh())
        outs.append(h)
    return torch.stack(outs), h


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [(nn.LSTM, lstm_by_hand), (nn.GRU, gru_by_hand), (nn.RNN, rnn_by_hand)],
    ids=lambda k: k.__name__,
)
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference"])
def test_every_time_step_rounds(kind: Any, by_hand: Callable[..., Any], mode: str) -> None:
    layer = convert(kind(5, 6), BF16)
    x = torch.randn(4, 3, 5).to_lp(BF16)
    weights = {name: values(p) for name, p in layer.named_parameters()}
    layer.train(mode == "train")
    guards = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with guards.get(mode, torch.enable_grad)():
        out, hidden = layer(x)
    want = by_hand(values(x), weights)
    # The exact order of sums in a matrix product is not ours to say: one unit in the last place.
    for got, ref in zip((out, *(h[0] for h in (hidden if kind is nn.LSTM else (hidden,)))), want, strict=True):
        assert is_low(got, BF16)
        torch.testing.assert_close(values(got), ref, rtol=2**-7, atol=2**-9)


def test_a_whole_layer_rounded_once_would_be_noticed() -> None:
    layer = nn.LSTM(5, 6)
    low = convert(nn.LSTM(5, 6), BF16)
    low.load_state_dict(layer.state_dict())
    x = torch.randn(20, 3, 5)
    layer.load_state_dict({k: values(v) for k, v in low.state_dict().items()})
    assert not same(low(x.to_lp(BF16))[0], r(layer(r(x))[0]))


def test_an_lstm_rounds_every_step_while_others_end_and_fail_on_other_threads() -> None:
    layer, x = convert(nn.LSTM(5, 6), BF16), torch.randn(4, 3, 5).to_lp(BF16)
    want = layer(x)[0]
    begun, go_on = Event(), Event()

    def wait(*_: Any) -> None:
        begun.set()
        assert go_on.wait(10)

    slow = copy.deepcopy(layer)
    slow.register_forward_pre_hook(wait)  # runs after ours
    refuses = copy.deepcopy(layer)
    refuses.register_forward_pre_hook(lambda *_: 1 / 0, prepend=True)  # before ours, which then has nothing to end
    with ThreadPoolExecutor(1) as other:
        got = other.submit(lambda: slow(x)[0])
        assert begun.wait(10)
        layer(x)
        with pytest.raises(ZeroDivisionError):
            refuses(x)
        go_on.set()
        assert same(got.result(), want)
    assert torch.backends.mkldnn.enabled


def test_an_interrupted_lstm_leaves_onednn_on() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    layer = convert(nn.LSTM(2, 3), BF16)
    layer.register_forward_hook(interrupt, prepend=True)
    with pytest.raises(KeyboardInterrupt):
        layer(torch.randn(4, 1, 2))
    assert torch.backends.mkldnn.enabled


def test_torch_func_differentiates_an_lstm_step_by_step() -> None:
    layer, x = convert(nn.LSTM(2, 3), BF16), torch.randn(4, 1, 2).to_lp(BF16).requires_grad_()  # type: ignore[attr-defined]
    layer(x)[0].sum().backward()
    assert same(torch.func.grad(lambda x: layer(x)[0].sum())(x.detach()), x.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [dict(bidirectional=True, num_layers=2), dict(batch_first=True, dropout=0.1)])
@pytest.mark.filterwarnings("ignore:dropout option")
def test_recurrent_layers_train_in_every_form(kind: Any, options: Any) -> None:
    layer = convert(kind(5, 6, **options), BOTH)
    out = layer(torch.randn(4, 3, 5).to_lp(BOTH))[0]
    out.sum().backward()
    assert is_low(out, BF16) and all(is_low(p.grad, E5M2) for p in layer.parameters())


def test_packed_sequences_cross_boundaries() -> None:
    model = convert(nn.ModuleDict({"rnn": nn.GRU(5, 6)}), {"rnn": BOTH})
    packed = pack_padded_sequence(torch.randn(4, 2, 5), torch.tensor([4, 2]))
    out, _ = model["rnn"](packed)
    padded, lengths = pad_packed_sequence(out)
    assert type(padded) is Tensor and same(padded, r(padded)) and lengths.tolist() == [4, 2]
    low_out, _ = convert(nn.GRU(5, 6), BOTH)(
        pack_padded_sequence(torch.randn(4, 2, 5).to_lp(BOTH), torch.tensor([4, 2]))
    )
    assert is_low(low_out.data, BF16)


# -- attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_fused_path_of_attention_swallows_no_layer(mode: Any) -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    )
    convert(model, BF16).eval()
    x = torch.randn(2, 5, 16).to_lp(BF16)
    with_graph = model(x)
    assert is_low(with_graph, BF16)
    with mode():
        assert same(model(x), with_graph)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_multihead_attention_gives_the_same_bits_with_and_without_a_graph(mode: Any) -> None:
    layer = convert(nn.MultiheadAttention(16, 2, batch_first=True), BF16).eval()
    x = torch.randn(2, 5, 16).to_lp(BF16)
    for weights in (False, True):
        want = layer(x, x, x, need_weights=weights)[0]
        with mode():
            assert same(layer(x, x, x, need_weights=weights)[0], want) and is_low(want, BF16)


def test_the_fused_kernel_itself_is_refused() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        with torch.no_grad(), pytest.raises(NotImplementedError, match="set_fastpath_enabled"):
            x = torch.randn(2, 5, 16)
            low = x.to_lp(BF16)  # turns the fused path off
            torch.backends.mha.set_fastpath_enabled(True)
            layer(low)
    finally:
        torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.parametrize("format", [BF16, E4M3, FP16])
def test_masks_of_minus_infinity_stay_exact(format: Any) -> None:
    """In a format that saturates too: what is masked has no weight at all."""
    layer = convert(nn.MultiheadAttention(8, 2, batch_first=True), format)
    x = torch.randn(1, 6, 8).to_lp(format)
    mask = torch.full((6, 6), -torch.inf).triu(1)
    out, weights = layer(x, x, x, attn_mask=mask)
    assert not values(out).isnan().any()
    assert not values(weights)[0].triu(1).any()


def test_masks_given_by_name_cross_a_boundary_untouched() -> None:
    seen: list[Any] = []

    class Inner(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            seen.extend([x, mask, scale])
            return x + mask

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x, mask=torch.full((3,), -torch.inf), scale=torch.ones(3))
            return y

    convert(Outer(), {"inner": E4M3})(torch.ones(3))
    assert [type(t) for t in seen] == [LPTensor, Tensor, LPTensor] and torch.isinf(seen[1]).all()


# -- statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", [False, True])
def test_batch_norm_tracks_its_statistics(buffers: bool) -> None:
    norm = convert(nn.BatchNorm1d(4, momentum=0.3), BF16, buffers=buffers)
    x = (torch.randn(50, 4) * 3 + 1).to_lp(BF16)
    mean, var = torch.zeros(4), torch.ones(4)
    for _ in range(3):
        norm(x)
        plain = nn.BatchNorm1d(4, momentum=0.3)
        plain.running_mean, plain.running_var = mean, var
        plain(values(x))
        mean, var = (r(t) if buffers else t for t in (plain.running_mean, plain.running_var))
    assert same(norm.running_mean, mean) and same(norm.running_var, var)
    assert norm.num_batches_tracked == 3 and norm.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Conv2d(2, 3, 3),
        lambda: nn.ConvTranspose2d(2, 3, 3),
        lambda: nn.BatchNorm2d(2),
        lambda: nn.GroupNorm(2, 2),
        lambda: nn.InstanceNorm2d(2, affine=True),
        lambda: nn.LayerNorm(6),
        lambda: nn.RMSNorm(6),
        lambda: nn.Bilinear(6, 6, 2),
        lambda: nn.PReLU(),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.LazyLinear(3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
    ],
)
def test_modules_train_in_low_precision(module: Callable[[], nn.Module]) -> None:
    model = convert(module(), BOTH)
    x = torch.randn(2, 2, 6, 6).to_lp(BOTH)
    y = model(x, x) if isinstance(model, nn.Bilinear) else model(x)
    y.square().sum().backward()
    assert is_low(y, BF16) and all(is_low(p.grad, E5M2) for p in model.parameters())


# -- a training step against the native dtype ----------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 36, 16)
        self.layer = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.batch(self.conv(x)))
        x = F.relu(self.layer(self.hidden(x.flatten(1))))
        y: Tensor = self.out(x)
        return y


def steps(model: nn.Module, x: Tensor, y: Tensor, count: int) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)  # scalars that BF16 holds
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_in_bf16_follows_the_native_dtype() -> None:
    """Sums differ in their order and norms in their statistics: a few units in the last place per step.

    The bound is one unit of 2**-8 per step on the losses, and four of each tensor's largest value on the
    parameters. Half of BF16's digits taken away (E4M3) must break both.
    """
    torch.manual_seed(0)
    start, x, y = Net().state_dict(), torch.randn(16, 1, 8, 8).bfloat16(), torch.randint(5, (16,))
    native, ours, coarse = Net(), Net(), Net()
    for model in (native, ours, coarse):
        model.load_state_dict(start)
    native.to(torch.bfloat16)
    convert(ours, BF16, buffers=True)
    convert(coarse, E4M3, buffers=True)
    want, got = steps(native, x, y, 4), steps(ours, x.float().to_lp(BF16), y, 4)
    rough = steps(coarse, x.float().to_lp(E4M3), y, 4)

    unit, count = 2.0**-8, 4
    assert want[-1] < want[0]

    def losses_follow(run: list[float]) -> bool:
        return all(abs(a - b) <= count * unit * b for a, b in zip(run, want, strict=True))

    def parameters_follow(model: nn.Module) -> bool:
        pairs = zip(model.parameters(), native.parameters(), strict=True)
        return all(((values(p) - values(q)).abs().max() <= 4 * count * unit * values(q).abs().max()) for p, q in pairs)

    assert losses_follow(got) and parameters_follow(ours)
    assert not losses_follow(rough) and not parameters_follow(coarse)


class Pointwise(nn.Module):
    """No sum longer than one element, no norm: nothing whose order could differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(40)), nn.Parameter(torch.randn(40))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.a) * torch.sigmoid(self.b - x)


def test_training_in_bf16_gives_the_bits_of_the_native_dtype_where_all_is_pointwise() -> None:
    torch.manual_seed(0)
    start, x = Pointwise().state_dict(), torch.randn(40).bfloat16()
    models = []
    for native in (True, False):
        model = Pointwise()
        model.load_state_dict(start)
        model = model.to(torch.bfloat16) if native else convert(model, BF16)
        given = x if native else x.float().to_lp(BF16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
        for _ in range(10):
            optimizer.zero_grad()
            out = model(given)
            out.backward(torch.ones(40).to(out.dtype) if native else torch.ones(40).to_lp(BF16))
            optimizer.step()
        models.append(model)
    for p, q in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert is_low(p, BF16) and same(p, q.float()) and not same(p, start["a"])


def test_autocast_over_a_converted_model_raises_and_lets_go() -> None:
    model = convert(nn.Linear(4, 2), BF16)
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast"):
        model(torch.randn(3, 4).to_lp(BF16))
    with escapes("allow"), torch.autocast("cpu"):
        assert model(torch.randn(3, 4).to_lp(BF16)).dtype == torch.bfloat16
