"""Techniques with a state, or autograd functions of their own, in compiled models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from compiling import compile_anew as compile_anew
from lptensor import BF16, to_lp
from lptensor.training import (
    HBFP,
    LUQ,
    S2FP8,
    SAWB,
    Blockwise,
    DoReFaActivation,
    DoReFaGradient,
    DoReFaWeight,
    DynamicFixedPoint,
    Expansion,
    Flexpoint,
    FourOverSix,
    MSEden,
    ThreeQuarters,
    WageActivation,
    WageError,
    WageGradient,
    WageWeight,
    round_layers,
)
from recipe_list import RECIPES

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's own compiler
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]
BETWEEN_GRAPHS = ("dorefa", "fp8_delayed", "hbfp", "luq", "quartet", "s2fp8", "wage")
COMPILED: dict[str, Callable[[Any], Any]] = {
    **{n: lambda net, n=n: RECIPES[n]().model(net) for n in BETWEEN_GRAPHS},  # type: ignore[misc]
    "dfxp": lambda net: round_layers(net, *[lambda: DynamicFixedPoint(8, interval=1)] * 3),
    "flexpoint": lambda net: round_layers(net, *[lambda: Flexpoint(8)] * 3),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_trains_as_in_eager_mode(name: str) -> None:
    """What rounds by a state, or in an autograd function, breaks the graph: its state and its draws are the same."""
    torch.manual_seed(0)
    net = COMPILED[name](nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    twin, x, runs = copy.deepcopy(net), torch.randn(4, 2, 6), []
    for model, call in ((net, net), (twin, torch.compile(twin, backend="aot_eager"))):
        torch.manual_seed(1)
        optim, outputs = SGD(model.parameters(), lr=0.1), []
        for i in range(3):
            optim.zero_grad()
            outputs.append(call(x[i] * 10.0 ** (i - 1)))
            outputs[-1].sum().backward()
            optim.step()
        model.eval()
        runs.append([*outputs, call(x[3]), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


ROUNDERS: list[Any] = [HBFP(), LUQ(), S2FP8(), SAWB(), Blockwise(min_size=0), DoReFaActivation(2), DoReFaGradient(4)]
ROUNDERS += [DoReFaWeight(3), Expansion(BF16), FourOverSix(), MSEden(), ThreeQuarters(), WageActivation(), WageError()]
ROUNDERS += [WageGradient(), WageWeight()]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("rounder", ROUNDERS, ids=lambda rounder: type(rounder).__name__)
def test_a_compiled_function_calls_what_rounds_by_values(rounder: Any, low: bool) -> None:
    x = to_lp(torch.randn(8, 32), BF16) if low else torch.randn(8, 32)

    def f(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = rounder(x * 2) + 1
        return y

    results = []
    for call in (f, torch.compile(f, backend="aot_eager")):
        torch.manual_seed(0)
        results.append(call(x))
    assert type(results[0]) is type(results[1]) is type(x) and bool((results[0] == results[1]).all())
