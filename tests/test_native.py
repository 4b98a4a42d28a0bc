"""An LPTensor in BF16 or FP16 gives what PyTorch's own dtype of that name gives in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing._internal.opinfo.core import BinaryUfuncInfo, UnaryUfuncInfo
from torch.utils._pytree import tree_map

from low import same, values
from lptensor import BF16, FP16, Format, LPTensor, escapes
from op_samples import attempt, each, full_name, is_operand, op_database, places, report, samples_of, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # the samples use what torch deprecates

NATIVE = [pytest.param(BF16, torch.bfloat16, id="bf16"), pytest.param(FP16, torch.float16, id="fp16")]

# Where the two may differ, by reason. None of it is rounding of the result of one fp32 computation.
EXCEPTIONS = {
    "random numbers of a native dtype are other draws": """
        normal normal.in_place normal.number_mean uniform rand_like randn_like""",
    "the native kernel rounds what it computes on the way to its result": """
        special.entr special.i0e special.xlog1py xlogy logit rsqrt ldexp polygamma.polygamma_n_0
        polygamma.polygamma_n_1 polygamma.polygamma_n_2 polygamma.polygamma_n_3 polygamma.polygamma_n_4
        special.polygamma.special_polygamma_n_0 mvlgamma.mvlgamma_p_1 mvlgamma.mvlgamma_p_3
        mvlgamma.mvlgamma_p_5 prod cross linalg.cross addr addbmm addmm index_reduce.prod index_reduce.mean
        _unsafe_masked_index_put_accumulate nn.functional.soft_margin_loss nn.functional.bilinear
        nn.functional.mse_loss nn.functional.huber_loss nn.functional.smooth_l1_loss
        nn.functional.interpolate.linear nn.functional.interpolate.bilinear nn.functional.interpolate.trilinear
        nn.functional.interpolate.bicubic nn.functional.grid_sample grid_sampler_2d grid_sampler_3d
        nn.functional.adaptive_avg_pool2d nn.functional.adaptive_avg_pool3d nn.functional.conv_transpose1d
        nn.functional.conv_transpose2d nn.functional.conv_transpose3d log_softmax masked.log_softmax
        matrix_exp div.trunc_rounding""",
    "the native kernel rounds the statistics it saves, here they are exact": """
        nn.functional.batch_norm nn.functional.instance_norm native_batch_norm _native_batch_norm_legit
        _batch_norm_with_update native_layer_norm native_group_norm nn.functional.group_norm
        nn.functional.layer_norm""",
    "made of other ops, and upcast as a whole for a native dtype, where here each op rounds": """
        nn.functional.rms_norm nn.functional.scaled_dot_product_attention""",
    "asks for another dtype or layout": "float half bfloat16 to_sparse masked.argmax masked.argmin",
}
if torch.__version__ < "2.12":
    EXCEPTIONS["the native kernel of 2.11 chooses its regions in the narrow dtype"] = (
        "nn.functional.fractional_max_pool3d"
    )
ALLOWED = {name: reason for reason, names in EXCEPTIONS.items() for name in names.split()}

# The same for ops of which only some samples differ; the few samples of the fast run are held to agree.
SOMETIMES = {
    "the native kernel rounds alpha, a Python number, to its dtype first": "add sub rsub",
    "the native kernel rounds what it computes on the way to its result": """
        nn.functional.binary_cross_entropy nn.functional.binary_cross_entropy_with_logits
        nn.functional.embedding_bag""",
}
ALLOWED_IN_WHOLE = ALLOWED | {name: reason for reason, names in SOMETIMES.items() for name in names.split()}


def both(op: Any, sample: Any, format: Format, dtype: torch.dtype) -> tuple[Any, Any] | None:
    """The results of one sample in our arithmetic and in the native dtype; None if either cannot do it."""
    ours = tree_map(lambda x: x.to_lp(format) if is_operand(x) else x, sample)
    native = tree_map(lambda x: x.to(dtype) if is_operand(x) else x, sample)
    with escapes("allow"):
        mine, my_error = attempt(lambda: op(ours[0], *ours[1], **ours[2]))
    other, error = attempt(lambda: op(native[0], *native[1], **native[2]))
    return None if my_error or error else (mine, other)


@pytest.mark.parametrize(("format", "dtype"), NATIVE)
@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.slow, id="whole")])
@pytest.mark.timeout(900)
def test_every_op_gives_what_the_native_dtype_gives(
    format: Format, dtype: torch.dtype, count: int, record_property: Callable[[str, object], None]
) -> None:
    """Bit for bit where an op works on single elements; sums and products to the last place."""

    allowed = ALLOWED if count == 2 else ALLOWED_IN_WHOLE

    def check(op: Any) -> str | None:
        if dtype not in op.dtypes or full_name(op) in allowed:
            return None
        pointwise = isinstance(op, (UnaryUfuncInfo, BinaryUfuncInfo))
        worst, compared = "", False
        for sample in samples_of(op, count):
            results = None if "dtype" in sample[2] else both(op, sample, format, dtype)
            if results is None:
                continue
            for a, b in zip(tensors(results[0]), tensors(results[1]), strict=True):
                if b.dtype == dtype:
                    compared = True
                    if type(a) is not LPTensor:
                        worst = worst or f"{a.dtype} plain"
                    elif places(a, b) > (0 if pointwise else 1):
                        worst = worst or f"{places(a, b)} units in the last place"
                elif b.dtype == a.dtype and not b.is_complex():
                    worst = worst or ("" if same(a, b) else f"other values of {b.dtype}")
        return worst if compared or worst else None

    failures, total = each(op_database(), check)
    record_property("count", f"native {dtype}: {total - len(failures)} of {total}, {len(allowed)} exceptions")
    assert total > 390 - (len(allowed) - len(ALLOWED)) and not failures, report(failures, total, str(dtype))


EVERY_VALUE = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@pytest.mark.parametrize(("format", "dtype"), NATIVE)
@pytest.mark.parametrize(
    "op",
    # erf, gelu and sin have kernels of another accuracy for each dtype, which shows at a few numbers
    [torch.exp, torch.log, torch.tanh, torch.sigmoid, torch.reciprocal, torch.neg, torch.abs, torch.square, torch.sqrt]
    + [torch.relu, torch.floor, torch.round, torch.sign, torch.nn.functional.silu, torch.nn.functional.hardswish]
    + [lambda x: x * 3.0, lambda x: x / 3.0, lambda x: 1 / x, lambda x: x + x, lambda x: x * x, lambda x: x - x],
)
def test_functions_of_one_number_agree_on_every_number_of_the_format(
    op: Any, format: Format, dtype: torch.dtype
) -> None:
    native = EVERY_VALUE.view(dtype)
    assert places(op(native.float().to_lp(format)), op(native)) == 0


@pytest.mark.parametrize(("format", "dtype"), NATIVE)
@pytest.mark.parametrize(
    "op",
    [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.hypot, torch.fmod]
    + [torch.add, torch.gt, torch.eq, torch.le, lambda a, b: a.add_(b), lambda a, b: a.mul_(b), lambda a, b: a.copy_(b)]
    + [lambda a, b: torch.where(a > b, a, b), lambda a, b: a.t().add(b), lambda a, b: a.addcmul(a, b)]
    + [lambda a, b: torch.lerp(a, b, 0.5), lambda a, b: a.addcdiv(a, b, value=0.5), lambda a, b: a[:, 1:] - b[:, :-1]],
)
def test_functions_of_two_numbers_agree(op: Any, format: Format, dtype: torch.dtype) -> None:
    a, b = (torch.randn(400, 400).mul(3).to(dtype) for _ in range(2))
    ours, native = op(a.float().to_lp(format), b.float().to_lp(format)), op(a, b)
    if native.dtype == torch.bool:
        assert torch.equal(ours, native)
    else:
        assert places(ours, native) == 0


@pytest.mark.parametrize(("format", "dtype"), NATIVE)
@pytest.mark.parametrize(
    "op",
    [lambda a, b: a @ b, lambda a, b: a.sum(0), lambda a, b: a.mean(1), lambda a, b: torch.addmm(b, a, b)]
    + [lambda a, b: a.softmax(1), lambda a, b: a.var(1), lambda a, b: torch.logsumexp(a, 1), lambda a, b: a.norm()]
    + [lambda a, b: torch.bmm(a.view(4, 16, 64), b.view(4, 64, 16))],
)
def test_sums_and_products_agree_to_the_last_place_of_their_largest(
    op: Any, format: Format, dtype: torch.dtype
) -> None:
    """Near zero terms cancel and the order of summation shows, so the place is that of the largest result."""
    a, b = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
    ours, native = values(op(a.float().to_lp(format), b.float().to_lp(format))), op(a, b).float()
    place = native.abs().max() * torch.finfo(dtype).eps
    assert (ours - native).abs().max() <= place


def test_scalars_that_native_kernels_round_first_are_used_exactly_here() -> None:
    """Why add, sub, pow, fmod, remainder and atan2 with a scalar such as 0.1 are no part of the above."""
    x = torch.randn(1000).bfloat16()
    assert same(x.float().to_lp(BF16) + 0.1, (x.float() + 0.1).bfloat16())
    assert torch.equal(x + 0.1, (x.float() + torch.tensor(0.1).bfloat16().float()).bfloat16())


def test_alpha_is_what_sets_native_sums_apart() -> None:
    """Our sum takes alpha as it is; the native one agrees with the sum whose alpha was rounded first."""
    a, b = (torch.randn(4000).bfloat16() for _ in range(2))
    ours = torch.add(a.float().to_lp(BF16), b.float().to_lp(BF16), alpha=3.14)
    exact = (a.double() + 3.14 * b.double()).bfloat16().float()
    rounded = (a.double() + torch.tensor(3.14).bfloat16().item() * b.double()).bfloat16().float()
    native = torch.add(a, b, alpha=3.14).float()
    assert (ours.dequantize() != exact).sum() < 40 < (native != exact).sum()
    assert (native != rounded).sum() < 40
