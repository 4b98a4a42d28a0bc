"""Compiled functions round the operands of their products, and compute in float64, as eager ones do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lptensor import BF16, MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8_E4M3, MXFP8_E5M2, NVFP4, Arithmetic, convert
from lptensor.accumulator import Accumulator
from lptensor.hadamard import Hadamard
from lptensor.operands import Gemm, Operand

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler

SIX = Gemm((MXFP8_E4M3, MXFP4), (MXFP8_E5M2, MXFP6_E2M3), (NVFP4, MXFP6_E3M2), transform={"grad_input": Hadamard(16)})
DRAWN = Gemm(Operand(MXFP4, "stochastic"), transform={"forward": Hadamard(16, "random")})


def run(arithmetic: Arithmetic, compiled: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)]
    # Two equal draws in one graph, such as those of signs, may be merged by the compiler.
    net = convert(nn.Sequential(*layers[: 1 if arithmetic.operands == DRAWN else 3]), arithmetic)
    x = torch.randn(32, 32).to_lp(arithmetic)  # type: ignore[attr-defined]
    torch._dynamo.reset()
    y = (torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net)(x)
    y.sum().backward()
    return [t.dequantize().detach() for t in (y, *(p.grad for p in net.parameters()))]


@pytest.mark.parametrize(
    "arithmetic",
    [Arithmetic(BF16, operands=SIX), Arithmetic(BF16, operands=DRAWN), Arithmetic(BF16, compute=torch.float64)],
    ids=["operands", "random", "float64"],
)
def test_results_and_gradients_are_those_of_eager_mode(arithmetic: Arithmetic) -> None:
    # As many samples as outputs, so that shapes tell no product from another.
    for eager, compiled in zip(run(arithmetic, False), run(arithmetic, True), strict=True):
        assert torch.equal(eager, compiled)


def test_an_accumulator_cannot_be_compiled_and_says_so() -> None:
    with pytest.raises(Exception, match="leave products and sums with an accumulator out of torch.compile"):
        run(Arithmetic(BF16, accumulator=Accumulator(BF16)), True)
