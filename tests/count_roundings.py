"""Counts the roundings of common functions under each contract: `python tests/count_roundings.py` prints the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lptensor import BF16
from lptensor.contracts import CONTRACTS
from lptensor.rounding_points import rounding_points
from lptensor.trace import trace

TARGET, LABELS = torch.full((4, 6), 0.5), torch.tensor([0, 1, 2, 3])

# By name as the table shows it, and the shapes of the low-precision operands.
CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, ((4, 6), (5, 6), (5,))),
    "linear, strided batch": (lambda x, w, b: F.linear(x.transpose(0, 1), w, b), ((4, 3, 6), (5, 6), (5,))),
    "conv2d": (F.conv2d, ((2, 3, 6, 6), (4, 3, 3, 3), (4,))),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, ((2, 2, 4, 6),) * 3),
    "softmax": (lambda x: F.softmax(x, -1), ((4, 6),)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), ((4, 6),)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b), ((4, 6), (6,), (6,))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (6,), w), ((4, 6), (6,))),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), ((4, 6, 3), (6,), (6,))),
    "batch_norm, training": (
        lambda x, w, b: F.batch_norm(x, torch.zeros(6), torch.ones(6), w, b, True),
        ((4, 6), (6,), (6,)),
    ),
    "relu": (F.relu, ((4, 6),)),
    "gelu": (F.gelu, ((4, 6),)),
    "silu": (F.silu, ((4, 6),)),
    "mish": (F.mish, ((4, 6),)),
    "softplus": (F.softplus, ((4, 6),)),
    "elu": (F.elu, ((4, 6),)),
    "leaky_relu": (F.leaky_relu, ((4, 6),)),
    "sigmoid": (torch.sigmoid, ((4, 6),)),
    "tanh": (torch.tanh, ((4, 6),)),
    "dropout": (F.dropout, ((4, 6),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), ((2, 3, 6, 6),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), ((2, 3, 6, 6),)),
    "mse_loss": (lambda x: F.mse_loss(x, TARGET), ((4, 6),)),
    "l1_loss": (lambda x: F.l1_loss(x, TARGET), ((4, 6),)),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, TARGET), ((4, 6),)),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), ((4, 6),)),
    "binary_cross_entropy_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, TARGET), ((4, 6),)),
    "kl_div": (lambda x: F.kl_div(x, TARGET, reduction="batchmean"), ((4, 6),)),
    "cosine_similarity": (F.cosine_similarity, ((4, 6), (4, 6))),
    "normalize": (F.normalize, ((4, 6),)),
}


def roundings(name: str, contract: str) -> tuple[int, int]:
    """Roundings of one call, forward and backward, with the gradients of all operands."""
    function, shapes = CASES[name]
    operands = [torch.rand(s).add(0.1).to_lp(BF16).requires_grad_() for s in shapes]  # type: ignore[attr-defined]
    with rounding_points(contract):
        with trace() as forward:
            result = function(*operands)
        (seed,) = torch.autograd.grad((result * 1).sum(), result)  # a gradient: what goes in is not counted
        with trace() as backward:
            torch.autograd.grad(result, operands, seed)
    return forward.count().total(), backward.count().total()


def table() -> str:
    """The table in markdown: forward + backward."""
    lines = ["| function | " + " | ".join(CONTRACTS) + " |", "|---|" + "---|" * len(CONTRACTS)]
    for name in CASES:
        counts = [roundings(name, contract) for contract in CONTRACTS]
        lines.append(f"| `{name}` | " + " | ".join(f"{f} + {b}" for f, b in counts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"torch {torch.__version__}\n")
    print(table())
