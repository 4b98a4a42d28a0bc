"""Composite operators of torch: those that fill plain memory give LPTensors, those that only ask round nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from lptensor import BF16, E5M2, FP16, Arithmetic, FixedPoint, LPTensor, convert, trace
from lptensor.composites import FORMULAS, with_low_state


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("n", [None, 0, 1, 2, 6])
def test_powers_stay_in_their_format_and_round_once(n: int | None, increasing: bool) -> None:
    x = torch.tensor([0.3, -1.7, 2.1, 0.9]).to_lp(Arithmetic(BF16, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    powers = torch.vander(x, n, increasing)
    plain = x.dequantize().detach()
    exact = torch.vander(plain, n, increasing)
    assert type(powers) is LPTensor and powers.format == BF16
    assert torch.equal(powers.dequantize(), exact.bfloat16().float())
    if powers.requires_grad:  # ones alone are constants
        powers.sum().backward()
        assert x.grad.format == E5M2


@pytest.mark.parametrize("x", [torch.tensor([0.3, -1.7, 2.1]), torch.tensor([3, 4], dtype=torch.int32)], ids=str)
@pytest.mark.parametrize("n", [None, 0, 1, 4])
def test_a_formula_gives_plain_tensors_what_torch_gives_them(x: Tensor, n: int | None) -> None:
    ours, theirs = FORMULAS["vander"](x, n), torch.vander(x, n)
    assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.parametrize("bad", [(torch.ones(2, 2), None), (torch.ones(2), -1)], ids=["a matrix", "negative"])
def test_what_torch_refuses_is_refused(bad: tuple[Tensor, int | None]) -> None:
    with pytest.raises(RuntimeError):
        torch.vander(*bad)
    with pytest.raises(RuntimeError, match="vander"):
        torch.vander(bad[0].to_lp(BF16), bad[1])  # type: ignore[attr-defined]


SEQUENCES = [torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).to_lp(BF16) for n in (3, 1, 2)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_padded_sequences_stay_in_their_format(side: str, batch_first: bool, value: float) -> None:
    padded = rnn.pad_sequence(SEQUENCES, batch_first, value, side)
    native = rnn.pad_sequence([x.dequantize().bfloat16() for x in SEQUENCES], batch_first, value, side)
    assert type(padded) is LPTensor and padded.format == BF16
    assert torch.equal(padded.dequantize(), native.float())


def test_sequences_are_expanded_where_they_are_narrower_than_the_first_and_there_alone() -> None:
    with trace() as seen:
        rnn.pad_sequence(SEQUENCES)
    assert [row.op for row in seen] == ["constant_pad_nd"] * 2 + ["stack"]
    narrower = [SEQUENCES[0], SEQUENCES[1][:, :1], SEQUENCES[2]]
    native = rnn.pad_sequence([x.dequantize() for x in narrower])
    assert torch.equal(rnn.pad_sequence(narrower).dequantize(), native)


def test_sequences_of_two_formats_are_padded_in_the_wider() -> None:
    narrow = torch.ones(4, 2).to_lp(E5M2)  # type: ignore[attr-defined]
    assert rnn.pad_sequence([narrow, *SEQUENCES]).format == BF16


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 5])
def test_packed_sequences_are_unpacked_in_their_format(batch_first: bool, length: int | None) -> None:
    packed = rnn.pack_sequence(SEQUENCES, enforce_sorted=False)
    native = rnn.pack_sequence([x.dequantize().bfloat16() for x in SEQUENCES], enforce_sorted=False)
    (ours, lengths), (theirs, wanted) = (rnn.pad_packed_sequence(x, batch_first, 0.3, length) for x in (packed, native))
    assert type(packed.data) is type(ours) is LPTensor and ours.format == BF16
    assert torch.equal(ours.dequantize(), theirs.float()) and torch.equal(lengths, wanted)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("again", [False, True], ids=["", "differentiated again"])
def test_the_gradient_of_a_packed_sequence_stays_in_its_format(batch_first: bool, again: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 9, 2) if batch_first else torch.randn(9, 3, 2)  # longer than the longest sequence
    low = x.to_lp(Arithmetic(BF16, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    native = low.dequantize().detach().requires_grad_()
    lengths, weight = torch.tensor([5, 7, 3]), torch.randn(15, 2).to(torch.float8_e5m2).float()
    data, wanted = (rnn.pack_padded_sequence(y, lengths, batch_first, False).data for y in (low, native))
    (grad,) = torch.autograd.grad(data, low, weight, create_graph=again)
    (want,) = torch.autograd.grad(wanted, native, weight)
    assert type(grad) is LPTensor and grad.format == E5M2
    assert torch.equal(grad.dequantize(), want)


def test_layers_before_a_packed_sequence_have_rounded_gradients() -> None:
    embedding = convert(nn.Embedding(5, 4), Arithmetic(BF16, backward=E5M2))
    rnn.pack_padded_sequence(embedding(torch.tensor([[1, 2], [3, 3]])), torch.tensor([2, 1])).data.sum().backward()
    assert embedding.weight.grad.format == E5M2


def test_padding_under_transformations_of_functions_stays_low_too() -> None:
    a, b = SEQUENCES[:2]
    assert type(torch.func.grad(lambda x: rnn.pad_sequence([x, b]).sum())(a)) is LPTensor
    primal, tangent = torch.func.jvp(lambda x: rnn.pad_sequence([x, b]), (a,), (a,))
    assert type(primal) is type(tangent) is LPTensor
    batch = torch.stack([a, a * 2])
    assert torch.equal(
        torch.vmap(lambda x: rnn.pad_sequence([x, b]))(batch)[1].dequantize(),
        rnn.pad_sequence([a * 2, b]).dequantize(),
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_other_formulas_give_plain_tensors_what_torch_gives_them(seed: int) -> None:
    plain = [x.dequantize() for x in SEQUENCES]
    side = ("left", "right")[seed % 2]
    assert torch.equal(
        FORMULAS["pad_sequence"](plain, seed > 1, 0.3, side), rnn.pad_sequence(plain, seed > 1, 0.3, side)
    )
    packed = rnn.pack_sequence(sorted(plain, key=len, reverse=True))
    given = packed.data, packed.batch_sizes, seed > 1, 0.3, 3 + seed
    for ours, theirs in zip(
        FORMULAS["_pad_packed_sequence"](*given), torch._VF._pad_packed_sequence(*given), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_bad_padding_is_refused_as_by_torch() -> None:
    packed = rnn.pack_sequence(SEQUENCES, enforce_sorted=False)
    with pytest.raises(ValueError, match="total_length"):
        rnn.pad_packed_sequence(packed, total_length=2)
    with pytest.raises(RuntimeError, match="total_length"):
        FORMULAS["_pad_packed_sequence"](packed.data, packed.batch_sizes, False, 0.0, 2)
    with pytest.raises((ValueError, RuntimeError), match="middle"):
        rnn.pad_sequence(SEQUENCES, padding_side="middle")


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("layer", [nn.RNN, partial(nn.RNN, nonlinearity="relu"), nn.GRU, nn.LSTM])
def test_a_plain_recurrent_layer_gives_a_low_input_a_low_output(
    layer: Any, options: Any, packed: bool, inference: bool
) -> None:
    net = layer(2, 3, **options)
    padded = rnn.pad_sequence(SEQUENCES)
    x = rnn.pack_sequence(SEQUENCES, enforce_sorted=False) if packed else padded
    zeros = torch.zeros(2 * 2 if options else 1, 3, 3).to_lp(BF16)  # type: ignore[attr-defined]
    with torch.inference_mode(inference):
        y, _ = net(x)
        want, _ = net(x, (zeros, zeros) if layer is nn.LSTM else zeros)
    y, want = (out.data if packed else out for out in (y, want))
    assert type(y) is LPTensor and y.format == BF16 and torch.equal(y.dequantize(), want.dequantize())
    if not inference:
        y.sum().backward()
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("cell", [nn.RNNCell, partial(nn.RNNCell, nonlinearity="relu"), nn.GRUCell, nn.LSTMCell])
def test_a_plain_recurrent_cell_gives_a_low_input_a_low_output(cell: Any) -> None:
    net = cell(2, 3)
    y = net(SEQUENCES[0])
    assert all(type(part) is LPTensor for part in (y if isinstance(y, tuple) else (y,)))


def test_a_converted_recurrent_layer_takes_a_plain_state_exactly() -> None:
    net, state = convert(nn.GRUCell(2, 3), BF16), torch.randn(3, 3)
    assert with_low_state(LPTensor, 1, (SEQUENCES[0], state, *net.parameters()))[1] is state
    assert type(net(SEQUENCES[0], state)) is LPTensor


def test_a_recurrent_cell_needs_a_low_state_unless_all_weights_are_low() -> None:
    x, state = torch.ones(1, 2).to_lp(BF16), torch.randn(1, 3)  # type: ignore[attr-defined]
    first, *others = (p.detach() for p in nn.RNNCell(2, 3).parameters())
    assert type(torch.rnn_tanh_cell(x, state, first.to_lp(BF16), *others)) is LPTensor  # type: ignore[attr-defined]


def test_a_state_keeps_its_own_format() -> None:
    x, state = torch.ones(1, 2).to_lp(E5M2), torch.randn(1, 3).to_lp(BF16)  # type: ignore[attr-defined]
    weights = (p.detach() for p in nn.RNNCell(2, 3).parameters())
    assert torch.rnn_tanh_cell(x, state, *weights).format == BF16  # type: ignore[attr-defined]


def test_sequences_are_padded_in_the_dtype_and_the_shape_of_the_first_as_by_torch() -> None:
    for first, second in ((torch.tensor([1, 2]), torch.tensor([1.5])), (torch.ones(2, 3), torch.full((3, 1), 1.5))):
        padded, want = rnn.pad_sequence([first, second.to_lp(BF16)]), rnn.pad_sequence([first, second])  # type: ignore[attr-defined]
        assert padded.dtype is want.dtype and padded.tolist() == want.tolist()


def test_plain_recurrent_layers_compile_as_ever() -> None:
    net, x = nn.GRU(2, 3), torch.randn(4, 2, 2)
    compiled = torch.compile(net, backend="aot_eager")
    assert torch.equal(compiled(x)[0], net(x)[0])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("inference", [False, True])
def test_closeness_is_that_of_the_values(rounding: str, inference: bool) -> None:
    x = torch.tensor([0.0625, 1.0, 7.9375, torch.nan, torch.inf])
    low = x.to_lp(FixedPoint(8, 4), rounding)  # type: ignore[attr-defined]
    values, state = low.dequantize(), torch.get_rng_state()
    with torch.inference_mode(inference):
        for atol in (0.0, 0.04, 0.07, 8.0):
            for rtol in (0.0, 0.01):
                for other in (torch.zeros(5), torch.full((5,), 7.0)):
                    ours = torch.isclose(low, other, rtol, atol, equal_nan=True)
                    assert ours.tolist() == torch.isclose(values, other, rtol, atol, equal_nan=True).tolist()
                    assert torch.equal(torch.isclose(other, low, rtol, atol), torch.isclose(other, values, rtol, atol))
        assert low.isfinite().tolist() == values.isfinite().tolist()
    assert torch.equal(torch.get_rng_state(), state), "a question draws nothing"


def test_tensors_that_differ_by_more_than_the_tolerance_are_not_close() -> None:
    a, b = (torch.tensor([x]).to_lp(FixedPoint(8, 4)) for x in (0.0625, 0.0))  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(a, b, atol=0.04, rtol=0)


def test_closeness_needs_no_common_format() -> None:
    one = torch.ones(1, requires_grad=True)
    assert torch.isclose(one.to_lp(FP16), one.to_lp(BF16)).item()  # type: ignore[attr-defined]
    assert torch.compile(torch.isclose)(one.to_lp(FP16), one.to_lp(BF16)).item()  # type: ignore[attr-defined]
