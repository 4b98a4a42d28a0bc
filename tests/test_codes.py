"""encode and decode: every code of every format, against other people's types and the definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import gfloat
import gfloat.formats as gf
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from backends import threads
from compiling import since
from lptensor import reference
from lptensor.blocks import MX, MXFP4, NVFP4, BlockFloatingPoint, Scaled, TwoLevel
from lptensor.codebooks import DYNAMIC8, FP4_RADIX4, NF4, UDYNAMIC8, Codebook, LogNumber, TableFormat
from lptensor.codes import code_dtype, decode, encode, scales, zero_points
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    FP32,
    INT4,
    INT8,
    TF32,
    FixedPoint,
    FloatingPoint,
    ScalarFormat,
)
from lptensor.ops import round as round_to
from lptensor.posits import Posit
from lptensor.scaling import PER_TENSOR, Channel, CurrentMaximum, CurrentRange, Tile
from oracles import posit
from rounders import NATIVE_BUILDS, chosen

ML_DTYPES = {
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    E4M3B11FNUZ: ml_dtypes.float8_e4m3b11fnuz,
    E3M4: ml_dtypes.float8_e3m4,
    FloatingPoint(4, 3): ml_dtypes.float8_e4m3,
    E8M0: ml_dtypes.float8_e8m0fnu,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E2M1: ml_dtypes.float4_e2m1fn,
    BF16: ml_dtypes.bfloat16,
    FP16: np.float16,
    INT8: np.int8,
    INT4: ml_dtypes.int4,
}
GFLOAT = {
    E4M3: gf.format_info_ocp_e4m3,
    E5M2: gf.format_info_ocp_e5m2,
    E3M2: gf.format_info_ocp_e3m2,
    E2M3: gf.format_info_ocp_e2m3,
    E2M1: gf.format_info_ocp_e2m1,
    E8M0: gf.format_info_ocp_e8m0,
    FixedPoint(8, 6): gf.format_info_ocp_int8,
}
by_type = pytest.mark.parametrize(("format", "dtype"), ML_DTYPES.items(), ids=lambda v: getattr(v, "__name__", ""))


def every_code(format: ScalarFormat) -> Tensor:
    return torch.arange(2**format.bits).to(code_dtype(format.bits))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal values, NaN where NaN is, and the same sign of zero."""
    a, b = a.double(), b.double()
    return bool((((a == b) & (a.signbit() == b.signbit())) | a.isnan() & b.isnan()).all())


def definition(format: FloatingPoint, codes: np.ndarray | None = None) -> np.ndarray:
    """The values of codes, else of all, as IEEE 754-2019 3.4 and the papers on the others define them."""
    codes = np.arange(2**format.bits) if codes is None else codes
    sign = codes >> (format.exp + format.man) if format.signed else 0 * codes
    field, fraction = codes >> format.man & 2**format.exp - 1, codes & 2**format.man - 1
    normal = np.ldexp(1 + fraction / 2**format.man, field - format.bias)
    subnormal = np.ldexp(fraction / 2**format.man, 1 - format.bias) * (format.subnormals is True)
    value = np.where((field > 0) | (not format.zero), normal, subnormal) * np.where(sign, -1.0, 1.0)
    top = field == 2**format.exp - 1
    if format.specials == "ieee":
        value = np.where(top, np.where(fraction == 0, np.copysign(np.inf, value), np.nan), value)
    if format.specials == "fn":
        value = np.where(top & (fraction == 2**format.man - 1), np.nan, value)
    if format.specials == "fnuz":
        value = np.where(value == 0, 0.0, value)
        value = np.where((sign == 1) & (field == 0) & (fraction == 0), np.nan, value)
    return value


def floats_of(exp: int, man: int) -> list[FloatingPoint]:
    """Every kind of float of these fields that the library takes and fp32 carries."""
    out = []
    for specials in ("ieee", "fn", "fnuz", "none"):
        for signed in (True, False) if exp + man <= 9 else (True,):
            for subnormals in (True, False, "flush") if exp + man <= 9 else (True,):
                try:
                    out.append(FloatingPoint(exp, man, specials=specials, signed=signed, subnormals=subnormals))
                except ValueError:
                    continue
    return out


@pytest.mark.parametrize("exp", range(1, 9))
def test_every_code_of_every_float_of_16_bits_is_its_definition_and_comes_back(exp: int) -> None:
    seen = 0
    for man in range(16 - exp):
        for format in floats_of(exp, man):
            codes, expected = every_code(format), torch.from_numpy(definition(format))
            values = decode(codes, format)
            assert values.dtype == torch.float32
            assert same(values, expected), format
            nan = torch.isnan(expected)
            back = encode(values, format, strict=True)
            assert back.dtype == codes.dtype
            canonical = (expected != 0) | (codes.long() & 2 ** (format.exp + format.man) - 1 == 0)
            assert torch.equal(back[~nan & canonical], codes[~nan & canonical]), format
            if nan.any():  # one of the NaNs, always the same
                assert len(back[nan].unique()) == 1 and nan[codes == back[nan][0]].all(), format
            seen += 1
    assert seen > 8


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (3, 40), (2, 3, 17)], ids=str)
@pytest.mark.parametrize("format", [MXFP4, MX(E2M1, (2, 4)), NVFP4, TwoLevel(E2M1, tensor_scale=False)], ids=repr)
def test_scales_take_blocks_apart_into_codes_of_their_element(format: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    found, wide = scales(x, format), format.block_shape(shape)
    assert found.shape == torch.Size([-(-n // b) for n, b in zip(shape, wide, strict=True)])
    rounded = round_to(x, format)
    for at in itertools.product(*map(range, found.shape)):
        part = tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, wide, strict=True))
        elements = round_to(rounded[part] / found[at], E2M1)  # the quotient may miss by a bit
        assert torch.allclose(elements * found[at], rounded[part], rtol=2.0**-50, atol=0)
        assert torch.equal(decode(encode(elements, E2M1, strict=True), E2M1).double(), elements)


def test_scales_of_a_negative_view_are_those_of_its_values() -> None:
    x = torch.complex(torch.zeros(2, 64), torch.arange(128.0).reshape(2, 64)).conj().imag
    assert x.is_neg() and torch.equal(scales(x, MXFP4), scales(x.clone(), MXFP4))


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "format",
    [
        *(MXFP4, MX(E4M3, (2, 4)), MX(E5M2, axis=0), BlockFloatingPoint(8), NVFP4, TwoLevel(E2M1, tensor_scale=False)),
        *(Scaled(E4M3, CurrentMaximum(tile)) for tile in (PER_TENSOR, Channel(0), Channel(1), Tile((2, 48)))),
        *(Scaled(INT4, CurrentRange(tile, *how)) for tile in (Channel(1), Tile((32,))) for how in ((), (False,))),
    ],
    ids=repr,
)
def test_scales_do_not_depend_on_threads_and_builds(format: Any, dtype: torch.dtype) -> None:
    wide = {torch.float32: 145, torch.float64: 1040}[dtype]
    for shape in ((70, 1500), (3, 41), (7,)):
        x = torch.randn(shape, dtype=dtype) * torch.exp2(torch.randint(-wide, wide, (*shape[:-1], 1)).to(dtype))
        for special in (torch.nan, torch.inf, -torch.inf, 0.0):
            x.view(-1)[torch.randint(0, x.numel(), (2,))] = special
        x[0] = 0.0
        wanted = reference.scales(x, format.lowered, format.block_shape(shape))
        for count, build in itertools.product((1, 3), NATIVE_BUILDS):
            with threads(count), chosen(build):
                found = (scales(x, format), *([zero_points(x, format)] if len(wanted) > 1 and format.has(0.0) else []))
            for ours, theirs in zip(found, wanted, strict=False):
                assert torch.equal(ours.nan_to_num(-1.0), theirs.nan_to_num(-1.0)), (shape, count, build)


def test_what_has_no_scales_says_so() -> None:
    with pytest.raises(TypeError, match="of a block format such as MXFP4, got E2M1"):
        scales(torch.ones(2), E2M1)  # type: ignore[arg-type]
    assert scales(torch.tensor([math.nan, 1.0]), MXFP4).isnan().all()


@pytest.mark.parametrize("format", [NF4, LogNumber(8), Posit(8), Posit(16), Posit(6, 1)], ids=repr)
def test_every_code_of_codebooks_and_posits_comes_back(format: Codebook | LogNumber | Posit) -> None:
    count = len(format.values()) if not isinstance(format, Posit) else 2**format.bits
    codes = torch.arange(count).to(code_dtype(format.bits))
    values = decode(codes, format)
    assert values.dtype == torch.float32 and len(values.unique()) == count
    assert torch.equal(encode(values, format, strict=not values.isnan().any()), codes)


def test_posits_beyond_fp32_decode_to_float64() -> None:
    codes = torch.tensor([0x40000001, 0x7FFFFFFF], dtype=torch.int32)
    values = decode(codes, Posit(32))
    assert values.tolist() == [1 + 2.0**-27, 2.0**120]
    assert torch.equal(encode(values, Posit(32), strict=True), codes)


@by_type
def test_every_code_is_what_the_type_of_that_name_says(format: ScalarFormat, dtype: type) -> None:
    codes = every_code(format)
    raw = codes.numpy().view(np.uint8 if format.bits <= 8 else np.uint16)
    if format is INT4:
        typed = raw.astype(np.int8).astype(dtype)
    else:
        typed = raw.view(dtype)
    assert same(decode(codes, format), torch.from_numpy(typed.astype(np.float32)))


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        (E4M3, torch.float8_e4m3fn),
        (E5M2, torch.float8_e5m2),
        (E4M3FNUZ, torch.float8_e4m3fnuz),
        (E5M2FNUZ, torch.float8_e5m2fnuz),
        (FP16, torch.float16),
        (BF16, torch.bfloat16),
    ],
    ids=str,
)
def test_codes_are_the_bits_of_torchs_types(format: ScalarFormat, dtype: torch.dtype) -> None:
    codes = every_code(format)
    native = codes.view(dtype)
    assert same(decode(codes, format), native.float())
    finite = native.float().isfinite()
    assert torch.equal(encode(native.float()[finite], format), codes[finite])


@pytest.mark.parametrize("format", GFLOAT, ids=repr)
def test_codes_are_gfloats(format: ScalarFormat) -> None:
    info = GFLOAT[format]
    expected = torch.tensor([gfloat.decode_float(info, c).fval for c in range(2**format.bits)], dtype=torch.float64)
    assert same(decode(every_code(format), format), expected)
    values = torch.cat([expected[expected.isfinite()], torch.tensor([1.1, 0.3, -2.7])]).float()
    on_grid = round_to(values, format)
    on_grid = on_grid[on_grid.isfinite()]
    assert encode(on_grid, format).tolist() == [gfloat.encode_float(info, v) for v in on_grid.tolist()]


@pytest.mark.parametrize("signed", [True, False])
def test_fixed_point_is_twos_complement_or_plain_binary(signed: bool) -> None:
    for wl in range(1, 13):
        for fl in (-100, -5, 0, wl - 1, wl + 3, 100):
            format = FixedPoint(wl, fl, signed=signed)
            codes = every_code(format)
            k = [c - 2**wl if signed and c >= 2 ** (wl - 1) else c for c in range(2**wl)]
            values = decode(codes, format)
            assert values.tolist() == [c * 2.0**-fl for c in k], format
            assert torch.equal(encode(values, format, strict=True), codes)


@pytest.mark.parametrize("clamp", [True, False])
def test_the_code_that_symmetric_fixed_point_leaves_free_is_the_most_negative_value(clamp: bool) -> None:
    format = FixedPoint(8, 4, clamp=clamp, symmetric=True)
    assert decode(torch.tensor([0x80, 0x81]), format).tolist() == [-7.9375, -7.9375]
    assert encode(torch.tensor([-8.0 if clamp else -7.9375]), format).tolist() == [0x81]


def test_wide_fixed_point_has_float64_values_and_int64_codes() -> None:
    format = FixedPoint(53, 20)
    k = torch.tensor([0, 1, -1, 2**52 - 1, -(2**52), 123456789012345])
    codes = encode(k.double() * 2.0**-20, format, strict=True)
    assert codes.dtype == torch.int64 and torch.equal(codes, k & 2**53 - 1)
    assert torch.equal(decode(codes, format), k.double() * 2.0**-20)
    assert decode(torch.tensor([5]), FixedPoint(24, 0)).dtype == torch.float32
    assert decode(torch.tensor([5]), FixedPoint(26, 0)).dtype == torch.float64


def test_fp32_codes_are_its_bits() -> None:
    bits = torch.randint(-(2**31), 2**31, (100000,)).to(torch.int32)
    x = bits.view(torch.float32)
    codes = encode(x, FP32, strict=True)
    assert torch.equal(codes[~x.isnan()], bits[~x.isnan()])
    assert (codes[x.isnan()] == 0x7FC00000).all()
    assert same(decode(bits, FP32), x)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(
    "format",
    [
        FP32,
        TF32,
        FloatingPoint(8, 15, subnormals=False),
        FloatingPoint(7, 16, specials="none", bias=126),  # whose smallest values are none of fp32's normal numbers
        FloatingPoint(7, 20, specials="fn", bias=0),  # up to fp32's largest exponent
        FloatingPoint(6, 12, specials="fnuz"),
        FloatingPoint(5, 14, subnormals="flush"),
        FloatingPoint(4, 14, signed=False),
        FloatingPoint(3, 15, specials="none", signed=False, zero=False, subnormals=False),
    ],
    ids=repr,
)
def test_wide_codes_are_those_of_the_definition(format: FloatingPoint, flush: bool) -> None:
    count = 2**format.bits
    borders = np.arange(0, count, count // 2**9)[:, None] + np.arange(-2, 3)  # of binades, among others
    codes = np.unique(np.concatenate([borders.reshape(-1) % count, np.arange(0, count, count // 9973)]))
    want = definition(format, codes)
    torch.set_flush_denormal(flush)
    try:
        values = decode(torch.from_numpy(codes), format)
        back = encode(values[~values.isnan()], format, strict=True)
    finally:
        torch.set_flush_denormal(False)
    assert values.dtype == torch.float32 and same(values, torch.from_numpy(want))
    twin = codes if format.subnormals is True else np.where(want == 0, (codes >> format.bits - 1) * (count // 2), codes)
    assert np.array_equal(back.long().numpy() & count - 1, twin[~np.isnan(want)])


@pytest.mark.parametrize("format", [E4M3, E5M2, E8M0, E2M1, FP16, INT8, FixedPoint(6, 9), E4M3FNUZ], ids=repr)
def test_values_off_the_grid_are_rounded_first(format: ScalarFormat) -> None:
    x = torch.cat([torch.randn(2000) * s for s in (1e-3, 1, 30)]).abs()
    assert torch.equal(encode(x, format), encode(round_to(x, format), format, strict=True))
    assert same(decode(encode(x, format), format), round_to(x, format))


def test_infinities_keep_their_codes_where_they_have_them() -> None:
    both = torch.tensor([torch.inf, -torch.inf])
    for format in (FloatingPoint(5, 2, overflow=over) for over in ("inf", "saturate", "propagate", "nan")):
        assert encode(both, format, strict=True).tolist() == [0x7C, 0xFC]
    assert decode(encode(both, E4M3), E4M3).tolist() == [448, -448]
    assert decode(encode(both, FloatingPoint(4, 3, specials="fn")), E4M3).isnan().all()
    assert decode(encode(both, FloatingPoint(4, 3, signed=False)), FloatingPoint(4, 3, signed=False))[0] == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout_and_carrier(dtype: torch.dtype) -> None:
    x = torch.randn(6, 5, dtype=dtype)
    codes = encode(x, E4M3)
    assert torch.equal(encode(x.t(), E4M3), codes.t())
    assert torch.equal(encode(x[::2, 1:], E4M3), codes[::2, 1:])
    assert torch.equal(encode(x[0, 0], E4M3), codes[0, 0])
    assert encode(x[:0], E4M3).shape == (0, 5) and decode(codes[:0], E4M3).shape == (0, 5)
    assert torch.equal(decode(codes.t().long(), E4M3), decode(codes, E4M3).t())


def test_float64_is_rounded_once() -> None:
    x = torch.tensor([-431.99999999999994, 1 + 2.0**-4 + 2.0**-40], dtype=torch.float64)
    assert decode(encode(x, E4M3), E4M3).tolist() == [-416.0, 1.125]


def test_subnormal_numbers_survive_a_machine_that_flushes_them() -> None:
    codes = torch.arange(1, 128, dtype=torch.int16)
    values = codes.view(torch.bfloat16).double().tolist()
    torch.set_flush_denormal(True)
    try:
        decoded = decode(codes, BF16)
        back = encode(decoded, BF16, strict=True)
        smallest = encode(decode(torch.tensor([0, 1]), E8M0), E8M0)
    finally:
        torch.set_flush_denormal(False)
    assert decoded.tolist() == values and torch.equal(back, codes)
    assert smallest.tolist() == [0, 1]


@pytest.mark.parametrize("bits", range(1, 54))
def test_the_dtype_of_codes_is_the_smallest(bits: int) -> None:
    dtype = code_dtype(bits)
    assert dtype.itemsize * 8 >= bits and (dtype.itemsize == 1 or dtype.itemsize * 4 < bits)


def test_codes_of_any_integer_dtype_are_read() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16):
        assert decode(torch.tensor([56, 1]).to(dtype), E4M3).tolist() == [1.0, 2.0**-9]
    assert decode(torch.tensor([-1], dtype=torch.int8), INT8).tolist() == [-1.0]
    assert decode(torch.tensor([-1], dtype=torch.int16), FixedPoint(16, 0)).tolist() == [-1.0]


@pytest.mark.parametrize("format", [E2M1, E3M2, INT8, FloatingPoint(4, 3, specials="none"), FixedPoint(8, 4)], ids=repr)
@pytest.mark.parametrize("strict", [True, False])
def test_nan_has_no_code_without_nan(format: ScalarFormat, strict: bool) -> None:
    with pytest.raises(ValueError, match=r"has no code for NaN; replace NaNs first"):
        encode(torch.tensor([1.0, torch.nan]), format, strict)


@pytest.mark.parametrize(
    ("x", "format", "words"),
    [
        (1.1, E4M3, r"^1\.10\d* is not a value of .*: the nearest is 1\.125; 1 of 2 values"),
        (1e9, E4M3, r"^1000000000\.0 is not a value of .*: the nearest is 448\.0"),
        (float("inf"), E4M3, "^inf is not a value of"),
        (0.0, E8M0, r"^0\.0 is not a value of .*: the nearest is nan"),
        (-1.0, FloatingPoint(4, 3, signed=False), r"^-1\.0 is not a value"),
        (128.0, INT8, r"^128\.0 is not a value of .*: the nearest is 127\.0"),
    ],
)
def test_strict_refuses_what_the_format_lacks(x: float, format: ScalarFormat, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode(torch.tensor([1.0, x]), format, strict=True)


def test_unclamped_fixed_point_has_codes_only_for_its_word() -> None:
    format = FixedPoint(8, 4, clamp=False)
    assert encode(torch.tensor([-8.0, 7.9375]), format).tolist() == [0x80, 0x7F]
    assert decode(torch.tensor([0x80, 0x7F]), format).tolist() == [-8.0, 7.9375]
    for x in (8.0, -8.0625):
        with pytest.raises(ValueError, match=rf"^{x} has no code of 8 bits in .* from -8.0 to 7.9375; clamp=True"):
            encode(torch.tensor([x]), format)


@pytest.mark.parametrize(
    ("codes", "format", "error", "words"),
    [
        (torch.tensor([256]), E4M3, ValueError, "are 0 to 255, got 256"),
        (torch.tensor([-1]), E4M3, ValueError, "are 0 to 255, got -1"),
        (torch.tensor([16], dtype=torch.uint8), E2M1, ValueError, "are 0 to 15, got 16"),
        (torch.tensor([1.0]), E4M3, TypeError, "tensor of integers, got torch.float32"),
        ([1, 2], E4M3, TypeError, "tensor of integers, got list"),
        (torch.tensor([1]), "E4M3", TypeError, "expected a number format"),
        (torch.tensor([1]), BlockFloatingPoint(8), TypeError, "no codes of single elements"),
    ],
)
def test_bad_codes_are_named(codes: object, format: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        decode(codes, format)  # type: ignore[arg-type]


def test_bad_values_are_named() -> None:
    with pytest.raises(TypeError, match="only float32 and float64 tensors are rounded, got torch.int64"):
        encode(torch.tensor([1]), E4M3)
    with pytest.raises(TypeError, match="expected a tensor, got float"):
        encode(1.0, E4M3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no codes of single elements"):
        encode(torch.ones(2), BlockFloatingPoint(8))


@pytest.mark.parametrize("format", [Posit(8), Posit(10, 0), Posit(8, 3), Posit(16), Posit(16, 4)], ids=repr)
def test_every_posit_is_its_definition_and_comes_back(format: Posit) -> None:
    codes = every_code(format)
    values = decode(codes, format)
    exact = [posit.value(int(c) % 2**format.bits, format.nbits, format.es) for c in codes]
    assert values.dtype == (torch.float32 if format.max < 2.0**128 else torch.float64)
    assert same(
        values.double(), torch.tensor([math.nan if v is None else float(v) for v in exact], dtype=torch.float64)
    )
    assert torch.equal(encode(values, format), codes)


def test_wide_posits_have_float64_values() -> None:
    codes = torch.tensor([1, 2**30 + 1, 2**31 - 1], dtype=torch.int32)
    values = decode(codes, Posit(32))
    assert values.tolist() == [float(posit.value(int(c), 32, 2)) for c in codes]
    assert torch.equal(encode(values, Posit(32)), codes)


@pytest.mark.parametrize("format", [NF4, FP4_RADIX4, DYNAMIC8, UDYNAMIC8, LogNumber(8)], ids=repr)
def test_a_codebooks_codes_count_its_values(format: TableFormat) -> None:
    values = format.values()
    codes = torch.arange(len(values), dtype=torch.uint8)
    assert torch.equal(decode(codes, format).double(), values)
    assert torch.equal(encode(values, format, strict=True), codes)
    with pytest.raises(ValueError, match="has no code for NaN; replace NaNs first"):
        encode(torch.tensor([torch.nan]), format)


@pytest.mark.parametrize("format", [E2M3, FixedPoint(8, 4), NF4, E5M2], ids=str)
def test_the_codes_of_an_lptensor_in_another_format_are_those_of_its_values(format: Any) -> None:
    """Were it rounded as an LPTensor, it would be rounded to its own format, too."""
    x = (torch.randn(500) * 20).to_lp(INT8)
    assert torch.equal(encode(x, format), encode(x.dequantize(), format))
    assert torch.equal(scales(x, MXFP4), scales(x.dequantize(), MXFP4))


MANY = 70_000  # more than the elements from which on each code is worked out once


@pytest.mark.parametrize(
    ("format", "dtype"),
    [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2), (BF16, ml_dtypes.bfloat16), (FP16, np.float16)],
    ids=str,
)
def test_many_codes_are_those_of_ml_dtypes(format: Any, dtype: Any) -> None:
    x = torch.randn(MANY) * torch.exp2(torch.randint(-20, 8, (MANY,)))
    x[:4] = torch.tensor([0.0, -0.0, torch.nan, -(2.0**-9)])
    x = x.clamp(-400, 400)
    want = x.numpy().astype(dtype)
    codes = encode(x.view(7, -1), format)
    unsigned = np.uint8 if codes.dtype == torch.uint8 else np.uint16
    got = codes.flatten().numpy().view(unsigned)
    numbers = ~np.isnan(want.astype(np.float32))
    assert np.array_equal(got[numbers], want.view(unsigned)[numbers]) and codes.shape == (7, MANY // 7)
    assert decode(codes, format).flatten()[2].isnan()
    back = decode(codes, format).flatten().numpy()
    assert np.array_equal(back.view(np.int32)[numbers], want.astype(np.float32).view(np.int32)[numbers])


@pytest.mark.parametrize(
    "format",
    [
        FP16,
        BF16,
        FloatingPoint(5, 10, overflow="saturate"),
        FloatingPoint(3, 12, specials="fn"),
        FloatingPoint(4, 7, specials="fnuz"),
        FloatingPoint(5, 9, signed=False),
        Posit(16, 1),
        FixedPoint(12, 6),
        FixedPoint(16, 8),
        NF4,
        LogNumber(16, 256),
        Codebook([-1.0, 0.5, 2.0]),
        Codebook([-1.0, -0.0, 1.0, 1.0 + 2.0**-11, 2.0]),
        Codebook([-1.0, -0.0, 1.0, 1.0 + 2.0**-20, 2.0]),  # too close together for a table of their upper bits
    ],
    ids=str,
)
def test_many_codes_are_those_of_few(format: Any) -> None:
    x = torch.randn(MANY) * torch.exp2(torch.randint(-30, 20, (MANY,)))
    x[:7] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45, torch.nan])
    if isinstance(format, (FixedPoint, TableFormat)):
        x = x.nan_to_num()
    few = [encode(part, format) for part in x.split(1000)]
    codes = encode(x, format)
    assert torch.equal(codes, torch.cat(few))
    back = [decode(part, format) for part in codes.split(1000)]
    assert torch.equal(decode(codes, format).nan_to_num(7.7), torch.cat(back).nan_to_num(7.7))
    if isinstance(format, TableFormat) and len(format.values()) == 3:
        codes[-1] = 3
        with pytest.raises(ValueError, match="has the codes 0 to 2, got 3"):
            decode(codes, format)


def test_many_nans_without_a_code_are_refused() -> None:
    x = torch.zeros(MANY)
    x[-1] = torch.nan
    for format in (E2M3, NF4):
        with pytest.raises(ValueError, match="has no code for NaN"):
            encode(x, format)
    codes = torch.arange(256, dtype=torch.uint8).repeat(300)
    values = Posit(8).values_of(codes[:256].long())
    assert torch.equal(decode(codes, Posit(8))[:256].nan_to_num(7.7), values.float().nan_to_num(7.7))


@pytest.mark.parametrize("format", [MXFP4, NVFP4, MX(E4M3, (2, 4)), BlockFloatingPoint(8, dim=0)])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 7), (5, 33)])
def test_meta_tensors_have_scales_of_the_same_kind(format: Any, shape: tuple[int, ...]) -> None:
    there, here = scales(torch.ones(shape, device="meta"), format), scales(torch.ones(shape), format)
    assert there.is_meta and (there.shape, there.dtype) == (here.shape, here.dtype)


def test_meta_tensors_have_codes_of_the_same_kind() -> None:
    for format in (E4M3, BF16, Posit(32), NF4):
        x = torch.ones(2, 3, device="meta")
        codes = encode(x.double() if format == Posit(32) else x, format)
        real = encode(torch.ones(2, 3, dtype=torch.float64), format)
        assert codes.is_meta and (codes.shape, codes.dtype) == (real.shape, real.dtype)
        values = decode(codes, format)
        assert values.is_meta and (values.shape, values.dtype) == (real.shape, decode(real, format).dtype)


def test_many_numbers_beyond_the_words_of_a_format_without_limits_are_refused() -> None:
    x = torch.zeros(MANY)
    x[-1] = 100.0
    with pytest.raises(ValueError, match="has no code of 8 bits"):
        encode(x, FixedPoint(8, 4, clamp=False))


def test_what_is_worked_out_of_tensors_without_values_is_not_kept() -> None:
    """Else a later call would look its codes up in tables that have none."""
    x = torch.randn(MANY)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(MANY, dtype=torch.uint8))
        assert decode(fake, FloatingPoint(4, 3, bias=9)).shape == (MANY,)
    format = FloatingPoint(4, 3, bias=9)
    traced = make_fx(lambda codes: decode(codes, format))(encode(x, format))
    want = round_to(x, format)
    assert torch.equal(decode(encode(x, format), format), want) and torch.equal(traced(encode(x, format)), want)


@since("2.13", "vmap knows no view of a tensor's bits")
def test_many_codes_are_decoded_sample_by_sample() -> None:
    x, format = torch.randn(MANY), FloatingPoint(4, 3, bias=9)
    mapped = torch.vmap(lambda codes: decode(codes, format))(encode(x, format).view(7, -1))
    assert torch.equal(mapped.flatten(), round_to(x, format))


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.functionalize])
def test_codes_within_a_transformation_are_refused(transform: Any) -> None:
    with pytest.raises(RuntimeError, match="encode outside of it"):
        transform(lambda x: encode(x, E4M3))(torch.ones(4))
