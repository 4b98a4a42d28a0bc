"""Low-precision arithmetic for PyTorch: number formats, rounding, and tensors that round what is computed with them.

``from lptensor import *`` brings the nouns, formats before all (``E4M3``, ``FloatingPoint(5, 2)``, ``MX(E2M1)``;
``study.format_table()`` lists those that have a name). These verbs are called as ``lptensor.NAME``:

- of plain tensors: ``round``; ``matmul``, ``sum`` and ``conv`` add up in an ``Accumulator``.
- of tensors that compute in a format: ``to_lp``, which is ``x.to_lp(format)``; ``convert`` of models, optimizers and
  nests, and back; ``escapes``, ``rounding_points`` and ``trace`` say what leaves, where it rounds, and what did.
- of formats: ``finfo``, ``ulp``, ``next``; ``describe`` and ``format_from``; ``format_of`` a dtype.
- of codes: ``encode``, ``decode``, ``scales``, ``zero_points``; ``pack``, ``packed_bytes`` and ``unpack``.
- with others: ``to_torch``, ``from_torch``, ``to_numpy``, ``from_numpy``; ``save_file`` and ``load_file``.
- ``backend`` says what computes.

``lower``, ``quantizer`` and ``OptimLP`` are for QPyTorch's users; ``lptensor.training`` holds techniques,
``lptensor.study`` questions about formats and models.
"""

import importlib as _importlib
import types as _types
import typing as _typing

from lptensor.accumulator import Accumulator as Accumulator
from lptensor.arithmetic import Arithmetic as Arithmetic
from lptensor.blocks import (
    MX as MX,
    MXFP4 as MXFP4,
    MXFP6_E2M3 as MXFP6_E2M3,
    MXFP6_E3M2 as MXFP6_E3M2,
    MXFP8_E4M3 as MXFP8_E4M3,
    MXFP8_E5M2 as MXFP8_E5M2,
    MXINT as MXINT,
    MXINT8 as MXINT8,
    NVFP4 as NVFP4,
    BlockFloatingPoint as BlockFloatingPoint,
    Scaled as Scaled,
    TwoLevel as TwoLevel,
)
from lptensor.codebooks import (
    DYNAMIC8 as DYNAMIC8,
    FP4_RADIX4 as FP4_RADIX4,
    NF4 as NF4,
    UDYNAMIC8 as UDYNAMIC8,
    Codebook as Codebook,
    LogNumber as LogNumber,
)
from lptensor.codes import (
    decode as decode,
    encode as encode,
    scales as scales,
    zero_points as zero_points,
)
from lptensor.convert import convert as convert
from lptensor.delayed import DelayedScaling as DelayedScaling
from lptensor.describe import (
    describe as describe,
    format_from as format_from,
)
from lptensor.escape import escapes as escapes
from lptensor.finfo import finfo as finfo
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
from lptensor.hadamard import Hadamard as Hadamard
from lptensor.hardware_sums import (
    integer_accumulator as integer_accumulator,
    tensor_core as tensor_core,
)
from lptensor.hifloat import (
    HIF8 as HIF8,
    HiFloat8 as HiFloat8,
)
from lptensor.interop import (
    format_of as format_of,
    from_numpy as from_numpy,
    from_torch as from_torch,
    load_file as load_file,
    save_file as save_file,
    to_numpy as to_numpy,
    to_torch as to_torch,
)
from lptensor.lower import lower as lower
from lptensor.matmul import (
    conv as conv,
    matmul as matmul,
    sum as sum,
)
from lptensor.neighbours import (
    next as next,
    ulp as ulp,
)
from lptensor.operands import (
    Gemm as Gemm,
    Operand as Operand,
)
from lptensor.ops import (
    backend as backend,
    round as round,
)
from lptensor.optim import OptimLP as OptimLP
from lptensor.p3109 import P3109 as P3109
from lptensor.packing import (
    pack as pack,
    packed_bytes as packed_bytes,
    unpack as unpack,
)
from lptensor.posits import Posit as Posit
from lptensor.quantizer import (
    Quantizer as Quantizer,
    quantizer as quantizer,
)
from lptensor.rounding import (
    Beyond as Beyond,
    Mode as Mode,
    Rounding as Rounding,
    Stochastic as Stochastic,
)
from lptensor.rounding_points import rounding_points as rounding_points
from lptensor.scaling import (
    PER_TENSOR as PER_TENSOR,
    Channel as Channel,
    CurrentMaximum as CurrentMaximum,
    CurrentRange as CurrentRange,
    DelayedMaximum as DelayedMaximum,
    PowerOfTwo as PowerOfTwo,
    Tile as Tile,
)
from lptensor.tensor import (
    LPTensor as LPTensor,
    to_lp as to_lp,
)
from lptensor.trace import trace as trace

if _typing.TYPE_CHECKING:
    from lptensor import study as study, training as training

    __version__: str

_OF_QPYTORCH = {
    "float_quantize": "lptensor.round(x, FloatingPoint(exp, man), rounding)",
    "fixed_point_quantize": "lptensor.round(x, FixedPoint(wl, fl, clamp, symmetric), rounding)",
    "block_quantize": "lptensor.round(x, BlockFloatingPoint(wl, dim), rounding)",
    "sequential_lower": "lptensor.lower(model, layer_types, ...), which takes any model",
}


if not _typing.TYPE_CHECKING:  # a type checker would take whatever name for one that this gives

    def __getattr__(name: str) -> object:  # most programs need neither, and both have many files
        if name in ("study", "training"):
            return _importlib.import_module(f"lptensor.{name}")
        if name == "__version__":
            metadata = _importlib.import_module("importlib.metadata")
            try:
                return metadata.version("lptensor")
            except metadata.PackageNotFoundError:  # no AttributeError, which help() and hasattr() expect
                raise AttributeError("lptensor runs from its source, not installed, and has no version") from None
        if name in _OF_QPYTORCH:
            raise AttributeError(f"lptensor has no {name!r} of QPyTorch's: say {_OF_QPYTORCH[name]}")
        raise AttributeError(f"module 'lptensor' has no attribute {name!r}")


def __dir__() -> list[str]:  # tab completion: the files that the names come from are no names of the package
    own = {name for name, value in globals().items() if not isinstance(value, _types.ModuleType)}
    return sorted(own | {"study", "training"})


__all__ = [  # a star import shadows no builtin and no module
    "BF16",
    "DYNAMIC8",
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
    "FP4_RADIX4",
    "HIF8",
    "INT4",
    "INT8",
    "MX",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT",
    "MXINT8",
    "NF4",
    "NVFP4",
    "P3109",
    "PER_TENSOR",
    "TF32",
    "UDYNAMIC8",
    "Accumulator",
    "Arithmetic",
    "Beyond",
    "BlockFloatingPoint",
    "Channel",
    "Codebook",
    "CurrentMaximum",
    "CurrentRange",
    "DelayedMaximum",
    "DelayedScaling",
    "FixedPoint",
    "FloatingPoint",
    "Format",
    "Gemm",
    "Hadamard",
    "HiFloat8",
    "LPTensor",
    "LogNumber",
    "Mode",
    "Operand",
    "OptimLP",
    "Posit",
    "PowerOfTwo",
    "Quantizer",
    "Rounding",
    "Scaled",
    "Stochastic",
    "Tile",
    "TwoLevel",
    "integer_accumulator",
    "lower",
    "quantizer",
    "tensor_core",
]
