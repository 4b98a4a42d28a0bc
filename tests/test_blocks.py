"""Block floating point against exact rationals, and how tensors fall into blocks."""

from __future__ import annotations

import copy
import itertools
import operator
import pickle
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import lptensor
from lptensor import _native
from lptensor.blocks import MX, NVFP4, BlockFloatingPoint, BlockFormat, Blocks, Scaled, TwoLevel
from lptensor.formats import E4M3
from lptensor.ops import round as lp_round
from lptensor.scaling import PER_TENSOR, Channel, CurrentMaximum, Tile
from oracles import exact
from oracles.exact import MODES
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, judge, run

SHAPES = [(7,), (1,), (4, 6), (5, 1), (1, 5), (3, 4, 5), (2, 1, 7), (2, 3, 4, 5), (1, 1, 1), (6, 1, 1, 3)]


def blocks_of(shape: tuple[int, ...], format: BlockFloatingPoint) -> list[list[tuple[int, ...]]]:
    """The indices of the elements of each block, from the words of the docstring alone."""
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in itertools.product(*map(range, shape)):
        if format.block_size is None:
            lacks = not 0 <= format.dim < len(shape)
            name: tuple[int, ...] = () if lacks else (index[format.dim],)
        elif not -len(shape) <= format.dim < len(shape):
            name = ()
        else:
            axis = format.dim % len(shape)
            name = (*index[:axis], index[axis] // format.block_size, *index[axis + 1 :])
        groups.setdefault(name, []).append(index)
    return list(groups.values())


def expected(x: torch.Tensor, format: BlockFloatingPoint, mode: str) -> np.ndarray:
    result = np.full(tuple(x.shape), np.nan)
    for block in blocks_of(tuple(x.shape), format):
        for index, value in zip(block, exact.rounded_block([x[i].item() for i in block], format.wl, mode), strict=True):
            result[index] = value
    return result


def spread(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Numbers over many binades, many of them on or half way between values of a grid."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-300, 301, shape, generator=generator).to(dtype)
    powers = torch.randint(-5, 6, shape, generator=generator).to(dtype)
    return integers * torch.exp2(powers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_block_rounds_as_exact_rationals(shape: tuple[int, ...], rounder: str) -> None:
    formats = [BlockFloatingPoint(5), *(BlockFloatingPoint(5, dim=d) for d in range(len(shape) + 1))]
    for axis, size in itertools.product(range(-len(shape) - 1, len(shape) + 1), (1, 2, 3, 4, 5, 100)):
        formats.append(BlockFloatingPoint(5, dim=axis, block_size=size))
    x = spread(shape)
    for format in formats:
        assert_same(run(rounder, x, format), expected(x, format, "nearest"), x, format)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wl", [2, 3, 8, 12, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_mode_and_width_rounds_as_exact_rationals(mode: str, wl: int, dtype: torch.dtype, rounder: str) -> None:
    x = torch.cat([spread((8, 9), dtype, wl), torch.randn(8, 9, dtype=dtype)])
    format = BlockFloatingPoint(wl, dim=0)
    assert_same(run(rounder, x, format, mode), expected(x, format, mode), x, format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_blocks_at_both_ends_of_the_carrier_round_as_exact_rationals(dtype: torch.dtype, rounder: str) -> None:
    info = torch.finfo(dtype)
    significands = torch.tensor([1.0, 1.25, 1.5, 1.75, 1.9921875, 0.515625, 0.1328125, -0.0, -0.7578125], dtype=dtype)
    tops = torch.tensor(
        [info.max / 2, info.max, info.tiny, info.tiny * 2**-12, info.tiny * 2, info.tiny * 2**6], dtype=dtype
    )
    x = significands * tops[:, None]
    x[1] = torch.nextafter(x[1], torch.zeros_like(x[1])).nan_to_num()
    for wl, mode in itertools.product((2, 4, 8, 24), MODES):
        format = BlockFloatingPoint(wl, dim=0)
        assert_same(run(rounder, x, format, mode), expected(x, format, mode), x, (format, mode))


class ClampedScale(BlockFloatingPoint):
    """Blocks of E4M3 under one exponent that is held between two ends."""

    low, high = -5, 4

    @property
    def lowered(self) -> Blocks:  # type: ignore[override]
        return Blocks(E4M3.grid, bump=2.0, emax=E4M3.grid.emax, low=self.low, high=self.high)


@pytest.mark.parametrize("mode", MODES)
def test_the_shared_exponent_stays_between_its_ends(mode: str, rounder: str) -> None:
    x = torch.outer(torch.exp2(torch.arange(-20.0, 40.0)), torch.tensor([1.0, 1.3, -1.99, 0.07, 1.9999, 0.0]))
    y = run(rounder, x, ClampedScale(8, dim=0), mode)
    wanted = []
    for row in x.tolist():
        scale = exact.exponent_of(Fraction(max(map(abs, row)))) - E4M3.grid.emax
        power = 2.0 ** min(max(scale, ClampedScale.low), ClampedScale.high)
        wanted.append([exact.rounded(judge(E4M3), v / power, mode) * power for v in row])
    assert_same(y, wanted, x, mode)


def test_zero_nan_and_infinite_blocks_keep_to_themselves(rounder: str) -> None:
    rows = [
        [0.0, -0.0, 0.0],
        [1.0, torch.nan, 2.0],
        [torch.inf, 1.0, 0.0],
        [-torch.inf, torch.nan, 3.0],
        [1.0, -0.0, 5.3],
    ]
    x = torch.tensor(rows)
    for format in (
        BlockFloatingPoint(6, dim=0),
        BlockFloatingPoint(6, dim=-1, block_size=2),
        BlockFloatingPoint(6, dim=1),
    ):
        assert_same(run(rounder, x, format), expected(x, format, "nearest"), x, format)


def test_subnormal_float64_blocks_survive_a_machine_that_flushes_them(rounder: str, flush_denormal: None) -> None:
    patterns = torch.tensor(
        [[1, 5, 77, 1000, 0], [2**51, 2**40 + 12345, 3, 2**52 - 1, 9], [2**52, 2**53 + 9, 2**50, 7, 3]]
    )
    x = torch.cat([patterns, patterns - 2**63]).view(torch.float64)
    results = [run(rounder, x, BlockFloatingPoint(wl, dim=0), mode) for wl in (2, 5, 24) for mode in MODES]
    torch.set_flush_denormal(False)
    for y, (wl, mode) in zip(results, itertools.product((2, 5, 24), MODES), strict=True):
        assert_same(y, expected(x, BlockFloatingPoint(wl, dim=0), mode), x, (wl, mode))


def test_subnormal_blocks_survive_a_machine_that_flushes_them(rounder: str, flush_denormal: None) -> None:
    patterns = torch.tensor([[1, 5, 77, 1000, 0], [2**22, 2**22 + 12345, 3, 2**23 - 1, 9], [2**23, 1, 2**21, 7, 2**20]])
    x = torch.cat([patterns, patterns - 2**31]).to(torch.int32).view(torch.float32)
    results = [run(rounder, x, BlockFloatingPoint(wl, dim=0), mode) for wl in (2, 5, 24) for mode in MODES]
    torch.set_flush_denormal(False)
    for y, (wl, mode) in zip(results, itertools.product((2, 5, 24), MODES), strict=True):
        assert_same(y, expected(x, BlockFloatingPoint(wl, dim=0), mode), x, (wl, mode))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_layout_in_memory_does_not_matter(rounding: str) -> None:
    x = spread((2, 6, 5, 4))
    layouts = {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3).contiguous().transpose(1, 3),
        "strided": torch.stack([x, x + 1], dim=-1)[..., 0],
        "offset": torch.cat([x[:1], x])[1:],
    }
    for format in (BlockFloatingPoint(5, dim=1), BlockFloatingPoint(5, dim=2, block_size=3), BlockFloatingPoint(5)):
        torch.manual_seed(1)
        plain = lp_round(x, format, rounding)
        for name, y in layouts.items():
            torch.manual_seed(1)
            assert_same_bits(lp_round(y, format, rounding), plain, (name, format))


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    assert NATIVE_BUILDS, "the native library was not built"
    x = torch.randn(1003, 257)
    for format in (BlockFloatingPoint(5, dim=0), BlockFloatingPoint(5, dim=1), BlockFloatingPoint(5, block_size=32)):
        results = []
        for n in (1, threads):
            torch.set_num_threads(n)
            results += [run(NATIVE_BUILDS[-1], x, format, r, (1, 2)) for r in ("nearest", "stochastic")]
        assert_same_bits(results[0], results[2], format)
        assert_same_bits(results[1], results[3], format)


def test_a_tensor_without_dimensions_is_one_block(rounder: str) -> None:
    for format in (BlockFloatingPoint(4), BlockFloatingPoint(4, dim=0), BlockFloatingPoint(4, dim=-1, block_size=8)):
        assert (
            run(rounder, torch.tensor(1.3), format).item()
            == exact.rounded_block([torch.tensor(1.3).item()], 4, "nearest")[0]
        )


shapes_of_blocks = st.lists(
    st.tuples(st.sampled_from((1, 1, 2, 3, 4, 6)), st.sampled_from((1, 1, 2, 3, 4, 9))), max_size=5
)


@settings(max_examples=300)
@given(shapes_of_blocks)
def test_axes_are_merged_for_the_kernels_where_blocks_stay_what_they_are(given: list[tuple[int, int]]) -> None:
    shape, block = (tuple(axis) for axis in zip(*given, strict=True)) if given else ((), ())
    merged = _native.layout_struct(shape, block)

    def blocks(shape: Sequence[int], block: Sequence[int]) -> list[int]:
        """The number of each element's block, by where the first of its elements is."""
        names: dict[tuple[int, ...], int] = {}
        places = [tuple(map(operator.floordiv, index, block)) for index in itertools.product(*map(range, shape))]
        return [names.setdefault(place, at) for at, place in enumerate(places)]

    assert 1 <= merged.dims <= max(len(shape), 1)
    assert blocks(merged.shape[: merged.dims], merged.block[: merged.dims]) == blocks(shape, block)


def test_kernels_take_blocks_along_sixteen_axes_that_do_not_merge() -> None:
    many = torch.randn(*[2] * 10, *[1] * 20, 2, 32)
    assert_same_bits(lp_round(many, MX(E4M3)).view(-1, 32), run("reference", many.view(-1, 32), MX(E4M3)))
    assert _native.layout_struct((3,) * 16, (2,) * 16).dims == 16
    with pytest.raises(ValueError, match="need more than 16 axes"):
        _native.layout_struct((3,) * 17, (2,) * 17)


def test_empty_tensors_stay_empty() -> None:
    for shape in ((0,), (0, 3), (3, 0, 2)):
        for format in (BlockFloatingPoint(4), BlockFloatingPoint(4, dim=0), BlockFloatingPoint(4, block_size=2)):
            assert lp_round(torch.empty(shape), format).shape == shape


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(wl=1), "2 to 24, got 1"),
        (dict(wl=25), "2 to 24, got 25"),
        (dict(wl=8, dim=-2), "-1 to 15, got -2"),
        (dict(wl=8, dim=16), "got 16"),
        (dict(wl=8, block_size=0), "block_size must be from 1"),
        (dict(wl=8, block_size=-3), "got -3"),
    ],
    ids=str,
)
def test_parameters_out_of_range_are_named(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BlockFloatingPoint(**arguments)


@pytest.mark.parametrize(
    "arguments", [dict(wl=8.0), dict(wl=True), dict(wl=8, dim=0.5), dict(wl=8, block_size="2")], ids=str
)
def test_parameters_that_are_no_integers_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        BlockFloatingPoint(**arguments)


@pytest.mark.parametrize(
    "format", [BlockFloatingPoint(8), BlockFloatingPoint(4, dim=2), BlockFloatingPoint(3, -2, 16)], ids=repr
)
def test_block_formats_are_values(format: BlockFloatingPoint) -> None:
    for other in (eval(repr(format), vars(lptensor)), pickle.loads(pickle.dumps(format)), copy.deepcopy(format)):
        assert other == format and hash(other) == hash(format) and other.lowered == format.lowered
    assert format != BlockFloatingPoint(9)


TILES = [Tile((3,)), Tile((3,), (0,)), Tile((None,), (1,)), Tile((2, 3)), Tile((2, None))]
WHOLES = [PER_TENSOR, Channel(0), Channel(1)]


@pytest.mark.parametrize("tile", [*TILES, *WHOLES, Channel(-1), Tile(()), Tile((2, 3), (0, 1))], ids=repr)
@pytest.mark.parametrize(
    "format",
    [
        BlockFloatingPoint(5, 1, overflow="bump"),
        BlockFloatingPoint(5, block_size=(2, 2)),
        MX(E4M3, (2, 2), scale_rule="rceil"),
        NVFP4,
        Scaled(E4M3, CurrentMaximum(margin=1)),
    ],
    ids=repr,
)
def test_a_format_with_other_blocks_has_those_or_says_that_it_cannot(format: BlockFormat, tile: Tile) -> None:
    anything = isinstance(format, type(Scaled(E4M3, CurrentMaximum())))
    if not (anything or tile in TILES or tile in WHOLES and isinstance(format, BlockFloatingPoint)):
        with pytest.raises(
            ValueError, match=r"blocks along one axis, or tiles over the last axes, which (Tile\(|Channel\(|PER_TENSOR)"
        ):
            format.tiled(tile)
        return
    other = format.tiled(tile)
    assert type(other) is type(format) and other.lowered == format.lowered
    x = torch.randn(4, 7)
    one, same = ([min(wide, n) for wide, n in zip(f.block_shape(x.shape), x.shape, strict=True)] for f in (tile, other))
    assert one == same
    assert other.tiled(tile) == other and other.tiled(format.tile).tile == format.tile


@pytest.mark.parametrize("wl", [2, 3, 8, 24])
def test_the_element_of_block_floating_point_is_what_its_values_are_over_their_power(wl: int) -> None:
    format = BlockFloatingPoint(wl)
    top, step = 2.0 - 2.0 ** (2 - wl), 2.0 ** (2 - wl)
    assert (format.element.max, format.element.min, format.element.bits) == (top, -top, wl)
    if wl <= 8:
        assert format.element.values().tolist() == [k * step for k in range(1 - 2 ** (wl - 1), 2 ** (wl - 1))]


def test_a_list_of_sizes_is_a_tuple_of_them() -> None:
    for one, other in (
        (MX(E4M3, [4, 8]), MX(E4M3, (4, 8))),  # type: ignore[arg-type]
        (TwoLevel(E4M3, [4, 8]), TwoLevel(E4M3, (4, 8))),  # type: ignore[arg-type]
        (BlockFloatingPoint(8, block_size=[4, 8]), BlockFloatingPoint(8, block_size=(4, 8))),  # type: ignore[arg-type]
    ):
        assert one == other and hash(one) == hash(other) and one.block_size == (4, 8)
