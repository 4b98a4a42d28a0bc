"""What prints as a call is that call: evaluated, it gives the value back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import lptensor
from lptensor import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    INT4,
    INT8,
    MXFP4,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NF4,
    PER_TENSOR,
    Channel,
    Codebook,
    CurrentMaximum,
    CurrentRange,
    DelayedMaximum,
    DelayedScaling,
    FixedPoint,
    FloatingPoint,
    Gemm,
    Hadamard,
    LogNumber,
    Mode,
    Operand,
    Posit,
    PowerOfTwo,
    Quantizer,
    Rounding,
    Scaled,
    Stochastic,
    Tile,
    TwoLevel,
    integer_accumulator,
    quantizer,
    tensor_core,
)
from lptensor.names import named_formats
from lptensor.training import (
    LUQ,
    S2FP8,
    SAWB,
    Automatic,
    Blockwise,
    DoReFaActivation,
    DoReFaGradient,
    DoReFaWeight,
    Dynamic,
    DynamicFixedPoint,
    Flexpoint,
    FourOverSix,
    MSEden,
    Static,
    ThreeQuarters,
    WageActivation,
    WageWeight,
)

VALUES: list[Any] = [
    *named_formats().values(),
    *(FloatingPoint(3, 3, bias=5, subnormals="flush"), FixedPoint(8, -2, signed=False), Posit(8, 0)),
    *(Codebook([0.1, 1 / 3, 1e30]), Codebook([-1.0, -2e-45, 0.0]), Codebook(range(8))),
    *(LogNumber(6, 4, 3.0, bias=0, zero=False), lptensor.P3109(6, 4, False, False)),
    *(lptensor.MX(E4M3, 16, 0, "even"), lptensor.BlockFloatingPoint(8, -1, (4, 4))),
    *(TwoLevel(INT4, 32, 0, floor=2**-9, reciprocal=True), TwoLevel(E2M1, scale=E8M0, tensor_scale=False)),
    *(Scaled(INT8, CurrentMaximum(Channel(1), E8M0, "rceil", 1)), Scaled(E4M3, PowerOfTwo(-3))),
    *(Rounding(Mode.UP), Stochastic(4, "pre_rounded", "saturate"), Rounding(Mode.STOCHASTIC_EQUAL)),
    *(
        PER_TENSOR,
        Tile((None, 2), (0, 1)),
        CurrentMaximum(),
        CurrentRange(Channel(0), False),
        DelayedMaximum(5, 1, "most_recent"),
    ),
    lptensor.Arithmetic(E4M3, E5M2, "stochastic", "up", Gemm(MXFP4), lptensor.Accumulator(BF16)),
    lptensor.Arithmetic(backward=E5M2),
    *(lptensor.Accumulator(BF16, FP16, 4, "pairwise", "stochastic"), tensor_core("hopper"), integer_accumulator(16)),
    *(Gemm(), Gemm(E4M3, None, (E5M2, None), {"grad_weight": Hadamard(32, "random")})),
    *(Gemm(MXFP8_E4M3, (MXFP8_E5M2, MXFP8_E4M3), transform=Hadamard(32)), Operand(E4M3, "up"), Hadamard(32, "none", 5)),
    *(Automatic(E5M2), Dynamic(), Static(8.0), Blockwise(NF4, 64), LUQ(4, 2), S2FP8(rounding="stochastic"), SAWB()),
    *(
        FourOverSix(),
        FourOverSix("stochastic"),
        MSEden(),
        ThreeQuarters(),
        WageWeight(3),
        DoReFaGradient(4),
        quantizer(E4M3, backward_rounding="nearest"),
    ),
]
MODULES: list[Any] = [
    *(DoReFaWeight(4), DoReFaActivation(4), WageActivation(4, 6), Flexpoint(8, 3, beta=2.0, rounding="stochastic")),
    *(DynamicFixedPoint(8, 3, interval=5, rounding=Stochastic(4)), DelayedScaling(E4M3, DelayedMaximum(3), "up")),
    *(Quantizer(E4M3), Quantizer(E4M3, E5M2, clamping_grad_zero=True)),
]


def evaluated(text: str) -> Any:
    names: dict[str, Any] = {}
    exec("import torch\nfrom lptensor import *\nfrom lptensor.training import *", names)
    return eval(text, names)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_text_of_a_value_gives_an_equal_one(value: Any) -> None:
    assert evaluated(repr(value)) == value and hash(evaluated(repr(value))) == hash(value)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_the_text_of_a_module_gives_one_with_its_arguments_and_state(module: Any) -> None:
    twin = evaluated(repr(module))
    assert type(twin) is type(module) and vars(twin).keys() == vars(module).keys()
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    assert own and {name: getattr(twin, name) for name in own} == own
    assert {k: v.tolist() for k, v in twin.state_dict().items()} == {
        k: v.tolist() for k, v in module.state_dict().items()
    }


class Bare(lptensor.Format):
    """A format that no field makes."""

    lowered = E4M3.grid


def test_a_format_that_is_no_dataclass_prints_and_says_what_it_lacks_where_it_is_copied() -> None:
    bare = Bare()
    assert "Bare object" in repr(bare) and "Bare object" in repr(torch.ones(1).to_lp(bare))  # type: ignore[attr-defined]
    for ask in (pickle.dumps, copy.deepcopy, lptensor.describe):
        with pytest.raises(TypeError, match="makes a Bare: let the class be a frozen dataclass"):
            ask(bare)  # type: ignore[operator]
