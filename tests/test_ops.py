"""lptensor.ops.round: what it takes, where it writes, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import lptensor
from lptensor import _cuda, _native, lower, ops, reference
from lptensor.blocks import MX, MXFP4, NVFP4, BlockFloatingPoint
from lptensor.codebooks import NF4
from lptensor.formats import BF16, E4M3, E5M2, FP32, FixedPoint, Format
from lptensor.ops import backend, round as lp_round
from lptensor.posits import Posit
from lptensor.rounding import Mode, Rounding, Stochastic, as_rounding
from own_formats import Centred, Multiples, Step, in_steps, teach
from rounders import NATIVE_BUILDS, assert_same_bits, choose_build


def test_a_zero_of_forward_mode_which_has_no_memory() -> None:
    zero = torch._efficientzerotensor(3)
    for rounding in ("nearest", "stochastic"):
        assert lp_round(zero, E4M3, rounding).tolist() == [0.0, 0.0, 0.0]


def test_a_mode_of_fake_tensors_keeps_real_ones_as_they_are() -> None:
    x = torch.randn(4)
    before = x.clone()
    with FakeTensorMode(), pytest.raises(AssertionError, match="FakeTensor"):
        lp_round(x, E4M3, out=x)
    assert torch.equal(x, before)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "channels last": lambda x: x.unsqueeze(0).to(memory_format=torch.channels_last)[0],
    "every second": lambda x: x[:, ::2],
    "flipped": lambda x: x.flip(1),
    "offset": lambda x: x[1:, 1:, 1:],
    "expanded": lambda x: x[:1].expand(4, -1, -1),
    "negated view": torch._neg_view,
    "one row": lambda x: x[:1, :, :1],
}


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (4, 6, 5)) * 10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, FixedPoint(6, 2), BlockFloatingPoint(5, dim=1)], ids=repr)
def test_any_layout_gives_the_values_of_a_contiguous_copy(layout: str, rounding: str, format: Any) -> None:
    x = LAYOUTS[layout](numbers())
    before = x.clone()
    torch.manual_seed(3)
    y = lp_round(x, format, rounding)
    torch.manual_seed(3)
    assert_same_bits(y, lp_round(x.clone(memory_format=torch.contiguous_format), format, rounding))
    assert_same_bits(x, before)
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels last"])
def test_strides_are_kept(layout: str) -> None:
    x = LAYOUTS[layout](numbers())
    for rounding in ("nearest", "stochastic"):
        assert lp_round(x, E4M3, rounding).stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    assert lp_round(torch.ones(3, dtype=dtype), E4M3).dtype is dtype


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("format", [E4M3, BlockFloatingPoint(4), BlockFloatingPoint(4, dim=0)], ids=repr)
def test_shapes_without_elements_or_axes_are_kept(shape: tuple[int, ...], format: Any) -> None:
    for rounding in ("nearest", "stochastic"):
        assert lp_round(torch.ones(shape), format, rounding).shape == shape


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("rounding", ["nearest", "down", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, BlockFloatingPoint(5, dim=1)], ids=repr)
def test_in_place_gives_the_values_of_a_copy(layout: str, rounding: str, format: Any) -> None:
    x = LAYOUTS[layout](numbers())
    torch.manual_seed(3)
    expected = lp_round(x.clone(), format, rounding)
    torch.manual_seed(3)
    assert lp_round(x, format, rounding, out=x) is x
    assert_same_bits(x, expected)


def test_in_place_touches_only_the_view() -> None:
    whole = numbers(6, 6)
    before = whole.clone()
    lp_round(whole[1:3, ::2], E5M2, out=whole[1:3, ::2])
    untouched = torch.ones(6, 6, dtype=torch.bool)
    untouched[1:3, ::2] = False
    assert torch.equal(whole[untouched], before[untouched])
    assert_same_bits(whole[1:3, ::2], lp_round(before[1:3, ::2], E5M2))


@pytest.mark.parametrize("source", [name for name in LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("target", [name for name in LAYOUTS if name not in ("expanded", "one row")])
def test_out_may_have_another_layout(source: str, target: str) -> None:
    x = LAYOUTS[source](numbers())
    large = torch.full((64, 64, 64), 7.0)
    view = {name: make(large) for name, make in LAYOUTS.items()}[target]
    out = view[: x.shape[0], : x.shape[1], : x.shape[2]]
    assert lp_round(x, E4M3, "up", out=out) is out
    assert_same_bits(out, lp_round(x, E4M3, "up"))


@pytest.mark.parametrize("offset", [1, 3, 64])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_out_may_overlap_what_it_reads(offset: int, rounding: str) -> None:
    for forward in (True, False):
        memory = numbers(5000)
        early, late = memory[:-offset], memory[offset:]
        x, out = (early, late) if forward else (late, early)
        torch.manual_seed(3)
        expected = lp_round(x.clone(), E4M3, rounding)
        torch.manual_seed(3)
        lp_round(x, E4M3, rounding, out=out)
        assert_same_bits(out, expected)


def test_out_may_be_the_transpose_of_what_it_reads() -> None:
    for square in (numbers(5, 5), numbers(5, 5).t()):
        expected = lp_round(square.clone(), BlockFloatingPoint(4, dim=0))
        assert_same_bits(lp_round(square, BlockFloatingPoint(4, dim=0), out=square.t()), expected)


@pytest.mark.parametrize(
    "out",
    [torch.zeros(1, 4).expand(3, 4), torch.zeros(1).expand(3, 4), torch.zeros(12).as_strided((3, 4), (1, 1))],
    ids=["expanded", "expanded twice", "as_strided"],
)
def test_an_out_whose_elements_share_memory_is_refused(out: torch.Tensor) -> None:
    before = out.clone()
    with pytest.raises(ValueError, match="elements that share memory"):
        lp_round(numbers(3, 4), E4M3, out=out)
    assert torch.equal(out, before)


@pytest.mark.parametrize(
    ("out", "named"),
    [
        (torch.zeros(4), r"\(4,\)"),
        (torch.zeros(3, dtype=torch.float64), "float64"),
        (torch.zeros(3, dtype=torch.int32), "int32"),
        (torch.zeros(3, device="meta"), "meta"),
    ],
    ids=["shape", "double", "integer", "device"],
)
def test_an_out_that_does_not_fit_is_refused(out: torch.Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        lp_round(numbers(3), E4M3, out=out)


def test_an_out_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="out must be a tensor, got list"):
        lp_round(numbers(3), E4M3, out=[0.0] * 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("format", [E4M3, MXFP4, NVFP4, NF4, Posit(8)], ids=str)
def test_tensors_without_values_are_rounded_to_one_of_their_kind(format: Format, rounding: str) -> None:
    x = torch.empty(64, 3, device="meta").T
    before = torch.get_rng_state()
    y = lp_round(x, format, rounding)
    assert y.is_meta and (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"float32 and float64.*{dtype}"):
        lp_round(torch.ones(3, dtype=dtype), E4M3)


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="dense.*sparse_coo"):
        lp_round(torch.eye(3).to_sparse(), E4M3)


@pytest.mark.parametrize("format", [8, "E4M3", None, torch.float16, E4M3.grid, FixedPoint], ids=str)
def test_what_is_no_format_is_refused(format: Any) -> None:
    with pytest.raises(TypeError, match="expected a number format"):
        lp_round(numbers(3), format)


@pytest.mark.parametrize("x", [1.0, [1.0], None], ids=str)
def test_what_is_no_tensor_is_refused(x: Any) -> None:
    with pytest.raises(TypeError, match="expected a tensor"):
        lp_round(x, E4M3)


def test_an_unknown_rounding_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"'nearst'.*nearest, nearest_away, nearest_up, toward_zero, down, up, odd, stochastic"
    ):
        lp_round(numbers(3), E4M3, "nearst")
    with pytest.raises(TypeError, match="got 3"):
        lp_round(numbers(3), E4M3, 3)  # type: ignore[arg-type]


def test_more_than_24_bits_need_float64() -> None:
    with pytest.raises(ValueError, match="use a float64 tensor"):
        lp_round(numbers(3), FixedPoint(26, 0))
    assert lp_round(torch.tensor([2.0**24 + 1.25], dtype=torch.float64), FixedPoint(26, 0)).item() == 2**24 + 1


@pytest.mark.parametrize("rounding", ["up", Mode.UP, Rounding(Mode.UP)], ids=repr)
def test_a_rounding_may_be_a_name_a_member_or_a_value(rounding: Any) -> None:
    assert lp_round(torch.tensor(1.01), BF16, rounding).item() > 1.01


def test_the_gradient_passes_straight_through() -> None:
    x = numbers(7).requires_grad_()
    weights = numbers(7)
    lp_round(x, E4M3, "stochastic").backward(weights)
    assert x.grad is not None and torch.equal(x.grad, weights)


def test_a_second_derivative_passes_too() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    (first,) = torch.autograd.grad(lp_round(x**3, FixedPoint(12, 0)), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (27.0, 18.0)


def test_without_a_graph_the_result_needs_no_gradient() -> None:
    x = numbers(3).requires_grad_()
    assert lp_round(x, E4M3).requires_grad
    with torch.no_grad():
        assert not lp_round(x, E4M3).requires_grad
    assert not lp_round(x.detach(), E4M3).requires_grad
    assert type(lp_round(torch.nn.Parameter(numbers(3)), E4M3)) is torch.Tensor


def test_out_and_autograd_do_not_mix() -> None:
    x = numbers(3).requires_grad_()
    with pytest.raises(ValueError, match="takes no part in autograd"):
        lp_round(x, E4M3, out=torch.zeros(3))
    with pytest.raises(ValueError, match="takes no part in autograd"):
        lp_round(numbers(3), E4M3, out=x)
    with torch.no_grad():
        lp_round(x, E4M3, out=x)
    assert torch.equal(x.detach(), lp_round(x.detach(), E4M3))


def test_the_generator_of_torch_decides() -> None:
    x = numbers(1000)
    torch.manual_seed(7)
    first, second = lp_round(x, E4M3, "stochastic"), lp_round(x, E4M3, "stochastic")
    torch.manual_seed(7)
    assert torch.equal(lp_round(x, E4M3, "stochastic"), first)
    assert not torch.equal(first, second)


def test_another_generator_may_decide_and_leaves_torchs_own_alone() -> None:
    x, state = numbers(1000), torch.get_rng_state()
    a, b = (lp_round(x, E4M3, "stochastic", generator=torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, lp_round(x, E4M3, "stochastic", generator=torch.Generator().manual_seed(10)))
    assert torch.equal(torch.get_rng_state(), state)


def test_deterministic_rounding_draws_no_random_numbers() -> None:
    x, state = numbers(10), torch.get_rng_state()
    lp_round(x, E4M3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("n", [1000, 32768 * 2 + 5, 32768 * 5 + 129])
def test_the_number_of_threads_does_not_matter(threads: int, n: int) -> None:
    x = numbers(n)
    for format, rounding in ((E4M3, "nearest"), (E4M3, "stochastic"), (FixedPoint(8, 3), Stochastic(5))):
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            results.append(lp_round(x, format, rounding))
        assert_same_bits(*results)


def test_without_the_library_the_reference_rounds_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers()
    cases = [(f, r) for f in (E4M3, BlockFloatingPoint(5, dim=1)) for r in ("nearest", "stochastic")]
    native = []
    for format, rounding in cases:
        torch.manual_seed(2)
        native.append(lp_round(x, format, rounding))
    monkeypatch.setattr(_native, "library", lambda: None)
    monkeypatch.setattr(_native, "warn_missing", lambda: None)
    assert backend().startswith("torch:")
    for (format, rounding), expected in zip(cases, native, strict=True):
        torch.manual_seed(2)
        assert_same_bits(lp_round(x, format, rounding), expected)
    out = torch.zeros(4, 6, 5).transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(lp_round(x, E4M3, out=out), lp_round(x, E4M3))


def test_without_the_library_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda: None)
    _native.warn_missing.cache_clear()
    with pytest.warns(RuntimeWarning, match="without a C\\+\\+ compiler") as caught:
        lp_round(numbers(3), E4M3)
        lp_round(numbers(3), E4M3)
    assert len(caught) == 1


@pytest.mark.parametrize("build", NATIVE_BUILDS)
def test_backend_names_the_build_in_use(build: str) -> None:
    assert choose_build(build)
    assert backend() == f"native: {build} build of the C++ kernels"


def test_an_unknown_build_is_not_chosen() -> None:
    library = _native.library()
    before = backend()
    assert library is None or library.lpt_choose_build(b"lpt_v9") == 1
    assert backend() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
@pytest.mark.parametrize("grad", [False, True])
def test_the_tangent_of_forward_mode_passes_straight_through(grad: bool) -> None:
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        x = forward_ad.make_dual(torch.tensor([0.3, 1.0]), torch.tensor([2.0, 3.0]))
        for function in (lambda x: lptensor.round(x, E4M3), lptensor.quantizer(E4M3)):
            assert forward_ad.unpack_dual(function(x)).tangent.tolist() == [2, 3]


def test_out_may_be_a_view_that_negates() -> None:
    out = torch._neg_view(torch.empty(3))
    assert lp_round(torch.tensor([1.1, -2.3, 500.0]), E4M3, out=out) is out
    assert out.is_neg() and out.tolist() == [1.125, -2.25, 448.0]


def test_fp32_carries_fixed_point_of_25_bits_with_the_sign() -> None:
    assert lp_round(torch.tensor([2.0**24 + 2, 0.75]), FixedPoint(25, 0)).tolist() == [2.0**24 - 1, 1.0]


def test_what_is_done_to_a_rounded_dual_leaves_the_tangent_of_its_input_alone() -> None:
    with forward_ad.dual_level():
        tangent = torch.ones(2)
        x = forward_ad.make_dual(torch.tensor([1.1, 2.2]), tangent)
        y = lp_round(x, E4M3)
        y.mul_(3)
        assert forward_ad.unpack_dual(y).tangent.tolist() == [3.0, 3.0]
        assert forward_ad.unpack_dual(x).tangent.tolist() == tangent.tolist() == [1.0, 1.0]


def test_what_is_written_to_is_known_to_have_changed() -> None:
    """As after torch's own ops in place: a graph that needs the old values refuses, and layers round anew."""
    w = torch.tensor([0.3], requires_grad=True)
    y = w.exp()
    with torch.no_grad():
        lp_round(y.detach(), E4M3, out=y.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    net = lower(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ["linear", "activation"], E4M3, forward_rounding="nearest")
    hidden = net[0](torch.ones(3))
    values = torch.tensor([0.3, 0.7, 1.1])
    lp_round(values, FP32, out=hidden.detach())
    assert torch.equal(net[1](hidden), lp_round(values, E4M3))
    with torch.inference_mode():
        lp_round(values, E4M3, out=torch.empty(3))


@pytest.mark.parametrize("mode", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (40, 3), (7, 10), (4, 20), (2, 3, 4, 5)])
@pytest.mark.parametrize("format", [MX(E4M3, 32), MX(E4M3, 3), MX(E5M2, 4, axis=1), NVFP4, BlockFloatingPoint(6, 0)])
def test_blocks_of_any_layout_and_length_are_those_of_the_reference(shape: Any, format: Any, mode: str) -> None:
    x = torch.randn(shape) * torch.exp2(torch.randint(-20, 20, shape))
    x.view(-1)[::11] = 0.0
    rounding, key = as_rounding(mode), (3, 4)
    want = getattr(reference, format.lowered.loop)(x, format.lowered, format.block_shape(x.shape), rounding, key)
    orders = [range(x.dim()), [*range(x.dim())][::-1], [0, *range(2, x.dim()), 1]]
    for order in orders:
        inverse = [list(order).index(d) for d in range(x.dim())]
        y = x.permute(*order).contiguous().permute(*inverse)
        assert y.stride() != x.stride() or list(order) == sorted(order) or 1 in shape
        got = torch.empty_like(y)
        ops.draw_key, real = (lambda generator=None: key), ops.draw_key
        try:
            lp_round(y, format, mode, out=got)
        finally:
            ops.draw_key = real
        assert_same_bits(got, want)


@pytest.mark.parametrize("offset", [1, 2])
def test_large_outputs_may_lie_anywhere(offset: int) -> None:
    """Memory that is no multiple of an element's size cannot be written a line at a time."""
    n = (33 << 20) // 4
    memory = bytearray((33 << 20) + 64)
    y = torch.frombuffer(memoryview(memory), dtype=torch.float32, offset=offset, count=n)
    x = torch.randn(n)
    lp_round(x, E4M3, out=y)
    assert torch.equal(y, lp_round(x, E4M3))


# --- formats of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), MX(E4M3), NVFP4], ids=repr)
def test_every_place_has_a_loop_for_what_formats_are_lowered_to(format: Format) -> None:
    """Where a device lacks one, the reference would round without a word."""
    assert all(callable(getattr(place, format.lowered.loop)) for place in (reference, _native, _cuda))


@pytest.mark.parametrize("format", [Multiples(), Centred()], ids=repr)
def test_what_no_kernel_knows_is_rounded_by_the_reference(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    teach(monkeypatch)
    warned: list[None] = []
    monkeypatch.setattr(_native, "warn_missing", lambda: warned.append(None))
    x = torch.randn(6, 8)
    wanted = in_steps(x, format.lowered, (1, 4))
    assert torch.equal(lp_round(x, format), wanted)
    assert torch.equal(lp_round(x.T.contiguous().T, format), wanted)
    assert torch.equal(lp_round(x.clone(), format, out=(out := torch.empty(8, 6).T)), wanted) and out.stride() == (1, 6)
    summed = x.to_lp(format) + 0.0  # type: ignore[attr-defined]
    assert torch.equal(summed.dequantize(), in_steps(wanted, format.lowered, (1, 4)))
    assert not warned or _native.library() is None  # another compiler would not help


def test_a_graph_cannot_draw_where_no_kernel_reads_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    teach(monkeypatch)
    monkeypatch.setattr(ops, "_kernels", lambda device: object())
    monkeypatch.setattr(ops, "call_key", lambda x, generator: torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match=r"CUDA library: it has no kernel that rounds to Multiples\(step=0.25\)"):
        lp_round(torch.ones(3), Multiples(), "stochastic")


def test_a_loop_that_the_reference_lacks_is_named() -> None:
    assert not hasattr(reference, Step(1.0).loop)
    with pytest.raises(AttributeError, match="lptensor.reference.* 'round_step'"):
        lp_round(torch.ones(3), Multiples())
