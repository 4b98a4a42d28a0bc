"""The specification of rounding, in plain torch operations: any device, the same bits as the kernels.

It is written to be read: R(x) = clamp(roundint(x / 2**q) * 2**q) in float64, which holds every step
exactly. Bits are taken apart and put together as integers, because a machine that flushes subnormal
numbers to zero must not change a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lptensor._bits import (
    bits,
    carried,
    exact,
    exponent,
    exponent_of_bits,
    lowered,
    power,
    raised,
    significand_of_bits,
    times_power,
)
from lptensor.blocks import Blocks, ScaledBlocks
from lptensor.carriers import CARRIERS
from lptensor.formats import FP32, Grid, Overflow, Subnormals
from lptensor.posits import PositBits
from lptensor.ranges import Ranges
from lptensor.rounding import Beyond, Mode, Rounding
from lptensor.tables import Table, steps

Key = tuple[int, int]  # seed and offset, 64 bits each
Words = Tensor  # random words that are drawn already, one for each element, as int64


def round_grid(x: Tensor, grid: Grid, rounding: Rounding, key: Key | Words | None = None) -> Tensor:
    """``x`` (float32 or float64, any shape) rounded to a grid; a new tensor of the same dtype.

    ``key`` chooses the random words of stochastic rounding, or is those words; other modes need none.

    >>> from lptensor import E4M3
    >>> round_grid(torch.tensor([0.1, 1000.0]), E4M3.grid, Rounding()).tolist()
    [0.1015625, 448.0]
    """
    return _round(x, grid, torch.zeros((), dtype=torch.int64, device=x.device), rounding, key)


def round_blocks(x: Tensor, blocks: Blocks, shape: Sequence[int], rounding: Rounding, key: Key | None = None) -> Tensor:
    """``x`` rounded in blocks of ``shape``, each on its grid under its power of two; ``CurrentMaximum`` says how."""
    number = _block_numbers(x, shape)
    largest, lost = _largest(x, number, blocks.saturate)
    shift = _shifts(largest, lost, blocks)
    # Blocks at the bottom of float64 are rounded 2**512 higher, where no step meets a subnormal number.
    lift = torch.where(shift < -500, 512, 0) if x.dtype == torch.float64 else torch.zeros_like(shift)
    shift, lift = shift[number], lift[number]
    rounded = lowered(_round(raised(x, lift), blocks.element, shift + lift, rounding, key), lift)
    return torch.where(lost[number], torch.nan, rounded)


def round_scaled(
    x: Tensor, blocks: ScaledBlocks, shape: Sequence[int], rounding: Rounding, key: Key | None = None
) -> Tensor:
    """``x`` rounded as in ``round_blocks`` under scales of any number."""
    number = _block_numbers(x, shape)
    largest, lost = _largest(x, number, blocks.saturate)
    scale, reciprocal = (t[number] for t in _scales(x, largest, lost, blocks))
    dividend = _dividend(exact(x), x.dtype)
    quotient = _single(dividend * reciprocal if blocks.reciprocal else dividend / scale, x.dtype)
    quotient = torch.where(scale == 0, torch.zeros_like(dividend).copysign(dividend), quotient)
    rounded = _round(quotient, blocks.element, torch.zeros_like(number), rounding, key)
    result = _single(rounded * scale, x.dtype)
    return carried(torch.where(result.isnan(), torch.nan, result), x.dtype)


def round_ranges(x: Tensor, ranges: Ranges, shape: Sequence[int], rounding: Rounding, key: Key | None = None) -> Tensor:
    """``x`` rounded in blocks of ``shape``, each from its smallest value to its largest; ``CurrentRange`` says how."""
    number = _block_numbers(x, shape)
    lowest, scale, low, high = (t[number] for t in _spread(x, number, ranges))
    dividend = _dividend(_single(exact(x) - lowest, x.dtype, _ENDLESS), x.dtype)
    reciprocal = _single(1.0 / scale).clamp(max=torch.finfo(torch.float32).max)
    quotient = _single(dividend * reciprocal if ranges.reciprocal else dividend / scale, x.dtype)
    k = _round(quotient, ranges.steps, torch.zeros_like(number), rounding, key)
    product = _single(k.clamp(low, high) * scale, x.dtype, _ENDLESS)
    result = _single(lowest + product, x.dtype)
    most = torch.finfo(x.dtype).max
    return carried(torch.where(scale.isnan(), torch.nan, result.clamp(-most, most)), x.dtype)


def scales(x: Tensor, blocks: Blocks | ScaledBlocks | Ranges, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The scale of each block of ``x``, and under ranges its zero point; float64, NaN where the block is.

    There are as many along each axis as blocks.

    >>> from lptensor import MXFP4
    >>> scales(torch.tensor([1.0, -7.0]), MXFP4.lowered, MXFP4.block_shape((2,)))
    (tensor([1.], dtype=torch.float64),)
    """
    number = _block_numbers(x, shape)
    if isinstance(blocks, Ranges):
        _, scale, low, _ = _spread(x, number, blocks)
        zero_points = torch.where(scale.isnan(), torch.nan, blocks.min - low)
        return _as_blocks(scale, x, shape), _as_blocks(zero_points, x, shape)
    largest, lost = _largest(x, number, blocks.saturate)
    if isinstance(blocks, Blocks):
        of_each = torch.where(lost, torch.nan, power(_shifts(largest, lost, blocks)))
    else:
        of_each, _ = _scales(x, largest, lost, blocks)
    return (_as_blocks(of_each, x, shape),)


def _as_blocks(of_each: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
    """What each block has, in the order of their numbers, with the axes of ``x``."""
    return of_each.reshape([-(-n // wide) for n, wide in zip(x.shape, shape, strict=True)])


def _block_numbers(x: Tensor, block: Sequence[int]) -> Tensor:
    """The number of the block that holds each element of ``x``."""
    number = torch.zeros((), dtype=torch.int64, device=x.device)
    for n, wide in zip(x.shape, block, strict=True):
        number = number.unsqueeze(-1) * -(-n // wide) + torch.arange(n, device=x.device) // wide
    return number.expand(x.shape)


def _largest(x: Tensor, number: Tensor, finite: bool) -> tuple[Tensor, Tensor]:
    """The largest magnitude of each block, in the dtype of x, and whether the block is lost to NaN or infinity."""
    infinite = bits(x.new_tensor(torch.inf))
    magnitude = bits(x).reshape(-1) & torch.iinfo(CARRIERS[x.dtype].integer).max
    magnitude = torch.where(magnitude == infinite, 0, magnitude) if finite else magnitude
    count = int(number.max()) + 1 if x.numel() else 0
    largest = magnitude.new_zeros(count).scatter_reduce(0, number.reshape(-1), magnitude, "amax")
    lost = largest >= infinite
    return torch.where(lost, 0, largest).to(CARRIERS[x.dtype].integer).view(x.dtype), lost


def _shifts(largest: Tensor, lost: Tensor, blocks: Blocks) -> Tensor:
    """log2 of the scale of each block."""
    u = bits(largest)
    over = significand_of_bits(u, largest.dtype) > blocks.bump
    shift = (exponent_of_bits(u, largest.dtype) - blocks.emax + over).clamp(blocks.low, blocks.high)
    return torch.where(lost | (u == 0), 0, shift)


def _scales(x: Tensor, largest: Tensor, lost: Tensor, blocks: ScaledBlocks) -> tuple[Tensor, Tensor]:
    """The scale of each block and what multiplies where that stands for dividing; float64 with fp32 numbers in it."""
    most = torch.finfo(torch.float32).max
    whole = torch.ones((), dtype=torch.float64, device=x.device)
    if blocks.whole and x.numel():
        values = exact(x)
        top = _single(torch.where(values.isfinite(), values.abs(), 0.0).amax()).clamp(max=most)
        whole = _single(top / blocks.whole).clamp(2.0**-149, most)
    s = _single(_single(_single(exact(largest)).clamp(max=most) / blocks.top) / whole)
    s = _round(
        s.clamp(blocks.floor, blocks.ceiling), blocks.scale, torch.zeros_like(lost, dtype=torch.int64), Rounding(), None
    )
    reciprocal = _single(_single(1.0 / whole) / s).clamp(max=most)
    return torch.where(lost, torch.nan, _single(s * whole).clamp(max=most)), reciprocal


def _spread(x: Tensor, number: Tensor, ranges: Ranges) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each block starts from, its scale, and the ends of its steps; float64 with fp32 numbers in it."""
    most = torch.finfo(torch.float32).max
    count, number = int(number.max()) + 1 if x.numel() else 0, number.reshape(-1)
    values = exact(x).reshape(-1)
    start = torch.full((count,), torch.inf, dtype=torch.float64, device=x.device)
    lowest = _single(start.scatter_reduce(0, number, values, "amin")).clamp(-most, most)
    highest = _single((-start).scatter_reduce(0, number, values, "amax")).clamp(-most, most)
    lost = torch.zeros_like(start).scatter_reduce(0, number, (~values.isfinite()).double(), "amax") > 0
    if ranges.preserve_zero:
        lowest, highest = lowest.clamp(max=0.0), highest.clamp(min=0.0)
    scale = _single(_single(highest - lowest, grid=_ENDLESS) / ranges.span).clamp(2.0**-149, most)
    low = torch.zeros_like(scale)
    if ranges.preserve_zero:
        zeros = torch.zeros_like(scale, dtype=torch.int64)
        nearest = _round(_single(lowest / scale), ranges.steps, zeros, Rounding(), None)
        low = ranges.min - (ranges.min - nearest).clamp(max=ranges.max)  # nearest is not above zero
        lowest = torch.zeros_like(lowest)
    return lowest, torch.where(lost, torch.nan, scale), low, low + ranges.span


def _dividend(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x``, to be divided by a scale; quotients of smaller float64 numbers might vanish."""
    tiny = (x != 0) & (x.abs() < 2.0**-800)
    return torch.where(tiny, torch.copysign(torch.full_like(x, 2.0**-800), x), x) if dtype == torch.float64 else x


_ENDLESS = FP32.grid._replace(emax=1023, max=math.inf, min=-math.inf)


def _single(x: Tensor, dtype: torch.dtype = torch.float32, grid: Grid = FP32.grid) -> Tensor:
    """float64 results of one operation on fp32 numbers as fp32 has them (Figueroa 1995); float64's stay."""
    if dtype == torch.float64:
        return x
    return _round(x, grid, torch.zeros((), dtype=torch.int64, device=x.device), Rounding(), None)


def round_table(x: Tensor, table: Table, rounding: Rounding, key: Key | None = None) -> Tensor:
    """``x`` (float32 or float64, any shape) rounded to a list of values; a new tensor of the same dtype.

    >>> round_table(torch.tensor([0.4, 0.7]), Table((-1.0, 0.0, 1.0)), Rounding())
    tensor([0., 1.])
    """
    magnitude = bits(x) & torch.iinfo(CARRIERS[x.dtype].integer).max
    order = torch.where(torch.signbit(x), -magnitude, magnitude)
    code = torch.searchsorted(steps(table, rounding.mode, x.dtype, rounding.beyond).to(x.device), order, right=True)
    values = torch.tensor(table.places(rounding.beyond), dtype=torch.float64, device=x.device)
    if rounding.stochastic:
        above = (code + 1).clamp(max=len(values) - 1)
        inexact = (above > code) & (exact(x) > values[code])
        negative = torch.signbit(x)
        near, far = (
            torch.where(negative, -values[above], values[code]),
            torch.where(negative, -values[code], values[above]),
        )
        drawn = _drawn((exact(x).abs() - near) / (far - near), rounding, key)
        code = torch.where(inexact & (drawn ^ negative), above, code)
    r = values[code]
    if table.ends is not None:
        last, infinite = table.values[-1], table.ends.infinite
        stays = x.isfinite() & (table.saturates or rounding.beyond is Beyond.SATURATE)
        end = torch.where(stays, last, infinite)
        r = torch.where(r.abs() > last, r.sign() * end, r)
    return carried(torch.where(x.isnan(), torch.nan, r), x.dtype)


def round_posit(x: Tensor, posit: PositBits, rounding: Rounding, key: Key | None = None) -> Tensor:
    """``x`` (float32 or float64, any shape) rounded to posits; a new tensor of the same dtype.

    >>> round_posit(torch.tensor([3.3, 1e9]), PositBits(8, 2), Rounding())
    tensor([3.2500e+00, 1.6777e+07])
    """
    magnitude, negative = exact(x).abs(), torch.signbit(x)

    # 1. exponent and fraction as one integer, in which a posit's bits have their order (csrc/posit.h)
    one, top = 1023 << 52, posit.scale << 52
    log = magnitude.view(torch.int64) - one
    tiny, log = log < -top, log.clamp(min=-top)

    # 2. the bits that have no room beside the regime
    regime = log >> posit.es + 52
    room = posit.nbits - 1 - torch.where(regime >= 0, regime + 2, 1 - regime)
    unit = torch.ones_like(log) << (posit.es + 52 - room.clamp(min=0))
    below = log // unit * unit
    odd = torch.where(room > 0, below // unit % 2, regime < 0) == 1
    lost = log - below

    # 3. to one of the two neighbours; below minPos they are zero and minPos
    low = torch.where(tiny, 0.0, (below + one).view(torch.float64))
    high = (torch.where(tiny, log, below + unit) + one).view(torch.float64)
    inexact = tiny | (lost > 0)
    if rounding.stochastic:
        up = _drawn((magnitude - low) / (high - low), rounding, key)
    else:  # to nearest nothing but zero becomes zero
        past_half = torch.where(tiny, 1, 2 * lost - unit)
        up = _goes_up(rounding.mode, past_half, odd & ~tiny, torch.zeros_like(tiny), negative)
    r = torch.where(inexact & up, high, low)

    # 4. zero, the ends, the sign
    r = torch.where(magnitude == 0, 0.0, r.clamp(max=2.0**posit.scale))
    r = torch.where(magnitude.isfinite(), r, torch.nan)
    return carried(torch.where(negative & (r > 0), -r, r), x.dtype)


def _round(x: Tensor, grid: Grid, shift: Tensor, rounding: Rounding, key: Key | Words | None) -> Tensor:
    magnitude, negative = exact(x).abs(), torch.signbit(x)

    # 1. the spacing 2**q of the grid at x
    binade = exponent(magnitude)
    below = binade < grid.emin + shift
    q = binade.clamp(min=grid.emin + shift).clamp(max=grid.emax + shift) - (grid.precision - 1)
    if grid.subnormals is not Subnormals.GRADUAL:
        q = torch.where(below, grid.emin + shift, q)

    # 2. x in units of the spacing; tiny nonzero values stay nonzero, large ones are integers anyway
    settled = binade - q >= 52
    units = times_power(torch.where(settled | ~magnitude.isfinite(), 0.0, magnitude), -q)
    units = torch.where((magnitude > 0) & ~settled, units.clamp(min=2.0**-60), units)
    k = units.floor()
    fraction = units - k

    # 3. to one of the two neighbours
    odd = k % 2 == 1
    if grid.ties_to_even_code:
        odd = torch.where(odd, (binade - grid.emin - shift + 1) % 2 == 1, odd)
    limit, beyond = _ends(grid, shift, negative, x.dtype)
    if rounding.stochastic:
        at_end = times_power(k, q) == limit  # the lower neighbour is the largest value
        up = _drawn_up(fraction, at_end, rounding, key)
    else:
        bare = below & (grid.subnormals is Subnormals.NONE)
        up = (fraction > 0) & _goes_up(rounding.mode, fraction - 0.5, odd, bare, negative)
    if grid.subnormals is Subnormals.FLUSH:
        k, up = torch.where(below, 0.0, k), up & ~below
    r = torch.where(settled, magnitude, times_power(k + up, q))
    lowest = torch.zeros_like(r) if grid.zero else power(torch.as_tensor(grid.emin + shift, device=x.device))
    if not grid.zero:
        r = torch.where(magnitude == 0, torch.nan, torch.where(r == 0, lowest, r))

    # 4. the ends of the format, the specials, the sign
    mode, always = rounding.mode, rounding.beyond is Beyond.SATURATE
    inward = torch.where(negative, mode.leads_back(True) or always, mode.leads_back(False) or always)
    r = torch.where(r > limit, torch.where(inward, limit, beyond), r)
    endless = limit.isinf() | (grid.overflow is Overflow.PROPAGATE)
    r = torch.where(magnitude.isinf(), torch.where(endless, magnitude, beyond), r)
    r = torch.where(magnitude.isnan(), torch.nan, r)
    if not grid.signed:
        wrong = lowest if grid.saturates else torch.full_like(lowest, torch.nan)
        r = torch.where(negative & (magnitude > 0), wrong, r)
    negative = negative & grid.signed & ((r != 0) | grid.negative_zero)
    return carried(torch.where(negative & ~r.isnan(), -r, r), x.dtype)


def _goes_up(mode: Mode, past_half: Tensor, odd: Tensor, bare: Tensor, negative: Tensor) -> Tensor:
    """Whether a value between two neighbours takes the one of larger magnitude, in a mode that draws nothing.

    ``past_half`` has the sign of the value less the middle of the two, ``odd`` is of the lower one. Where the two are
    zero and the least normal value (``bare``), up is the even one and the odd one.
    """
    up = {
        "nearer": past_half > 0,
        "zero": torch.zeros_like(odd),
        "away": torch.ones_like(odd),
        "even": odd | bare,
        "odd": ~odd,
        "down": negative,
        "up": ~negative,
    }
    return torch.where(past_half == 0, up[mode.tie], up[mode.toward])


def _drawn_up(fraction: Tensor, at_end: Tensor, rounding: Rounding, key: Key | Words | None) -> Tensor:
    """The same in a mode that draws, ``fraction`` of a spacing above the lower neighbour."""
    certain = torch.zeros_like(at_end)
    if rounding.beyond is Beyond.PROBABILITY:  # the odds of overflow count to half a spacing above the end
        certain = at_end & (fraction >= 0.5)
        fraction = torch.where(at_end, 2 * fraction % 1, fraction)
    return (fraction > 0) & _drawn(fraction, rounding, key) | certain


def _drawn(fraction: Tensor, rounding: Rounding, key: Key | Words | None) -> Tensor:
    """Whether the random words take values up that are not exact, ``fraction`` of the way to the upper neighbour."""
    if key is None:
        raise ValueError("stochastic rounding needs a key")
    bits, fraction = rounding.bits, fraction.nan_to_num(nan=0.0).clamp(0, 1 - 2.0**-53)  # a quotient may reach 1
    words = key if isinstance(key, Tensor) else random_words(fraction.numel(), key, fraction.device)
    draws = words.reshape(fraction.shape) >> 32 - bits
    cut = (fraction * 2.0**32).floor() * 2.0 ** (bits - 32)  # in units of the last random bit
    up: Tensor
    match rounding.mode:
        case Mode.STOCHASTIC:
            up = cut.floor() + draws >= 2**bits
        case Mode.STOCHASTIC_HALF_OFFSET:
            up = (cut + 0.5).floor() + draws >= 2**bits
        case Mode.STOCHASTIC_PRE_ROUNDED:
            up = (cut if bits > 30 else fraction * 2.0**bits).round() + draws >= 2**bits
        case Mode.STOCHASTIC_EQUAL:
            up = draws >= 2**31
        case unknown:
            raise ValueError(f"no odds are known for {unknown!r}")
    return up


def _ends(grid: Grid, shift: Tensor, negative: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest magnitude on each side, and what results beyond it become."""
    largest = torch.finfo(dtype).max
    positive = torch.as_tensor(grid.max, dtype=torch.float64, device=shift.device)
    infinite = positive.new_full((), torch.inf)
    limit = torch.where(negative, -grid.min if grid.signed else 0.0, positive)
    limit = torch.where(limit.isinf(), infinite, times_power(torch.where(limit.isinf(), 1.0, limit), shift))
    limit = torch.where(limit > largest, infinite, limit)
    return limit, limit if grid.saturates else infinite * (torch.nan if grid.overflow is Overflow.NAN else 1.0)


def random_words(n: int, key: Key, device: torch.device | str = "cpu") -> Tensor:
    """The random words of elements 0 .. n-1, as int64; the layout is that of csrc/philox.h."""
    element = torch.arange(n, device=device)
    words = torch.stack(philox(element // 128 * 32 + element % 32, key))
    return words.gather(0, (element // 32 % 4).unsqueeze(0)).squeeze(0)


def philox(index: Tensor, key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) of the counters (index, offset) under the key seed."""
    seed, offset = key
    low = 0xFFFFFFFF
    c0, c1 = index & low, index >> 32 & low
    c2, c3 = torch.full_like(index, offset & low), torch.full_like(index, offset >> 32 & low)
    k0, k1 = seed & low, seed >> 32 & low
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c0, c1, c2, c3


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product of two 32-bit words, which int64 alone overflows."""
    lower, upper = a * (b & 0xFFFF), a * (b >> 16)
    middle = (lower >> 16) + upper
    return middle >> 16, (lower & 0xFFFF) | (middle & 0xFFFF) << 16
