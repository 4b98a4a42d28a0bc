"""Each way that a kernel has of doing less work gives the bits of the way that does all of it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lptensor import observe, ops, reference, tensor
from lptensor.blocks import MX, BlockFloatingPoint
from lptensor.codebooks import NF4
from lptensor.formats import BF16, E2M1, E4M3, E5M2, FP16, FP32, INT8, TF32, FixedPoint, FloatingPoint, Format
from lptensor.ops import in_place, round_into
from lptensor.posits import Posit
from lptensor.quantizer import _Rounded
from lptensor.rounding import Mode, Rounding, Stochastic, as_rounding
from oracles.exact import MODES
from oracles.philox import word_of_element
from oracles.table import table_of
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, chosen, judge, run
from test_kernels import NARROW, WIDE

GRIDS: dict[str, Format] = {
    **NARROW,
    **WIDE,
    "TF32": TF32,
    "FP32": FP32,
    "INT8": INT8,
    "wide exponents, no mantissa": FloatingPoint(8, 0, specials="fn"),
    "fixed": FixedPoint(8, 4),
    "fixed, symmetric": FixedPoint(8, 4, symmetric=True),
    "fixed, unbounded": FixedPoint(8, 4, clamp=False),
    "fixed, one bit": FixedPoint(1, 0),
    "fixed, all below one": FixedPoint(8, 20),
    "fixed, all of fp32": FixedPoint(24, 12),
    "fixed, at the bottom of fp32": FixedPoint(8, 140),
    "fixed, as low as 2**32 of its spacings have an inverse": FixedPoint(8, 94),
    "fixed, lower than that": FixedPoint(8, 95),
    "fixed, near the bottom of fp32": FixedPoint(8, 122),
    "fixed, unbounded, with the exponent that fp32 ends in": FixedPoint(8, 132, clamp=False),
    "all digits of fp32, a few of its exponents": FloatingPoint(5, 23),
    "just too high for twice its largest spacings": FloatingPoint(4, 3, bias=-94),
    "no subnormals, near the top of fp32": FloatingPoint(4, 19, bias=-106, subnormals=False),
}


@pytest.mark.parametrize("name", [*NARROW, *WIDE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_within_the_limits_round_as_exact_rationals(name: str, dtype: type, rounder: str) -> None:
    """Without any beyond them, which would make a kernel look at the ends of the format."""
    format = {**NARROW, **WIDE}[name]
    table = table_of(judge(format))
    x = table.points(dtype)
    x = x[np.abs(x) <= min(format.max, -format.min if format.signed else format.max)]
    assert len(x) > 5
    for mode in MODES:
        assert_same(run(rounder, torch.from_numpy(x), format, mode), table.round(x.astype(np.float64), mode), x, mode)


def anywhere(format: Format, dtype: torch.dtype, inside: bool) -> torch.Tensor:
    """Random significands, few bits and many, at every exponent where the format has values and far below."""
    generator = torch.Generator().manual_seed(1)
    top, bottom = np.frexp(min(format.max, 2.0**127))[1], np.frexp(format.grid.smallest)[1]
    exponents = torch.arange(max(bottom - 40, -148), top + (0 if inside else 3)).repeat_interleave(48)
    digits = torch.randint(1, 25, exponents.shape, generator=generator)
    significands = 1 + torch.rand(exponents.shape, generator=generator).double().mul(2**digits).floor() / 2**digits
    signs = torch.randint(0, 2, exponents.shape, generator=generator) * 2 - 1
    x = (signs * significands * 2.0 ** exponents.double()).to(dtype)
    limit = min(format.max, -format.grid.min) if format.grid.signed else format.max
    return (
        x[x.abs() <= limit] if inside else torch.cat([x, torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])])
    )


@functools.cache
def specified(name: str, dtype: torch.dtype, inside: bool, rule: Rounding) -> torch.Tensor:
    return reference.round_grid(
        anywhere(GRIDS[name], dtype, inside), GRIDS[name].grid, rule, (3, 4) if rule.stochastic else None
    )


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "beyond"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("rounder", NATIVE_BUILDS)
def test_every_mode_gives_the_bits_of_the_reference(name: str, dtype: torch.dtype, inside: bool, rounder: str) -> None:
    format = GRIDS[name]
    x = anywhere(format, dtype, inside)
    rules = [*map(as_rounding, Mode), Stochastic(5), Stochastic(beyond="saturate"), Stochastic(beyond="probability")]
    for rule in rules:
        key = (3, 4) if rule.stochastic else None
        assert_same_bits(run(rounder, x, format, rule, key), specified(name, dtype, inside, rule), rule)


@pytest.mark.parametrize("format", [E4M3, E5M2, BF16, FixedPoint(8, 4)], ids=repr)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 1e6, -3e38])
def test_one_number_beyond_the_limits_changes_no_other(format: Format, special: float, rounder: str) -> None:
    """A kernel takes pieces without such numbers another way than pieces with one."""
    x = torch.randn(1700)
    for mode in ("nearest", "up", "stochastic"):
        key = (1, 2) if mode == "stochastic" else None
        plain = run(rounder, x, format, mode, key)
        for at in (0, 127, 128, 511, 512, 1024, 1699):
            z = x.clone()
            z[at] = special
            expected = plain.clone()
            expected[at] = reference.round_grid(z, format.grid, as_rounding(mode), key)[at]
            assert_same_bits(run(rounder, z, format, mode, key), expected)


# An element whose word is all ones, which takes up whatever is 2**-32 of the way and more: one in 2**32 is.
ONES, AT = (0, 1030746), 5810


@pytest.mark.parametrize(
    ("format", "smallest"),
    [
        (E4M3, 2.0**-9),
        (FP16, 2.0**-24),
        (FixedPoint(8, 4), 2.0**-4),
        (FixedPoint(8, 4, clamp=False), 2.0**-4),
        (MX(E4M3), 2.0**-17),
    ],
    ids=str,
)
def test_the_largest_word_moves_no_number_that_is_a_value(format: Format, smallest: float, rounder: str) -> None:
    assert word_of_element(AT, *ONES) == 2**32 - 1
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(AT + 22, dtype=dtype)
        x[AT - 18] = 1.0  # of the same block
        moves = {1 / 16: 1 / 16, 3 / 16: 3 / 16, 0.0: 0.0, smallest * 2.0**-32: smallest, smallest * 2.0**-33: 0.0}
        for number, value in moves.items():
            for sign in (1, -1):
                x[AT] = sign * number
                assert run(rounder, x, format, Mode.STOCHASTIC, ONES)[AT] == sign * value


@pytest.mark.parametrize("mode", [*MODES, "stochastic"])
@pytest.mark.parametrize(
    "format",
    [
        MX(E4M3),
        MX(E2M1),
        BlockFloatingPoint(8, dim=-1, block_size=32),
        MX(FloatingPoint(4, 3, bias=133, specials="none")),  # whose own smallest numbers are subnormal in fp32
        *(MX(FloatingPoint(2, 1, specials="none", subnormals=subnormals)) for subnormals in (False, "flush")),
    ],
    ids=repr,
)
def test_blocks_of_every_magnitude_give_the_bits_of_the_reference(format: Any, mode: str, rounder: str) -> None:
    """Down to where the spacings of their grids have no inverse."""
    exponents = torch.arange(-140, 120, 2).repeat_interleave(32).view(-1, 32)
    x = (torch.randn(exponents.shape).double() * 2.0 ** exponents.double()).float()
    x[:, ::2] *= 2.0 ** -torch.arange(16)  # down to where all are zeros
    key = (1, 2) if mode == "stochastic" else None
    expected = reference.round_blocks(x, format.lowered, format.block_shape(x.shape), as_rounding(mode), key)
    assert_same_bits(run(rounder, x, format, mode, key), expected)


@pytest.mark.parametrize("width", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("infinite", ["nan", "saturate"])
def test_infinities_and_nan_count_in_their_own_blocks_alone(infinite: str, width: int, rounder: str) -> None:
    """Anywhere in any of a batch of blocks, which share vectors where their maxima are found."""
    format = MX(E4M3, block_size=width, infinite=infinite)
    x = torch.randn(width * 40, width) * 2.0 ** torch.randint(-9, 9, (width * 40, 1))
    at = torch.arange(width * 40)
    x[at, at % width] = torch.tensor([torch.inf, 1.0, torch.nan, -torch.inf, 0.0, -300.0, 2.0])[at % 7]
    short = 16 * width - 3  # the last of sixteen blocks in a row is incomplete
    for rows in (x.view(8, -1), x.flatten()[: 20 * short].view(20, short)):
        expected = reference.round_blocks(rows, format.lowered, format.block_shape(rows.shape), Rounding(), None)
        assert_same_bits(run(rounder, rows, format), expected)


@pytest.mark.parametrize("mode", [Mode.NEAREST, Mode.DOWN, Mode.STOCHASTIC])
@pytest.mark.parametrize("format", [E4M3, BF16, FP16, E2M1, MX(E4M3), MX(E4M3, axis=0)], ids=repr)
def test_in_place_gives_the_same_bits(format: Format, mode: Mode) -> None:
    x, rule = torch.randn(64, 160), Rounding(mode)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected = round_into(x, torch.empty_like(x), format, rule, generators[0])
    assert_same_bits(round_into(x, x, format, rule, generators[1]), expected)


FORMS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(6, 8),
    "no axes": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "float64": lambda: torch.randn(6, 8, dtype=torch.float64),
    "transposed": lambda: torch.randn(6, 8).t(),
    "with gaps": lambda: torch.randn(6, 8)[:, ::2],
    "from the middle": lambda: torch.randn(6, 8)[2:],
    "negated in memory": lambda: torch.randn(6, 8, dtype=torch.complex64).conj().imag,
    "negated in memory, without gaps": lambda: torch.randn(1, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", [E4M3, MX(E4M3), NF4, Posit(8)], ids=repr)
def test_the_short_way_for_results_of_ops_gives_the_same_bits(format: Format, form: str) -> None:
    for mode in Mode:
        x = FORMS[form]()
        torch.manual_seed(1)
        expected = round_into(x, torch.empty(x.shape, dtype=x.dtype), format, Rounding(mode))
        torch.manual_seed(1)
        in_place(format, Rounding(mode))(x)
        assert_same_bits(x.resolve_neg(), expected)


def test_the_short_way_leaves_meta_tensors_and_is_open_to_observers() -> None:
    state = torch.get_rng_state()
    in_place(E4M3, Rounding(Mode.STOCHASTIC))(torch.empty(3, device="meta"))
    assert torch.equal(torch.get_rng_state(), state), "nothing was drawn for values that are not there"
    seen: list[list[float]] = []

    class Eye(observe.Observer):
        def rounded(self, before: Tensor, after: Tensor, format: Format, rounding: Rounding) -> None:
            seen.append([before.item(), after.item()])

    x = torch.tensor(0.3)
    with observe.observing(Eye()):
        in_place(E4M3, Rounding())(x)
    assert seen == [[pytest.approx(0.3), x.item()]] and x.item() != pytest.approx(0.3)


@pytest.mark.parametrize("shape", [(64, 65536 + 24), (3, 40, 35000), (1100, 4099)], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "up", "stochastic"])
def test_blocks_of_columns_too_large_for_the_cache_round_as_in_place(shape: tuple[int, ...], mode: str) -> None:
    """Large outputs go past the cache: any alignment, the last rows and columns incomplete, columns that are rare."""
    axis, rule = len(shape) - 2, as_rounding(mode)
    x = torch.randn(shape)
    x[..., 5, 7], x[..., 0, 600], x[..., 3, 1100] = torch.nan, torch.inf, 1e-40
    memory = torch.empty(x.numel() + 1)
    for format in (MX(E4M3, axis=axis), BlockFloatingPoint(8, dim=axis, block_size=32)):
        here = x.clone()
        round_into(here, here, format, rule, torch.Generator().manual_seed(2))
        for start in (0, 1):
            out = memory[start : start + x.numel()].view(shape)
            round_into(x, out, format, rule, torch.Generator().manual_seed(2))
            assert_same_bits(out, here)
        if mode != "stochastic":  # a column is rounded by itself
            some = x[..., 580:620].contiguous()
            alone = reference.round_blocks(
                some, format.lowered, format.block_shape(some.shape), as_rounding(mode), None
            )
            assert_same_bits(here[..., 580:620].contiguous(), alone)


LARGE = 2**25  # bytes, too many for the cache
BESIDE: dict[str, Format] = {
    "roomy": E4M3,
    "flat": BF16,
    "gapped": FloatingPoint(4, 3, subnormals=False),
    "plain": FixedPoint(8, 140),
    "MX": MX(E4M3),
    "MX, blocks of a line": MX(E4M3, block_size=16),
    "BFP, half a line": BlockFloatingPoint(8, block_size=8),
    "MX, doubles": MX(E4M3),
    "doubles": E5M2,
}


@pytest.mark.parametrize("build", NATIVE_BUILDS)
@pytest.mark.parametrize("name", BESIDE)
def test_outputs_too_large_for_the_cache_round_as_in_place(name: str, build: str) -> None:
    """Whole lines of them go past it: any alignment, numbers beyond the limits, rows that end amid a line, threads."""
    format, dtype = BESIDE[name], torch.float64 if "doubles" in name else torch.float32
    width = 1040 if "MX" in name else 1027  # where lines are to be whole
    x = torch.randn(LARGE // dtype.itemsize // 1024, width, dtype=dtype) * (2.0**-138 if name == "plain" else 1)
    x[5, 7], x[11, 1026], x[17, 3], x[-1, -1] = torch.nan, -torch.inf, 1e30, 500.0
    with chosen(build):
        for mode in sorted(Mode)[: Mode.STOCHASTIC]:
            here = x.clone()
            round_into(here, here, format, Rounding(mode))
            start = 3 * (mode // 2 % 2)
            torch.set_num_threads(1 + mode % 2)
            memory = torch.full((x.numel() + 2 * 16,), 7.0, dtype=dtype)
            out = memory[start : start + x.numel()].view(x.shape)
            round_into(x, out, format, Rounding(mode))
            assert_same_bits(out, here, f"{mode} at {start}")
            beside = torch.cat([memory[:start], memory[start + x.numel() :]])
            assert (beside == 7).all(), "what lies beside is left alone"


@pytest.mark.parametrize("kind", [tensor._Enter, tensor._Leave, tensor._EnterGradient, _Rounded, ops._Round])
def test_torch_finds_the_signature_that_it_asks_for_at_each_call(kind: Any) -> None:
    """Else it takes the function apart each time, which takes as long as rounding a small tensor."""
    remembered = vars(kind.forward)["__signature__"]
    bare = types.FunctionType(kind.forward.__code__, kind.forward.__globals__)
    assert [*remembered.parameters] == [*inspect.signature(bare).parameters]
