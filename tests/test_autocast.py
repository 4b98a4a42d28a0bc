"""autocast over LPTensors: an error that says what to do, never a loss of low precision that nobody sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from low import is_low
from lptensor import BF16, E4M3, LPTensor, convert, escapes

DTYPES = [torch.bfloat16, torch.float16]


def low(*shape: int) -> Tensor:
    made: Tensor = torch.randn(*shape).to_lp(BF16)  # type: ignore[attr-defined]
    return made


# Ops of autocast's lists: those it runs in the low dtype, in fp32, and in the widest of their operands.
OPS: dict[str, Callable[[], Any]] = {
    "linear": lambda: F.linear(low(2, 4), low(3, 4)),
    "matmul": lambda: low(2, 4) @ low(4, 3),
    "bmm": lambda: torch.bmm(low(2, 3, 4), low(2, 4, 3)),
    "conv": lambda: F.conv2d(low(1, 2, 5, 5), low(3, 2, 3, 3)),
    "attention": lambda: F.scaled_dot_product_attention(low(1, 2, 3, 4), low(1, 2, 3, 4), low(1, 2, 3, 4)),
    "plain weight": lambda: F.linear(low(2, 4), torch.randn(3, 4)),
    "plain input": lambda: F.linear(torch.randn(2, 4), low(3, 4)),
    "softmax": lambda: F.softmax(low(2, 4), -1),
    "loss": lambda: F.mse_loss(low(2, 4), low(2, 4)),
    "norm": lambda: F.layer_norm(low(2, 4), (4,)),
    "sum": lambda: low(2, 4).sum(),
    "cat": lambda: torch.cat([low(2, 4), low(2, 4)]),
    "add": lambda: low(2, 4) + low(2, 4),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_an_op_under_autocast_stays_low_or_raises(name: str, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        try:
            result = OPS[name]()
        except RuntimeError as error:
            message = str(error)
            assert "autocast off" in message and "convert(model, None)" in message and "escapes" in message
        else:
            assert is_low(result, BF16)
    assert is_low(OPS[name](), BF16)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)), (3, 4)),
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (2, 2, 6, 6)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (2, 3, 8)),
    "lstm": (lambda: nn.LSTM(4, 4), (3, 2, 4)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "low"])
@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_under_autocast_says_what_to_do(name: str, mode: str, kind: str, dtype: torch.dtype) -> None:
    build, shape = MODELS[name]
    model = convert(build(), E4M3).train(mode == "train")
    x = torch.randn(shape).to_lp(E4M3) if kind == "low" else torch.randn(shape)  # type: ignore[attr-defined]
    guard = torch.no_grad if mode == "no_grad" else torch.enable_grad
    with guard(), torch.autocast("cpu", dtype=dtype), pytest.raises(RuntimeError, match=r"turn\s+autocast off"):
        model(x)
    out = model(x)
    assert all(is_low(t, E4M3) for t in ((out[0], *out[1]) if isinstance(out, tuple) else (out,)))
    for p in model.parameters():
        assert is_low(p, E4M3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_of_the_model_can_be_taken_out_of_autocast(dtype: torch.dtype) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            assert x.dtype == dtype
            with torch.autocast("cpu", enabled=False):
                y: Tensor = self.head(x)
            return y

    model = convert(Mixed(), {"head": E4M3})
    with torch.autocast("cpu", dtype=dtype):
        out = model(torch.randn(3, 4))
    assert type(out) is Tensor and out.dtype == torch.float32
    out.sum().backward()
    assert isinstance(model.head.weight.grad, LPTensor) and type(model.body.weight.grad) is Tensor


def test_a_backward_pass_within_autocast_says_what_to_do() -> None:
    """autocast reaches into it, although PyTorch advises to leave it before."""
    model = convert(nn.Linear(4, 3), BF16)
    loss = model(torch.randn(5, 4)).square().sum()
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast off"):
        loss.backward(retain_graph=True)
    loss.backward()
    assert is_low(model.weight.grad, BF16)


def test_the_setting_lets_go_and_the_result_is_what_plain_values_give() -> None:
    model = convert(nn.Linear(4, 3), BF16)
    plain = convert(nn.Linear(4, 3), BF16)
    plain.load_state_dict(model.state_dict())
    convert(plain, None)
    x = torch.randn(5, 4)
    with escapes("allow"), torch.autocast("cpu"):
        assert torch.equal(model(x), plain(x)) and model(x).dtype == torch.bfloat16
    with escapes("warn"), torch.autocast("cpu"), pytest.warns(RuntimeWarning, match="autocast"):
        model(x)
