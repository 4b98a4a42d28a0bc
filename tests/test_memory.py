"""A rounding needs no copy of the tensor: what is allocated, to the byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lptensor as lp
from allocations import allocations, peak
from backends import threads
from lptensor import BF16, E4M3, E5M2, MXFP8_E4M3, NF4, Arithmetic, FixedPoint, Posit

SHAPE = (64, 1024)
BYTES = 4 * 64 * 1024
KEY = 16  # seed and offset of a stochastic rounding, which leave torch's generator in a tensor
FORMATS = (E4M3, BF16, FixedPoint(8, 4), NF4, Posit(8, 1), MXFP8_E4M3)
ROUNDINGS = ("nearest", "toward_zero", "stochastic")

pytestmark = pytest.mark.native  # torch operations make tensors on the way


def large(work: Callable[[], object]) -> list[int]:
    """What is allocated beyond a key."""
    work()  # tables and structs are made once
    return [n for n in allocations(work) if n > KEY]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_rounding_into_memory_that_is_there_allocates_nothing(format: lp.Format, rounding: str) -> None:
    x = torch.randn(SHAPE)
    y = torch.empty_like(x)
    assert large(lambda: lp.round(x, format, rounding, out=y)) == []
    assert large(lambda: lp.round(x, format, rounding, out=x)) == []


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_rounding_allocates_its_result_alone(format: lp.Format, rounding: str) -> None:
    x = torch.randn(SHAPE)
    assert large(lambda: lp.round(x, format, rounding)) == [BYTES]


OPS: dict[str, Callable[[Tensor], object]] = {
    "add": lambda x: x + x,
    "mul by a number": lambda x: x * 3,
    "exp": lambda x: x.exp(),
    "relu": lambda x: x.relu(),
    "softmax": lambda x: x.softmax(-1),
    "where": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.mark.parametrize("arithmetic", [Arithmetic(E4M3), Arithmetic(MXFP8_E4M3, rounding="stochastic")], ids=repr)
@pytest.mark.parametrize("name", OPS)
def test_an_op_allocates_what_it_does_on_plain_tensors(name: str, arithmetic: Arithmetic) -> None:
    plain = torch.randn(SHAPE)
    low = plain.to_lp(arithmetic)  # type: ignore[attr-defined]
    assert large(lambda: OPS[name](low)) == large(lambda: OPS[name](plain))


IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda x: x.add_(x),
    "mul_": lambda x: x.mul_(0.5),
    "addcmul_": lambda x: x.addcmul_(x, x),
    "fill_": lambda x: x.fill_(0.1),
    "view": lambda x: x.view(-1),
    "transpose": lambda x: x.t(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_views_and_ops_in_place_allocate_nothing(name: str) -> None:
    low = torch.randn(SHAPE).to_lp(E4M3)  # type: ignore[attr-defined]
    assert large(lambda: IN_PLACE[name](low)) == []


def training(arithmetic: Arithmetic | None) -> Callable[[], object]:
    """A network and two steps of its training, from nothing."""

    def run() -> object:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 64))
        x = torch.randn(512, 64)
        if arithmetic is not None:
            model, x = lp.convert(model, arithmetic), x.to_lp(arithmetic)  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model, optimizer

    return run


@pytest.mark.parametrize("arithmetic", [Arithmetic(E4M3, backward=E5M2), Arithmetic(BF16, rounding="stochastic")])
def test_a_training_step_holds_hardly_more_than_in_fp32(arithmetic: Arithmetic) -> None:
    training(arithmetic)()  # tables and structs are made once
    assert peak(training(arithmetic)) <= 1.1 * peak(training(None))


def test_a_root_holds_one_float64_copy_at_a_time_and_on_few_threads_none() -> None:
    low = torch.rand(SHAPE).to_lp(E4M3)  # type: ignore[attr-defined]
    with threads(8):
        assert peak(lambda: low.sqrt()) <= 3 * BYTES
    with threads(1):
        assert large(lambda: low.sqrt()) == [BYTES]


TOO_MUCH = """
import resource
import torch
import lptensor as lp

def product(terms):
    ones = torch.ones(1, 1)
    accumulator = lp.Accumulator(lp.BF16, chunk=terms)
    return lp.matmul(ones.expand(4, terms), ones.expand(terms, 32), accumulator=accumulator)

product(64)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**29,) * 2)
try:
    product(2**24)
except MemoryError as error:
    print(error)
print(product(64)[0, 0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process as Linux has them")
def test_a_product_without_room_for_its_operands_is_an_error_and_not_a_crash() -> None:
    run = subprocess.run([sys.executable, "-c", TOO_MUCH], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "no memory for the operands of chunks of 16777216 terms of 16777216\ntensor(64.)\n"
