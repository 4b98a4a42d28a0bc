"""Formats, arithmetics and quantizers within a compiled function, and as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lptensor as lp
from compiling import MADE_INSIDE, compile_anew as compile_anew, plain, since
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    INT8,
    MXFP4,
    NF4,
    NVFP4,
    Arithmetic,
    BlockFloatingPoint,
    Channel,
    CurrentMaximum,
    CurrentRange,
    FixedPoint,
    FloatingPoint,
    Format,
    Gemm,
    Hadamard,
    LPTensor,
    Operand,
    Quantizer,
    Rounding,
    Scaled,
    Stochastic,
    Tile,
    quantizer,
)
from lptensor.tensor import enter
from lptensor.text import read, write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler
SPLIT = Arithmetic(E4M3, backward=E5M2)


class Counted:
    """A backend that does nothing but count the graphs it is given."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph


def results(f: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of f at x, for a fixed gradient of its result."""
    x = x.clone().requires_grad_()
    y = f(x)
    torch.manual_seed(5)
    v = torch.randn(y.shape)
    y.backward(enter(v, y.arithmetic, gradient=True) if isinstance(y, LPTensor) else v)
    assert x.grad is not None
    return plain(y.detach()), plain(x.grad)


def scaled(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return f(x * 1.37) * 2.1


NEAREST = quantizer(FixedPoint(6, 3), E5M2, "nearest", "nearest")
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a format of the module": lambda x: x.to_lp(E4M3),  # type: ignore[attr-defined]
    "a format made inside": lambda x: x.to_lp(FloatingPoint(bit=8)),  # type: ignore[attr-defined]
    "a format by position": lambda x: x.to_lp(FloatingPoint(4, 2, specials="fnuz")),  # type: ignore[attr-defined]
    "fixed point": lambda x: x.to_lp(FixedPoint(8, 4)),  # type: ignore[attr-defined]
    "blocks": lambda x: x.to_lp(MXFP4),  # type: ignore[attr-defined]
    "blocks under a scale": lambda x: x.to_lp(NVFP4),  # type: ignore[attr-defined]
    "a codebook": lambda x: x.to_lp(NF4),  # type: ignore[attr-defined]
    "rounding and grad": lambda x: x.to_lp(E4M3, rounding="up", grad=E5M2),  # type: ignore[attr-defined]
    "an arithmetic": lambda x: x.to_lp(SPLIT),  # type: ignore[attr-defined]
    "an arithmetic made inside": lambda x: x.to_lp(Arithmetic(E4M3, backward=E5M2)),  # type: ignore[attr-defined]
    "scales made inside": lambda x: x.to_lp(Scaled(E4M3, CurrentMaximum(Tile((1, 16)), scale=BF16))),  # type: ignore[attr-defined]
    "a range made inside": lambda x: lp.round(x, Scaled(INT8, CurrentRange(Channel(0)))),
    "operands made inside": lambda x: x.to_lp(Arithmetic(BF16, operands=Gemm(Operand(MXFP4, "up"), MXFP4))) @ x.T,  # type: ignore[attr-defined]
    "a transform made inside": lambda x: x.to_lp(Arithmetic(BF16, operands=Gemm(MXFP4, transform=Hadamard(16)))) @ x.T,  # type: ignore[attr-defined]
    "the function": lambda x: lp.tensor.to_lp(x, SPLIT),
    "a recast": lambda x: (x.to_lp(SPLIT) * 1.3).to_lp(BF16),  # type: ignore[attr-defined]
    "its own arithmetic": lambda x: (x * 3).to_lp(x.to_lp(SPLIT).arithmetic),  # type: ignore[attr-defined]
    "there and back": lambda x: x.to_lp(SPLIT).exp().dequantize(),  # type: ignore[attr-defined]
    "round": lambda x: lp.round(x, E4M3, "toward_zero"),
    "round in blocks": lambda x: lp.round(x, MXFP4),
    "a quantizer": NEAREST,
    "a quantizer made inside": lambda x: quantizer(E4M3, E5M2, "nearest", "down")(x),
    "a quantizer with a mask": quantizer(FixedPoint(3, 2), E5M2, "nearest", "nearest", clamping_grad_zero=True),
    "a quantizer with hooks": quantizer(E4M3, E5M2, "nearest", "nearest", backward_hooks=[lambda g: g * 1.1]),
    "a quantizer as a module": Quantizer(E4M3, E5M2, "nearest", "nearest"),
}


ONLY_LATER = {
    "a format made inside": MADE_INSIDE,
    "a format by position": MADE_INSIDE,
    "a codebook": MADE_INSIDE,
    "scales made inside": MADE_INSIDE,
    "a range made inside": MADE_INSIDE,
    "operands made inside": MADE_INSIDE,
    "a transform made inside": MADE_INSIDE,
    "an arithmetic made inside": MADE_INSIDE,
    "its own arithmetic": MADE_INSIDE,
    "a quantizer made inside": since("2.13", "Dynamo makes no callable object within a graph"),
}


@pytest.mark.parametrize("name", [pytest.param(f, marks=ONLY_LATER.get(f, ())) for f in FUNCTIONS])
def test_a_compiled_function_may_enter_and_leave_low_precision(name: str) -> None:
    x = torch.randn(4, 64) * 3
    graph = torch.compile(scaled, backend="aot_eager", fullgraph=True)
    f = FUNCTIONS[name]
    for wanted, got in zip(results(lambda t: scaled(f, t), x), results(lambda t: graph(f, t), x), strict=True):
        assert torch.equal(wanted, got)


@MADE_INSIDE
def test_what_a_tensor_is_in_is_known_while_compiling() -> None:
    def f(x: Tensor) -> tuple[Any, ...]:
        y = x.to_lp(SPLIT)  # type: ignore[attr-defined]
        return y * y.format.max, y.format, y.arithmetic, y.arithmetic.gradient_format.max

    x = torch.randn(3)
    got, wanted = torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x)
    assert torch.equal(plain(got[0]), plain(wanted[0])) and got[1:] == wanted[1:] == (E4M3, SPLIT, E5M2.max)


@MADE_INSIDE
def test_an_equal_format_compiles_nothing_anew_and_another_does() -> None:
    backend = Counted()
    f = torch.compile(lambda x, format: lp.round(x, format) + 1, backend=backend, fullgraph=True)
    x = torch.randn(5)
    f(x, FloatingPoint(4, 3)), f(x, FloatingPoint(4, 3)), f(x, FloatingPoint(exp=4, man=3))
    assert len(backend.graphs) == 1
    assert torch.equal(f(x, FloatingPoint(4, 2)), lp.round(x, FloatingPoint(4, 2)) + 1) and len(backend.graphs) == 2


def test_an_equal_arithmetic_of_an_argument_compiles_nothing_anew_and_another_does() -> None:
    backend = Counted()
    f = torch.compile(lambda x: x * 3, backend=backend, fullgraph=True)
    x = torch.randn(5)
    f(x.to_lp(FloatingPoint(4, 3))), f(x.to_lp(FloatingPoint(4, 3)))  # type: ignore[attr-defined]
    assert len(backend.graphs) == 1
    for other in (FloatingPoint(4, 2), Arithmetic(FloatingPoint(4, 3), backward=BF16)):
        y = x.to_lp(other)  # type: ignore[attr-defined]
        assert torch.equal(plain(f(y)), plain(y * 3))
    assert len(backend.graphs) == 3


def test_rounding_into_a_given_tensor_may_be_compiled() -> None:
    def f(x: Tensor, out: Tensor) -> Tensor:
        return lp.round(x, E4M3, out=out) * 2

    x, out, wanted = torch.randn(3, 5), torch.empty(3, 5), torch.empty(3, 5)
    got = torch.compile(f, backend="aot_eager", fullgraph=True)(x, out)
    assert torch.equal(got, f(x, wanted)) and torch.equal(out, wanted)


@since("2.13", "Dynamo warns of a generator that is made within a graph")
def test_a_generator_of_ones_own_stays_outside_of_graphs() -> None:
    def f(x: Tensor) -> Tensor:
        return lp.round(x, E4M3, "stochastic", generator=torch.Generator().manual_seed(1)) + 1

    x = torch.randn(64)
    assert torch.equal(torch.compile(f, backend="aot_eager")(x), f(x))


def test_a_tracer_sees_the_rounding_of_a_plain_tensor() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(4)
    graph = make_fx(lambda t: lp.round(t * 2, E4M3))(x)
    assert torch.ops.lptensor.round.default in [node.target for node in graph.graph.nodes]
    assert torch.equal(graph(2 * x), lp.round(4 * x, E4M3))


# -- text ----------------------------------------------------------------------------------------------

VALUES = [
    *(row for row in vars(lp).values() if isinstance(row, Format)),
    BlockFloatingPoint(5, block_size=(2, 3)),
    FixedPoint(8, 4, clamp=False),
    Rounding(),
    Stochastic(5, "pre_rounded", beyond="saturate"),
    SPLIT,
    Arithmetic(E4M3, rounding="stochastic", backward_rounding="down"),
    (E4M3, Rounding()),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_text_says_all_of_a_value(value: Any) -> None:
    text = write(value)
    assert read(text) == value
    made = lp.text._made(json.loads(text))  # as another process would
    assert made == value and repr(made) == repr(value)


def test_texts_of_different_values_differ() -> None:
    texts = {write(value) for value in VALUES}
    assert len(texts) == len(set(VALUES))


def test_what_has_no_text_is_named() -> None:
    with pytest.raises(TypeError, match="object .* cannot be written into a compiled graph"):
        write((E4M3, object()))
    for text in ("{", '{"":"os.system","command":"true"}', '{"":"lptensor.formats.FixedPoint","wl":8}'):
        with pytest.raises(ValueError, match="text of no format"):
            read(text)


def test_a_format_of_the_users_own_has_a_text() -> None:
    from dataclasses import dataclass

    from lptensor.formats import ScalarFormat

    @dataclass(frozen=True, repr=False)
    class Integers(ScalarFormat):
        wide: int

        @property
        def grid(self) -> Any:
            return FixedPoint(self.wide, 0).grid

    x = torch.randn(9) * 9
    format: Format = Integers(4)
    assert read(write(format)) == format and format != Integers(5)
    got = torch.compile(lambda t: lp.round(t, format), backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(got, lp.round(x, FixedPoint(4, 0)))
