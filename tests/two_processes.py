"""What tests/test_distributed.py runs in two processes at once, which import it by name; cases return plain data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lptensor import E2M1, E4M3, E5M2, MXFP4, Arithmetic, LPTensor, OptimLP, convert

WORLD, STEPS = 2, 3
BOTH = Arithmetic(E4M3, backward=E5M2)
CASES: dict[str, Callable[[int], Any]] = {}


def case(function: Callable[[int], Any]) -> Callable[[int], Any]:
    CASES[function.__name__] = function
    return function


def values(rank: int, n: int = 6) -> Tensor:
    """Numbers of E4M3, whose sums over the processes are mostly none."""
    x = torch.randn(WORLD, n, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn).float()
    return x[rank]


def net() -> nn.Sequential:
    """Odd widths, so that the processes' parts of a weight differ in size."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def inputs(rank: int, step: int) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + rank))


def plain(x: Tensor) -> Tensor:
    return getattr(x, "dequantize", x.clone)().detach().clone()


def low(x: Tensor) -> bool:
    return type(x) is LPTensor


# -- collectives ------------------------------------------------------------------------------------------


@case
def all_reduce(rank: int) -> Tensor:
    x = values(rank).to_lp(E4M3)
    dist.all_reduce(x)
    return x.dequantize()


@case
def all_reduce_later(rank: int) -> Tensor:
    x = values(rank).to_lp(E4M3)
    dist.all_reduce(x, async_op=True).wait()
    return x.dequantize()


@case
def all_reduce_of_a_gradient(rank: int) -> tuple[Tensor, bool]:
    w = torch.ones(6).to_lp(BOTH).requires_grad_()
    (w.dequantize() * values(rank)).sum().backward()
    dist.all_reduce(w.grad)
    return w.grad.dequantize(), w.grad.format == E5M2


@case
def reduce_scatter(rank: int) -> Tensor:
    part = torch.zeros(3).to_lp(E4M3)
    dist.reduce_scatter_tensor(part, values(rank).to_lp(E4M3))
    return part.dequantize()


@case
def all_gather_into_other_formats(rank: int) -> tuple[list[Tensor], Tensor]:
    parts = [torch.zeros(6).to_lp(E2M1) for _ in range(WORLD)]
    dist.all_gather(parts, values(rank).to_lp(E4M3))
    whole = torch.zeros(12).to_lp(E2M1)
    dist.all_gather_into_tensor(whole, values(rank).to_lp(E4M3))
    return [part.dequantize() for part in parts], whole.dequantize()


@case
def broadcast_into_another_format(rank: int) -> Tensor:
    x = values(rank).to_lp(E2M1 if rank else E4M3)
    dist.broadcast(x, 0)
    return x.dequantize()


@case
def reduce_gather_and_scatter_into_other_formats(rank: int) -> tuple[Tensor, list[Tensor], Tensor]:
    total = values(rank).to_lp(E4M3)
    dist.reduce(total, 0)
    parts = [torch.zeros(6).to_lp(E2M1) for _ in range(WORLD)]
    dist.gather(values(rank).to_lp(E4M3), None if rank else parts)
    mine = torch.zeros(6).to_lp(E2M1)
    dist.scatter(mine, None if rank else [values(k).to_lp(E4M3) for k in range(WORLD)])
    return total.dequantize(), [part.dequantize() for part in parts], mine.dequantize()


@case
def functional_all_reduce(rank: int) -> list[Tensor]:
    x = values(rank).to_lp(E4M3)
    waited = functional.wait_tensor(functional.all_reduce(x, "sum", dist.group.WORLD))
    used = functional.all_reduce(x, "sum", dist.group.WORLD) * 1
    listed = functional.all_reduce_coalesced([x, x.dequantize().to_lp(E5M2)], "sum", dist.group.WORLD)
    assert low(waited) and low(used)
    return [y.dequantize() for y in (waited, used, *listed)]


@case
def receive(rank: int) -> str:
    try:
        dist.recv(torch.zeros(4).to_lp(E4M3), 1 - rank)
    except NotImplementedError as error:
        return str(error)
    return "nothing was raised"


# -- training -----------------------------------------------------------------------------------------------


def train(model: nn.Module, rank: int, accumulate: int = 1) -> dict[str, Any]:
    """Some steps; the outputs, the last gradients and the weights."""
    optim = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    outputs = []
    for step in range(STEPS):
        optim.zero_grad()
        for k in range(accumulate):
            out = model(inputs(rank, step * accumulate + k))
            out.square().sum().backward()
            outputs.append(out.dequantize().detach())
        optim.step()
    states = [optim.state[p]["momentum_buffer"] for p in model.parameters()]
    return {"outputs": outputs, "grads": [p.grad for p in model.parameters()], "states": states}


@case
def data_parallel(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(convert(net(), BOTH))
    seen = train(model, rank)
    kinds = [low(x) for key in ("grads", "states") for x in seen[key]]
    weights = [p.dequantize().detach() for p in model.parameters()]
    return {
        "outputs": seen["outputs"],
        "grads": [g.dequantize() for g in seen["grads"]],
        "weights": weights,
        "low": kinds,
    }


@case
def data_parallel_sends_as_it_is(rank: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    found = []
    for format in (E4M3, MXFP4):
        torch.manual_seed(7 + rank)
        model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 5))
        nn.init.normal_(model[1].running_mean)
        convert(model, {"2": None, "*": format})
        before = [plain(x) for x in model.state_dict().values()]
        DistributedDataParallel(model)
        found.append((before, [plain(x) for x in model.state_dict().values()]))
    return found


@case
def buckets(rank: int) -> str:
    try:
        train(DistributedDataParallel(convert(net(), BOTH), gradient_as_bucket_view=True), rank)
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def sharded(rank: int, accumulate: int = 1) -> dict[str, Any]:
    model = convert(net(), BOTH)
    mesh = init_device_mesh("cpu", (WORLD,))
    used: list[bool] = []
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
        layer.register_forward_pre_hook(lambda layer, _: used.extend(low(p) for p in layer.parameters()))
    fully_shard(model, mesh=mesh)
    seen = train(model, rank, accumulate)
    kinds = [low(x.to_local()) for key in ("grads", "states") for x in seen[key]]
    found = {"outputs": seen["outputs"], "low": used + kinds}
    found["grads"] = [g.full_tensor().dequantize() for g in seen["grads"]]
    found["weights"] = [p.full_tensor().dequantize().detach() for p in model.parameters()]
    return found


@case
def fsdp(rank: int) -> dict[str, Any]:
    return sharded(rank)


@case
def fsdp_accumulates(rank: int) -> dict[str, Any]:
    return sharded(rank, accumulate=2)


@case
def fsdp_in_bfloat16(rank: int) -> str:
    model = convert(net(), BOTH)
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    try:
        model(inputs(rank, 0))
    except TypeError as error:
        return str(error)
    return "nothing was raised"


@case
def convert_what_is_distributed(rank: int) -> list[str]:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    said = []
    steps = torch.optim.Adam(model.parameters())
    for attempt in (
        lambda: convert(model, E4M3),
        lambda: model[0].weight.to_lp(E4M3),
        lambda: OptimLP(steps, weight_quant=E4M3),
        lambda: convert(steps, None),
    ):
        try:
            attempt()
        except TypeError as error:
            said.append(str(error))
    return [*said, type(model[0].weight).__name__]


# -- both processes -------------------------------------------------------------------------------------------


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found = {}
    for name, function in CASES.items():
        found[name] = function(rank)
        dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run() -> dict[str, list[Any]]:
    """What each case returned in the first and in the second process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.multiprocessing.spawn(work, (folder,), WORLD)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]
    return {name: [of_one[name] for of_one in found] for name in CASES}
