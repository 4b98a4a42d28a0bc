"""The list of a model's layers says what was asked for, and what a recording sees as the model runs."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from lptensor import (
    Accumulator,
    Arithmetic,
    DelayedScaling,
    Gemm,
    Quantizer,
    convert,
    lower,
    quantizer,
    study,
    training,
)
from lptensor.formats import BF16, E4M3, E5M2, FP16, FixedPoint

PLAIN = dict.fromkeys(("input", "output", "gradient", "rounding", "operands", "accumulator")) | {"weight": "float32"}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


def listed(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in study.layers(model)}


def said(layer: str, path: str, **what: Any) -> dict[str, Any]:
    return PLAIN | {"path": path, "layer": layer} | what


def test_a_plain_model_says_its_dtypes() -> None:
    assert listed(net().double()) == {
        "0": said("Conv2d", "0", weight="float64"),
        "1": said("BatchNorm2d", "1", weight="float64"),
        "4": said("Linear", "4", weight="float64"),
    }
    assert study.layers(nn.ReLU()) == [] and str(study.layers(nn.ReLU())) == "(no rows)"


def test_a_converted_model_says_its_arithmetic() -> None:
    acc = Accumulator(FP16, chunk=4)
    low = Arithmetic(E4M3, backward=E5M2, backward_rounding="stochastic", accumulator=acc)
    rows = listed(convert(net(), {"4": None, "1.bias": BF16, "*": low}))
    what = dict(
        output="E4M3", gradient="E5M2", rounding="nearest, stochastic", accumulator="Accumulator(FP16, chunk=4)"
    )
    assert rows["0"] == said("Conv2d", "0", weight="E4M3", **what)
    assert rows["1"] == said("BatchNorm2d", "1", weight="E4M3, BF16", **what)
    assert rows["4"] == said("Linear", "4")
    none = listed(convert(nn.Linear(2, 2), Arithmetic(None, backward=E5M2)))[""]
    assert none == said("Linear", "", gradient="E5M2", rounding="nearest")


def test_a_lowered_model_says_its_numbers_and_products() -> None:
    gemm = Gemm(forward=(E4M3, E4M3))
    model = lower(net(), ["linear"], operands=gemm, accumulator=Accumulator(BF16))
    model = lower(model, ["conv", "activation"], FixedPoint(8, 4), backward_rounding="up")
    rows = listed(model)
    products = dict(operands="Gemm(forward=E4M3)", accumulator="Accumulator(BF16)")
    assert rows["4"] == said("Linear", "4", **products)
    assert rows["0"] == said("Conv2d", "0", output="FixedPoint(wl=8, fl=4)", rounding="stochastic")
    assert rows["2"] == said("ReLU", "2", weight=None, output="FixedPoint(wl=8, fl=4)", rounding="stochastic")
    assert rows["1"] == said("BatchNorm2d", "1")
    lower(model, "all")
    assert listed(copy.deepcopy(model)) == listed(net())


def test_quantizers_and_rounded_weights_are_said_by_their_layer() -> None:
    model = nn.Sequential(training.prepare(nn.Linear(2, 2), E4M3), Quantizer(None, E5M2, backward_rounding="nearest"))
    assert listed(model) == {
        "0": said("Linear", "0", weight="E4M3, float32"),  # and the bias
        "1": said("Quantizer", "1", weight=None, gradient="E5M2", rounding="nearest"),
    }
    model = training.round_layers(
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        input=lambda: DelayedScaling(E4M3),
        weight=lambda: quantizer(BF16),
        gradient=lambda: torch.sign,
    )
    (row,) = study.layers(model)
    assert row | {"input": None} == said("Linear", "0", weight="BF16", gradient="sign")
    assert row["input"].startswith("DelayedScaling(E4M3, ")


def test_a_weight_under_a_norm_is_in_the_format_of_what_makes_it() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False))
    assert listed(model)[""] == said("Linear", "")
    row = listed(convert(model, Arithmetic(E4M3, backward=E5M2)))[""]
    assert row == said("Linear", "", weight="E4M3", output="E4M3", gradient="E5M2", rounding="nearest")


def test_it_agrees_with_what_a_recording_sees() -> None:
    model = convert(net(), {"4": BF16, "*": E4M3})
    with study.record(model) as log:
        model(torch.randn(2, 1, 8, 8)).sum().backward()
    seen: dict[str, str] = {}
    for row in log:
        if row["role"] == "activation":
            seen.setdefault(row["path"], row["format"])  # what leaves a part of another format is recast afterwards
    rows = listed(model)
    assert {path: rows[path]["output"] for path in ("0", "1", "4")} == {path: seen[path] for path in ("0", "1", "4")}


def test_print_shows_the_columns_that_hold_something() -> None:
    text = str(study.layers(lower(net(), ["conv"], E4M3, forward_rounding="nearest")))
    assert re.sub(" +", " ", text).splitlines() == [
        "path layer weight output rounding",
        "0 Conv2d float32 E4M3 nearest",
        "1 BatchNorm2d float32 - -",
        "4 Linear float32 - -",
    ]


def test_print_hides_nothing_of_a_model_that_is_one_layer() -> None:
    layer = nn.Linear(2, 1)
    assert study.layers(layer)[0]["path"] == "" and "Not shown" not in str(study.layers(layer))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, got Tensor"):
        study.layers(torch.ones(2))  # type: ignore[arg-type]
