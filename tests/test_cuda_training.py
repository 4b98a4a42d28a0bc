"""LPTensors, models and optimizers on a CUDA device: they move, train and are captured as plain ones are."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lptensor as lp
from compiling import compile_anew as compile_anew
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    MXFP8_E4M3,
    NF4,
    NVFP4,
    Accumulator,
    Arithmetic,
    FixedPoint,
    Format,
    LPTensor,
    OptimLP,
    lower,
    ops,
)
from lptensor.rounding import as_rounding
from rounders import assert_same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's own compiler
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),  # are not what fp32 means
]

DEVICE = "cuda"
TWO = Arithmetic(E4M3, backward=E5M2)
# Products whose order is fixed, so that a device gives the bits of the CPU.
SUMMED = Arithmetic(FP16, backward=BF16, accumulator=Accumulator(FP16))


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5))


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(16, 20), torch.randn(16, 5)


def values(x: Any) -> Tensor:
    plain: Tensor = x.dequantize() if isinstance(x, LPTensor) else x
    return plain.detach().cpu()


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    """What would wait for the device within is an error, as far as torch can tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot tell everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- tensors move, with their arithmetic and their values --------------------------------------------------


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to(DEVICE),
        lambda x: x.to(DEVICE, non_blocking=True),
        lambda x: x.to(torch.device(DEVICE), torch.float32),
        lambda x: x.to(torch.ones(1, device=DEVICE)),
        lambda x: x.cuda() if DEVICE == "cuda" else x.clone(),
        lambda x: torch.zeros_like(x, device=DEVICE).copy_(x),
    ],
    ids=["to", "non-blocking", "device-dtype", "other", "cuda", "copy"],
)
@pytest.mark.parametrize("format", [E4M3, MXFP8_E4M3, NVFP4, NF4, FixedPoint(8, 4)], ids=repr)
def test_a_tensor_moves_to_a_device_and_back(format: Format, move: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 64).to_lp(format)  # type: ignore[attr-defined]
    there = move(x)
    assert isinstance(there, LPTensor) and there.device.type == there.dequantize().device.type == DEVICE
    for back in (there.cpu(), there.to("cpu"), there.to("cpu", non_blocking=False)):
        assert isinstance(back, LPTensor) and back.device.type == back.dequantize().device.type == "cpu"
        assert back.arithmetic == there.arithmetic == x.arithmetic
        assert_same_bits(back.dequantize(), x.dequantize())


def test_pinned_memory_keeps_the_format() -> None:
    x = torch.randn(64).to_lp(TWO)  # type: ignore[attr-defined]
    pinned = x.pin_memory()
    assert isinstance(pinned, LPTensor) and pinned.arithmetic == TWO and pinned.is_pinned()
    assert_same_bits(values(pinned.to(DEVICE, non_blocking=True)), values(x))


def test_a_loader_pins_low_batches() -> None:
    rows = [torch.randn(8).to_lp(E4M3) for _ in range(4)]  # type: ignore[attr-defined]
    for batch in torch.utils.data.DataLoader(rows, batch_size=2, pin_memory=True):  # type: ignore[arg-type]
        assert isinstance(batch, LPTensor) and batch.is_pinned() and batch.format == E4M3


def test_operands_on_two_devices_are_refused_as_torch_refuses_them() -> None:
    x = torch.randn(4)
    with pytest.raises(RuntimeError, match="same device"):
        x.to_lp(E4M3) + x.to(DEVICE).to_lp(E4M3)  # type: ignore[attr-defined]


def test_a_gradient_comes_back_across_the_move() -> None:
    x = torch.randn(8).to_lp(TWO).requires_grad_()  # type: ignore[attr-defined]
    (x.to(DEVICE) * 1.1).sum().backward()
    assert isinstance(x.grad, LPTensor) and x.grad.device.type == "cpu" and x.grad.format == E5M2


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_what_was_saved_on_a_device_is_read_on_another(where: str) -> None:
    x = torch.randn(4, 5).to_lp(TWO).to(DEVICE)  # type: ignore[attr-defined]
    file = io.BytesIO()
    torch.save({"x": x, "state": lp.convert(network(), E4M3).to(DEVICE).state_dict()}, file)
    file.seek(0)
    read = torch.load(file, map_location=where)
    assert read["x"].arithmetic == TWO and read["x"].device.type == where
    assert_same_bits(values(read["x"]), values(x))
    assert all(p.format == E4M3 and p.device.type == where for p in read["state"].values())


@pytest.mark.parametrize("order", ["convert then move", "move then convert"])
def test_a_model_is_converted_before_or_after_it_moves(order: str) -> None:
    net = network()
    net = lp.convert(net, TWO).to(DEVICE) if order.startswith("convert") else lp.convert(net.to(DEVICE), TWO)
    assert all(isinstance(p, LPTensor) and p.device.type == DEVICE for p in net.parameters())
    x, y = (t.to(DEVICE) for t in data())
    F.mse_loss(net(x), y).backward()
    assert all(p.grad is not None and p.grad.format == E5M2 for p in net.parameters())
    twin = copy.deepcopy(net)
    assert_same_bits(values(twin(x)), values(net(x)))
    assert all(p.device.type == "cpu" and isinstance(p, LPTensor) for p in net.cpu().parameters())


# -- the bits of the CPU ----------------------------------------------------------------------------------------


# With SGD: of Adam's step torch makes other fused multiply-adds on a device.
@pytest.mark.parametrize("arithmetic", [SUMMED, Arithmetic(E4M3, rounding="stochastic", accumulator=Accumulator(BF16))])
def test_training_with_accumulators_gives_the_bits_of_the_cpu(arithmetic: Arithmetic) -> None:
    def train(device: str) -> list[Tensor]:
        net = lp.convert(network(), arithmetic).to(device)
        x, y = (t.to(device).to_lp(arithmetic) for t in data())  # type: ignore[attr-defined]
        step = torch.optim.SGD(net.parameters(), lr=2.0**-4, momentum=0.75, foreach=False)
        torch.manual_seed(5)
        for _ in range(4):
            step.zero_grad()
            ((net(x) - y) ** 2).sum().backward()
            step.step()
        return [values(p) for p in net.parameters()]

    for here, there in zip(train("cpu"), train(DEVICE), strict=True):
        assert_same_bits(there, here)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_a_step_gives_the_bits_of_the_cpu(optimizer: str, foreach: bool) -> None:
    def step(device: str) -> list[Tensor]:
        net = lp.convert(network(), BF16).to(device)
        torch.manual_seed(6)
        for p in net.parameters():
            p.grad = torch.randn(p.shape).to(device).to_lp(BF16)  # type: ignore[attr-defined]
        optim = getattr(torch.optim, optimizer)(net.parameters(), lr=0.125, foreach=foreach)
        for _ in range(3):
            optim.step()
        return [values(t) for s in (net.parameters(), *(v.values() for v in optim.state.values())) for t in s]

    for here, there in zip(step("cpu"), step(DEVICE), strict=True):
        assert_same_bits(there, here)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, BF16, NF4, MXFP8_E4M3], ids=repr)
def test_lists_of_tensors_round_to_the_bits_of_the_cpu(format: Format, rounding: str) -> None:
    generator = torch.Generator().manual_seed(4)
    shapes = [(3,), (0,), (), (64, 33), (1 << 19,), (5, 7, 32)] * 25
    xs = [torch.randn(shape, generator=generator) for shape in shapes]

    def step(device: str) -> list[Tensor]:
        torch.manual_seed(8)
        lows = [x.to(device).to_lp(Arithmetic(format, rounding=rounding)) for x in xs]  # type: ignore[attr-defined]
        lows[3], lows[5] = lows[3].t(), lows[5][:, 1:]
        torch._foreach_mul_(lows, 1.3)
        return [values(t) for t in (*lows, *torch._foreach_add(lows, 0.7))]

    for here, there in zip(step("cpu"), step(DEVICE), strict=True):
        assert_same_bits(there, here)


def test_of_a_list_a_tensor_of_more_chunks_than_thread_blocks_is_rounded_whole() -> None:
    xs = [torch.randn(n, device=DEVICE) for n in (100, 2**27 + 2**21 + 3, 5000)]
    alone = [lp.round(x, E4M3) for x in xs]
    ops.round_all_in_place(xs, E4M3, as_rounding("nearest"))
    assert all(torch.equal(x, y) for x, y in zip(xs, alone, strict=True))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_step_of_optimlp_gives_the_bits_of_the_cpu(rounding: str) -> None:
    def step(device: str) -> list[Tensor]:
        net = network().to(device)
        torch.manual_seed(6)
        for p in net.parameters():
            p.grad = torch.randn(p.shape).to(device)
        formats = {"weight_quant": E4M3, "grad_quant": E5M2, "momentum_quant": BF16, "acc_quant": FP16}
        quants = {name: lp.quantizer(format, forward_rounding=rounding) for name, format in formats.items()}
        optim = OptimLP(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, foreach=False), **quants)
        for _ in range(3):
            optim.step()
        return [values(p) for p in net.parameters()]

    for here, there in zip(step("cpu"), step(DEVICE), strict=True):
        assert_same_bits(there, here)


def test_a_lowered_network_gives_the_bits_of_the_cpu_where_its_products_are_exact() -> None:
    # Small integers: sums of their products are exact in any order.
    def run(device: str) -> list[Tensor]:
        net = lower(network(), ["linear", "activation"], FixedPoint(8, 2), FixedPoint(12, 2)).to(device)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randint(-3, 4, p.shape))
        x = torch.randint(-3, 4, (8, 20)).float().to(device).requires_grad_()
        torch.manual_seed(7)
        y = net(x)
        y.sum().backward()
        return [values(t) for t in (y, x.grad, *(p.grad for p in net.parameters()))]

    torch.manual_seed(8)
    here = run("cpu")
    torch.manual_seed(8)
    for a, b in zip(here, run(DEVICE), strict=True):
        assert_same_bits(b, a)


# -- nothing waits, and graphs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arithmetic", [TWO, Arithmetic(MXFP8_E4M3), Arithmetic(NF4), SUMMED, Arithmetic(E4M3, rounding="stochastic")]
)
def test_a_step_of_training_never_waits_for_the_device(arithmetic: Arithmetic) -> None:
    net = lp.convert(network().to(DEVICE), arithmetic)
    never_waits(net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9))


def test_a_lowered_step_never_waits_for_the_device() -> None:
    net = lower(network().to(DEVICE), ["linear", "activation"], E4M3, E5M2)
    never_waits(net, OptimLP(torch.optim.SGD(net.parameters(), lr=0.1), weight_quant=E4M3, grad_quant=E5M2))


def never_waits(net: nn.Module, optim: Any) -> None:
    """From the second step on: in the first, tables reach the device."""
    x, y = (t.to(DEVICE) for t in data())
    for step in range(3):
        with nothing_waits() if step else contextlib.nullcontext():
            optim.zero_grad()
            F.mse_loss(net(x), y).backward()
            optim.step()


@pytest.mark.parametrize("arithmetic", [TWO, SUMMED, Arithmetic(MXFP8_E4M3, backward=E5M2)])
def test_a_step_of_training_is_captured_in_a_graph(arithmetic: Arithmetic) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
        net = lp.convert(network().to(DEVICE), arithmetic)
        optim = torch.optim.SGD(net.parameters(), lr=2.0**-4)

        def step() -> None:
            optim.zero_grad(set_to_none=True)
            ((net(x) - y) ** 2).sum().backward()
            optim.step()

        return net, optim, step

    x, y = (t.to(DEVICE) for t in data())
    eager, _, step = made()
    for _ in range(5):
        step()
    captured, _, step = made()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(3):
        graph.replay()
    for a, b in zip(eager.parameters(), captured.parameters(), strict=True):
        assert_same_bits(values(b), values(a))


def test_every_replay_draws_anew_for_each_tensor_of_a_list() -> None:
    xs = [torch.full((n,), 1 / 3, device=DEVICE) for n in (1000, 1000, 70_000)]
    ys = [x.clone() for x in xs]
    ops.round_all_in_place(ys, E4M3, as_rounding("stochastic"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch._foreach_copy_(ys, xs)
        ops.round_all_in_place(ys, E4M3, as_rounding("stochastic"))
    runs = []
    for seed in (1, None, 1):
        if seed is not None:
            torch.cuda.manual_seed(seed)
        graph.replay()
        runs.append([y.cpu() for y in ys])
    for a, b, again in zip(*runs, strict=True):
        assert torch.equal(a, again) and not torch.equal(a, b)
        assert set(a.tolist()) == {0.3125, 0.34375}
    assert not torch.equal(runs[0][0], runs[0][1])


def test_a_gradient_scaler_skips_an_overflow() -> None:
    net = lp.convert(network().to(DEVICE), BF16)
    optim = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40, growth_interval=100)
    x, y = (t.to(DEVICE) for t in data())
    before = [values(p).clone() for p in net.parameters()]
    scaler.scale(F.mse_loss(net(x), y) * torch.inf).backward()
    scaler.step(optim)
    scaler.update()
    assert scaler.get_scale() == 2.0**39
    for p, old in zip(net.parameters(), before, strict=True):
        assert_same_bits(values(p), old)


# -- compiled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [E4M3, BF16, FP16, FixedPoint(8, 4), MXFP8_E4M3], ids=repr)
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "up", "stochastic"])
def test_compiled_rounding_gives_the_bits_of_eager(format: Format, rounding: str) -> None:
    def work(x: Tensor) -> Tensor:
        return lp.round(x * 2, format, rounding)

    x = torch.randn(1 << 16, device=DEVICE) * torch.exp2(torch.randint(-20, 20, (1 << 16,), device=DEVICE).float())
    torch.manual_seed(1)
    eager = work(x)
    torch.manual_seed(1)
    assert_same_bits(torch.compile(work, fullgraph=True)(x).cpu(), eager.cpu())


@pytest.mark.parametrize("arithmetic", [Arithmetic(FP16, backward=E5M2), Arithmetic(BF16)])
def test_a_compiled_network_trains(arithmetic: Arithmetic) -> None:
    net = lp.convert(network().to(DEVICE), arithmetic)
    x, y = (t.to(DEVICE) for t in data())
    compiled = torch.compile(lambda x: ((net(x) - y) ** 2).mean())
    losses = []
    optim = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(10):
        optim.zero_grad()
        loss = compiled(x)
        loss.backward()
        optim.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_rounds_at_every_step(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    layer, x = lp.convert(kind(5, 6, num_layers=2), Arithmetic(BF16, backward=E5M2)), torch.randn(4, 3, 5)
    on_gpu = copy.deepcopy(layer).to(DEVICE)
    with lp.trace() as rows:
        y = on_gpu(x.to(DEVICE))[0]
        y.sum().backward()
    assert not any("cudnn" in row.op for row in rows) and torch.backends.cudnn.enabled
    assert len([row for row in rows if row.kind == "rounded" and not row.backward]) > 4 * 2
    torch.testing.assert_close(y.cpu().dequantize(), layer(x)[0].dequantize(), rtol=2**-5, atol=2**-5)
    assert all(p.grad.format == E5M2 for p in on_gpu.parameters())
