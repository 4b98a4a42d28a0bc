"""What every number format is."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lptensor.grid import Grid
from lptensor.layout import Layout, decode
from lptensor.names import name_of
from lptensor.text import arguments, call, constant, learn

VALUES_BITS = 20  # a list of values is for reading and plotting

# What the fp32 carrier holds: IEEE 754-2019 table 3.5, binary32.
CARRIER_PRECISION, CARRIER_MIN_EXPONENT, CARRIER_MAX = 24, -149, (2.0 - 2.0**-23) * 2.0**127


@constant
class Format:
    """A set of representable values. ``lowered`` is what a kernel gets of it, and names its ``loop``.

    Formats are frozen, hashable and compare by their parameters, so they may be dictionary keys
    and travel through pickle, ``deepcopy`` and ``torch.compile``.
    """

    kind: ClassVar[str] = ""  # what tables call such formats; if empty, the name of the class
    kind_source: ClassVar[str | None] = None  # the standard or the paper that defines them all

    def __init_subclass__(cls) -> None:
        torch.serialization.add_safe_globals([cls, rebuild])  # so that torch.load(weights_only=True) makes them
        learn(cls)

    def __eq__(self, other: object) -> bool:  # dataclasses have their own; torch.compile wants one here too
        return self is other or NotImplemented

    def __hash__(self) -> int:  # written out, or type checkers would not know what a format is
        return object.__hash__(self)

    @property
    def lowered(self) -> Any:
        """The plain numbers that a kernel gets of the format."""
        raise NotImplementedError

    @property
    def carrier(self) -> torch.dtype:
        """The dtype that holds every value."""
        return torch.float32

    def has(self, x: float) -> bool:
        """Whether a number is a value, in whatever block; for an infinity or NaN, whether it has a code.

        >>> from lptensor import E4M3, E5M2, MXFP4, NF4
        >>> E4M3.has(0.5), E4M3.has(0.3), E4M3.has(float("inf")), E5M2.has(float("inf")), NF4.has(1.0), MXFP4.has(1.0)
        (True, False, False, True, True, False)
        """
        ask = getattr(self.lowered, "has", None)
        return ask is not None and ask(x)

    def contains(self, other: Format) -> bool:
        """Whether every finite value of ``other`` is a value of this format too; specials and -0 do not count.

        Raises:
            TypeError: ``other`` is a block format, or no format.
            ValueError: its values are too many to list.

        >>> from lptensor import BF16, E4M3, E5M2, Posit
        >>> BF16.contains(E4M3), E4M3.contains(E5M2), BF16.contains(Posit(8))
        (True, False, True)
        """
        ours, theirs = self.lowered, getattr(other, "lowered", None)
        if isinstance(ours, Grid) and isinstance(theirs, Grid):
            return ours.contains(theirs)
        if not isinstance(other, Format) or not hasattr(other, "values"):
            raise TypeError(f"contains() compares formats of single numbers, got {no_scalar(other)}")
        values = torch.as_tensor(other.values(), dtype=torch.float64, device="cpu")
        return self._has_all(values[values.isfinite()])

    def _has_all(self, values: Tensor) -> bool:
        return all(map(self.has, values.tolist()))

    def check_carrier(self, dtype: torch.dtype) -> None:
        """Refuse a dtype that does not hold every value.

        Raises:
            ValueError: naming the way out.
        """
        if dtype == torch.float32 and self.carrier != dtype:
            raise ValueError(f"{self!r} needs more than the 24 bits of float32; use a float64 tensor")

    def __reduce__(self) -> tuple[Any, ...]:  # by its parameters alone, so that a checkpoint stays readable
        given = {argument: getattr(self, field) for field, argument in arguments(type(self)).items()}
        return rebuild, (type(self), given)

    def __repr__(self) -> str:
        return name_of(self) or self.spelled()

    def spelled(self) -> str:
        """The call that makes the format, where repr() says the name of one that has a name.

        >>> from lptensor import FloatingPoint
        >>> FloatingPoint(8), FloatingPoint(8).spelled()
        (E5M2, 'FloatingPoint(exp=5, man=2)')
        """
        return call(self) if is_dataclass(self) else object.__repr__(self)


def rebuild(kind: type[Format], given: dict[str, Any]) -> Format:
    """A format out of a pickle."""
    return kind(**given)


class ScalarFormat(Format):
    """A format that rounds each element on its own."""

    @property
    def grid(self) -> Grid:
        """The plain numbers that say which values there are, and what happens outside of them."""
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        """Where the values lie among the codes."""
        raise NotImplementedError

    @property
    def lowered(self) -> Grid:
        """What a kernel gets of the format: its ``grid``."""
        return self.grid

    @property
    def bits(self) -> int:
        """Width of one code."""
        return self.layout.bits

    @property
    def max(self) -> float:
        """The largest finite value; infinity for fixed point that nothing clamps."""
        return self.grid.max

    @property
    def min(self) -> float:
        """The most negative finite value; for an unsigned format the smallest."""
        return self.grid.min if self.grid.signed or self.grid.zero else self.grid.smallest

    @property
    def carrier(self) -> torch.dtype:
        """The dtype that holds every value: float64 for fixed point of more than 25 bits, 24 if unsigned."""
        return torch.float32 if self.grid.precision <= CARRIER_PRECISION else torch.float64

    def values(self) -> Tensor:
        """Every finite value once, ascending, as float64; of the two zeros only 0.

        Raises:
            ValueError: the format has more than 2**20 codes, or no bounds.

        >>> from lptensor import E2M1
        >>> E2M1.values().tolist()[7:]
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        """
        if math.isinf(self.max):
            raise ValueError(f"{self!r} has no largest value; clamp=True bounds it")
        if self.bits > VALUES_BITS:
            raise ValueError(
                f"{self!r} has 2**{self.bits} = {2**self.bits} codes, values() lists up to 2**{VALUES_BITS}; "
                "decode() gives those of any range of codes"
            )
        every = decode(torch.arange(2**self.bits, device="cpu"), self.grid, self.layout)
        ascending: Tensor = torch.unique(every[every.isfinite()] + 0.0)
        return ascending

    def has(self, x: float) -> bool:
        if math.isfinite(x):
            return self.grid.has(x)
        code = self.layout.nan if math.isnan(x) else self.layout.inf
        return code is not None and (self.grid.signed or not x < 0)


def no_format(given: object) -> str:
    """What an error says of something that is not a format: the value, and the way from it to one."""
    if isinstance(given, str):
        return f"{given!r}; formats are values such as lptensor.E4M3, not names"
    if isinstance(given, (torch.dtype, np.dtype)) or isinstance(given, type) and not issubclass(given, Format):
        return f"{given}; lptensor.format_of() gives the format of a dtype"
    if isinstance(given, type):
        return f"the class {given.__name__}; call it to make a format"
    return repr(given)


def no_scalar(given: object) -> str:
    """The same of something that is not a scalar format."""
    if not isinstance(given, Format):
        return no_format(given)
    ways = {"values": "; its values() say what it has", "element": "; ask its element"}
    return repr(given) + next((way for name, way in ways.items() if hasattr(given, name)), "")


def wrong_format(given: object) -> TypeError:
    """The error where any format would do."""
    return TypeError(f"expected a number format such as FloatingPoint(8) or FixedPoint(8, 4), got {no_format(given)}")


def check_tensor(x: object) -> None:
    """Refuse what is no tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got {type(x).__name__}; make one with torch.tensor(...)")


def check_dense(x: Tensor, what: str) -> None:
    """Refuse a tensor that is sparse, or nested, which may call itself strided; ``what`` begins the error."""
    if x.is_nested:
        raise TypeError(f"{what} dense tensors, got a nested one; take its parts, x.unbind()")
    if x.layout is not torch.strided:
        raise TypeError(f"{what} dense tensors, got {x.layout}; take its .values(), or call .to_dense()")


def check_signed(format: object, way: str) -> None:
    """Refuse to round gradients to a format without negative numbers; ``way`` is the way out."""
    if torch.compiler.is_dynamo_compiling() or not isinstance(format, Format):  # Dynamo reads no constant's properties
        return
    least = getattr(getattr(format, "element", format), "min", None)
    if least is not None and least >= 0 and getattr(format, "offset", None) is None:
        raise ValueError(f"{format!r} has no negative numbers, which gradients need; {way}")


def as_int(value: Any) -> int | None:
    """``value`` as an int if it is an integer of any kind, or a tensor of one; None of all else, True among it."""
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        with contextlib.suppress(TypeError):  # of a class, or of many numbers
            return operator.index(value)
    return None


def check_int(name: str, value: object, low: int, high: int, why: str = "") -> int:
    """``value``, an integer (NumPy's too) from ``low`` to ``high``, as an int, else an error that says so."""
    number = as_int(value)
    if number is None:
        raise TypeError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}{why}, got {value}")
    return number


def set_int(owner: object, name: str, low: int, high: int, why: str = "") -> None:
    """``check_int`` of a field of a frozen dataclass, which is an int from then on."""
    object.__setattr__(owner, name, check_int(name, getattr(owner, name), low, high, why))


def check_number(name: str, value: Any) -> float:
    """``value`` as a float if it is a number of any kind, or a tensor of one, else an error that says so."""
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__float__"):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must be a number that float64 holds, got one beyond 2**1024") from None
        except (TypeError, ValueError, RuntimeError):  # of many numbers
            pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def set_number(owner: object, name: str) -> None:
    """``check_number`` of a field of a frozen dataclass, which is a float from then on."""
    object.__setattr__(owner, name, check_number(name, getattr(owner, name)))


def check_positive(name: str, value: Any) -> float:
    """``check_number`` of a number that is positive and finite."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return number


def check_bool(name: str, value: object) -> bool:
    """``value`` if it is True or False, else an error that says so: a string would pass for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_closure(closure: object) -> None:
    """Refuse what a step cannot call, as the loss itself."""
    if not callable(closure):
        raise TypeError(f"closure must be a function that computes the loss and its gradients, got {closure!r}")


def check_state(what: str, state: object, *keys: str) -> None:
    """Refuse to load what is not a state_dict with these keys."""
    if not isinstance(state, Mapping) or not all(key in state for key in keys):
        got = [*state] if isinstance(state, Mapping) else repr(state)
        raise ValueError(f"the state of a {what} is a dict of {', '.join(keys)}, got {got}")


def check_carried(format: Format, grid: Grid, precision: int = CARRIER_PRECISION) -> None:
    """Refuse a grid with values that an fp32 number cannot hold."""
    if grid.precision > precision:
        raise ValueError(f"{format!r} has {grid.precision} significant bits, the carrier holds {precision}")
    bottom = grid.quantum(grid.emin)  # normals near emin need it, whether there are subnormals or not
    if bottom < CARRIER_MIN_EXPONENT:
        raise ValueError(f"{format!r} has values in steps of 2**{bottom}, fp32 reaches 2**{CARRIER_MIN_EXPONENT}")
    if not math.isinf(grid.max) and max(grid.max, -grid.min) > CARRIER_MAX:
        raise ValueError(f"{format!r} reaches 2**{grid.emax}, beyond the largest fp32 {CARRIER_MAX:g}")
