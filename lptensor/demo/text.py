"""Next characters of the Python language's own help texts, and a small transformer that predicts them."""

from __future__ import annotations

import math
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lptensor.demo.data import Digits

WINDOW, TRAIN_WINDOWS, TEST_WINDOWS = 64, 1600, 200
VOCABULARY = "".join(sorted(map(chr, range(32, 127)))) + "\n"  # the last one stands for all others


def load_text() -> Digits:
    """Windows of 64 characters, int64 (n, 64), and with each the characters that come one later.

    The help texts of the ``pydoc_data.topics`` that comes with Python, in order of their names; the
    last of the windows taken are the test's. Another Python has other texts, and gives other figures.
    """
    text = "\n".join(topics[name] for name in sorted(topics))
    code = {character: i for i, character in enumerate(VOCABULARY)}
    needed = (TRAIN_WINDOWS + TEST_WINDOWS) * WINDOW + 1
    codes = torch.tensor([code.get(c, len(code) - 1) for c in text[:needed]])
    inputs, labels = codes[:-1].view(-1, WINDOW), codes[1:].view(-1, WINDOW)
    return Digits(inputs[:TRAIN_WINDOWS], labels[:TRAIN_WINDOWS], inputs[TRAIN_WINDOWS:], labels[TRAIN_WINDOWS:])


class Block(nn.Module):
    """Attention to what came before, and two linear layers, each after a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        down: Tensor = self.down(torch.relu(self.up(self.norm2(x))))
        return x + down


class TextNet(nn.Module):
    """(n, t) codes to (n, 96, t) logits: two blocks of width 64 with four heads, 112,000 parameters."""

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(VOCABULARY), width)
        self.places = nn.Embedding(WINDOW, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(blocks)))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, len(VOCABULARY), bias=False)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=1 / math.sqrt(width))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.tokens(codes) + self.places.weight[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits.transpose(1, 2)
