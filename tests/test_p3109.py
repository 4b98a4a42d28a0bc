"""The formats of IEEE P3109, against gfloat."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import gfloat
import gfloat.formats as gf
import numpy as np
import pytest
import torch
from gfloat import RoundMode
from torch import Tensor

from lptensor import _native, reference
from lptensor.codes import decode, encode
from lptensor.ops import round as round_to
from lptensor.p3109 import P3109
from lptensor.rounding import Mode, Rounding, Stochastic
from oracles.p3109 import Projection

MODES = {
    Mode.NEAREST: RoundMode.TiesToEven,
    Mode.NEAREST_AWAY: RoundMode.TiesToAway,
    Mode.TOWARD_ZERO: RoundMode.TowardZero,
    Mode.DOWN: RoundMode.TowardNegative,
    Mode.UP: RoundMode.TowardPositive,
}
NOT_IN_GFLOAT = {(2, 2, False, True)}  # its one nonzero value is 0.5, gfloat rounds up to 0.75
WITHOUT_VALUES = {(2, 1, True, True), (2, 2, True, True)}  # zero, NaN and two infinities
FORMATS = [
    (k, p, signed, extended)
    for k in range(2, 9)
    for p in range(1, k + 1)
    for signed in (True, False)
    for extended in (True, False)
    if (k, p, signed, extended) not in WITHOUT_VALUES
]
every_format = pytest.mark.parametrize("parameters", FORMATS, ids=str)


def info_of(k: int, p: int, signed: bool, extended: bool) -> gfloat.FormatInfo:
    signedness = gf.Signedness.Signed if signed else gf.Signedness.Unsigned
    return gf.format_info_p3109(k, p, signedness, gf.Domain.Extended if extended else gf.Domain.Finite)


def fvals(info: gfloat.FormatInfo) -> list[float]:
    return [gfloat.decode_float(info, code).fval for code in range(2**info.k)]


def probes(values: list[float], signed: bool) -> Tensor:
    """Values, midpoints and quarter points with their fp32 neighbours, and what lies beyond both ends."""
    ordered = torch.tensor(sorted(v for v in values if math.isfinite(v)), dtype=torch.float64)
    gaps = ordered.diff()
    points = torch.cat([ordered, ordered[:-1] + gaps / 2, ordered[:-1] + gaps / 4])
    last = gaps[-1]
    points = torch.cat([points, ordered[-1] + last * torch.tensor([0.25, 0.5, 0.75, 1, 1.5, 100]), ordered[1:2] / 64])
    points = torch.cat([points, -points]).float() if signed else points.float()
    inf = torch.tensor(torch.inf)
    points = torch.cat([points, points.nextafter(inf), points.nextafter(-inf), torch.tensor([math.inf, math.nan])])
    return points if signed else points[~(points < 0)]


def same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) & (a.signbit() == b.signbit()) | a.isnan() & b.isnan()


@every_format
def test_every_code_decodes_as_gfloat_says_and_encodes_back(parameters: tuple[int, int, bool, bool]) -> None:
    format, info = P3109(*parameters), info_of(*parameters)
    codes, expected = torch.arange(2**format.k, dtype=torch.uint8), torch.tensor(fvals(info))
    values = decode(codes, format)
    assert same(values, expected).all()
    assert torch.equal(encode(values, format, strict=True), codes)
    assert encode(torch.tensor([torch.nan]), format).item() == info.code_of_nan
    assert format.values().tolist() == sorted(v for v in fvals(info) if math.isfinite(v))
    assert (format.max, format.min) == (max(format.values().tolist()), min(format.values().tolist()))


def rounded(info: gfloat.FormatInfo, x: Tensor, mode: Mode, saturate: bool) -> Tensor:
    """What gfloat rounds x to, and made of that in the modes that gfloat lacks."""

    def by(way: RoundMode, x: Tensor = x) -> Tensor:
        with np.errstate(over="ignore"):
            return torch.from_numpy(gfloat.round_ndarray(info, x.double().numpy(), way, saturate))

    if mode is Mode.NEAREST_UP:  # ties of negatives go toward zero: there are none a little nearer to it
        nearer = torch.nextafter(x.double(), torch.zeros(()).double())
        return by(RoundMode.TiesToAway, torch.where((x < 0) & x.isfinite(), nearer, x))
    if mode is not Mode.ODD:  # of two neighbours the one with the odd code
        return by(MODES[mode])
    odd = {v for code, v in enumerate(fvals(info)) if code % 2}
    inward, down, up = map(by, (RoundMode.TowardZero, RoundMode.TowardNegative, RoundMode.TowardPositive))
    outward = torch.where(x < 0, down, up)
    take = torch.tensor([v not in odd for v in inward.tolist()]) & (x.abs() < max(-info.min, info.max))
    return torch.where(take, outward, inward)


@pytest.mark.parametrize("mode", [*MODES, Mode.NEAREST_UP, Mode.ODD], ids=lambda m: m.name)
@pytest.mark.parametrize("parameters", [f for f in FORMATS if f not in NOT_IN_GFLOAT], ids=str)
def test_rounding_is_gfloats(parameters: tuple[int, int, bool, bool], mode: Mode) -> None:
    info = info_of(*parameters)
    x = probes(fvals(info), parameters[2])
    for overflow in (None, "saturate", *["propagate"][: parameters[3]]):
        format = P3109(*parameters, overflow=overflow)
        expected = rounded(info, x, mode, overflow is not None)
        if overflow == "propagate":  # gfloat has none: it is SatFinite, but for the infinities that there are
            expected = torch.where(x.isinf(), x, expected)
        got = round_to(x, format, mode)
        assert same(got, expected).all(), (x, got, expected)


SATURATIONS = {"saturate": "SatFinite", "propagate": "SatPropagate", "inf": "OvfInf"}
NAMES = {
    "nearest": "NearestTiesToEven",
    "nearest_away": "NearestTiesToAway",
    "toward_zero": "TowardZero",
    "up": "TowardPositive",
    "down": "TowardNegative",
    "odd": "ToOdd",
}
VARIANTS = {"plain": "StochasticA", "half_offset": "StochasticB", "pre_rounded": "StochasticC"}


@pytest.mark.parametrize("overflow", SATURATIONS)
@pytest.mark.parametrize(
    "parameters", [f for f in FORMATS if f[0] in (4, 8) and f[1] in (1, 3, f[0]) and f not in NOT_IN_GFLOAT], ids=str
)
def test_rounding_is_the_reports_projection(parameters: tuple[int, int, bool, bool], overflow: str) -> None:
    signed, extended = parameters[2:]
    if not extended and overflow != "saturate":
        return
    format = P3109(*parameters, overflow=overflow)
    project = Projection(*parameters, Fraction(format.max), SATURATIONS[overflow])
    x = probes(format.values().tolist()[:: 1 + len(format.values()) // 40], signed)
    x = x[~x.isnan()]
    if not signed and overflow == "saturate":
        x = torch.cat([x, torch.tensor([-1.0, -math.inf])])
    for mode, name in NAMES.items():
        assert round_to(x, format, mode).tolist() == [project(v, name) for v in x.tolist()], mode
    words = torch.randint(2**32, x.shape, generator=torch.Generator().manual_seed(0))
    for variant, name in VARIANTS.items():
        got = reference.round_grid(x, format.grid, Stochastic(3, variant), words)
        wanted = [project(v, name, 3, word >> 29) for v, word in zip(x.tolist(), words.tolist(), strict=True)]
        assert got.tolist() == wanted, variant


@pytest.mark.native
@pytest.mark.parametrize("parameters", [f for f in FORMATS if f[0] in (3, 8) and f[1] in (1, 2, 8)], ids=str)
def test_kernel_equals_reference(parameters: tuple[int, int, bool, bool]) -> None:
    format = P3109(*parameters)
    bits = torch.randint(-(2**31), 2**31, (3000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), probes(format.values().tolist(), True)])
    for mode in Mode:
        rounding = Rounding(mode)
        key = (1, 2) if rounding.stochastic else None
        got = torch.empty_like(x)
        _native.round_grid(x, got, format.grid, rounding, key)
        assert same(got, reference.round_grid(x, format.grid, rounding, key)).all(), mode


def test_one_bit_of_precision_ties_to_the_even_code() -> None:
    format = P3109(8, 1)
    ties = 1.5 * 2.0 ** torch.arange(-60, 60)
    rounded = round_to(ties, format)
    assert (encode(rounded, format).long() % 2 == 0).all()
    assert ((rounded == ties / 1.5) | (rounded == ties / 0.75)).all()


def test_the_limits_are_those_of_the_draft() -> None:
    for p, bias, top in ((3, 16, 49152.0), (4, 8, 224.0), (5, 4, 15.0)):
        format = P3109(8, p)
        assert format.grid.emin == 1 - bias and format.max == top
        assert decode(torch.tensor([0x7F, 0xFF]), format).tolist() == [math.inf, -math.inf]
        assert decode(torch.tensor([0x80]), format).isnan().all()


def test_negatives_have_no_place_in_an_unsigned_format() -> None:
    x = torch.tensor([-1.0, -0.0, 0.0])
    assert round_to(x, P3109(8, 4, signed=False)).isnan().tolist() == [True, False, False]
    for overflow in ("saturate", "propagate"):
        assert round_to(x, P3109(8, 4, signed=False, overflow=overflow)).tolist() == [0.0, 0.0, 0.0]
    ends = torch.tensor([-math.inf, math.inf])
    assert round_to(ends, P3109(8, 4, signed=False, overflow="propagate")).tolist() == [0.0, math.inf]


def test_a_format_is_a_value() -> None:
    format = P3109(8, 3, extended=False)
    assert eval(repr(format)) == format == pickle.loads(pickle.dumps(format))
    assert P3109(8, 3, overflow="inf") == P3109(8, 3) and len({P3109(8, 3, overflow="inf"), P3109(8, 3)}) == 1
    assert P3109(16, 8).bits == 16 and encode(torch.ones(1), P3109(16, 8)).dtype == torch.int16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 1, "p": 1}, "k must be from 2 to 16, got 1"),
        ({"k": 8, "p": 9}, "p must be from 1 to 8, got 9"),
        ({"k": 8, "p": 0}, "p must be from 1 to 8, got 0"),
        ({"k": 8, "p": 3, "extended": False, "overflow": "inf"}, "must be nan or saturate, got 'inf'"),
        ({"k": 8, "p": 3, "extended": False, "overflow": "propagate"}, "must be nan or saturate, got 'propagate'"),
        ({"k": 2, "p": 1}, "no finite value but zero; use a larger k or extended=False"),
        ({"k": 16, "p": 3}, "fp32"),
    ],
)
def test_bad_parameters_are_named(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        P3109(**arguments)  # type: ignore[arg-type]
