"""What errors say of a wrong argument: its value, what is allowed, and the way out."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

import lptensor
from lptensor import (
    BF16,
    E4M3,
    E8M0,
    MX,
    MXFP4,
    NF4,
    PER_TENSOR,
    Accumulator,
    Arithmetic,
    Codebook,
    CurrentMaximum,
    DelayedMaximum,
    FixedPoint,
    Gemm,
    Operand,
    OptimLP,
    Quantizer,
    Scaled,
    Tile,
    lower,
    quantizer,
    study,
)
from lptensor.interop import save_file
from lptensor.training import Technique, round_layers
from own_formats import Multiples

UNSIGNED = FixedPoint(8, 0, signed=False)
X, W, ACC = torch.ones(3), nn.Parameter(torch.ones(1)), Accumulator(BF16)

TAKE_A_FORMAT: dict[str, Callable[[Any], object]] = {
    "prepare": lambda format: lptensor.training.prepare(nn.Linear(1, 1), format),
    "round": lambda format: lptensor.round(X, format),
    "to_lp": lambda format: X.to_lp(format),  # type: ignore[attr-defined]
    "convert": lambda format: lptensor.convert(nn.Linear(1, 1), format),
    "convert by path": lambda format: lptensor.convert(nn.Linear(1, 1), {"*": format}),
    "encode": lambda format: lptensor.encode(X, format),
    "decode": lambda format: lptensor.decode(X.int(), format),
    "describe": lptensor.describe,
    "finfo": lptensor.finfo,
    "next": lambda format: lptensor.next(X, format),
    "Arithmetic": Arithmetic,
    "backward": lambda format: Arithmetic(BF16, backward=format),
    "Accumulator": Accumulator,
    "Operand": Operand,
    "Gemm": Gemm,
    "MX": MX,
    "Scaled": lambda format: Scaled(format, None),
    "lower": lambda format: lower(nn.Linear(1, 1), "linear", format),
    "quantizer": quantizer,
    "OptimLP": lambda format: OptimLP(torch.optim.SGD([X], lr=0.1), weight_quant=format),
    "save_file": lambda format: lptensor.save_file({"x": X}, "", format),
    "sqnr": lambda format: lptensor.study.sqnr(X, [format]),
    "format_table": lambda format: lptensor.study.format_table([format]),
    "format_search": lambda format: lptensor.study.format_search(nn.Linear(1, 1), print, [BF16, format]),
    "exactness": lambda format: lptensor.study.exactness(format, "add"),
}


@pytest.mark.parametrize("call", TAKE_A_FORMAT.values(), ids=TAKE_A_FORMAT)
def test_a_format_by_name_is_told_to_be_a_value(call: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="got 'E4M3'; formats are values such as lptensor.E4M3, not names"):
        call("E4M3")


def test_a_dtype_and_a_class_in_place_of_a_format_are_told_the_way() -> None:
    with pytest.raises(TypeError, match=r"got torch.float16; lptensor.format_of\(\) gives the format of a dtype"):
        lptensor.round(X, torch.float16)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the class FloatingPoint; call it to make a format"):
        lptensor.round(X, lptensor.FloatingPoint)  # type: ignore[arg-type]


def test_what_has_no_grid_is_not_told_to_ask_an_element_that_it_lacks() -> None:
    with pytest.raises(TypeError, match=r"got NF4; its values\(\) say what it has"):
        lptensor.study.exactness(NF4, "add")
    with pytest.raises(TypeError, match=r"got MXFP4; ask its element"):
        lptensor.finfo(MXFP4)
    with pytest.raises(TypeError, match=r"got Multiples\(step=0.25\)$"):
        lptensor.finfo(Multiples(0.25))


def test_a_study_of_formats_takes_one_format_alone() -> None:
    assert lptensor.study.sqnr(X, BF16) == lptensor.study.sqnr(X, [BF16])
    assert lptensor.study.format_table(BF16) == lptensor.study.format_table([BF16])
    with pytest.raises(ValueError, match=r"at least two formats, got \['BF16'\]"):
        lptensor.study.format_search(nn.Linear(1, 1), print, [BF16])


def test_a_pattern_for_a_layer_alone_is_told_that_it_has_no_parts() -> None:
    with pytest.raises(ValueError, match="'head' matches no module or parameter; the model has no parts"):
        lower(nn.Linear(1, 1), "linear", BF16, exempt=["head"])


def test_a_path_rule_that_comes_too_late_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    late = r"the path rule '1' comes after '\*', which decides '1' and all else .* say the more special rule first"
    with pytest.raises(ValueError, match=late):
        lptensor.convert(model, {"*": BF16, "1": E4M3})
    with pytest.raises(ValueError, match="the path rule '0.weight' comes after '0', which decides '0.weight'"):
        lptensor.convert(model, {"0": None, "0.weight": E4M3, "*": BF16})
    assert type(model[0].weight) is nn.Parameter
    lptensor.convert(model, {"*.weight": E4M3, "1": BF16, "*": BF16, "0.bias": BF16})  # says the same twice
    assert [p.arithmetic.forward for p in model.parameters()] == [E4M3, BF16, E4M3, BF16]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: lptensor.matmul(X, torch.ones(2), ACC), r"got \(3,\) and \(2,\)"),
    (lambda: lptensor.matmul(X, X, ACC, c=3), "the addend c must be a tensor, got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.conv([1.0], X, ACC), "expected a tensor, got list"),  # type: ignore[arg-type]
    (lambda: lptensor.sum(X, "n", accumulator=ACC), "dim must be an integer, or a tuple of them, got"),  # type: ignore[arg-type]
    (lambda: lptensor.round(X, BF16, "stochastic", generator=3), "must be a torch.Generator, .* got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.next(X, BF16, -1), "up must be True or False, got -1"),  # type: ignore[arg-type]
    (lambda: lptensor.round([0.1], BF16), r"got list; make one with torch.tensor\(...\)"),  # type: ignore[arg-type]
    (lambda: lptensor.to_lp([0.1], BF16), r"got list; make one with torch.tensor\(...\)"),  # type: ignore[arg-type]
    (lambda: lptensor.training.DoReFaWeight(1)(W.half()), "got torch.float16; convert with .float"),
    (lambda: lptensor.training.DoReFaActivation(4)([0.1]), "got list; make one with torch.tensor"),
    (lambda: lptensor.training.DoReFaGradient(4)([0.1]), "got list; make one with torch.tensor"),  # type: ignore[arg-type]
    (lambda: lptensor.round(X + 1j, BF16), "got torch.complex64; round .real and .imag"),
    (lambda: Codebook("abc"), "a codebook lists numbers, such as .* got 'abc'"),  # type: ignore[arg-type]
    (lambda: Codebook(3), "a codebook lists numbers, such as .* got 3"),  # type: ignore[arg-type]
    (lambda: Scaled(NF4, PER_TENSOR), "got NF4; lptensor.training.Blockwise scales lists of values"),  # type: ignore[arg-type]
    (lambda: MX(NF4).lowered, "got NF4; lptensor.training.Blockwise scales lists of values"),  # type: ignore[arg-type]
    (lambda: Scaled(BF16, Tile((1, 8))), r"got Tile\(\(1, 8\)\); say CurrentMaximum of it"),  # type: ignore[arg-type]
    (lambda: Scaled(BF16, DelayedMaximum()), "it has a state, for which DelayedScaling is a module"),
    (lambda: Gemm(torch.sign), r"got <.*>; training.Technique\(format, function\) takes a function"),  # type: ignore[arg-type]
    (lambda: Tile(128), r"widths must be a tuple such as \(1, 128\), got 128"),  # type: ignore[arg-type]
    (lambda: X.to_lp(None), r"got None; x.dequantize\(\) gives the plain values"),  # type: ignore[attr-defined]
    (lambda: OptimLP([W], weight_quant=BF16), "other than OptimLP, got list"),  # type: ignore[arg-type]
    (lambda: lower(nn.Linear(1, 1), "Linear", BF16), "'Linear'; .*, 'all', or a class such as nn.Linear"),
    (
        lambda: study.sensitivity(lptensor.convert(nn.Linear(1, 1), BF16), print, E4M3),  # type: ignore[arg-type]
        r"this one is converted: convert\(model, None\) takes it back",
    ),
    (lambda: lptensor.study.flip_bits(X, BF16, bits=3), r"got 3; say bits=\[3\]"),  # type: ignore[arg-type]
    (lambda: lptensor.study.faults(0.1, bits=3), r"got 3; say bits=\[3\]"),  # type: ignore[arg-type]
    (lambda: lptensor.study.faults(0.1, model=nn.ReLU(), path="head"), "path='head' matches no module or parameter"),
    (lambda: lptensor.study.exponent_histogram(X, BF16).share("underflows"), "region must be one of .* 'underflows'"),
    (lambda: lptensor.study.sensitivity(3, print, BF16), "sensitivity takes a torch.nn.Module, got int"),  # type: ignore[arg-type]
    (lambda: lptensor.training.prepare(3, BF16), "prepare takes a torch.nn.Module, got int"),  # type: ignore[type-var]
    (lambda: lptensor.training.prepare(nn.Linear(1, 1), torch.sign), "a function is for round_layers"),  # type: ignore[arg-type]
    (lambda: lptensor.training.prepare(nn.Linear(1, 1), BF16, layer_types=8), "layer_types must be names .* got 8"),  # type: ignore[arg-type]
    (lambda: lptensor.training.round_layers(nn.Linear(1, 1), layer_types=[8]), "a module class, got 8; known"),  # type: ignore[list-item]
    (lambda: lptensor.training.FormatSchedule({0: BF16}, 3), "apply must be a function of the format, got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.training.FormatSchedule([BF16], print), r"formats must be a dict such as .* got \[BF16"),  # type: ignore[arg-type]
    (lambda: lptensor.training.HALP([W], lr="0.1", mu=1.0), "lr must be a number, got '0.1'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.HALP([{"params": [W], "bits": 100}], 0.1, 1.0), "bits must be .* got 100"),  # type: ignore[list-item]
    (lambda: lptensor.training.Madam([W], beta=None), "beta must be a number, got None"),  # type: ignore[arg-type]
    (lambda: lptensor.training.Madam([{"params": [W], "lr": -1}]), "lr must be positive and finite, got -1"),  # type: ignore[list-item]
    (lambda: lptensor.training.Dynamic(growth_factor="2"), "growth_factor must be a number, got '2'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.Automatic(BF16, threshold=None), "threshold must be a number, got None"),  # type: ignore[arg-type]
    (lambda: lptensor.training.DynamicFixedPoint(max_overflow="1"), "max_overflow must be a number, got '1'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.Flexpoint(gamma="1"), "gamma must be a number, got '1'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.SWALP(W), "a model or a list of parameters, got Parameter"),
    (lambda: lptensor.training.SWALP(nn.Linear(1, 1).named_parameters()), "got a tuple in the list"),  # type: ignore[arg-type]
    (lambda: lptensor.training.SWALP([W.data + 1j]), "floating-point parameters, got torch.complex64"),
    (lambda: lptensor.training.recipes.hbfp().model(W), "torch.nn.Module, got Parameter"),  # type: ignore[type-var]
    (lambda: lptensor.training.recipes.mxfp8().optimizer([W]), "torch.optim.Optimizer, got list"),  # type: ignore[arg-type]
    (lambda: lptensor.LPTensor(X, requires_grad=True), "nothing says the format; load a model first"),
    (lambda: lptensor.LPTensor(X, BF16), r"made by x\.to_lp\(format\), which rounds; .*no BF16"),  # type: ignore[arg-type]
    (lambda: lptensor.training.recipes.wage(gradient="8"), "gradient must be an integer from 2 to 24, got '8'"),
    (lambda: lptensor.training.recipes.wage(error=1), "error must be from 2 to 24, got 1"),
    (lambda: lptensor.training.WageActivation(error="8"), "error must be an integer from 2 to 24, got '8'"),
    (lambda: lptensor.training.recipes.lns_madam(bits="8"), "bits must be an integer from 2 to 16, got '8'"),
    (lambda: lptensor.training.recipes.lns_madam(bits=10**9), "bits must be from 2 to 16, got 1000000000"),
    (lambda: lptensor.training.recipes.hbfp(storage="x"), "storage must be an integer from 2 to 24, got 'x'"),
    (lambda: lptensor.training.recipes.gupta(outputs="x"), "outputs must be an integer .* got 'x'"),
    (lambda: lptensor.training.recipes.deepseek(promote_every="x"), "promote_every must be an integer .* got 'x'"),
    (lambda: lptensor.training.recipes.dorefa(weight="x"), "weight must be an integer from 1 to 16, got 'x'"),
    (lambda: lptensor.training.recipes.mxfp4(hadamard=True), "hadamard must be an integer from 2 to 1024, got True"),
    (lambda: lptensor.training.recipes.Recipe(scaling="x"), "scaling must be Static.* or a number, got 'x'"),
    (lambda: lptensor.training.recipes.quartet().model(nn.ReLU()), "ReLU has no layer of Linear"),
    (lambda: lptensor.training.hbfp_widths(3, 4), "hbfp_widths takes a torch.nn.Module, got 3"),
    (lambda: lptensor.training.LossScaler().unscale_(3), "a scaler takes a torch.optim.Optimizer, got 3"),
    (lambda: lptensor.training.LossScaler().step("opt"), "a scaler takes a torch.optim.Optimizer, got 'opt'"),
    (lambda: lptensor.training.LossScaler().load_state_dict(None), "state of a scaler is a dict of scale, got None"),
    (
        lambda: lptensor.training.LossScaler().load_state_dict({"scale": 1.0}),
        r"a dict of scale, count, got \['scale'\]",
    ),
    (
        lambda: lptensor.training.LossScaler(10**400),
        r"policy must be a number that float64 holds, got one beyond 2\*\*1024",
    ),
    (
        lambda: lptensor.training.FormatSchedule({0: BF16}, print).load_state_dict({}),
        r"state of a schedule is a dict of steps, got \[\]",
    ),
    (
        lambda: lptensor.training.SWALP([W]).load_state_dict({}),
        r"state of a SWALP is a dict of steps, collected, means, got \[\]",
    ),
    (
        lambda: lptensor.training.SWALP([W]).load_state_dict({"steps": "3", "collected": 1, "means": [W]}),
        "steps must be an integer .* got '3'",
    ),
    (
        lambda: lptensor.training.SWALP([W]).load_state_dict({"steps": 3, "collected": 1.7, "means": [W]}),
        "collected must be an integer .* got 1.7",
    ),
    (
        lambda: lptensor.training.SWALP([W]).load_state_dict({"steps": 3, "collected": 1, "means": 3}),
        r"the means \[3\]",
    ),
    (lambda: lptensor.training.Madam([W], lr=float("inf")), "lr must be positive and finite, got inf"),
    (lambda: lptensor.training.unit_scaling.scale(X, "2"), "forward must be a number, got '2'"),
    (
        lambda: lptensor.training.unit_scaling.cross_entropy([1.0], X),
        "cross_entropy takes tensors, got list and Tensor",
    ),
    (
        lambda: lptensor.training.recipes.mxfp8(exempt=torch.tensor(3)),
        r"exempt takes a list of path patterns .* got tensor\(3\)",
    ),
    (lambda: lptensor.sum(X, 0, 2, accumulator=ACC), "keepdim must be True or False, got 2"),  # type: ignore[arg-type]
    (lambda: lptensor.encode(X, BF16, "no"), "strict must be True or False, got 'no'"),  # type: ignore[arg-type]
    (
        lambda: OptimLP(torch.optim.SGD([W], 0.1)).step(gradients_rounded="no"),
        "gradients_rounded must be True or False, got 'no'",
    ),  # type: ignore[arg-type]
    (lambda: lptensor.training.recipes.mxfp4("no"), "unbiased must be True or False, got 'no'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.recipes.wage(initialize="no"), "initialize must be True or False, got 'no'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.recipes.unit_scaling(initialize=0), "initialize must be True or False, got 0"),  # type: ignore[arg-type]
    (lambda: lptensor.sum(X, True, accumulator=ACC), "dim must be an integer, or a tuple of them, got True"),
    (lambda: lptensor.conv(X.view(1, 1, 3), X.view(1, 1, 3), ACC, stride={1}), r"one for each axis \(1\), got {1}"),  # type: ignore[arg-type]
    (lambda: lptensor.conv(X.view(1, 1, 3), X.view(1, 1, 3), ACC, groups="a"), "groups must be an integer .* got 'a'"),  # type: ignore[arg-type]
    (lambda: lptensor.FloatingPoint(int), "a width must be an integer, .* got <class 'int'>"),
    (lambda: FixedPoint(int, 2), "wl must be an integer .* got <class 'int'>"),  # type: ignore[arg-type]
    (lambda: lptensor.FloatingPoint(4, 3, zero=torch.ones(2)), "zero must be True or False, got tensor"),
    (lambda: Tile({1, 64}), r"widths must be a tuple such as \(1, 128\), got {"),  # type: ignore[arg-type]
    (lambda: Tile((1,), axes=0), r"axes must be a tuple such as \(-2, -1\), got 0"),  # type: ignore[arg-type]
    (lambda: lower(nn.Linear(1, 1), "linear", BF16, exempt=None), "exempt takes a list of path patterns .* got None"),  # type: ignore[arg-type]
    (lambda: round_layers(nn.Linear(1, 1), exempt=[0]), r"exempt takes a list of path patterns .* got \[0\]"),  # type: ignore[list-item]
    (lambda: lptensor.training.recipes.mxfp8(exempt="head"), r"say exempt=\['head'\]"),
    (lambda: lptensor.training.recipes.Recipe(change=3), "change must be a function .* got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.training.recipes.Recipe(optim=3), "optim must be a dict of arguments of OptimLP, got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.round(X, BF16, generator=42), "must be a torch.Generator, .* got 42"),  # type: ignore[arg-type]
    (lambda: lptensor.sum(X, accumulator=ACC, generator="seed"), "must be a torch.Generator, .* got 'seed'"),  # type: ignore[arg-type]
    (lambda: lptensor.Stochastic(4, variant=[]), r"unknown variant \[\]"),  # type: ignore[arg-type]
    (lambda: lptensor.Stochastic(beyond={}), "unknown beyond {}"),  # type: ignore[arg-type]
    (lambda: lptensor.tensor_core([]), r"unknown tensor core \[\]"),  # type: ignore[arg-type]
    (lambda: lptensor.to_torch(X, MXFP4), "encode values divided by their lptensor.scales"),  # type: ignore[arg-type]
    (lambda: lptensor.to_numpy(X, MXFP4), "encode values divided by their lptensor.scales"),  # type: ignore[arg-type]
    (
        lambda: lptensor.convert(nn.ParameterDict({"w": torch.eye(2).to_sparse()}), BF16),
        "'w' is a tensor of torch.sparse",
    ),
    (lambda: lptensor.training.LossScaler("3"), "policy must be Static.* or a number, got '3'"),  # type: ignore[arg-type]
    (lambda: lptensor.training.LossScaler().load_state_dict({"scale": 4.0, "count": -5}), "count must be from 0 .* -5"),
    (lambda: lptensor.training.recipes.dorefa(weight=0), "must be from 1 to 16, got 0"),
    (lambda: lptensor.training.recipes.hbfp(wl=1), "must be from 2 to 24, got 1"),
    (lambda: lptensor.study.faults(0.1, model="x", path="w"), "model must be a torch.nn.Module, got str"),  # type: ignore[arg-type]
    (lambda: lptensor.study.faults(0.1, model=nn.ReLU(), roles=3), "roles are among weight, .* got 3"),  # type: ignore[arg-type]
    (lambda: lptensor.study.faults(0.1, bits=1.5), r"got 1.5; say bits=\[1.5\]"),  # type: ignore[arg-type]
    (
        lambda: lptensor.study.sensitivity(nn.Linear(1, 1), print, BF16, roles=()),
        r"roles are among weight, .* got \(\)",
    ),
    (lambda: lptensor.training.finish(None), "finish takes a torch.nn.Module, got NoneType"),  # type: ignore[type-var]
    (lambda: lptensor.training.unit_scaling.activation_scale(nn.Softmax(-1)), "activation with a slope, got Softmax"),
    (lambda: X.to_lp(Arithmetic(BF16), grad=BF16), "give nothing beside it"),  # type: ignore[attr-defined]
    (
        lambda: OptimLP(torch.optim.SGD([W], 0.1)).load_state_dict({"model": {}, "optim": {}}),
        r"a wrapped optimizer is a dict of state, param_groups, got \['model', 'optim'\]",
    ),
    (
        lambda: OptimLP(torch.optim.SGD([W], 0.1)).load_state_dict(None),  # type: ignore[arg-type]
        "a wrapped optimizer is a dict of state, param_groups, got None",
    ),
    (lambda: lptensor.Stochastic(torch.ones(3)), r"takes 1 to 32 random bits, got tensor"),  # type: ignore[arg-type]
    (lambda: lptensor.Stochastic(int), "takes 1 to 32 random bits, got <class 'int'>"),  # type: ignore[arg-type]
    (lambda: lptensor.training.Flexpoint()([0.1]), "expected a tensor, got list; make one with torch.tensor"),
    (lambda: lptensor.training.WageGradient()(np.ones(2)), "expected a tensor, got ndarray; make one"),  # type: ignore[arg-type]
    (lambda: lptensor.training.unit_scaling.scale([1.0], 2.0), "expected a tensor, got list"),  # type: ignore[arg-type]
    (lambda: study.bits_per_value(MXFP4, 1024), r"shape lists the sizes of a tensor, such as .* got 1024"),  # type: ignore[arg-type]
    (lambda: study.accumulation_error(X, lptensor.FloatingPoint), "got the class FloatingPoint; call it to make"),  # type: ignore[arg-type]
    (
        lambda: study.format_search(nn.Linear(1, 1), lambda model: float("inf"), [E4M3, BF16]),
        r"infinite or NaN with each of the \d+ assignments of BF16, E4M3 that were tried",
    ),
    (lambda: lptensor.format_from({"type": ["E4M3"]}), r"unknown format \['E4M3'\]; this version"),
    (lambda: lptensor.convert(torch.optim.SGD([W], 0.1), {}), r"rules name no state to convert, got {}; say a format"),
    (
        lambda: round_layers(nn.Linear(1, 1), input=lambda x: x.round()),  # type: ignore[arg-type,misc]
        r"input makes what rounds, once for each layer: say input=lambda: ..., got <function",
    ),
    (lambda: lptensor.save_file({"x": X}, "", BF16, {"epoch": 3}), "got 3 for 'epoch'; say {'epoch': '3'}"),  # type: ignore[dict-item]
    (lambda: lptensor.save_file({"x": X}, "", BF16, "run 3"), "metadata is text by name, .* got 'run 3'"),  # type: ignore[arg-type]
    (lambda: study.Log().to_tensorboard("runs/1"), r"writer must be a SummaryWriter, got 'runs/1'; say Summary"),
    (lambda: BF16.contains(lptensor.FloatingPoint), "got the class FloatingPoint; call it to make a format"),  # type: ignore[arg-type]
    (lambda: BF16.contains({"a": E4M3}), "contains.. compares formats of single numbers, got {'a': E4M3}"),  # type: ignore[arg-type]
    (lambda: study.sensitivity(nn.LazyLinear(1), print, E4M3), "'weight' is lazy and has no values yet; call the"),  # type: ignore[arg-type]
    (lambda: study.format_search(nn.LazyLinear(1), print, [E4M3, BF16]), "'weight' is lazy and has no values yet"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


STEPS: dict[str, Callable[[nn.Parameter], Callable[[Any], Any]]] = {
    "OptimLP": lambda w: OptimLP(torch.optim.SGD([w], lr=0.1), weight_quant=E4M3, acc_quant=BF16).step,
    "Madam": lambda w: lptensor.training.Madam([w]).step,
    "HALP": lambda w: lptensor.training.HALP([w], lr=0.1, mu=1.0).recenter,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_given_the_loss_changes_nothing(name: str) -> None:
    w = nn.Parameter(torch.ones(2))
    step, loss = STEPS[name](w), w.square().sum()
    loss.backward()
    with pytest.raises(TypeError, match=r"closure must be a function that computes the loss and .* got tensor\(2., "):
        step(loss)
    assert w.tolist() == [1, 1] and w.grad is not None and w.grad.tolist() == [2, 2]


TAKE_A_TENSOR: dict[str, Callable[[Any], object]] = {
    "round": lambda x: lptensor.round(x, BF16),
    "out": lambda x: lptensor.round(X, BF16, out=x),
    "to_lp": lambda x: x.to_lp(BF16),
    "encode": lambda x: lptensor.encode(x, BF16),
    "scales": lambda x: lptensor.scales(x, MXFP4),
    "ulp": lambda x: lptensor.ulp(x, BF16),
    "quantizer": lambda x: quantizer(BF16)(x),
    "sum": lambda x: lptensor.sum(x, accumulator=ACC),
    "matmul": lambda x: lptensor.matmul(X, x, ACC),
    "addend": lambda x: lptensor.matmul(X, X, ACC, c=x),
    "from_torch": lptensor.from_torch,
    "sqnr": lambda x: study.sqnr(x, BF16),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged, torch.sparse_coo])
@pytest.mark.parametrize("name", TAKE_A_TENSOR)
def test_a_tensor_that_is_not_dense_is_told_the_way(name: str, layout: torch.layout) -> None:
    nested = layout is not torch.sparse_coo
    x = torch.nested.nested_tensor([X, X[:2]], layout=layout) if nested else X.to_sparse()
    way = (
        r"dense tensors, got a nested one; take its parts, x.unbind\(\)"
        if nested
        else r"got torch.sparse_coo; .*to_dense"
    )
    with pytest.raises(TypeError, match=way):
        TAKE_A_TENSOR[name](x)


DRAWING: dict[str, Callable[[], object]] = {
    "a generator": lambda: study.flip_bits(X, E4M3, 0.5, generator=42),  # type: ignore[arg-type]
    "a dtype": lambda: study.flip_bits(X.half(), E4M3, 0.5),
    "a carrier": lambda: study.flip_bits(X, FixedPoint(40, 8), 0.5),
    "a layer": lambda: lptensor.training.QuartetLinear(32, 32, unbiased=None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", DRAWING)
def test_nothing_is_drawn_before_an_error(what: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match="got 42|got torch.float16|needs more than the 24|got None"):
        DRAWING[what]()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rate", [Fraction(1), np.float32(1), torch.tensor(1.0)])
def test_a_rate_of_any_kind_is_a_number(rate: Any) -> None:
    assert study.flip_bits(X, E4M3, rate, bits=[7]).tolist() == [-1, -1, -1]
    low = X.to_lp(E4M3)  # type: ignore[attr-defined]
    with study.faults(rate, bits=[7]):
        assert (low * 1).tolist() == [-1, -1, -1]


def test_layers_that_cannot_be_rounded_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="say gradient=lambda: ..., got BF16"):
        lptensor.training.round_layers(net, input=lambda: quantizer(BF16), gradient=BF16)  # type: ignore[arg-type]
    assert [*net.state_dict()] == ["0.weight", "0.bias"] and not net[0]._forward_hooks


def test_a_float64_tensor_that_torch_makes_itself_is_not_called_an_operand_of_the_callers() -> None:
    with pytest.raises(RuntimeError, match=r"make float64 operands of yours float32, say x.dequantize\(\) first"):
        torch.linalg.matrix_rank(torch.eye(3).to_lp(BF16))  # type: ignore[attr-defined]


UNFIT: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a NumPy dtype": (lambda: lptensor.round(torch.ones(2), np.float16), TypeError, r"format_of\(\) gives the format"),  # type: ignore[arg-type]
    "a class of formats": (lambda: lptensor.round(torch.ones(2), FixedPoint), TypeError, "call it to make a format"),  # type: ignore[arg-type]
    "unsigned gradients": (lambda: quantizer(None, E8M0), ValueError, "leave backward_number out"),
    "unsigned gradients of lower": (
        lambda: lower(nn.Linear(2, 2), ["linear"], backward_number=E8M0),
        ValueError,
        "leave backward_number out",
    ),
    "unsigned gradients of a step": (
        lambda: OptimLP(torch.optim.SGD([torch.ones(1)]), grad_quant=FixedPoint(8, 4, signed=False)),
        ValueError,
        "leave grad_quant out",
    ),
    "unsigned elements of gradients": (lambda: Arithmetic(MX(UNSIGNED)), ValueError, "name a backward format"),
    "unsigned scaled gradients": (
        lambda: Arithmetic(BF16, backward=Scaled(UNSIGNED, CurrentMaximum())),
        ValueError,
        "has no negative numbers",
    ),
    "unsigned gradients of a product": (
        lambda: Gemm(E4M3, grad_weight=(E8M0, E4M3)),
        ValueError,
        "has no negative numbers, which gradients need; grad_weight takes a pair, of which the first",
    ),
    "a model to save": (lambda: save_file(nn.Linear(2, 2), "x"), TypeError, "such as model.state_dict()"),  # type: ignore[arg-type]
    "a technique without a result": (
        lambda: Technique(E4M3, lambda x: None).quantize(torch.ones(2)),  # type: ignore[arg-type,return-value]
        TypeError,
        "must return a tensor like the torch.float32 of \\(2,\\) it gets, got NoneType",
    ),
    "one module for all layers": (
        lambda: round_layers(nn.Sequential(nn.Linear(2, 2)), input=Quantizer(E4M3)),
        TypeError,
        "input=lambda",
    ),
    "what makes no rounding": (
        lambda: round_layers(nn.Sequential(nn.Linear(2, 2)), input=lambda: E4M3),  # type: ignore[arg-type,return-value]
        TypeError,
        "what input= makes rounds a tensor",
    ),
    "a loss that is NaN": (
        lambda: study.format_search(nn.Linear(2, 2), lambda m: float("nan"), [E4M3, BF16]),
        ValueError,
        "the loss is NaN with BF16, the widest format",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named(name: str) -> None:
    call, kind, says = UNFIT[name]
    with pytest.raises(kind, match=says):
        call()


NOT_WEIGHTS: dict[str, Callable[[nn.Linear], object]] = {
    "none": lambda layer: layer.register_parameter("weight", None),
    "sparse": lambda layer: setattr(layer, "weight", nn.Parameter(torch.eye(2).to_sparse())),
    "of a hook": lambda layer: prune.l1_unstructured(layer, "weight", 1),
    "parametrized": lambda layer: nn.utils.parametrizations.weight_norm(layer),
}


@pytest.mark.parametrize("what", NOT_WEIGHTS)
@pytest.mark.parametrize("name", ["dorefa", "wage", "hbfp", "s2fp8", "fp8_delayed"])
def test_a_recipe_that_refuses_a_layer_leaves_the_others_as_they_are(name: str, what: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2))
    NOT_WEIGHTS[what](net[2])
    before, names = [type(m) for m in net.modules()], [name for name, _ in net.named_parameters()]
    weight, state = net[0].weight.detach().clone(), torch.get_rng_state()
    with pytest.raises(
        ValueError,
        match="a Linear must be a dense|a Linear has a parametrization already, WeightNorm|Linear is neither",
    ):
        getattr(lptensor.training.recipes, name)().model(net)
    assert [type(m) for m in net.modules()] == before and [name for name, _ in net.named_parameters()] == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net if m is not net[2])
    assert torch.equal(net[0].weight, weight) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("what", ["none", "sparse"])
@pytest.mark.parametrize("name", ["quartet", "quartet2"])
def test_a_layer_that_quartet_cannot_multiply_is_named(name: str, what: str) -> None:
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(2, 2))
    NOT_WEIGHTS[what](net[1])
    with pytest.raises(ValueError, match="weight of a Linear must be a dense tensor of floating-point numbers, got"):
        getattr(lptensor.training.recipes, name)().model(net)
    assert type(net[0]) is nn.Linear and not net[0]._forward_hooks


@pytest.mark.parametrize(
    "change",
    [
        lambda net: lptensor.training.prepare(net, E4M3),
        lambda net: round_layers(net, weight=lambda: quantizer(E4M3)),
        lambda net: lptensor.training.recipes.wage().model(net),
        lambda net: lptensor.training.recipes.dorefa().model(net),
    ],
    ids=["prepare", "round_layers", "wage", "dorefa"],
)
def test_what_a_refused_layer_makes_its_weight_of_does_not_move(change: Callable[[nn.Module], object]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.spectral_norm(nn.Linear(32, 32)))
    drawn = nn.Sequential(lptensor.training.prepare(nn.Linear(2, 2), E4M3, "stochastic"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for model in (net, drawn):
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match="already"):
            change(model)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rounding_an_input_does_not_move_what_the_weight_is_made_of() -> None:
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(32, 32)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    round_layers(net, input=lambda: quantizer(E4M3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if name in before)


def test_a_unit_scaled_model_is_changed_whole_or_not_at_all() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    NOT_WEIGHTS["sparse"](net[1])
    weight, state = net[0].weight.detach().clone(), torch.get_rng_state()
    with pytest.raises(ValueError, match="weight of a Linear must be a dense .* got torch.float32, torch.sparse"):
        lptensor.training.recipes.unit_scaling().model(net)
    assert type(net[0]) is nn.Linear
    assert torch.equal(net[0].weight, weight) and torch.equal(torch.get_rng_state(), state)


def test_each_layer_gets_what_was_made_for_it() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    makes = iter([quantizer(E4M3), 3])
    with pytest.raises(TypeError, match="what weight= makes rounds a tensor, .* got 3"):
        round_layers(net, weight=lambda: next(makes))  # type: ignore[arg-type,return-value]
    some = iter([None, quantizer(FixedPoint(3, 1)), None, None])
    round_layers(net, input=lambda: next(some), gradient=lambda: next(some))  # type: ignore[arg-type,return-value]
    x = torch.tensor([[0.3, 0.8]])
    middle = nn.functional.linear(x, net[0].weight, net[0].bias)  # no input is rounded, one gradient is
    assert torch.equal(net(x), nn.functional.linear(middle, net[1].weight, net[1].bias))


def test_recipes_keep_what_they_were_given() -> None:
    recipe = lptensor.training.recipes.mxfp8(exempt=(name for name in ["0"]))  # type: ignore[arg-type]
    for _ in range(2):
        net = recipe.model(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2)))
        assert not net[0]._forward_hooks and net[1]._forward_hooks
    lptensor.training.recipes.wang().optim["update"] = "nearest"  # type: ignore[index]
    assert lptensor.training.recipes.hfp8().optim["update"] == "stochastic"


def test_weights_that_cannot_all_be_prepared_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Linear(2, 2))
    own = net[0].weight
    tile = lptensor.Tile((2, 2), (0, -2))  # two axes of the first weight, and one of the second
    with pytest.raises(ValueError, match="one axis of a tensor of shape .2, 2. twice"):
        lptensor.training.prepare(net, lptensor.Scaled(lptensor.INT8, lptensor.CurrentMaximum(tile)))
    assert net[0].weight is own and type(net[0]) is nn.Conv2d
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_integers_of_any_kind_mean_the_same() -> None:
    x = torch.arange(6.0).view(2, 3)
    for two, one in ((np.int8(2), np.int64(1)), (torch.tensor(2), torch.tensor(1))):
        assert torch.equal(lptensor.sum(x, one, accumulator=ACC), x.sum(1))
        assert torch.equal(lptensor.sum(x, one - one, accumulator=ACC), x.sum(0))
        stepped = lptensor.conv(x.view(1, 1, 6), torch.ones(1, 1, 1), ACC, stride=two, groups=one)
        assert torch.equal(stepped, x.view(1, 1, 6)[..., ::2])
        assert lptensor.FloatingPoint(4 * two) == lptensor.E5M2
    codes = torch.tensor([1, 2, 3])
    assert lptensor.unpack(lptensor.pack(codes, np.uint8(8)), np.uint8(8), np.int64(3)).tolist() == [1, 2, 3]
    assert lptensor.packed_bytes(13, torch.tensor(3, dtype=torch.uint8)) == lptensor.packed_bytes(13, 3)  # type: ignore[arg-type]
    groups = [lptensor.training.HALP([W], 0.5, 1.0, bits).param_groups[0]["bits"] for bits in (16, np.int8(16))]
    assert groups == [16, 16] and type(groups[1]) is int


def test_numbers_of_any_kind_scale_a_loss() -> None:
    for two in (2, np.float32(2), np.int64(2), torch.tensor(2.0), Fraction(2)):
        assert lptensor.training.LossScaler(two).get_scale() == 2.0  # type: ignore[arg-type]
    Losses = namedtuple("Losses", ["main", "side"])
    scaled = lptensor.training.LossScaler(2.0).scale(Losses(torch.ones(1), [torch.ones(2)]))
    assert type(scaled) is Losses and scaled.main == 2 and scaled.side[0].tolist() == [2, 2]


def test_a_file_whose_metadata_do_not_fit_its_codes_is_refused(tmp_path: Path) -> None:
    path, codes = tmp_path / "x", {"x": lptensor.encode(torch.ones(2), lptensor.E3M4)}
    for format, shape, message in (
        (MXFP4, [2], "names MX.*, which has no codes of single elements"),
        (lptensor.E3M4, [3], r"gives codes the shape \[3\], they have \[2\]"),
    ):
        entry = {"format": lptensor.describe(format), "shape": shape}
        safetensors.torch.save_file(codes, path, {"lptensor": json.dumps({"x": entry})})
        with pytest.raises(ValueError, match=message):
            lptensor.load_file(path)
    save_file({"x": torch.ones(2)}, path, lptensor.E3M4)
    assert lptensor.load_file(path, torch.device("cpu"))[0]["x"].tolist() == [1, 1]


def test_a_weight_that_is_parametrized_is_named_and_only_its_input_is_rounded() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    says = "the weight of a Linear has a parametrization already, WeightNorm; take it off"
    with pytest.raises(ValueError, match=says):
        round_layers(net, weight=lambda: quantizer(E4M3))
    with pytest.raises(ValueError, match=says):
        lptensor.training.prepare(net, E4M3)
    round_layers(net, input=lambda: quantizer(FixedPoint(3, 1), forward_rounding="nearest"))
    want = nn.functional.linear(torch.tensor([[0.5, 1.0]]), net[0].weight, net[0].bias)
    assert torch.equal(net(torch.tensor([[0.6, 0.9]])), want)


def test_a_low_weight_that_a_graph_holds_is_told_to_let_go() -> None:
    net = lptensor.convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), BF16)
    names, x = [name for name, _ in net.named_parameters()], torch.ones(1, 2)
    for change in (lambda: lptensor.training.prepare(net, E4M3), lambda: round_layers(net, weight=lambda: torch.sign)):
        held = net(x)
        with pytest.raises(
            RuntimeError, match=r"in use by a computation graph .* let go of losses and outputs \(del loss"
        ):
            change()
        del held
        assert [name for name, _ in net.named_parameters()] == names and type(net[0]) is nn.Linear
        net(x).sum().backward()
    lptensor.training.prepare(net, E4M3)(x).sum().backward()


def test_layers_without_weights_and_of_other_dtypes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False))
    both = (nn.Linear, nn.LayerNorm)
    rounded = round_layers(net, input=lambda: quantizer(E4M3), gradient=lambda: quantizer(E4M3), layer_types=both)
    assert rounded(torch.ones(3, 4)).shape == (3, 4)
    for recipe in (lptensor.training.recipes.wage(initialize=False), lptensor.training.recipes.dorefa()):
        half = nn.Sequential(nn.Linear(4, 4).bfloat16())
        with pytest.raises(TypeError, match="only float32 and float64 weights are rounded, got torch.bfloat16"):
            recipe.model(half)
        assert type(half[0]) is nn.Linear
