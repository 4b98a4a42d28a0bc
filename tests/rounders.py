"""The implementations under test behind one call, and how results are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch

from lptensor import _native, reference
from lptensor.blocks import BlockFormat
from lptensor.formats import FixedPoint, Format, ScalarFormat
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic, as_rounding
from oracles import exact

Key = tuple[int, int]


def chosen_build() -> str | None:
    """The build of the kernels that is in use, or None without a native library."""
    library = _native.library()
    return None if library is None else library.lpt_build_name().decode().removeprefix("lpt_")


def choose_build(name: str | None) -> bool:
    """Whether this machine has the build; it is in use from now on."""
    library = _native.library()
    return library is not None and name is not None and library.lpt_choose_build(f"lpt_{name}".encode()) == 0


@contextmanager
def chosen(build: str) -> Iterator[None]:
    """Kernels of one build, whatever this processor is best at."""
    best = chosen_build()
    assert choose_build(build)
    try:
        yield
    finally:
        choose_build(best)


def _available() -> list[str]:
    best = chosen_build()
    names = [name for name in ("baseline", "v3", "v4") if choose_build(name)]
    choose_build(best)
    return names


NATIVE_BUILDS = _available()
VARIANTS = ("plain", "half_offset", "pre_rounded", "equal")


def rule_of(bits: int, variant: str, beyond: str = "overflow") -> Rounding:
    """The rounding that goes by ``oracles.draws.goes_up`` with these bits; the variant "equal" has but one number."""
    if variant == "equal":
        return Rounding(Mode.STOCHASTIC_EQUAL, beyond=Beyond[beyond.upper()])
    return Stochastic(bits, variant, beyond)


def run(
    rounder: str,
    x: torch.Tensor,
    format: Format,
    rounding: Rounding | Mode | str = "nearest",
    key: Key | None = None,
) -> torch.Tensor:
    """``x`` rounded by the reference or by one build of the kernels."""
    rule, lowered = as_rounding(rounding), format.lowered
    if rounder == "reference":
        if isinstance(format, BlockFormat):
            blocks: torch.Tensor = getattr(reference, lowered.loop)(x, lowered, format.block_shape(x.shape), rule, key)
            return blocks
        return reference.round_grid(x, lowered, rule, key)
    x = x.contiguous()
    y = torch.empty_like(x)
    with chosen(rounder):
        if isinstance(format, BlockFormat):
            _native.round_blocks(x, y, lowered, format.block_shape(x.shape), rule, key)
        else:
            _native.round_grid(x, y, lowered, rule, key)
    return y


def judge(format: ScalarFormat) -> Any:
    """The oracle's format with the same parameters."""
    if isinstance(format, FixedPoint):
        return exact.Fixed(format.wl, format.fl, format.clamp, format.symmetric, format.signed)
    names = ("exp", "man", "bias", "subnormals", "specials", "overflow", "signed", "zero")
    return exact.Float(**{name: getattr(format, name) for name in names})


def assert_same(got: Any, expected: Any, x: Any = None, context: object = "") -> None:
    """Equal values with equal signs, zeros included; every nan is one nan."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    nan = np.isnan(got) & np.isnan(expected)
    wrong = ~nan & ((got != expected) | (np.signbit(got) != np.signbit(expected)))
    if wrong.any():
        at = np.argwhere(wrong)[:5]
        rows = [
            f"{'' if x is None else float(np.asarray(x)[tuple(i)]).hex()} -> {float(got[tuple(i)]).hex()}, "
            f"expected {float(expected[tuple(i)]).hex()}"
            for i in at
        ]
        raise AssertionError(f"{context}: {int(wrong.sum())} of {wrong.size} differ\n" + "\n".join(rows))


def assert_same_bits(a: torch.Tensor, b: torch.Tensor, context: object = "") -> None:
    """Equal bit for bit, the sign and payload of nans included."""
    assert a.dtype == b.dtype and a.shape == b.shape
    kind = torch.int32 if a.dtype == torch.float32 else torch.int64
    ours, theirs = (x.resolve_neg().contiguous().view(kind) for x in (a, b))
    if not torch.equal(ours, theirs):
        differ = ours != theirs
        raise AssertionError(f"{context}: {a[differ][:5].tolist()} against {b[differ][:5].tolist()}")


def assert_threads_and_builds_change_no_bit(shape: tuple[int, ...], format: Format) -> None:
    """Every build gives the reference's bits, on any number of threads."""
    x = torch.randn(shape) * torch.exp2(torch.randint(-60, 60, shape))
    for special in (torch.nan, torch.inf, 0.0):
        x.view(-1)[torch.randint(0, x.numel(), (3,))] = special
    for dtype, mode in product((torch.float32, torch.float64), ("nearest", "up", "stochastic")):
        wanted = run("reference", x.to(dtype), format, mode, (5, 6))
        for threads, build in product((1, 2, 3), NATIVE_BUILDS):
            torch.set_num_threads(threads)
            assert_same_bits(run(build, x.to(dtype), format, mode, (5, 6)), wanted, (threads, build, dtype, mode))
