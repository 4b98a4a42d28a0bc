from lptensor.arithmetic import Arithmetic as Arithmetic
from lptensor.blocks import BlockFloatingPoint as BlockFloatingPoint
from lptensor.convert import convert as convert
from lptensor.escape import escapes as escapes
from lptensor.formats import (
    BF16 as BF16,
    E2M1 as E2M1,
    E2M3 as E2M3,
    E3M2 as E3M2,
    E3M4 as E3M4,
    E4M3 as E4M3,
    E4M3B11FNUZ as E4M3B11FNUZ,
    E4M3FNUZ as E4M3FNUZ,
    E5M2 as E5M2,
    E5M2FNUZ as E5M2FNUZ,
    E8M0 as E8M0,
    FP16 as FP16,
    FP32 as FP32,
    INT4 as INT4,
    INT8 as INT8,
    TF32 as TF32,
    FixedPoint as FixedPoint,
    FloatingPoint as FloatingPoint,
    Format as Format,
)
from lptensor.lower import lower as lower
from lptensor.ops import backend as backend, round as round
from lptensor.optim import OptimLP as OptimLP
from lptensor.quantizer import Quantizer as Quantizer, quantizer as quantizer
from lptensor.rounding import Mode as Mode, Rounding as Rounding, Stochastic as Stochastic
from lptensor.tensor import LPTensor as LPTensor

__all__ = [  # a star import shadows no builtin and no module
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E3M4",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0",
    "FP16",
    "FP32",
    "INT4",
    "INT8",
    "TF32",
    "Arithmetic",
    "BlockFloatingPoint",
    "FixedPoint",
    "FloatingPoint",
    "Format",
    "LPTensor",
    "Mode",
    "OptimLP",
    "Quantizer",
    "Rounding",
    "Stochastic",
    "lower",
    "quantizer",
]
