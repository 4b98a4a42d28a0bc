"""What files name stays where it is: checkpoints, pickles and the texts in saved programs say modules and classes.

Where one of these moves, its old module keeps the name (``from lptensor.new import X as X``), and torch, which allows
names and not classes, is told of it: ``torch.serialization.add_safe_globals([(X, "lptensor.old.X")])``. Where a field
of a dataclass gets another name, ``lptensor.text.renamed`` says so.
"""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import pickletools
import zipfile
from typing import Any

import pytest
import torch
from torch import nn

import lptensor.training  # its values are among those that files name
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP32,
    MX,
    MXFP4,
    NVFP4,
    P3109,
    Accumulator,
    Arithmetic,
    Codebook,
    FixedPoint,
    FloatingPoint,
    Gemm,
    Hadamard,
    HiFloat8,
    LogNumber,
    OptimLP,
    Posit,
    Quantizer,
    Stochastic,
)
from lptensor.text import read
from lptensor.training import Automatic, Dynamic, Static

# In files that torch.load(weights_only=True) reads: state_dicts, tensors, values.
IN_CHECKPOINTS = """
    accumulator.Accumulator arithmetic.Arithmetic base.rebuild blocks.BlockFloatingPoint blocks.MX
    blocks.ScaledBlockFormat blocks.Shifted blocks.TwoLevel codebooks.Codebook codebooks.LogNumber delayed._Saturating
    formats.FixedPoint formats.FloatingPoint hadamard.Hadamard hifloat.HiFloat8 operands.Gemm operands.Operand
    p3109.P3109 posits.Posit quantizer._Unlimited rounding.Beyond rounding.Mode rounding.Rounding
    scaling.CurrentMaximum scaling.CurrentRange scaling.DelayedMaximum scaling.PowerOfTwo scaling.Tile surface.rebuild
    tensor.LPTensor training.blockwise.Blockwise training.dorefa.DoReFaGradient training.expansion.Expansion
    training.four_over_six.FourOverSix training.hbfp.HBFP training.loss_scaling.Automatic training.loss_scaling.Dynamic
    training.loss_scaling.Static training.luq.LUQ training.ms_eden.MSEden training.recipes.Recipe training.s2fp8.S2FP8
    training.sawb.SAWB training.technique.Technique training.three_quarters.ThreeQuarters training.wage.WageError
    training.wage.WageGradient training.wage.WageWeight
""".split()
# In pickles of whole models and optimizers beside those.
IN_MODELS = """
    boundary._take_formats layer_products.LayerProducts loans.Loans lower.RoundOutput momenta.Momenta optim.OptimLP
    quantizer.Quantize quantizer.Quantizer quantizer.Step updates.Update
""".split()
NO_VALUES = {"base.ScalarFormat", "blocks.BlockFormat", "blocks._Scaled", "codebooks.TableFormat"}  # kinds of formats


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"lptensor.{module}"), attribute)


def test_torch_allows_the_names_that_checkpoints_have_and_they_are_there() -> None:
    allowed: dict[str, Any] = {}
    for entry in torch.serialization.get_safe_globals():
        value, name = entry if isinstance(entry, tuple) else (entry, f"{entry.__module__}.{entry.__qualname__}")
        allowed[name] = value
    for name in IN_CHECKPOINTS:
        assert allowed[f"lptensor.{name}"] is found(name), name
    ours = {name.removeprefix("lptensor.") for name in allowed if name.startswith("lptensor.")}
    assert ours - NO_VALUES == {*IN_CHECKPOINTS}, "files will name what is new here: write it down"


def names_in(value: Any) -> set[str]:
    """What of lptensor a file with this value names."""
    torch.save(value, file := io.BytesIO())
    with zipfile.ZipFile(file) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith("data.pkl")]
        said = [arg for op, arg, _ in pickletools.genops(archive.read(path)) if op.name == "GLOBAL"]
    return {name.replace(" ", ".").removeprefix("lptensor.") for name in said if name.startswith("lptensor.")}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Quantizer(E4M3))


def test_pickles_of_models_name_nothing_else() -> None:
    full = Arithmetic(
        BF16, E5M2, Stochastic(4), operands=Gemm(MXFP4, transform=Hadamard(16)), accumulator=Accumulator(FP32)
    )
    lowered = lptensor.lower(network(), ["linear"], E4M3, E5M2, operands=Gemm(NVFP4), accumulator=Accumulator(FP32))
    optimizer = OptimLP(torch.optim.Adam(network().parameters()), weight_quant=E4M3, momentum_quant=BF16)
    named = set().union(*map(names_in, (lptensor.convert(network(), full), lowered, optimizer)))
    assert {*IN_MODELS} <= named <= {*IN_MODELS, *IN_CHECKPOINTS}
    assert all(found(name) is not None for name in IN_MODELS)
    assert names_in(lptensor.convert(network(), full).state_dict()) <= {*IN_CHECKPOINTS}


# As they were first written: pickles, which protocol 0 makes of text, and the texts of compiled graphs.
WRITTEN = [
    (
        FloatingPoint(4, 3, bias=4),
        b"clptensor.base\nrebuild\n(clptensor.formats\nFloatingPoint\n(dVexp\nI4\nsVman\nI3\nsVbias\nI4\nsVsubnormals\n"
        b"I01\nsVspecials\nVieee\nsVoverflow\nVinf\nsVsigned\nI01\nsVzero\nI01\nstR.",
        '{"":"lptensor.formats.FloatingPoint","exp":4,"man":3,"bias":4,"subnormals":true,"specials":"ieee",'
        '"overflow":"inf","signed":true,"zero":true}',
    ),
    (
        MX(FixedPoint(4, 2), 8),
        b"clptensor.base\nrebuild\np0\n(clptensor.blocks\nMX\n(dVelement\ng0\n(clptensor.formats\nFixedPoint\n(dVwl\nI4\n"
        b"sVfl\nI2\nsVclamp\nI01\nsVsymmetric\nI00\nsVsigned\nI01\nstRsVblock_size\nI8\nsVaxis\nI-1\nsVscale_rule\n"
        b"Vfloor\nsVinfinite\nVnan\nstR.",
        '{"":"lptensor.blocks.MX","element":{"":"lptensor.formats.FixedPoint","wl":4,"fl":2,"clamp":true,'
        '"symmetric":false,"signed":true},"block_size":8,"axis":-1,"scale_rule":"floor","infinite":"nan"}',
    ),
    (
        Codebook([0.0, 1.0], "bits"),
        b"clptensor.codebooks\nCodebook\n((F0.0\nF1.0\ntVbits\ntR.",
        '{"":"lptensor.codebooks.Codebook","values":[0.0,1.0],"name":"bits"}',
    ),
    (
        LogNumber(4, 1),
        b"clptensor.base\nrebuild\n(clptensor.codebooks\nLogNumber\n(dVbits\nI4\nsVgamma\nI1\nsVbase\nF2.0\nsVbias\nI4\n"
        b"sVzero\nI01\nstR.",
        '{"":"lptensor.codebooks.LogNumber","bits":4,"gamma":1,"base":2.0,"bias":4,"zero":true}',
    ),
    (
        HiFloat8(),
        b"clptensor.base\nrebuild\n(clptensor.hifloat\nHiFloat8\n(dVoverflow\nVinf\nstR.",
        '{"":"lptensor.hifloat.HiFloat8","overflow":"inf"}',
    ),
    (
        Posit(8),
        b"clptensor.base\nrebuild\n(clptensor.posits\nPosit\n(dVnbits\nI8\nsVes\nI2\nstR.",
        '{"":"lptensor.posits.Posit","nbits":8,"es":2}',
    ),
    (
        P3109(8, 3),
        b"clptensor.base\nrebuild\n(clptensor.p3109\nP3109\n(dVk\nI8\nsVp\nI3\nsVsigned\nI01\nsVextended\nI01\nsVoverflow\n"
        b"NstR.",
        '{"":"lptensor.p3109.P3109","k":8,"p":3,"signed":true,"extended":true,"overflow":null}',
    ),
    (
        Stochastic(4),
        b"ccopy_reg\n_reconstructor\n(clptensor.rounding\nRounding\nc__builtin__\nobject\nNtR(dVmode\nclptensor.rounding\n"
        b"Mode\n(I6\ntRsVbits\nI4\nsVbeyond\nclptensor.rounding\nBeyond\n(I0\ntRsb.",
        '{"":"lptensor.rounding.Rounding","mode":{"":"lptensor.rounding.Mode","name":"STOCHASTIC"},"bits":4,'
        '"beyond":{"":"lptensor.rounding.Beyond","name":"OVERFLOW"}}',
    ),
]


# The same of values whose fields have other names now.
RENAMED = [
    (
        Hadamard(64, "random", 3),
        b"ccopy_reg\n_reconstructor\n(clptensor.hadamard\nHadamard\nc__builtin__\nobject\nNtR(dVblock\nI64\nsVsigns\n"
        b"Vrandom\nsVseed\nI3\nsb.",
        '{"":"lptensor.hadamard.Hadamard","block":64,"signs":"random","seed":3}',
    ),
    (
        Static(3.0),
        b"ccopy_reg\n_reconstructor\n(clptensor.training.loss_scaling\nStatic\nc__builtin__\nobject\nNtR(dVinitial\n"
        b"F3.0\nsb.",
        '{"":"lptensor.training.loss_scaling.Static","initial":3.0}',
    ),
    (
        Dynamic(8.0, 3.0, 0.25, 7),
        b"ccopy_reg\n_reconstructor\n(clptensor.training.loss_scaling\nDynamic\nc__builtin__\nobject\nNtR(dVinitial\n"
        b"F8.0\nsVgrowth\nF3.0\nsVbackoff\nF0.25\nsVinterval\nI7\nsb.",
        '{"":"lptensor.training.loss_scaling.Dynamic","initial":8.0,"growth":3.0,"backoff":0.25,"interval":7}',
    ),
    (
        Automatic(FloatingPoint(5, 2), 2.0, 0.5, 9),
        b"ccopy_reg\n_reconstructor\n(clptensor.training.loss_scaling\nAutomatic\nc__builtin__\nobject\nNtR(dVformat\n"
        b"clptensor.base\nrebuild\n(clptensor.formats\nFloatingPoint\n(dVexp\nI5\nsVman\nI2\nstRsVinitial\nF2.0\n"
        b"sVthreshold\nF0.5\nsVspan\nI9\nsb.",
        '{"":"lptensor.training.loss_scaling.Automatic","format":{"":"lptensor.formats.FloatingPoint","exp":5,"man":2},'
        '"initial":2.0,"threshold":0.5,"span":9}',
    ),
]


@pytest.mark.parametrize(("value", "pickled", "text"), RENAMED, ids=[type(value).__name__ for value, *_ in RENAMED])
def test_fields_are_found_by_the_names_that_they_had(value: Any, pickled: bytes, text: str) -> None:
    assert pickle.loads(pickled) == value == read(text)
    assert copy.deepcopy(value) == value == pickle.loads(pickle.dumps(value))


def test_torch_finds_fields_by_the_names_that_they_had() -> None:
    then = object.__new__(Hadamard)
    vars(then).update(block=64, signs="random", seed=3)
    torch.save({"transform": then}, file := io.BytesIO())
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=True) == {"transform": Hadamard(64, "random", 3)}


@pytest.mark.parametrize(("value", "pickled", "text"), WRITTEN, ids=[repr(value) for value, *_ in WRITTEN])
def test_what_was_written_is_read(value: Any, pickled: bytes, text: str) -> None:
    assert pickle.loads(pickled) == value == read(text)
