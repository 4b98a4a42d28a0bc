"""Soft errors: bits of encoded words that flip, in a tensor or in the results of ops."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import observe
from lptensor.base import check_int, check_number, no_format
from lptensor.blocks import BlockFormat
from lptensor.codebooks import TableFormat
from lptensor.codes import decode, encode
from lptensor.formats import Format
from lptensor.ops import check_generator, check_roundable
from lptensor.study.places import Places, check_roles, named_modules, named_parameters, values_of
from lptensor.tensor import LPTensor


def flip_bits(
    x: Tensor,
    format: Format | None = None,
    rate: float = 1e-3,
    bits: Iterable[int] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x`` with some bits of its encoded words flipped: a tensor of the same kind, shape and dtype.

    An LPTensor in words of another format than its own comes out as a plain tensor.

    Each bit flips on its own with probability ``rate``. A code that has no value comes out as ``decode``
    says, one past the end of a list of values as NaN, of an infinity or NaN as it is. A NaN that has no code
    has no word to hit, and stays. Values that the format lacks are rounded to nearest first. The
    result takes no part in autograd.

    Args:
        x: float32 or float64, or an LPTensor: then the format is its own.
        rate: of each bit, from 0 to 1.
        bits: the bits that may flip, 0 the lowest; by default all.
        generator: where the flips are drawn, on the CPU; torch's own by default.

    Raises:
        TypeError: a tensor of another kind; no format, or a block format, whose words are those of its element; no
            generator.
        ValueError: a rate or a bit out of range, a format that the dtype does not carry.

    >>> from lptensor import E4M3
    >>> flip_bits(torch.ones(3), E4M3, rate=1.0, bits=[7]).tolist()
    [-1.0, -1.0, -1.0]
    """
    format = x.format if isinstance(x, LPTensor) and format is None else format
    width = _width(format)
    allowed = _allowed(bits, width)
    plain, rate = values_of(x), _as_rate(rate)
    check_roundable(plain, format)
    if generator is not None:
        check_generator(generator)
    flipped = _flip(plain, format, rate, allowed, generator)[0]
    if not isinstance(x, LPTensor):
        return flipped
    return LPTensor(flipped, x._arithmetic, x._gradient) if format == x.format else flipped


_WIDEST = 64  # bits of a code


class faults(observe.Observer):  # reads as a function
    """A context in which bits flip in the encoded words of what is rounded: of any op's result, or of chosen ones.

    Results of ops on LPTensors, of quantizers, lowered layers and optimizers in low precision are hit
    as they are made; ``.flips`` counts the bits that flipped, ``.words`` the words that were at risk.
    The same seed gives the same faults for the same computation. Values that select (views, relu) are
    made of words already hit, and are not hit again.

    Args:
        rate: of each bit, from 0 to 1.
        seed: of the faults alone; torch's generator is left alone.
        bits: the bits that may flip, 0 the lowest; by default all of each format.
        model: the one whose paths ``path`` means, and whose roles ``roles`` does.
        path: a shell pattern for a path of the module or parameter, any of those it is shared under.
        roles: among "weight", "accumulator", "activation", "gradient", "state", "update".

    Raises:
        ValueError: a rate or a bit out of range, an unknown role, path or roles without a model.
        TypeError: a bit, a model or a path that is not one; when it is met, a block format.
        RuntimeError: entered within itself.

    >>> from lptensor import E4M3
    >>> x = torch.ones(4).to_lp(E4M3)
    >>> with faults(rate=1.0, bits=[7], seed=0) as hit:
    ...     y = x * 2
    >>> y.tolist(), hit.flips, hit.words
    ([-2.0, -2.0, -2.0, -2.0], 4, 4)
    """

    def __init__(
        self,
        rate: float,
        seed: int = 0,
        bits: Iterable[int] | None = None,
        model: nn.Module | None = None,
        path: str | None = None,
        roles: Iterable[str] | None = None,
    ) -> None:
        rate = _as_rate(rate)
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        chosen = None if roles is None else check_roles(roles)
        self._paths: set[str] | None = None
        if model is None and (path is not None or chosen is not None):
            raise ValueError("path= and roles= need model=, whose they are")
        if path is not None and not isinstance(path, str):
            raise TypeError(f"path is a shell pattern such as '0.weight' or 'layers.*', got {path!r}")
        if model is not None and path is not None:
            self._paths = _places(model, path)
        self._seed = check_int("seed", seed, -(2**63), 2**64 - 1)
        self._rate, self._roles = rate, chosen
        self._bits = None if bits is None else tuple(check_int("a bit", bit, 0, _WIDEST - 1) for bit in _listed(bits))
        self._model = model
        self._open: ExitStack | None = None

    def __enter__(self) -> faults:
        if self._open is not None:
            raise RuntimeError("these faults are entered already; make other faults(...) for a context within")
        self.flips = self.words = 0
        self.active = True
        self._generator = torch.Generator().manual_seed(self._seed)
        with ExitStack() as stack:
            self._places = None if self._model is None else stack.enter_context(Places(self._model, None))
            stack.enter_context(observe.observing(self))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
        """A word was made; hit it."""
        if self._places is not None:
            role, path = self._places.of(before, after)
            if self._roles is not None and role not in self._roles:
                return
            if self._paths is not None and path not in self._paths:
                return
        hit, flips = _flip(after, format, self._rate, _allowed(self._bits, _width(format)), self._generator)
        self.words += after.numel()
        self.flips += flips
        if flips:
            with torch.no_grad():
                after.copy_(hit)


def _places(model: nn.Module, pattern: str) -> set[str]:
    """What a pattern matches, each under its first path: the one that ``Places`` gives it."""
    named = [*named_modules(model, remove_duplicate=False), *named_parameters(model, remove_duplicate=False)]
    first = {id(part): path for path, part in reversed(named)}
    found = {first[id(part)] for path, part in named if fnmatchcase(path, pattern)}
    if not found:
        known = list(dict(named))[1:]
        raise ValueError(f"path={pattern!r} matches no module or parameter; the model has {known}")
    return found


def _as_rate(rate: float) -> float:
    number = check_number("rate", rate)
    if not 0 <= number <= 1:
        raise ValueError(f"rate is a probability from 0 to 1, got {rate!r}")
    return number


def _width(format: Any) -> int:
    if not isinstance(format, Format):
        raise TypeError(f"bits flip in words of a format such as E4M3, got {no_format(format)}")
    if isinstance(format, BlockFormat):
        raise TypeError(f"the words of {format!r} are those of its element, under scales: flip bits of the element")
    width: int = format.bits  # type: ignore[attr-defined]
    return width


def _listed(bits: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(bits, Iterable):
        raise TypeError(f"bits lists those that may flip, got {bits!r}; say bits=[{bits!r}]")
    return tuple(bits)


def _allowed(bits: Iterable[int] | None, width: int) -> tuple[int, ...]:
    allowed = tuple(range(width)) if bits is None else _listed(bits)
    numbers = [check_int("a bit", bit, 0, width - 1, f" in a word of {width}") for bit in allowed]
    return tuple(dict.fromkeys(numbers))  # one that is named twice flips once, or not


def _flip(
    x: Tensor, format: Any, rate: float, bits: tuple[int, ...], generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """A copy with bits flipped, and how many. Words that none hits keep their value to the bit."""
    # How many flips there are is drawn first, so that a small rate costs little.
    chances = x.numel() * len(bits)
    if chances == 0 or rate == 0:
        return x.detach().clone(), 0
    if rate < 1 / 64:
        size, chance = torch.tensor([float(chances), rate], dtype=torch.float64, device="cpu")
        count = int(torch.binomial(size, chance, generator=generator))
        places = torch.randperm(chances, generator=generator, device="cpu")[:count] if chances < 2**16 else None
        if places is None:
            places = torch.randint(chances, (2 * count + 8,), generator=generator, device="cpu").unique(sorted=False)
            places = places[torch.randperm(len(places), generator=generator, device="cpu")][:count]
    else:
        places = (
            (torch.rand(chances, dtype=torch.float32, generator=generator, device="cpu") < rate).nonzero().flatten()
        )
    if not format.has(math.nan):
        places = places[~x.detach().reshape(-1)[(places // len(bits)).to(x.device)].isnan().cpu()]
    mask = torch.zeros(x.numel(), dtype=torch.int64, device="cpu")
    flip = torch.tensor([1 << bit for bit in bits], dtype=torch.int64, device="cpu")[places % len(bits)]
    mask.index_add_(0, places // len(bits), flip)  # distinct bits: their sum is their union
    at = mask.nonzero().flatten()
    result = x.detach().clone(memory_format=torch.contiguous_format)
    if len(at):
        flat = result.view(-1)
        at_x, some = at.to(x.device), mask[at].to(x.device)
        codes = encode(flat[at_x], format).long() & (1 << format.bits) - 1
        flat[at_x] = _values(codes ^ some, format).to(x.dtype)
    return result, len(places)


def _values(codes: Tensor, format: Any) -> Tensor:
    """The values of any words of the format's width."""
    if not isinstance(format, TableFormat):
        return decode(codes, format)
    listed = codes < len(format.table.listed)
    return torch.where(listed, decode(torch.where(listed, codes, 0), format), torch.nan)
