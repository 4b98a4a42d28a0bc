"""Masks of attention and padding, in formats that saturate and in formats that overflow to infinity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lptensor
from low import is_low, rounded, same, values
from lptensor import BF16, E2M1, E4M3, E5M2, FP16, Arithmetic, LPTensor, convert
from module_samples import Sample
from twins import COARSE, EIGHT, FIXED, HALF, NARROW, Twins

INF, LEAST = float("inf"), torch.finfo(torch.float32).min
CASES = {"bf16 and e5m2": NARROW, "fp16": HALF, "e5m2": EIGHT, "e4m3": COARSE, "fixed point": FIXED}
OVERFLOWING = {BF16: torch.bfloat16, FP16: torch.float16}  # with dtypes of torch's own

# Row 2 sees nothing at all.
SEEN = torch.ones(4, 4, dtype=torch.bool).tril()
SEEN[2] = False


def additive(value: float) -> Tensor:
    return torch.zeros(4, 4).masked_fill(~SEEN, value)


MASKS = {"bool": SEEN, "-inf": additive(-INF), "finfo.min": additive(LEAST)}


class Attention(nn.Module):
    """scaled_dot_product_attention as a module, for the twins."""

    def __init__(self, backend: SDPBackend | None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.backend is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def heads(count: int = 3) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    return tuple(torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(count))


# -- scaled_dot_product_attention ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, SDPBackend.MATH], ids=["default", "math"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_attention_rounds_where_the_contract_says_with_every_mask(case: str, mask: str, backend: Any) -> None:
    sample = Sample(lambda: Attention(backend), heads(), {"mask": MASKS[mask]})
    assert not Twins(sample, CASES[case], True, False).run()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("format", [BF16, FP16, E5M2, E4M3])
def test_fused_attention_uses_the_mask_exactly(format: Any, mask: str) -> None:
    """One rounding of what plain attention gives: no weight where masked, zeros or the mean where all is."""
    q, k, v = (x.detach().to_lp(format) for x in heads())  # type: ignore[attr-defined]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=MASKS[mask])
    want = F.scaled_dot_product_attention(values(q), values(k), values(v), attn_mask=MASKS[mask])
    assert is_low(out, format) and same(out, rounded(want, format))
    alone = rounded(values(v)[..., 0, :], format)
    assert same(out[..., 0, :], alone)  # the first row sees the first value alone
    if mask == "finfo.min":
        torch.testing.assert_close(values(out)[..., 2, :], values(v).mean(-2), rtol=2**-3, atol=2**-4)
    else:
        assert not values(out)[..., 2, :].any()


@pytest.mark.parametrize(("format", "row"), [(BF16, "zero"), (FP16, "zero"), (E5M2, "zero"), (E4M3, "mean")])
def test_attention_in_steps_masks_by_the_formats_overflow(format: Any, row: str) -> None:
    """Scores plus mask are a result and round: a format that saturates has no -inf by which a row is empty."""
    q, k, v = (x.detach().to_lp(format) for x in heads())  # type: ignore[attr-defined]
    with sdpa_kernel(SDPBackend.MATH):
        out = values(F.scaled_dot_product_attention(q, k, v, attn_mask=MASKS["-inf"]))
    assert out.isfinite().all() and out[..., 2, :].any().item() is (row == "mean")


@pytest.mark.parametrize("reduced", [False, True])
def test_attention_in_steps_rounds_where_native_dtypes_do_if_they_are_told_to(reduced: bool) -> None:
    """With one number a head and two keys no sum depends on its order."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(50, 4, 2, 1).bfloat16() for _ in range(3))
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            native = F.scaled_dot_product_attention(q, k, v)
            ours = F.scaled_dot_product_attention(*(x.to_lp(BF16) for x in (q, k, v)))  # type: ignore[attr-defined]
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    assert same(ours, native.float()) is reduced


@pytest.mark.parametrize("why", ["no heads", "dropout"])
def test_attention_is_taken_apart_without_heads_and_with_dropout(why: str) -> None:
    q, k, v = (x.detach().to_lp(E4M3) for x in heads())  # type: ignore[attr-defined]
    if why == "no heads":
        out = F.scaled_dot_product_attention(q[0], k[0], v[0], attn_mask=MASKS["-inf"])
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=MASKS["-inf"], dropout_p=1e-6)
    assert values(out)[..., 2, :].any()  # the mean, as in steps


# -- masks by hand -------------------------------------------------------------------------------------


def by_fill(scores: Tensor, value: float) -> Tensor:
    return scores.masked_fill(~SEEN, value).softmax(-1)


def by_sum(scores: Tensor, value: float) -> Tensor:
    return (scores + additive(value).to(scores.dtype)).softmax(-1)


def by_where(scores: Tensor, value: float) -> Tensor:
    return torch.where(SEEN, scores, value).softmax(-1)


HAND = [by_fill, by_sum, by_where]


@pytest.mark.parametrize("hand", HAND)
@pytest.mark.parametrize("format", OVERFLOWING)
def test_minus_infinity_by_hand_is_that_of_the_native_dtype(format: Any, hand: Callable[..., Tensor]) -> None:
    scores = torch.randn(4, 4).to(OVERFLOWING[format])
    got, want = hand(scores.float().to_lp(format), -INF), hand(scores, -INF)  # type: ignore[attr-defined]
    assert is_low(got, format) and same(got, want.to(OVERFLOWING[format]).float())
    assert values(got)[2].isnan().all() and not values(got)[0, 1:].any()


@pytest.mark.parametrize("hand", HAND)
@pytest.mark.parametrize("format", OVERFLOWING)
def test_the_least_value_of_the_format_is_that_of_the_native_dtype(format: Any, hand: Callable[..., Tensor]) -> None:
    """torch.finfo(x.dtype) is that of fp32, whose least value the format has not; its own is a finite mask."""
    scores = torch.randn(4, 4).to(OVERFLOWING[format])
    least = torch.finfo(OVERFLOWING[format]).min
    assert lptensor.finfo(format).min == least
    low = scores.float().to_lp(format)  # type: ignore[attr-defined]
    got, want = hand(low, least), hand(scores, least)
    assert same(got, want.to(OVERFLOWING[format]).float()) and same(got[2], torch.full((4,), 0.25))
    assert values(hand(low, LEAST))[2].isnan().all() and torch.finfo(low.dtype).min == LEAST


@pytest.mark.parametrize("hand", HAND)
@pytest.mark.parametrize("value", [-INF, LEAST])
def test_in_a_format_that_saturates_an_infinite_mask_is_its_least_value(hand: Any, value: float) -> None:
    scores = rounded(torch.randn(4, 4) * 8, E4M3)
    got = hand(scores.to_lp(E4M3), value)  # type: ignore[attr-defined]
    want = rounded(torch.where(SEEN, scores, -448.0).softmax(-1), E4M3)
    assert same(got, want) and same(got[2], torch.full((4,), 0.25)) and not values(got)[0, 1:].any()


def test_where_the_least_value_is_near_the_scores_a_mask_by_hand_leaks_and_attention_does_not() -> None:
    scores = torch.full((4, 4), -6.0).to_lp(E2M1)  # type: ignore[attr-defined]
    assert same(by_fill(scores, -INF)[1], rounded_e2m1(torch.full((4,), 0.25)))  # two of four were masked
    q = torch.tensor([[4.0, 0.0]]).expand(4, 2).contiguous().view(1, 1, 4, 2)
    k, v = -q, torch.tensor([2.0, 4.0, 6.0, 6.0]).view(1, 1, 4, 1).expand(1, 1, 4, 2)
    low = [x.to_lp(E2M1) for x in (q, k, v)]  # type: ignore[attr-defined]
    out = F.scaled_dot_product_attention(*low, attn_mask=MASKS["-inf"])
    assert same(out[0, 0, 1], torch.tensor([3.0, 3.0]))  # the mean of the two values that it sees


def rounded_e2m1(x: Tensor) -> Tensor:
    """By the list of its values; ties to even by their place in it."""
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    index = torch.bucketize(x, (grid[1:] + grid[:-1]) / 2)  # a tie stays below
    tie = (x == ((grid[1:] + grid[:-1]) / 2)[index.clamp(max=6)]) & (index % 2 == 1)
    return grid[index + tie]


# -- layers --------------------------------------------------------------------------------------------

PADDING = torch.tensor([[False, False, True], [False, True, True]])
CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
LAYER_MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": dict(attn_mask=CAUSAL),
    "float": dict(attn_mask=torch.zeros(3, 3).masked_fill(CAUSAL, -INF)),
    "least": dict(attn_mask=torch.zeros(3, 3).masked_fill(CAUSAL, LEAST)),
    "padding": dict(key_padding_mask=PADDING),
    "float padding": dict(key_padding_mask=torch.zeros(2, 3).masked_fill(PADDING, -INF)),
    "both": dict(attn_mask=CAUSAL, key_padding_mask=PADDING),
    "an empty sequence": dict(key_padding_mask=torch.tensor([[False, False, True], [True, True, True]])),
}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("masks", LAYER_MASKS)
@pytest.mark.parametrize("case", CASES)
def test_multihead_attention_rounds_where_the_contract_says(case: str, masks: str, weights: bool) -> None:
    x = torch.randn(2, 3, 8, requires_grad=True)
    given = {"need_weights": weights, **LAYER_MASKS[masks]}
    sample = Sample(lambda: nn.MultiheadAttention(8, 2, batch_first=True), (x, x, x), given)
    for training in (True, False):
        wrong = Twins(sample, CASES[case], training, False).run()
        assert not wrong, wrong


ENCODER_MASKS: dict[str, dict[str, Any]] = {
    "bool": dict(mask=CAUSAL, src_key_padding_mask=PADDING),
    "float": dict(mask=torch.zeros(3, 3).masked_fill(CAUSAL, -INF)),
    "causal": dict(mask=nn.Transformer.generate_square_subsequent_mask(3), is_causal=True),
}


@pytest.mark.parametrize("masks", ENCODER_MASKS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # nested tensors and mismatched kinds of masks
def test_a_transformer_encoder_rounds_where_the_contract_says(case: str, masks: str) -> None:
    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2)

    sample = Sample(build, (torch.randn(2, 3, 8, requires_grad=True),), ENCODER_MASKS[masks])
    for training in (True, False):
        wrong = Twins(sample, CASES[case], training, False).run()
        assert not wrong, wrong


@pytest.mark.parametrize("format", [BF16, E4M3])
@pytest.mark.filterwarnings("ignore")
def test_padding_changes_nothing_for_what_is_seen(format: Any) -> None:
    """A padded sequence gives, where it is not padding, what the sequence alone gives: also without a graph."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = convert(nn.TransformerEncoder(layer, 2), format).eval()
    x = torch.randn(1, 3, 8)
    padded = torch.cat([x, torch.randn(1, 2, 8) * 5], 1).to_lp(format)  # type: ignore[attr-defined]
    mask = torch.tensor([[False] * 3 + [True] * 2])
    for guard in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with guard():
            alone, beside = model(x.to_lp(format)), model(padded, src_key_padding_mask=mask)  # type: ignore[attr-defined]
            unit = {BF16: 2.0**-7, E4M3: 2.0**-3}[format]  # sums over three and over five have their own order
            torch.testing.assert_close(values(beside[:, :3]), values(alone), rtol=unit, atol=unit)
            assert is_low(beside, format)


# -- where a mask may become low precision ---------------------------------------------------------------


class Masked(nn.Module):
    """A causal mask among the buffers, as many models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.register_buffer("causal_mask", additive(-INF))
        self.register_buffer("scale", torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        x = x[:, None]  # with a dimension of heads it is one kernel
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.causal_mask)[:, 0]


def test_buffers_called_mask_stay_exact() -> None:
    model = convert(Masked(), E4M3, buffers=True)
    assert type(model.causal_mask) is Tensor and torch.isinf(model.causal_mask).any()
    assert isinstance(model.scale, LPTensor)
    out = model(torch.randn(1, 4, 4).to_lp(E4M3))  # type: ignore[attr-defined]
    assert is_low(out, E4M3) and not values(out)[:, 2].any()


def test_a_mask_that_is_put_into_a_format_is_rounded_like_anything() -> None:
    mask = additive(-INF)
    assert values(mask.to_lp(E4M3)).min() == -448 and torch.isinf(values(mask.to_lp(BF16))).any()  # type: ignore[attr-defined]


def test_padding_does_not_reach_the_gradient() -> None:
    arithmetic = Arithmetic(E4M3, backward=E5M2)
    k = torch.randn(1, 2, 4, 8).to_lp(arithmetic).requires_grad_()  # type: ignore[attr-defined]
    mask = torch.tensor([True, True, False, False])
    F.scaled_dot_product_attention(k, k, k, attn_mask=mask.expand(4, 4)).sum().backward()
    q, key, v = (torch.randn(1, 2, 4, 8).to_lp(arithmetic).requires_grad_() for _ in range(3))  # type: ignore[attr-defined]
    F.scaled_dot_product_attention(q, key, v, attn_mask=mask.expand(4, 4)).sum().backward()
    for x in (key, v):
        assert not values(x.grad)[..., 2:, :].any() and values(x.grad)[..., :2, :].any() and is_low(x.grad, E5M2)
