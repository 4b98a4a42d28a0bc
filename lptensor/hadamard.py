"""An orthogonal transform of both operands of a product, which spreads outliers over a block."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lptensor import observe
from lptensor.base import set_int
from lptensor.formats import FixedPoint
from lptensor.ops import round_fresh
from lptensor.rounding import as_rounding
from lptensor.scaling import check_one_of
from lptensor.text import constant, renamed

SIGNS = ("fixed", "random", "none")


@constant
@renamed(block="block_size")
@dataclass(frozen=True)
class Hadamard:
    """Blocks of the contraction axis times a sign matrix and a Hadamard matrix over sqrt(block_size).

    A product keeps its value in exact arithmetic, since both operands get the same orthogonal
    matrix; rounded operands lose less to outliers (Tseng et al., 2502.20586). An axis that is no
    multiple of ``block_size`` counts as if zeros followed, in both operands: they change no product. The
    transform is log2(block_size) steps of additions, and one product with 1 / sqrt(block_size), in the
    dtype of the operand; a NaN or an infinity reaches its whole block.

    Args:
        block_size: a power of two, 2 to 1024.
        signs: one vector of ``block_size`` signs for all blocks: "fixed", the same always; "random", fresh
            for every product, from torch's CPU generator (torch.compile may merge the draws of a
            graph); or "none".
        seed: chooses the fixed signs.

    Raises:
        TypeError, ValueError: a block size that is not a power of two from 2 to 1024, other signs, a seed outside 0 to
            2**63 - 1.

    >>> x = torch.randn(3, 40)
    >>> h = Hadamard(16)
    >>> torch.allclose(h.apply(x, h.draw(x)) @ h.apply(x, h.draw(x)).T, x @ x.T, atol=1e-4)
    True
    """

    block_size: int = 16
    signs: str = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        set_int(self, "block_size", 2, 1024)
        if self.block_size & (self.block_size - 1):
            raise ValueError(
                f"a Hadamard block must be a power of two such as 16, 32, 64 or 128, got {self.block_size}"
            )
        check_one_of("signs", self.signs, SIGNS)
        set_int(self, "seed", 0, 2**63 - 1)

    def draw(self, like: Tensor) -> Tensor | None:
        """The signs of one product, in the dtype and on the device of an operand."""
        if self.signs == "none":
            return None
        if self.signs == "fixed":
            bits = _bits(self.block_size, self.seed)
            return (_signs if like.device.type == "cpu" else _signs_there)(self.block_size, bits, like)
        # Halves rounded to integers: 0 and 1 are equally probable, and the key is drawn as for any rounding.
        halves = torch.full((self.block_size,), 0.5, dtype=like.dtype, device=like.device)
        with observe.unseen() if observe.anyone else nullcontext():
            return round_fresh(halves, FixedPoint(4, 0), as_rounding("stochastic")) * 2 - 1

    def apply(self, x: Tensor, signs: Tensor | None) -> Tensor:
        """A tensor (..., contraction) transformed; its last axis grows to a multiple of ``block_size``."""
        short = -x.shape[-1] % self.block_size
        blocks = torch.nn.functional.pad(x, (0, short)).unflatten(-1, (-1, self.block_size))
        if signs is not None:
            blocks = blocks * signs
        half = 1
        while half < self.block_size:  # Sylvester's construction: sums and differences of the two halves
            a, b = blocks.unflatten(-1, (-1, 2, half)).unbind(-2)
            blocks = torch.stack((a + b, a - b), -2).flatten(-3)
            half *= 2
        transformed: Tensor = (blocks * (1.0 / math.sqrt(self.block_size))).flatten(-2)
        return transformed


@cache
def _bits(block: int, seed: int) -> int:
    return random.Random(seed).getrandbits(block)


def _signs(block: int, bits: int, like: Tensor) -> Tensor:
    """The bits of a number as signs."""
    return torch.tensor([1 - 2 * (bits >> i & 1) for i in range(block)], dtype=like.dtype, device="cpu")


def _signs_there(block: int, bits: int, like: Tensor) -> Tensor:
    """The same, made on a device: a copy to it would wait for it, and fail where a graph is captured."""
    places = torch.arange(min(block, 32), device=like.device)
    words = [bits >> start & 0xFFFFFFFF for start in range(0, block, 32)]
    return 1 - 2 * torch.cat([torch.bitwise_right_shift(word, places) & 1 for word in words]).to(like.dtype)
