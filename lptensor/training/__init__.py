"""Techniques of low-precision training, one file each; ``recipes`` puts them together."""

import dataclasses as _dataclasses
from typing import Any as _Any

import torch as _torch

from lptensor.training import recipes as recipes, unit_scaling as unit_scaling
from lptensor.training.blockwise import Blockwise as Blockwise
from lptensor.training.dfxp import DynamicFixedPoint as DynamicFixedPoint
from lptensor.training.dorefa import (
    DoReFaActivation as DoReFaActivation,
    DoReFaGradient as DoReFaGradient,
    DoReFaWeight as DoReFaWeight,
)
from lptensor.training.expansion import Expansion as Expansion
from lptensor.training.flexpoint import Flexpoint as Flexpoint
from lptensor.training.four_over_six import FourOverSix as FourOverSix
from lptensor.training.halp import HALP as HALP
from lptensor.training.hbfp import HBFP as HBFP, hbfp_widths as hbfp_widths
from lptensor.training.loss_scaling import (
    Automatic as Automatic,
    Dynamic as Dynamic,
    LossScaler as LossScaler,
    Static as Static,
)
from lptensor.training.luq import LUQ as LUQ
from lptensor.training.madam import Madam as Madam
from lptensor.training.ms_eden import MSEden as MSEden
from lptensor.training.qat import finish as finish, prepare as prepare
from lptensor.training.quartet import QuartetLinear as QuartetLinear
from lptensor.training.recipes import Recipe as Recipe
from lptensor.training.round_layers import round_layers as round_layers
from lptensor.training.s2fp8 import S2FP8 as S2FP8
from lptensor.training.sawb import SAWB as SAWB
from lptensor.training.schedule import FormatSchedule as FormatSchedule
from lptensor.training.swalp import SWALP as SWALP
from lptensor.training.technique import Technique as Technique
from lptensor.training.three_quarters import ThreeQuarters as ThreeQuarters
from lptensor.training.wage import (
    WageActivation as WageActivation,
    WageError as WageError,
    WageGradient as WageGradient,
    WageWeight as WageWeight,
)

__all__ = [
    "HALP",
    "HBFP",
    "LUQ",
    "S2FP8",
    "SAWB",
    "SWALP",
    "Automatic",
    "Blockwise",
    "DoReFaActivation",
    "DoReFaGradient",
    "DoReFaWeight",
    "Dynamic",
    "DynamicFixedPoint",
    "Expansion",
    "Flexpoint",
    "FormatSchedule",
    "FourOverSix",
    "LossScaler",
    "MSEden",
    "Madam",
    "QuartetLinear",
    "Recipe",
    "Static",
    "Technique",
    "ThreeQuarters",
    "WageActivation",
    "WageError",
    "WageGradient",
    "WageWeight",
    "finish",
    "hbfp_widths",
    "prepare",
    "recipes",
    "round_layers",
    "unit_scaling",
]

# Those that are values may be operands of an arithmetic, which a checkpoint holds.
_exported = [value for value in map(globals().get, __all__) if isinstance(value, type)]
_values: list[_Any] = [cls for cls in _exported if _dataclasses.is_dataclass(cls)]
_torch.serialization.add_safe_globals(_values)


def __dir__() -> list[str]:
    return __all__
