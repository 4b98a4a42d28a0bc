"""How hardware adds up: tensor cores and integer registers, as accumulators."""

from __future__ import annotations

from lptensor.accumulator import EXACT_PRECISION, Accumulator
from lptensor.base import check_int
from lptensor.formats import FP32, FixedPoint, FloatingPoint, Format

# Products added at once, places kept below the largest exponent, and what the sum is cut off to. Volta and the
# truncation: Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science
# 7:e330 (2021); all rows: Xie, Wang, Yang and Yang, "MMA-Sim", arXiv 2511.10909 (2025), and its package of that name.
_TENSOR_CORES = {
    "volta": (4, 23, FP32),
    "turing": (8, 24, FP32),
    "ampere": (8, 24, FP32),
    "ampere_tf32": (4, 24, FP32),
    "ada": (8, 24, FP32),
    "ada_tf32": (4, 24, FP32),
    "ada_fp8": (16, 13, FloatingPoint(8, 13)),
    "hopper": (16, 25, FP32),
    "hopper_tf32": (8, 25, FP32),
    "hopper_fp8": (32, 13, FloatingPoint(8, 13)),
    "blackwell": (16, 25, FP32),
    "blackwell_tf32": (8, 25, FP32),
    "blackwell_fp8": (32, 25, FP32),
}


def tensor_core(
    name: str = "ampere",
    operands: Format | tuple[Format | None, Format | None] | None = None,
    unscaled: bool = False,
) -> Accumulator:
    """The truncating sums of NVIDIA's tensor cores with fp32 results, as published measurements have them.

    Products are exact; with the running sum they are aligned to the largest exponent, that of a
    product being the sum of its factors' exponents, cut off below, added, and truncated to fp32.

    Args:
        name: an architecture, which stands for operands of FP16 or BF16, or one with "_tf32" or "_fp8" behind it: how
            many products are added at once, from 4 ("volta") to 32 ("hopper_fp8"), and how many places are kept,
            from 13 to 25 (docs/accumulators.md has them all).
        operands: the format of the factors, or a pair. In hardware a subnormal number has the smallest exponent of
            its format, which may cut off more; without a format it has that of its leading bit. In an ``Arithmetic``
            the formats are known, those of MX's elements too, as of ``Accumulator``.
        unscaled: as of ``Accumulator``: under a ``Gemm``, elements are added up, and their scales multiply the sum.

    Raises:
        TypeError: operands that are not formats of single numbers, an unscaled that is not a bool.
        ValueError: another name.

    >>> from lptensor import E4M3
    >>> tensor_core("volta")
    Accumulator(FP32, chunk=4, order='aligned', rounding='toward_zero', alignment=23)
    >>> tensor_core("hopper_fp8", E4M3).operands
    (E4M3, E4M3)
    """
    if not isinstance(name, str) or name not in _TENSOR_CORES:
        raise ValueError(f'unknown tensor core {name!r}; known: {", ".join(_TENSOR_CORES)}; or order="aligned"')
    chunk, alignment, sum = _TENSOR_CORES[name]
    return Accumulator(
        sum, None, chunk, "aligned", "toward_zero", alignment=alignment, operands=operands, unscaled=unscaled
    )


def integer_accumulator(bits: int = 32, overflow: str = "wrap", fl: int = 0, unscaled: bool = False) -> Accumulator:
    """A two's complement register of ``bits`` bits, ``fl`` of them behind the binary point.

    More than 25 bits need float64 tensors, which hold the operands of integer arithmetic as they are.

    Args:
        bits: 2 to 52, the sign among them.
        fl: how many of them are behind the binary point.
        overflow: "wrap" goes on at the other end of the range, "saturate" stops at the end.
        unscaled: as of ``Accumulator``: under ``Gemm(Scaled(INT8, ...))`` integers are added up, of any width
            whatever the tensors' dtype, and their scales multiply the sum.

    Raises:
        TypeError, ValueError: bits outside 2 to 52, another overflow, an fl that ``FixedPoint`` refuses, an unscaled
            that is not a bool.

    >>> integer_accumulator(16, "saturate")
    Accumulator(FixedPoint(wl=16, fl=0))
    """
    if overflow not in ("wrap", "saturate"):
        raise ValueError(f'overflow must be "wrap" or "saturate", got {overflow!r}')
    register = FixedPoint(check_int("bits", bits, 2, EXACT_PRECISION + 1), fl)
    return Accumulator(register, wrap=overflow == "wrap", unscaled=unscaled)
