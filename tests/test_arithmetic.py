"""What an Arithmetic accepts, and which one an op between two of them has."""

from __future__ import annotations

import gc
import itertools
import pickle
import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import lptensor
from compiling import MADE_INSIDE
from lptensor import (
    BF16,
    DYNAMIC8,
    E2M1,
    E3M2,
    E4M3,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    FP32,
    INT8,
    MXFP4,
    MXFP8_E4M3,
    NF4,
    NVFP4,
    P3109,
    TF32,
    UDYNAMIC8,
    Arithmetic,
    BlockFloatingPoint,
    Codebook,
    FixedPoint,
    Format,
    Gemm,
    LogNumber,
    Posit,
    Rounding,
    Stochastic,
)
from lptensor.arithmetic import as_arithmetic, promote
from lptensor.grid import Grid
from lptensor.rounding import Mode
from lptensor.training import Technique


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
        (Posit(8), Posit(16), Posit(16)),
        (Posit(20), Posit(24), Posit(24)),
        (Posit(8), FP32, FP32),
        (E2M1, Posit(8), Posit(8)),
        (NF4, FP32, FP32),
        (Codebook([-0.5, 0.0, 3.0]), E4M3, E4M3),
        (LogNumber(8), FP32, FP32),
        (BlockFloatingPoint(3), Posit(8), Posit(8)),
        (E2M1, Codebook(E3M2.values()), Codebook(E3M2.values())),
    ],
)
def test_the_wider_format_wins_in_either_order(a: object, b: object, joined: object) -> None:
    x, y = Arithmetic(a), Arithmetic(b)  # type: ignore[arg-type]
    assert promote(x, y).forward == promote(y, x).forward == joined


def test_the_format_of_an_op_does_not_depend_on_the_order_of_its_operands() -> None:
    formats = (E4M3, E5M2, BF16, FP16, E2M1, MXFP8_E4M3, FixedPoint(8, 4), FP32)
    for some in itertools.combinations(formats, 3):
        tensors = [torch.ones(2).to_lp(format) for format in some]
        joined: set[object] = set()
        for order in itertools.permutations(tensors):
            try:
                joined.add(torch.cat(order).format)
            except TypeError:
                joined.add(None)
        assert len(joined) == 1, some
    assert torch.cat([torch.ones(2).to_lp(format) for format in (E4M3, E5M2, BF16)]).format == BF16


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (E4M3, E5M2),
        (FP16, BF16),
        (FixedPoint(8, 4), E4M3),
        (BlockFloatingPoint(8), BlockFloatingPoint(8, dim=0)),
        (MXFP8_E4M3, E5M2),
        (Posit(8), FP16),
        (Posit(8), Posit(8, 1)),
        (Posit(20), BF16),
        (Posit(20), TF32),
        (NF4, DYNAMIC8),
        (NF4, E4M3),
        (Codebook([-0.5, 0.0, 3.0]), INT8),
        (LogNumber(8), MXFP4),
    ],
)
def test_formats_of_which_neither_is_wider_are_an_error_that_names_both(a: object, b: object) -> None:
    for x, y in ((a, b), (b, a)):
        with pytest.raises(TypeError) as error:
            promote(Arithmetic(x), Arithmetic(y))  # type: ignore[arg-type]
        assert repr(a) in str(error.value) and repr(b) in str(error.value) and ".to_lp" in str(error.value)


@pytest.mark.parametrize(
    "f", [E4M3, E5M2FNUZ, FixedPoint(8, 4), FixedPoint(8, 4, signed=False), P3109(8, 3), E8M0], ids=repr
)
def test_a_grid_has_its_values_and_none_between(f: Any) -> None:
    values = f.values()
    between = (values[1:] + values[:-1]) / 2
    assert all(map(f.grid.has, values.tolist()))
    assert not any(map(f.grid.has, [*between.tolist(), 2 * f.max, f.min - 1]))


@MADE_INSIDE
def test_a_graph_meets_posits_and_lists_as_eager_mode_does() -> None:
    a, b = Posit(10), Codebook([-4.0, -1.0, 0.0, 1.0, 4.0])  # of no other test, so that tracing asks first
    x = torch.tensor([1.0, -3.0])
    graph = torch.compile(lambda x: (x.to_lp(a) + x.to_lp(b)).dequantize(), backend="aot_eager", fullgraph=True)
    assert graph(x).tolist() == (x.to_lp(a) + x.to_lp(b)).tolist()  # type: ignore[attr-defined]
    torch.compiler.reset()


def test_other_fields_agree_or_one_of_them_is_at_its_default() -> None:
    plain, stochastic = Arithmetic(E4M3), Arithmetic(BF16, rounding="stochastic")
    assert promote(plain, stochastic) == promote(stochastic, plain) == Arithmetic(BF16, rounding="stochastic")
    with pytest.raises(TypeError, match="disagree on rounding"):
        promote(Arithmetic(E4M3, rounding="up"), Arithmetic(BF16, rounding="down"))
    with pytest.raises(TypeError, match="disagree on backward"):
        promote(Arithmetic(E4M3, E5M2), Arithmetic(E4M3, BF16))
    up = Arithmetic(E4M3, backward_rounding="up")
    assert promote(up, plain) == promote(plain, up) == up
    with pytest.raises(TypeError, match="disagree on backward_rounding"):
        promote(up, Arithmetic(BF16, backward_rounding="down"))


def test_formats_that_differ_in_no_value_are_an_error_that_says_so() -> None:
    with pytest.raises(TypeError, match="have the same values"):
        promote(Arithmetic(E4M3), Arithmetic(replace(E4M3, overflow="nan")))


def test_what_fills_up_a_gradient_is_rounded_where_its_format_lacks_zero() -> None:
    x = torch.ones(3).to_lp(Arithmetic(BF16, backward=Codebook([-2.0, -1.0, 1.0, 2.0]))).requires_grad_()  # type: ignore[attr-defined]
    (x[:2] * 1.0).sum().backward()
    assert set(x.grad.abs().tolist()) == {1.0}


def test_fp32_unrounded_is_wider_than_every_format() -> None:
    unrounded = Arithmetic(None)
    for format in (E4M3, FP32, MXFP4):
        assert promote(unrounded, Arithmetic(format)) == promote(Arithmetic(format), unrounded) == unrounded


def test_what_is_no_format_is_named() -> None:
    for wrong in ("e4m3", 8, Rounding()):
        with pytest.raises(TypeError, match="number format"):
            as_arithmetic(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="says its rounding and backward format itself"):
        as_arithmetic(Arithmetic(E4M3), rounding="up")


def test_an_arithmetic_is_freed_with_the_model_that_it_formed() -> None:
    def train() -> Any:
        function = nn.Identity()
        model = lptensor.convert(nn.Linear(2, 2), Arithmetic(BF16, operands=Gemm(Technique(E4M3, function))))
        model(torch.ones(1, 2)).sum().backward()
        return weakref.ref(function)

    kept = train()
    gc.collect()
    assert kept() is None


def test_a_list_in_two_roundings_is_refused_without_a_word_of_gradients() -> None:
    one = torch.ones(1)
    with pytest.raises(TypeError, match="disagree on rounding") as refused:
        torch.stack([one.to_lp(BF16, "down"), one.to_lp(BF16, "up")])  # type: ignore[attr-defined]
    assert "norm" not in str(refused.value)


@dataclass(frozen=True)
class Own(Format):
    """A format that says nothing but what it is lowered to."""

    @property
    def lowered(self) -> Grid:
        return E4M3.lowered


def test_a_format_of_ones_own_is_compared_by_what_it_is_lowered_to() -> None:
    one = torch.ones(1)
    assert (one.to_lp(Own()) + one.to_lp(BF16)).format == BF16  # type: ignore[attr-defined]
    assert (one.to_lp(BF16) + one.to_lp(Own())).format == BF16  # type: ignore[attr-defined]
    assert Arithmetic(Own()).has_zero and Own().has(0.5) and not Own().has(0.3) and Own().contains(E2M1)
    with pytest.raises(TypeError, match="neither of"):
        one.to_lp(Own()) + one.to_lp(E5M2)  # type: ignore[attr-defined]


def test_open_fixed_point_promotes_as_its_grid_says() -> None:
    wide = FixedPoint(8, 4, clamp=False)
    assert not FP32.contains(wide)
    with pytest.raises(TypeError, match="neither of"):
        torch.ones(1).to_lp(FP32) + torch.ones(1).to_lp(wide)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="ask its element"):
        MXFP4.contains(E2M1)
