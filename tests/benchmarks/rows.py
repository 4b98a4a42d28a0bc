"""What is timed, and how fast it should be: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lptensor as lp
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    INT4,
    INT8,
    MX,
    NF4,
    NVFP4,
    BlockFloatingPoint,
    CurrentMaximum,
    CurrentRange,
    FixedPoint,
    FloatingPoint,
    LogNumber,
    Posit,
    Scaled,
    Tile,
)

ZERO_POINTS = Scaled(INT4, CurrentRange(Tile((32,))))

Work = Callable[[Tensor, Tensor], object]  # x into y, both in memory already there
Make = Callable[[Tensor], object]  # a new tensor out of x


@dataclass(frozen=True)
class Row:
    """Work on a whole tensor, beside a copy of it. ``target``: copy / work on one thread, as far as one is set."""

    name: str
    work: Work
    target: float | None = None
    share: float = 1.0  # of the tensor, where the work is slow


def rounding(format: lp.Format, mode: str = "nearest") -> Work:
    return lambda x, y: lp.round(x, format, mode, out=y)


ROWS = (
    Row("E4M3 to nearest", rounding(E4M3), 0.95),
    Row("BF16 to nearest", rounding(BF16), 0.95),
    Row("E4M3 toward zero", rounding(E4M3, "toward_zero"), 0.95),
    Row("E4M3 up", rounding(E4M3, "up"), 0.95),
    Row("E4M3 to odd", rounding(E4M3, "odd")),
    Row("E4M3 without subnormals", rounding(FloatingPoint(4, 3, subnormals=False))),
    Row("E4M3 to nearest, in place", lambda x, y: lp.round(y, E4M3, out=y)),
    Row("FixedPoint(8, 4) to nearest", rounding(FixedPoint(8, 4)), 1.0),
    Row("E4M3 stochastic", rounding(E4M3, "stochastic"), 0.45),
    Row("BFP8, blocks of 32, last axis", rounding(BlockFloatingPoint(8, block_size=32)), 0.9),
    Row("MXFP8 E4M3, last axis", rounding(MX(E4M3)), 0.9),
    Row("MXFP8 E4M3, first axis", rounding(MX(E4M3, axis=0)), 0.7),
    Row("MXFP8 E4M3, stochastic", rounding(MX(E4M3), "stochastic")),
    Row("NVFP4", rounding(NVFP4)),
    Row("E4M3 in tiles of 128 x 128", rounding(Scaled(E4M3, CurrentMaximum(Tile((128, 128)))))),
    Row("INT8 in groups of 32", rounding(Scaled(INT8, CurrentMaximum(Tile((32,)))))),
    Row("INT4 with zero points, groups of 32", rounding(ZERO_POINTS)),
    Row("NF4 (16 values)", rounding(NF4), 0.3),
    Row("NF4, stochastic", rounding(NF4, "stochastic")),
    Row("LogNumber(8) (256 values)", rounding(LogNumber(8)), 0.3),
    Row("Posit(8)", rounding(Posit(8))),
    Row("Posit(8) up", rounding(Posit(8), "up")),
    Row("torch: .to(bfloat16), back", lambda x, y: y.copy_(x.to(torch.bfloat16))),
    Row("torch: .to(float8_e5m2), back", lambda x, y: y.copy_(x.to(torch.float8_e5m2))),
    Row(
        "E5M2 in torch operations",
        lambda x, y: lp.reference.round_grid(x[: len(x) // 16], E5M2.grid, lp.Rounding()),
        share=1 / 16,
    ),
)


@dataclass(frozen=True)
class Peer:
    """The same work done by another library and by ours: each makes a new tensor.

    ``targets``: peer / ours, where new memory comes from the system, and where it was used before.
    """

    name: str
    package: str
    peer: Callable[[Any], Make]  # given the package
    ours: Make
    targets: tuple[float | None, float | None] = (None, None)
    share: float = 1.0


def _qtorch(name: str, *sizes: int, rounding: str) -> Callable[[Any], Make]:
    def make(package: Any) -> Make:
        from qtorch import quant  # compiles at import

        return lambda x: getattr(quant, name)(x, *sizes, rounding=rounding)

    return make


def _cast(name: str) -> Callable[[Any], Make]:
    def make(ml_dtypes: Any) -> Make:
        return lambda x: torch.from_numpy(x.numpy().astype(getattr(ml_dtypes, name)).astype("float32"))

    return make


def _gfloat(gfloat: Any) -> Make:
    from gfloat.formats import format_info_ocp_e5m2

    return lambda x: gfloat.round_ndarray(format_info_ocp_e5m2, x.numpy())


def _torch(dtype: torch.dtype) -> Callable[[Any], Make]:
    return lambda package: lambda x: x.to(dtype).float()


def _ours(format: lp.Format, mode: str = "nearest") -> Make:
    return lambda x: lp.round(x, format, mode)


FP8 = FloatingPoint(8)
PEERS = (
    Peer(
        "QPyTorch (5, 2) to nearest", "qtorch", _qtorch("float_quantize", 5, 2, rounding="nearest"), _ours(FP8), (4, 40)
    ),
    Peer(
        "QPyTorch (5, 2) stochastic",
        "qtorch",
        _qtorch("float_quantize", 5, 2, rounding="stochastic"),
        _ours(FP8, "stochastic"),
        (15, 25),
    ),
    Peer(
        "QPyTorch fixed (8, 4) to nearest",
        "qtorch",
        _qtorch("fixed_point_quantize", 8, 4, rounding="nearest"),
        _ours(FixedPoint(8, 4)),
    ),
    Peer("ml_dtypes float8_e5m2, back", "ml_dtypes", _cast("float8_e5m2"), _ours(E5M2)),
    Peer("ml_dtypes bfloat16, back", "ml_dtypes", _cast("bfloat16"), _ours(BF16)),
    Peer("gfloat E5M2", "gfloat", _gfloat, _ours(E5M2), share=1 / 64),
    Peer("torch .to(float8_e5m2), back", "torch", _torch(torch.float8_e5m2), _ours(E5M2)),
    Peer("torch .to(bfloat16), back", "torch", _torch(torch.bfloat16), _ours(BF16)),
    Peer("CPFloat (no package on PyPI)", "cpfloat", lambda package: _ours(E5M2), _ours(E5M2)),
)
