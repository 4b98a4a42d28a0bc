"""Asymmetric integers under ``CurrentRange``, against exact rationals and PyTorch's own fake quantization."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lptensor
from backends import flushed_denormals, random_bits, threads
from compiling import compile_anew as compile_anew
from lptensor import (
    E4M3,
    E8M0,
    INT4,
    INT8,
    PER_TENSOR,
    Arithmetic,
    Channel,
    CurrentMaximum,
    CurrentRange,
    FixedPoint,
    FloatingPoint,
    Format,
    Gemm,
    OptimLP,
    Posit,
    Scaled,
    Tile,
    lower,
    quantizer,
)
from lptensor.blocks import ScaledBlockFormat
from lptensor.formats import ScalarFormat
from lptensor.study.bit_layout import bit_layout
from lptensor.study.sqnr import bits_per_value
from lptensor.training import qat
from oracles import ranges
from oracles.exact import MODES
from rounders import (
    NATIVE_BUILDS,
    VARIANTS,
    assert_same,
    assert_same_bits,
    assert_threads_and_builds_change_no_bit,
    judge,
    rule_of,
    run,
)
from test_mx import groups
from test_stochastic_blocks import KEY, ways

ROUNDERS = ["reference", *NATIVE_BUILDS]
UINT4 = FixedPoint(4, 0, signed=False)
ELEMENTS = [
    *(INT8, INT4, UINT4, FixedPoint(8, 0, symmetric=True), FixedPoint(6, 4), FixedPoint(5, -3, signed=False)),
    *(FixedPoint(1, 0), FixedPoint(24, 0), FixedPoint(8, 149), FixedPoint(8, -120)),
]
DTYPES = (torch.float32, torch.float64)


def expected(x: torch.Tensor, format: Any, mode: Any) -> np.ndarray:
    result, element, wide = np.zeros(tuple(x.shape)), judge(format.element), x.dtype == torch.float64
    preserve_zero, reciprocal = format.scaling.preserve_zero, format.scaling.reciprocal
    for group in groups(tuple(x.shape), format.block_shape(x.shape)):
        way = mode if isinstance(mode, str) else [mode[i] for i in group]
        values = ranges.rounded([x[i].item() for i in group], element, preserve_zero, reciprocal, way, wide)
        for index, value in zip(group, values, strict=True):
            result[index] = value
    return result


def check(x: torch.Tensor, format: Format, modes: Any = MODES) -> None:
    for mode in modes:
        wanted = expected(x, format, mode)
        for rounder in ROUNDERS:
            assert_same(run(rounder, x, format, mode), wanted, x, (rounder, format, mode))


def tiles_of(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Rows of twelve, each of which is a tile."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    most = torch.finfo(torch.float32).max
    yield "on both sides of zero", x.to(dtype)
    yield "above zero", (x.abs() + 3).to(dtype)
    yield "below zero", -(x.abs() * 2.0**30).to(dtype)
    yield "halves, which tie", (torch.randint(-9, 9, (4, 12), generator=generator) / 2).to(dtype)
    yield "steps of 15 and 255 that are one", torch.tensor([[-7.5, 7.5], [-100.5, 154.5], [-0.5, 254.5]]).to(dtype)
    yield "over many binades", (x * torch.exp2(torch.arange(36).view(3, 12) * 4.0 - 70)).to(dtype)
    yield "subnormals", (torch.randint(-300, 300, (3, 12), generator=generator) * 2.0**-149).to(dtype)
    yield (
        "near the largest",
        torch.stack([x[0].sign() * most, x[1].abs() * 2.0**126, -most / (1 + x[2].abs())]).to(dtype),
    )
    yield (
        "wider than fp32",
        torch.tensor([[-most, most, most / 3, 1e-45, 0.0], [-most, 2.0**103, 1.0, -1.0, 5.0]]).to(dtype),
    )
    # Alone, because one such tile may take the others of a call the long way with it.
    yield "a little wider than fp32", torch.tensor([[-most, 2.0**124, 2.0**122, 2.0**120, -1.0]]).to(dtype)
    yield "as wide as fp32", torch.tensor([[-(2.0**127), 2.0**127, 2.0**126, 1.0]]).to(dtype)
    yield "one value", torch.tensor([[1.1], [-0.0], [most], [-(2.0**-149)]]).to(dtype)
    yield "zeros", torch.tensor([[0.0, -0.0], [-0.0, 1.0]]).to(dtype)
    yield "lost", torch.tensor([[1.0, torch.nan], [-torch.inf, 1.0], [torch.inf, -torch.inf], [2.0, 3.0]]).to(dtype)
    yield "any bits", random_bits(36, dtype).view(12, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preserve_zero", [True, False])
@pytest.mark.parametrize("element", ELEMENTS, ids=repr)
def test_tiles_round_as_the_written_arithmetic(element: FixedPoint, preserve_zero: bool, dtype: torch.dtype) -> None:
    for reciprocal in (False, True):
        format = Scaled(element, CurrentRange(Channel(0), preserve_zero, reciprocal))
        for _, x in tiles_of(dtype):
            check(x, format, MODES if element == INT4 and not reciprocal else ("nearest", "up"))


@pytest.mark.parametrize("preserve_zero", [True, False])
def test_float64_beyond_fp32_rounds_as_the_written_arithmetic(preserve_zero: bool) -> None:
    rows = [
        [1e300, -1.0],
        [1e39, 1e38],
        [-1e39, 1e39],
        [5e-324, 1.0],
        [-5e-324, 2.0**127],
        [1e-310, 2e-310],
        [1e-50, 3e-46],
    ]
    for reciprocal in (False, True):
        format = Scaled(INT8, CurrentRange(Channel(0), preserve_zero, reciprocal))
        check(torch.tensor(rows, dtype=torch.float64), format)
        check(torch.tensor([[5e-324, -5e-324, -(2.0**127), 2.0**127]], dtype=torch.float64), format)  # quotients vanish


TILES: list[tuple[Tile, tuple[int, ...]]] = [
    *((PER_TENSOR, shape) for shape in ((), (1,), (7,), (5, 7), (2, 3, 4))),
    *((Channel(axis), (5, 7, 3)) for axis in (0, 1, 2, -1, 5)),
    *((Tile(widths), (5, 7, 9)) for widths in ((1, 4), (2, 3), (1, 16), (1,), (2, 2, 2), (None,))),
    *((Tile((3,), (axis,)), (5, 7, 9)) for axis in (0, 1, 2)),
    (Tile((2, None), (0, 1)), (5, 7, 4)),
    (Tile((2, 3), (0, 2)), (5, 2, 4)),
    (Tile((4,), others=None), (3, 10)),
    (Tile((3,), (1,), others=None), (2, 7, 3)),
]


@pytest.mark.parametrize(("tile", "shape"), TILES, ids=str)
def test_every_tile_has_a_range_of_its_own(tile: Tile, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) * 2 + torch.randint(-9, 9, shape, generator=generator)
    for preserve_zero in (True, False):
        check(x, Scaled(INT4, CurrentRange(tile, preserve_zero)), ("nearest", "down"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preserve_zero", [True, False])
def test_each_element_goes_where_its_word_and_its_chance_say(preserve_zero: bool, variant: str) -> None:
    for tile, shape in ((PER_TENSOR, (3, 70)), (Channel(1), (5, 7, 3)), (Tile((2, 3)), (4, 7, 8))):
        format = Scaled(INT4, CurrentRange(tile, preserve_zero))
        for dtype, bits in ((torch.float32, 31), (torch.float64, 5)):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype) + 1
            wanted = expected(x, format, ways(shape, bits, variant))
            for rounder in ROUNDERS:
                assert_same(run(rounder, x, format, rule_of(bits, variant), KEY), wanted, x, (rounder, tile, dtype))


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((100_003,), PER_TENSOR),
        ((300, 301), Tile((1, 128))),
        ((300, 301), Tile((1, 8))),
        ((40, 2501), Tile((1, 32))),
        ((40, 2501), Tile((2, 48))),
        ((3, 100, 301), Channel(1)),
        ((201, 401), Tile((64, 64))),
    ],
    ids=str,
)
def test_threads_and_builds_change_no_bit(shape: tuple[int, ...], tile: Tile) -> None:
    with threads(1):
        assert_threads_and_builds_change_no_bit(shape, Scaled(INT8, CurrentRange(tile)))


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
def test_more_columns_than_random_words_lie_side_by_side_round_by_their_own_ranges(mode: str) -> None:
    format = Scaled(INT8, CurrentRange(Channel(1)))
    x = torch.randn(20, 1301) * torch.exp2(torch.randint(-9, 9, (1301,)))
    for dtype in DTYPES:
        wanted = run("reference", x.to(dtype), format, mode, KEY)
        for build in NATIVE_BUILDS:
            assert_same_bits(run(build, x.to(dtype), format, mode, KEY), wanted, (build, dtype))


def test_an_end_that_lies_where_the_parts_of_threads_meet_is_seen() -> None:
    _, wanted = ranges.rounded([0.0, 1.0], judge(INT8), True, False, "nearest", False)
    for count in (2, 3):
        for border in (100_003 * part // count for part in range(1, count)):
            for place in (border - 1, border):
                x = torch.zeros(100_003)
                x[place] = 1.0
                with threads(count):
                    assert lptensor.round(x, Scaled(INT8, CurrentRange()))[place].item() == wanted


def test_a_machine_that_flushes_subnormals_changes_no_bit() -> None:
    for dtype in DTYPES:
        inputs = [x for _, x in tiles_of(dtype)]
        formats = [
            Scaled(INT8, CurrentRange(Channel(0), *how)) for how in ((True, False), (False, False), (True, True))
        ]
        cases = [(r, x, f, mode) for r in ROUNDERS for x in inputs for f in formats for mode in ("nearest", "up")]
        before = [run(*case) for case in cases]
        with flushed_denormals():
            after = [run(*case) for case in cases]
        for first, second, case in zip(before, after, cases, strict=True):
            assert_same_bits(first, second, case)


def test_memory_in_another_order_rounds_alike() -> None:
    x = torch.randn(6, 4, 5)
    for tile in (PER_TENSOR, Channel(0), Channel(2), Tile((2, 3)), Tile((4,), (0,))):
        format = Scaled(INT8, CurrentRange(tile))
        for there in (x.permute(2, 0, 1), x.transpose(0, 1), x[:, ::2], x.to(memory_format=torch.contiguous_format).mT):
            for mode in ("nearest", "stochastic"):
                torch.manual_seed(0)
                wanted = lptensor.round(there.contiguous(), format, mode)
                torch.manual_seed(0)
                assert_same_bits(lptensor.round(there, format, mode), wanted)
    y = x.clone()
    assert lptensor.round(y, format, out=y) is y and torch.equal(y, lptensor.round(x, format))
    assert lptensor.round(torch.empty(0, 3), format).shape == (0, 3)
    assert lptensor.round(torch.empty(2, 3, device="meta"), format).is_meta


# --- what the definition promises ------------------------------------------------------------------


@pytest.mark.parametrize("element", [INT8, INT4, UINT4, FixedPoint(6, 4), FixedPoint(4, 0, symmetric=True)], ids=repr)
def test_values_are_few_near_and_zero_is_one(element: FixedPoint) -> None:
    generator = torch.Generator().manual_seed(3)
    for shift in (-100.0, -1.0, 0.0, 0.3, 100.0):
        x = torch.randn(64, 300, generator=generator) + shift
        x[:, 5] = 0.0
        for preserve_zero in (True, False):
            format = Scaled(element, CurrentRange(Channel(0), preserve_zero))
            y, s = lptensor.round(x, format), lptensor.scales(x, format)
            step = 2.0**-element.fl
            assert ((y - x).abs() <= s * step / 2 * (1 + 2.0**-10) + 2.0**-16).all()
            assert max(len(row.unique()) for row in y) <= len(element.values())
            assert not preserve_zero or (y[:, 5] == 0).all()
            if not preserve_zero:
                assert torch.equal(y.amin(1), x.amin(1))


def test_a_tile_of_one_number_keeps_it_where_zero_is_not_preserved() -> None:
    x = torch.tensor([1.1, -3.3e38, 1e-45, 0.0, 7e-41]).unsqueeze(1).expand(5, 9)
    for element in ELEMENTS:
        assert torch.equal(lptensor.round(x, Scaled(element, CurrentRange(Channel(0), False))), x)


def test_scales_and_zero_points_are_the_oracles() -> None:
    for element in ELEMENTS:
        for _, x in tiles_of(torch.float32):
            for preserve_zero in (True, False):
                format: Any = Scaled(element, CurrentRange(Channel(0), preserve_zero))
                tiles = [ranges.tile(row.tolist(), judge(element), preserve_zero) for row in x]
                wanted = [np.nan if t.scale is None else float(t.scale) for t in tiles]
                assert_same(lptensor.scales(x, format)[:, 0], wanted)
                if preserve_zero:
                    points = [np.nan if t.scale is None else float(t.zero_point) for t in tiles]
                    assert_same(lptensor.zero_points(x, format)[:, 0] + 0.0, points)
    empty: Any = Scaled(INT8, CurrentRange(Tile((1, 4))))
    assert (
        lptensor.zero_points(torch.empty(2, 9), empty).shape
        == lptensor.scales(torch.empty(2, 9), empty).shape
        == (2, 3)
    )
    assert lptensor.zero_points(torch.empty(0, 9), empty).shape == (0, 3)
    on_meta = lptensor.zero_points(torch.empty(2, 9, device="meta"), empty)
    assert on_meta.is_meta and on_meta.shape == (2, 3)


@pytest.mark.parametrize("element", [INT8, INT4, UINT4, FixedPoint(6, 4)], ids=repr)
def test_values_have_codes_of_the_element(element: ScalarFormat) -> None:
    x = torch.randn(50, 100) + torch.randn(50, 1) / 2
    format: Any = Scaled(element, CurrentRange(Channel(0)))
    y, s, z = lptensor.round(x, format), lptensor.scales(x, format), lptensor.zero_points(x, format)
    codes = lptensor.encode(y / s + z, element)
    assert_same_bits(((lptensor.decode(codes, element).double() - z) * s).float(), y)
    ends = lptensor.decode(codes, element)
    assert (ends.amin(1) == element.min).all() and (ends.amax(1) == element.max).all()


def test_signs_and_magnitudes_at_equal_steps_are_as_good_as_twos_complement() -> None:
    float_kind, fixed = FloatingPoint(1, 3, specials="none"), FixedPoint(5, 2, symmetric=True)
    assert float_kind.values().tolist() == fixed.values().tolist()
    for dtype in DTYPES:
        for _, x in tiles_of(dtype):
            for how in ((True, False), (False, False)):
                ours, wanted = (Scaled(e, CurrentRange(Channel(0), *how)) for e in (float_kind, fixed))
                for rounder in ROUNDERS:
                    assert_same(run(rounder, x, ours), run(rounder, x, wanted), x, (rounder, how))


# --- PyTorch's own ----------------------------------------------------------------------------------


def test_tensors_have_the_bits_of_fake_quantize() -> None:
    generator = torch.Generator().manual_seed(4)
    for s in (0.1, 1 / 3, 2.0**-8, 1.0, 7e9):
        for zero in (-128, -100, 0, 3, 127):
            x = torch.rand(4000, generator=generator) * 255 * s + (-128 - zero) * s
            x[0], x[1] = (-128 - zero) * s, (127 - zero) * s
            x[2:500] = torch.randint(-128 - zero, 127 - zero, (498,), generator=generator) * s + s / 2
            format: Any = Scaled(INT8, CurrentRange(reciprocal=True))
            (scale,), (zero_point,) = lptensor.scales(x, format).tolist(), lptensor.zero_points(x, format).tolist()
            wanted = torch.fake_quantize_per_tensor_affine(x, scale, int(zero_point), -128, 127)
            assert torch.equal(lptensor.round(x, format), wanted) and zero_point == zero
            if s in (2.0**-8, 1.0):  # whose reciprocal is exact
                assert torch.equal(lptensor.round(x, Scaled(INT8, CurrentRange())), wanted)


@pytest.mark.parametrize(("element", "dtype"), [(INT8, torch.qint8), (FixedPoint(8, 0, signed=False), torch.quint8)])
def test_channels_have_the_bits_of_torch_aos_observer_and_fake_quantize(
    element: FixedPoint, dtype: torch.dtype
) -> None:
    observer = torch.ao.quantization.PerChannelMinMaxObserver(0, dtype, torch.per_channel_affine, eps=2.0**-149)
    x = torch.randn(400, 300, generator=torch.Generator().manual_seed(5)) + torch.linspace(-3, 3, 400)[:, None]
    observer(x)
    s, z = observer.calculate_qparams()
    format: Any = Scaled(element, CurrentRange(Channel(0), reciprocal=True))
    assert torch.equal(s.double(), lptensor.scales(x, format)[:, 0])
    assert torch.equal(z.double(), lptensor.zero_points(x, format)[:, 0])
    wanted = torch.fake_quantize_per_channel_affine(x, s, z, 0, int(element.min), int(element.max))
    assert torch.equal(lptensor.round(x, format), wanted)
    divided = lptensor.round(x, Scaled(element, CurrentRange(Channel(0))))
    assert torch.equal(divided != wanted, (x * (1 / s[:, None])).round() != (x / s[:, None]).round())


# --- as every format ---------------------------------------------------------------------------------

AFFINE = Scaled(INT8, CurrentRange(Channel(0)))


def test_it_is_a_value_like_every_format() -> None:
    for format in (AFFINE, Scaled(UINT4, CurrentRange(Tile((1, 4)), preserve_zero=False))):
        for other in (pickle.loads(pickle.dumps(format)), copy.deepcopy(format), eval(repr(format))):
            assert other == format and hash(other) == hash(format) and other.lowered == format.lowered
        saved = io.BytesIO()
        torch.save(torch.randn(2, 8).to_lp(format), saved)
        saved.seek(0)
        assert torch.load(saved, weights_only=True).format == format
    assert repr(AFFINE) == "Scaled(INT8, CurrentRange(tile=Channel(0)))"
    assert repr(CurrentRange(reciprocal=True)) == "CurrentRange(reciprocal=True)"
    assert repr(Scaled(INT4, CurrentRange(preserve_zero=False))) == "Scaled(INT4, CurrentRange(preserve_zero=False))"
    assert isinstance(AFFINE, ScaledBlockFormat) and AFFINE.tiled(PER_TENSOR) == Scaled(INT8, CurrentRange())


def test_zero_is_a_value_only_where_it_is_preserved() -> None:
    unsafe = Scaled(INT8, CurrentRange(preserve_zero=False))
    assert Scaled(INT8, CurrentRange()).has(0.0) and not unsafe.has(0.0)
    x = (torch.rand(3, 4) + 5).to_lp(unsafe)
    padded = nn.functional.pad(x, (1, 1))
    assert torch.equal(padded.dequantize(), lptensor.round(nn.functional.pad(x.dequantize(), (1, 1)), unsafe))


def test_unsigned_elements_have_negative_numbers_in_a_range() -> None:
    format = Scaled(UINT4, CurrentRange())
    assert torch.equal(lptensor.round(torch.tensor([-15.0, 0.0]), format), torch.tensor([-15.0, 0.0]))
    assert Arithmetic(format, backward=format).backward == format
    assert quantizer(None, format)(torch.ones(1)) == 1
    with pytest.raises(ValueError, match="has no negative numbers"):
        Arithmetic(Scaled(UINT4, CurrentMaximum()))


def test_a_value_takes_its_share_of_scales_and_zero_points() -> None:
    assert bits_per_value(Scaled(INT4, CurrentRange(Tile((1, 32)))), (4, 64)) == 4 + (32 + 4) / 32
    assert bits_per_value(Scaled(INT4, CurrentRange(Tile((1, 32)), False)), (4, 64)) == 4 + (32 + 32) / 32
    fields = [(row["field"], row["bits"]) for row in bit_layout(Scaled(INT4, CurrentRange())) if row["shared"]]
    assert fields == [("shared scale", 32), ("zero point", 4)]


def test_models_layers_products_and_optimizers_take_it() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(8, 6), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    y = x.to_lp(AFFINE)
    assert torch.equal(y.dequantize(), lptensor.round(x, AFFINE))
    assert torch.equal((y + 1).dequantize(), lptensor.round(y.dequantize() + 1, AFFINE))

    low = lptensor.convert(copy.deepcopy(net), AFFINE)
    low(y).dequantize().sum().backward()
    assert low[0].weight.format == AFFINE and low[0].weight.grad is not None

    gemm = lower(copy.deepcopy(net[:1]), ["linear"], operands=Gemm(AFFINE))
    rows = Scaled(INT8, CurrentRange(Tile((None,))))
    wanted = lptensor.round(x, rows) @ lptensor.round(net[0].weight.detach(), rows).T + net[0].bias
    assert torch.equal(gemm(x), wanted)

    trained = copy.deepcopy(net)
    step = OptimLP(torch.optim.SGD(trained.parameters(), lr=0.1), weight_quant=AFFINE)
    trained(x).sum().backward()
    step.step()
    ready = qat.prepare(copy.deepcopy(net), AFFINE)
    assert torch.equal(ready[0].weight, lptensor.round(net[0].weight, AFFINE))


@pytest.mark.parametrize("format", [AFFINE, Scaled(INT4, CurrentRange(preserve_zero=False))], ids=repr)
def test_transforms_and_compiled_code_round_alike(format: Format) -> None:
    x = torch.randn(4, 6, 5)
    wanted = torch.stack([lptensor.round(sample, format) for sample in x])
    assert torch.equal(torch.vmap(lambda t: lptensor.round(t, format))(x), wanted)
    compiled = torch.compile(lambda t: lptensor.round(t * 2, format), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), lptensor.round(x * 2, format))
    t = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(lptensor.round(t, format).sum(), t)
    assert torch.equal(grad, torch.ones_like(x))


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "said"),
    [
        (E4M3, "equal steps between two ends, such as INT8.* which E4M3 is not; CurrentMaximum takes"),
        (E8M0, "equal steps"),
        (FixedPoint(8, 0, clamp=False), "equal steps"),
        (FloatingPoint(1, 3, specials="none", subnormals=False), "equal steps"),
        (FixedPoint(25, 0), "up to 24 bits"),
        (FixedPoint(53, 0), "up to 24 bits"),
    ],
    ids=repr,
)
def test_elements_without_equal_steps_and_ends_are_refused(element: ScalarFormat, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Scaled(element, CurrentRange())


def test_what_is_no_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="the element must be a scalar format"):
        Scaled(Posit(8), CurrentRange())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tile must be a Tile such as"):
        CurrentRange(0)  # type: ignore[arg-type]
    for name in ("preserve_zero", "reciprocal"):
        with pytest.raises(TypeError, match=name):
            CurrentRange(**{name: 1})  # type: ignore[arg-type]
    x = torch.ones(3)
    with pytest.raises(TypeError, match=r"zero points are those of a format such as Scaled\(INT8, CurrentRange"):
        lptensor.zero_points(x, Scaled(INT8, CurrentMaximum()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"lptensor.scales\(x, format\) plus their lptensor.zero_points"):
        lptensor.encode(x, AFFINE)
    with pytest.raises(ValueError, match="start at their smallest value"):
        lptensor.zero_points(x, Scaled(INT8, CurrentRange(preserve_zero=False)))  # type: ignore[arg-type]
