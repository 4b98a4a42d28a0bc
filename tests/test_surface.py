"""What an LPTensor shows to Python: printing, numpy, indexing, copies, files, processes."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import processes
from low import is_low, rounded, same, through_file, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, convert


def low(*shape: int, format: Any = E4M3) -> LPTensor:
    made: LPTensor = torch.randn(*shape).to_lp(format)  # type: ignore[attr-defined]
    return made


# -- printing ----------------------------------------------------------------------------------------


def test_repr_shows_values_format_and_rounding() -> None:
    x = torch.tensor([0.5, -2.0]).to_lp(E4M3, "stochastic")
    assert repr(x) == f"LPTensor([ 0.5000, -2.0000], format={E4M3!r}, rounding='stochastic')"


def test_repr_shows_the_backward_format_and_the_graph() -> None:
    x = torch.ones(1).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()
    assert f"backward={E5M2!r}" in repr(x) and "requires_grad=True" in repr(x)
    assert "grad_fn=<SinBackward0>" in repr(x.sin())
    x.sin().sum().backward()
    assert f"format={E5M2!r}" in repr(x.grad)


def test_the_rows_of_a_matrix_stand_under_each_other() -> None:
    shown = repr(low(3, 3)).splitlines()
    assert len(shown) == 3 and all(len(line) - len(line.lstrip()) == len("LPTensor([") for line in shown[1:])


def test_empty_scalar_and_meta_tensors_print() -> None:
    assert repr(low(0)).startswith("LPTensor([], ")
    assert repr(torch.tensor(0.5).to_lp(E4M3)).startswith("LPTensor(0.5000, ")
    assert "meta" in repr(low(2).to("meta"))


def test_a_format_spec_formats_the_number() -> None:
    x = torch.tensor([0.5, 1.0]).to_lp(E4M3)
    assert f"{x[0]:.3f} {x.sum():>5.1f}" == "0.500   1.5"


# -- numbers -----------------------------------------------------------------------------------------


def test_conversions_to_python_give_the_values() -> None:
    x = low(2, 3)
    assert x.tolist() == values(x).tolist()
    assert x[0, 0].item() == float(x[0, 0]) == values(x)[0, 0].item()
    assert bool(x[0, 0]) and len(x) == 2 and int(torch.tensor(3.0).to_lp(E4M3)) == 3


def test_numpy_gets_a_copy() -> None:
    x = low(4)
    before = values(x).clone()
    for array in (x.numpy(), np.asarray(x), np.array(x)):
        assert np.array_equal(array, before.numpy())
        array[0] = 0.1
        assert same(x, before)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64


def test_numpy_functions_give_plain_tensors() -> None:
    x = low(4)
    assert type(np.sin(x)) is Tensor and np.allclose(np.sin(x), np.sin(values(x).numpy()))
    assert np.allclose(np.dot(x, x), values(x).numpy() @ values(x).numpy())


@pytest.mark.parametrize(
    "op", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul]
)
def test_an_array_beside_an_operator_is_a_plain_operand(op: Any) -> None:
    x, array = low(4, 4).abs(), np.random.default_rng(0).random((4, 4), dtype=np.float32)
    for got, want in ((op(x, array), op(x, torch.from_numpy(array))), (op(array, x), op(torch.from_numpy(array), x))):
        assert is_low(got, E4M3) and same(got, want)
    y = x.clone()
    y *= array
    assert is_low(y, E4M3) and same(y, x * torch.from_numpy(array))


def test_arrays_compare_and_arrays_of_other_dtypes_act_as_such_tensors() -> None:
    x = low(4)
    assert (x >= np.asarray(x)).all() and (np.asarray(x) <= x).all() and type(x == np.asarray(x)) is Tensor
    assert is_low(x * np.arange(4), E4M3) and is_low(np.array(0.3) * x, E4M3)
    for clash in (lambda: x * np.ones(4), lambda: np.ones(4) * x):
        with pytest.raises(RuntimeError, match="make float64 operands of yours float32"):
            clash()


def test_dlpack_hands_out_a_copy() -> None:
    x = low(4)
    for twin in (torch.from_dlpack(x), torch.from_numpy(np.from_dlpack(x).copy())):
        assert type(twin) is Tensor and same(twin, x)
    torch.from_dlpack(x).zero_()
    assert values(x).any()
    with pytest.raises(RuntimeError, match="detach"):
        torch.from_dlpack(x.clone().requires_grad_())


def test_an_array_that_shares_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="copy"):
        np.array(low(4), copy=False)


def test_numpy_of_a_tensor_with_a_graph_is_refused() -> None:
    x = low(4).requires_grad_()
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    assert np.array_equal(x.numpy(force=True), values(x).numpy())


def test_comparison_gives_plain_booleans() -> None:
    x = low(4)
    assert type(x == x) is Tensor and (x == x).all() and (x == values(x)).all() and not (x != x).any()
    assert 7.0 not in x and x[0] in x
    torch.testing.assert_close(x, x.clone())


def test_iteration_and_indexing_give_low_precision() -> None:
    x = low(3, 4)
    picks = [*x, x[1], x[:, 2], x[..., None], x[[0, 2]], x[x > 0], x[torch.tensor(1)], x[0:2, ::2]]
    assert all(is_low(t, E4M3) for t in picks)


def test_assignment_of_every_kind_stays_on_the_grid() -> None:
    x = low(4, 4)
    x[0] = 0.1
    x[:, 1] = torch.full((4,), 0.3)
    x[x > 1] = 1.7
    x[[2, 3]] = low(2, 4, format=BF16)
    x[3, 3] = low(1, format=E5M2)[0]
    assert is_low(x, E4M3)


def test_stack_makes_one_tensor_of_several() -> None:
    x = low(3)
    assert is_low(torch.stack(list(x)), E4M3) and same(torch.stack(list(x)), x)


def test_a_list_of_low_precision_numbers_becomes_a_tensor_by_stack_or_new_tensor() -> None:
    x = low(3)
    with pytest.raises(RuntimeError, match="not allocated"):
        torch.tensor([x[0], x[1]])
    for made in (torch.stack([x[0], x[1]]), x.new_tensor([x[0], x[1]]), x.new_tensor([x[0].item(), x[1]])):
        assert is_low(made, E4M3) and same(made, x[:2])


def test_new_makes_tensors_of_the_same_format() -> None:
    x = low(3)
    assert is_low(x.new_tensor([0.1, 0.2]), E4M3) and is_low(x.new([0.1]), E4M3) and is_low(x.new_tensor(x), E4M3)
    assert x.new().shape == (0,) and x.new(2, 3).shape == (2, 3) == x.new(torch.Size([2, 3])).shape
    assert all(isinstance(t, LPTensor) and t.format == E4M3 for t in (x.new(), x.new(2, 3)))
    assert type(x.new_tensor([0.1], dtype=torch.float64)) is Tensor
    assert x.new_tensor([0.1], requires_grad=True).requires_grad and x.new_tensor([1.0], device="meta").is_meta


def test_python_functions_of_numbers_see_numbers() -> None:
    x = torch.tensor([0.5, 2.0, -1.0]).to_lp(E4M3)
    assert (min(x).item(), max(x).item(), [t.item() for t in sorted(x)]) == (-1.0, 2.0, [-1.0, 0.5, 2.0])
    assert is_low(sum(x), E4M3) and math.sqrt(x[0]) == math.sqrt(0.5) and complex(x[0]) == 0.5
    assert "%.2f" % x[0] == "0.50" and [t.item() for t in reversed(x)] == [-1.0, 2.0, 0.5]  # noqa: UP031


def test_a_function_applied_to_every_value_is_rounded() -> None:
    x = low(4)
    assert x.apply_(lambda v: 0.1) is x and is_low(x, E4M3) and same(x, rounded(torch.full((4,), 0.1), E4M3))


@pytest.mark.parametrize("x", [low(4).requires_grad_(), torch.zeros(4, requires_grad=True)], ids=["low", "plain"])
def test_a_function_cannot_be_applied_where_autograd_should_see_it(x: Any) -> None:
    with pytest.raises(RuntimeError, match="requires grad"):
        x.apply_(lambda v: v)
    assert x.detach().apply_(lambda v: 1.0).sum() == x.sum() == 4


@pytest.mark.parametrize("reshape", [Tensor.squeeze_, Tensor.t_, lambda x: x.resize_(2, 3), lambda x: x.unsqueeze_(0)])
def test_the_shape_of_a_shallow_copy_is_its_own(reshape: Any) -> None:
    for x in (low(1, 3), torch.randn(1, 3)):
        other = copy.copy(x)
        reshape(x)
        assert other.shape == other.add(0).shape == (1, 3) and other.shape != x.shape
        x.fill_(2.0)
        assert other.sum() == 6  # the memory is the same


@pytest.mark.parametrize("other", [E4M3, BF16, None])
def test_assert_close_compares_values(other: Any) -> None:
    x = low(4)
    y = x.dequantize() if other is None else x.to_lp(other)
    torch.testing.assert_close(x, y)
    torch.testing.assert_close([y], [x])
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(x, y + 1)


def test_values_in_formats_that_clash_can_still_be_compared() -> None:
    x = torch.tensor([0.5, 1.0]).to_lp(E4M3)
    assert torch.equal(x, x.to_lp(E5M2)) and (x == x.to_lp(E5M2)).all() and not torch.equal(x, x.to_lp(E5M2) * 2)


def test_a_tensor_that_grows_can_be_viewed() -> None:
    x = low(2, 3)
    for grown in (x.new().resize_as_(x), x.new().resize_(2, 3), torch.add(x, 1, out=x.new())):
        grown[1].zero_()
        assert grown.shape == values(grown).shape == (2, 3) and not values(grown)[1].any() and grown[1]._is_view()


def test_hash_and_weak_references_go_by_identity() -> None:
    x = low(3)
    assert {x: 1}[x] == 1 and x.clone() not in {x: 1} and weakref.ref(x)() is x


# -- data, device, dtype -----------------------------------------------------------------------------


def test_setting_data_rounds_and_keeps_the_object() -> None:
    p = nn.Parameter(torch.zeros(5)).to_lp(E4M3).detach().requires_grad_()
    new = torch.randn(5)
    p.data = new
    assert p.requires_grad and is_low(p, E4M3) and same(p, rounded(new, E4M3))


def test_writes_through_data_reach_the_tensor() -> None:
    x = low(5).requires_grad_()
    x.data.mul_(0.3)
    x.data[0] = 0.1
    assert is_low(x, E4M3) and x[0].item() == rounded(torch.tensor(0.1), E4M3).item()


def test_autograd_does_not_hear_of_writes_through_data() -> None:
    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = x * x
        x.data.mul_(0.5)  # as an optimizer does that steps while the backward pass runs
        y.sum().backward()
        assert x._version == 0 and x.grad is not None
        return x.grad

    x = low(5)
    assert same(gradient(x), gradient(values(x)))


def test_another_shape_of_data_is_none_of_the_tensor() -> None:
    x = low(2, 3)
    before = values(x).clone()
    x.data.t_()
    x.data.resize_(6)
    assert x.shape == values(x).shape == (2, 3) and same(x + 0, before)


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (6,), (3, 2, 2), (), (0, 3)])
def test_data_may_have_another_shape(shape: tuple[int, ...]) -> None:
    """As libraries do that add rows to an embedding; gradients and steps go on in the new shape."""
    p, new = low(2, 3, format=E4M3).requires_grad_(), torch.randn(shape)
    (p * 2).sum().backward()
    p.grad = None
    p.data = new
    assert p.shape == shape and p.is_leaf and p.requires_grad and is_low(p, E4M3) and same(p, rounded(new, E4M3))
    (p * 2).sum().backward()
    assert p.grad.shape == shape and is_low(p.grad, E4M3) and (values(p.grad) == 2).all()
    torch.optim.SGD([p], lr=1.0).step()
    assert same(p, rounded(rounded(new, E4M3) - 2, E4M3)) and same(copy.deepcopy(p), p)


def test_data_that_is_no_tensor_is_refused() -> None:
    x = low(5)
    before = values(x).clone()
    with pytest.raises(TypeError, match="takes a tensor, got float"):
        x.data = 3.0
    assert same(x, before)


@pytest.mark.parametrize("cast", [lambda x: x.double(), lambda x: x.half(), lambda x: x.bfloat16()])
def test_data_of_another_dtype_is_refused(cast: Any) -> None:
    x = low(5)
    before = values(x).clone()
    with pytest.raises(TypeError, match=r"float32.*convert\(model, None\)"):
        x.data = cast(values(x))
    assert same(x, before)


def test_moves_between_devices_and_layouts_keep_the_format() -> None:
    x = low(1, 2, 3, 4)
    meta = x.to("meta")
    assert isinstance(meta, LPTensor) and meta.format == E4M3 and meta.shape == x.shape and meta.is_meta
    last = x.to(memory_format=torch.channels_last)
    assert is_low(last, E4M3) and last.stride() == values(last).stride()
    for same_dtype in (x.to(torch.float32), x.float(), x.cpu(), x.contiguous()):
        assert is_low(same_dtype, E4M3)


def test_ops_on_meta_tensors_keep_the_format() -> None:
    y = low(2, 3).to("meta") @ low(3, 4).to("meta")
    assert isinstance(y, LPTensor) and y.shape == (2, 4) and y.format == E4M3


# -- copies, files, processes ------------------------------------------------------------------------


def assert_twin(a: Any, b: Any) -> None:
    assert type(a) is type(b) is LPTensor and same(a, b) and a.arithmetic == b.arithmetic
    assert a._gradient == b._gradient and a.requires_grad == b.requires_grad


COPIES = [
    copy.copy,
    copy.deepcopy,
    lambda x: pickle.loads(pickle.dumps(x)),
    lambda x: through_file(x, weights_only=True),
    lambda x: through_file(x, weights_only=False),
]


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("grad", [False, True])
def test_copies_are_twins(make: Any, grad: bool) -> None:
    x = torch.randn(3, 4).to_lp(Arithmetic(E4M3, E5M2, "stochastic")).requires_grad_(grad)
    assert_twin(make(x), x)


@pytest.mark.parametrize("make", COPIES)
def test_a_copied_gradient_is_still_one(make: Any) -> None:
    x = torch.randn(3).to_lp(Arithmetic(BF16, backward=E5M2)).requires_grad_()
    (x * 2).sum().backward()
    assert_twin(make(x.grad), x.grad)


def test_a_deep_copy_takes_the_gradient_along_and_shares_nothing() -> None:
    x = low(3).requires_grad_()
    (x * 2).sum().backward()
    y = copy.deepcopy(x)
    assert_twin(y.grad, x.grad)
    y.data.zero_()
    assert values(x).any()


def test_a_deep_copy_of_a_parameter_has_no_gradient_as_torchs() -> None:
    for model in (torch.nn.Linear(2, 1), convert(torch.nn.Linear(2, 1), BF16)):
        model(torch.ones(1, 2)).sum().backward()
        assert copy.deepcopy(model).weight.grad is None and model.weight.grad is not None


def test_deep_copy_of_a_result_is_refused() -> None:
    with pytest.raises(RuntimeError, match="detach"):
        copy.deepcopy(low(3).requires_grad_() * 2)


def test_views_still_share_memory_when_loaded_together() -> None:
    x = low(6)
    a, b = through_file({"a": x, "b": x[2:4]}, weights_only=True).values()
    a.zero_()
    assert not values(b).any()


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking a process that has threads
def test_another_process_gets_low_precision_and_writes_into_the_same_memory(method: str) -> None:
    context = torch.multiprocessing.get_context(method)
    there, back = context.Queue(), context.Queue()
    process = context.Process(target=processes.double_in_place, args=(there, back))
    process.start()
    x = torch.tensor([0.5, 1.5]).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()
    there.put({"x": x.detach(), "leaf": x})
    kind, arithmetic, requires_grad, y = back.get(timeout=120)
    assert (kind, arithmetic, requires_grad) == ("LPTensor", x.arithmetic, True)
    assert is_low(y, E4M3) and same(y, torch.tensor([0.5, 1.5])) and x.is_shared()
    there.put("done")
    process.join(120)
    assert process.exitcode == 0 and same(x, torch.tensor([1.0, 3.0]))


def test_shared_memory() -> None:
    x = low(8)
    assert not x.is_shared() and x.share_memory_() is x and x.is_shared() and is_low(x, E4M3)


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.x = torch.arange(12.0).view(6, 2).to_lp(E4M3)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i], "y": i}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking a process that has threads
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_batches_in_low_precision(workers: int) -> None:
    seen = [batch["x"] for batch in DataLoader(Pairs(), batch_size=3, num_workers=workers)]
    assert all(is_low(x, E4M3) and x.shape == (3, 2) for x in seen)
    assert same(torch.cat(seen), torch.arange(12.0).view(6, 2))


def test_a_tensor_dataset_holds_low_precision() -> None:
    ((x,),) = DataLoader(TensorDataset(low(4, 2)), batch_size=4)
    assert is_low(x, E4M3)


def test_data_has_the_strides_and_the_device_of_what_it_was_set_to() -> None:
    x, plain = torch.randn(4, 4).to_lp(E4M3)[1:3, 1:3], torch.randn(4, 4)[1:3, 1:3]
    x.data = plain.data = torch.ones(2, 2)
    assert (x.stride(), x.storage_offset()) == (plain.stride(), plain.storage_offset()) == ((2, 1), 0)
    assert x.as_strided(x.size(), x.stride(), x.storage_offset()).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    there = torch.ones(2, device="meta").to_lp(E4M3)
    with pytest.raises(ValueError, match="on its device meta, got cpu"):
        there.data = torch.ones(2)


def test_data_of_a_leaf_with_gaps_is_replaced() -> None:
    p = torch.randn(2, 10).to_lp(BF16)[:, ::2].detach().requires_grad_()  # type: ignore[attr-defined]
    want = (p * 0.5).detach()
    p.data = p.data * 0.5
    assert torch.equal(p.dequantize(), want.dequantize()) and p.stride() == p._inner.stride() and p.requires_grad


def test_a_plain_tensor_is_its_own_values() -> None:
    """So that one script goes for plain and converted models."""
    for x in (torch.randn(3, requires_grad=True), torch.randn(3, dtype=torch.bfloat16, requires_grad=True)):
        y = x.dequantize()
        assert type(y) is Tensor and y.dtype is torch.float32 and torch.equal(y, x.float())
        (y * 2).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [2.0] * 3
    gradient = torch.func.grad(lambda t: (t.dequantize() * t.detach()).sum())
    assert torch.equal(gradient(torch.ones(3)), torch.ones(3))
    compiled = torch.compile(lambda t: (t.dequantize() * 3).sum(), backend="eager", fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(compiled(x), x)[0].tolist() == [3.0] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop quantized tensors
        codes = torch.quantize_per_tensor(torch.tensor([0.26]), 0.25, 0, torch.qint8)
    assert codes.dequantize().item() == 0.25
