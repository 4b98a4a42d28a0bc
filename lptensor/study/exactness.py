"""Whether computing in fp32 (or float64) and rounding once more is correctly rounded arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lptensor.base import check_int, no_scalar
from lptensor.carriers import CARRIERS, Carrier
from lptensor.formats import ScalarFormat, Subnormals
from lptensor.ops import round as round_to
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.study import rationals
from lptensor.study.rationals import OPS

_EXHAUSTIVE_BITS = 8
_BATCH = 2**17


@dataclass(frozen=True)
class Exactness:
    """What ``exactness`` found out.

    ``exact`` is True (proved), False (see ``operands``, and what is ``computed`` and ``correct``) or None: no
    counter-example among ``tried`` operands, and no proof. ``proof`` is "theorem", "exhaustive",
    "counterexample" or "search", ``reason`` says it in words.

    >>> from lptensor import E4M3
    >>> found = exactness(E4M3, "mul")
    >>> found.exact, found.proof, found.tried
    (True, 'exhaustive', 64009)
    """

    exact: bool | None
    proof: str
    reason: str
    tried: int = 0
    operands: tuple[float, ...] | None = None
    computed: float | None = None
    correct: float | None = None

    def __str__(self) -> str:
        verdict = {True: "exact", False: "not exact", None: "unknown"}[self.exact]
        return f"{verdict} ({self.proof}): {self.reason}"


def exactness(
    format: ScalarFormat,
    op: str,
    rounding: Rounding | Mode | str = "nearest",
    compute: torch.dtype = torch.float32,
    trials: int = 2**21,
    seed: int = 0,
) -> Exactness:
    """Whether ``op`` in ``compute``, then rounded to ``format``, is the exact result rounded once.

    Operands are finite values of the format; the op itself is rounded to nearest in ``compute`` as IEEE 754
    says (fma once; ``torch.addcmul`` rounds its product as well). Formats of up to 8 bits are tried
    exhaustively. Else theorems decide: with p significant bits of the format and q of the carrier, rounding
    to nearest twice is innocuous for + and - if q >= 2p + 1, for * and / if q >= 2p, for sqrt if q >= 2p + 2
    (Figueroa, SIGNUM Newsletter 30(3), 1995;
    Roux, J. Formalized Reasoning 7(1), 2014): at most 10 stored mantissa bits for all five in fp32, of products
    only where fp32 has room for those that are subnormal in the format (TF32's have none). Where no
    theorem holds, a search looks for a counter-example, which is checked in exact rationals.

    Args:
        format: a scalar format that ``compute`` carries.
        op: "add", "sub", "mul", "div", "sqrt" or "fma" (a * b + c).
        rounding: deterministic; of the second step.
        compute: torch.float32 or torch.float64.
        trials: operands that the search draws at random, beside those it constructs.
        seed: of these operands; torch's own generator is left alone.

    Raises:
        ValueError: an unknown op, fewer than no trials, a stochastic rounding, another dtype, a format that compute
            cannot carry.
        TypeError: no scalar format.

    >>> from lptensor import BF16, FP16, FloatingPoint
    >>> exactness(FP16, "add").exact, exactness(BF16, "add", "up").exact
    (True, False)
    >>> found = exactness(FP16, "fma")
    >>> found.exact, exactness(FP16, "fma", compute=torch.float64).exact
    (False, True)
    """
    if not isinstance(format, ScalarFormat):
        raise TypeError(f"exactness() takes a scalar format, got {no_scalar(format)}")
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    rule = as_rounding(rounding)
    if rule.stochastic:
        raise ValueError(f"{rule!r} has no correct result, only a correct distribution; see rounding_bias()")
    if compute not in CARRIERS:
        raise ValueError(f"compute must be torch.float32 or torch.float64, got {compute}")
    trials = check_int("trials", trials, 0, 2**31 - 1)
    seed = check_int("seed", seed, -(2**63), 2**64 - 1)
    carrier = CARRIERS[compute]
    if format.grid.precision > carrier.precision or math.isinf(format.max):
        raise ValueError(f"{format!r} has values that {compute} does not hold, or no largest one")
    if format.bits <= _EXHAUSTIVE_BITS:
        return _exhaustive(format, op, rule, carrier)
    reason = _theorem(format, op, rule, carrier)
    if reason is not None:
        return Exactness(True, "theorem", reason)
    return _search(format, op, rule, carrier, trials, seed)


def _theorem(format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier) -> str | None:
    """Why the two roundings are one, if a theorem says so.

    ``low`` and ``top``: every value is a multiple of 2**low and no larger than 2**top.
    """
    grid, p, q = format.grid, format.grid.precision, carrier.precision
    low, top = grid.quantum(grid.emin), math.ceil(math.log2(max(grid.max, -grid.min)))
    nearest = rule.mode.toward == "nearer"
    fits = 2 * low >= carrier.lowest and 2 * top <= carrier.emax  # products neither under- nor overflow
    # Of results below 2**(top + 1): what is larger overflows whether it is exact or not.
    widths = {"add": top + 1 - low, "sub": top + 1 - low, "mul": min(2 * p, top + 1 - 2 * low)}
    widths["fma"] = top + 1 - min(2 * low, low)
    if op in widths and widths[op] <= q and (fits or op in ("add", "sub")):
        return f"every exact result in range has at most {widths[op]} bits, and the carrier holds {q}"
    if grid.emin == grid.emax:
        return None
    if rule.mode is Mode.NEAREST and p == q and grid.emin == carrier.emin:
        return "the format is the carrier: the second rounding finds nothing to do"
    need = {"add": 2 * p + 1, "sub": 2 * p + 1, "mul": 2 * p, "div": 2 * p, "sqrt": 2 * p + 2}
    # Among subnormals a product may be less than half a step of the carrier's from the middle of two.
    told = op != "mul" or grid.subnormals is not Subnormals.GRADUAL or low >= carrier.lowest + 2 * p
    if rule.mode is Mode.NEAREST and q >= need.get(op, math.inf) and grid.emin >= carrier.emin and told:
        return (
            f"rounding to nearest twice is innocuous from {need[op]} bits on, and the carrier has {q} (Figueroa 1995)"
        )
    # The rest is said of a boundary B of the second rounding (a value, or for nearest the middle of two), p + 1 bits
    # wide: the first rounding never lands on a B where the exact result is not.
    in_range = op == "sqrt" or low - top > carrier.emin and top - low <= carrier.emax
    if op in ("div", "sqrt") and q >= 2 * p + 2 and in_range:
        return f"what is not on a boundary is more than 2**-{q} from it, in relation, which {q} bits tell apart"
    if op in ("add", "sub") and nearest and q >= 2 * p + 2 and low >= carrier.lowest:
        return f"a small term cannot bring a value to the middle of two, and a large one shows in {q} bits"
    if op == "fma" and nearest and fits and q >= 3 * p + 3 and q >= top + 1 - low:
        return f"a small product cannot bring a value to the middle of two, and all else shows in {q} bits"
    return None


def _exhaustive(format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier) -> Exactness:
    """All operands of a narrow format."""
    values, tried = format.values(), 0
    count = OPS[op]
    firsts = values.split(max(1, 2**20 // max(1, len(values)) ** (count - 1)))
    for first in firsts:
        grids = torch.meshgrid(first, *[values] * (count - 1), indexing="ij")
        operands = tuple(part.reshape(-1) for part in grids)
        tried += len(operands[0])
        found = _differing(format, op, rule, carrier, operands)
        if found is not None:
            return _counterexample(format, op, rule, carrier, found, tried)
    return Exactness(True, "exhaustive", f"all {tried} operands of {format} agree", tried)


def _search(format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier, trials: int, seed: int) -> Exactness:
    tried = 0
    for operands in rationals.constructed(format, op):
        tried += 1
        if _wrong(format, op, rule, carrier, operands):
            return _counterexample(format, op, rule, carrier, operands, tried)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(-(-trials // _BATCH)):
        drawn = rationals.drawn(format, op, _BATCH, generator)
        tried += _BATCH
        found = _differing(format, op, rule, carrier, drawn)
        if found is not None:
            return _counterexample(format, op, rule, carrier, found, tried)
    return Exactness(None, "search", f"no theorem holds, and none of {tried} operands differed", tried)


def _differing(
    format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier, operands: tuple[Tensor, ...]
) -> tuple[float, ...] | None:
    """The first operands whose result differs, found in float64 and confirmed in exact rationals."""
    right, twice = rationals.both_ways(op, operands, carrier)
    a, b = round_to(right, format, rule), round_to(twice, format, rule)
    for i in ((a != b) & ~(a.isnan() & b.isnan())).nonzero().flatten().tolist():
        found = tuple(float(operand[i]) for operand in operands)
        if _wrong(format, op, rule, carrier, found):
            return found
    return None


def _results(
    format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier, operands: tuple[float, ...]
) -> tuple[float, float] | None:
    """What is computed and what is correct, from exact rationals; None where there is no finite result."""
    exact = rationals.apply(op, tuple(Fraction(x) for x in operands))
    if exact is None:
        return None
    twice, once = rationals.to_carrier(exact, carrier), rationals.to_odd(exact)
    both = round_to(torch.tensor([twice, once], dtype=torch.float64), format, rule).tolist()
    return both[0], both[1]


def _wrong(format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier, operands: tuple[float, ...]) -> bool:
    found = _results(format, op, rule, carrier, operands)
    return found is not None and found[0] != found[1] and not (math.isnan(found[0]) and math.isnan(found[1]))


def _counterexample(
    format: ScalarFormat, op: str, rule: Rounding, carrier: Carrier, operands: tuple[float, ...], tried: int
) -> Exactness:
    found = _results(format, op, rule, carrier, operands)
    assert found is not None
    said = f"{op}({', '.join(map(repr, operands))}) comes out as {found[0]!r}, correct is {found[1]!r}"
    return Exactness(False, "counterexample", said, tried, operands, *found)
