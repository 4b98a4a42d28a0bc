"""What an Arithmetic accepts, and which one an op between two of them has."""

from __future__ import annotations

import pickle

import pytest

from lptensor import (
    BF16,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    FP32,
    MXFP8_E4M3,
    NVFP4,
    UDYNAMIC8,
    Arithmetic,
    BlockFloatingPoint,
    FixedPoint,
    Rounding,
    Stochastic,
)
from lptensor.arithmetic import as_arithmetic, promote
from lptensor.rounding import Mode


def test_a_backward_format_that_is_not_named_is_the_forward_one() -> None:
    assert Arithmetic(E4M3).gradient_format == E4M3
    assert Arithmetic(E4M3, rounding="stochastic").gradient_rounding == Stochastic()
    assert Arithmetic(E4M3, E5M2, "up", "down").gradient_rounding == Rounding(Mode.DOWN)


def test_equal_arithmetics_are_one_key_and_survive_a_pickle() -> None:
    a, b = Arithmetic(E4M3, E5M2, "stochastic"), Arithmetic(E4M3, E5M2, Stochastic())
    assert a == b and hash(a) == hash(b) and pickle.loads(pickle.dumps(a)) == b
    assert a != Arithmetic(E4M3, E5M2)


@pytest.mark.parametrize("format", [E8M0, FixedPoint(8, 4, signed=False), UDYNAMIC8])
def test_a_format_without_negatives_needs_a_backward_format(format: object) -> None:
    with pytest.raises(ValueError, match="no negative numbers, which gradients need"):
        Arithmetic(format)  # type: ignore[arg-type]
    assert Arithmetic(format, backward=E5M2).gradient_format == E5M2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "joined"),
    [
        (E4M3, BF16, BF16),
        (E5M2, FP16, FP16),
        (E4M3, FP32, FP32),
        (FixedPoint(8, 7), FixedPoint(16, 15), FixedPoint(16, 15)),
        (BlockFloatingPoint(8), FP32, FP32),
        (MXFP8_E4M3, BF16, BF16),
        (NVFP4, E4M3, E4M3),
        (None, BF16, None),
    ],
)
def test_the_wider_format_wins_in_either_order(a: object, b: object, joined: object) -> None:
    x, y = Arithmetic(a), Arithmetic(b)  # type: ignore[arg-type]
    assert promote(x, y).forward == promote(y, x).forward == joined


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (E4M3, E5M2),
        (FP16, BF16),
        (FixedPoint(8, 4), E4M3),
        (BlockFloatingPoint(8), BlockFloatingPoint(8, dim=0)),
        (MXFP8_E4M3, E5M2),
    ],
)
def test_formats_of_which_neither_is_wider_are_an_error_that_names_both(a: object, b: object) -> None:
    for x, y in ((a, b), (b, a)):
        with pytest.raises(TypeError) as error:
            promote(Arithmetic(x), Arithmetic(y))  # type: ignore[arg-type]
        assert repr(a) in str(error.value) and repr(b) in str(error.value) and ".to_lp" in str(error.value)


def test_other_fields_agree_or_one_of_them_is_at_its_default() -> None:
    plain, stochastic = Arithmetic(E4M3), Arithmetic(BF16, rounding="stochastic")
    assert promote(plain, stochastic) == promote(stochastic, plain) == Arithmetic(BF16, rounding="stochastic")
    with pytest.raises(TypeError, match="disagree on rounding"):
        promote(Arithmetic(E4M3, rounding="up"), Arithmetic(BF16, rounding="down"))
    with pytest.raises(TypeError, match="disagree on backward"):
        promote(Arithmetic(E4M3, E5M2), Arithmetic(E4M3, BF16))


def test_what_is_no_format_is_named() -> None:
    for wrong in ("e4m3", 8, Rounding()):
        with pytest.raises(TypeError, match="number format"):
            as_arithmetic(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="says its rounding and backward format itself"):
        as_arithmetic(Arithmetic(E4M3), rounding="up")
