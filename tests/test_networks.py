"""Networks of the kinds that people bring: a decoder with a cache, and image models; converted, trained, saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lptensor
from low import is_low, rounded, same, through_file, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, convert
from op_samples import bits
from oracles.aten_reference import AtenReference, by_cast

BOTH = Arithmetic(BF16, backward=E5M2)
NARROW = Arithmetic(E4M3, backward=E5M2)


# -- a decoder as in a library of language models -------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype)


class Rotary(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 100.0 ** (torch.arange(0, size, 2).float() / size), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, :, None].float() * self.inv_freq[None, None, :].float()
        both = torch.cat((angles, angles), -1)
        return both.cos().to(dtype=x.dtype), both.sin().to(dtype=x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


class Attention(nn.Module):
    """Grouped queries, a cache of keys and values, a mask made of finfo.min; eager, or in one kernel."""

    def __init__(self, size: int, heads: int, groups: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.groups, self.head, self.eager = heads, groups, size // heads, eager
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, groups * self.head, bias=False)
        self.v_proj = nn.Linear(size, groups * self.head, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, rotary: Any, cache: dict[str, Tensor] | None) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, self.head)
        q, k, v = (p(x).view(split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
            cache["k"], cache["v"] = k, v
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        if self.eager:
            weights = q @ k.transpose(2, 3) / math.sqrt(self.head) + mask
            out = F.softmax(weights, -1, dtype=torch.float32).to(q.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return y


class Block(nn.Module):
    def __init__(self, size: int, eager: bool) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(size), RMSNorm(size)
        self.self_attn = Attention(size, 4, 2, eager)
        self.gate_proj, self.up_proj = (nn.Linear(size, 2 * size, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(2 * size, size, bias=False)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), **how)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Decoder(nn.Module):
    WORDS, SIZE = 11, 16

    def __init__(self, eager: bool = True) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(self.WORDS, self.SIZE, padding_idx=0)
        self.layers = nn.ModuleList(Block(self.SIZE, eager) for _ in range(2))
        self.norm, self.rotary = RMSNorm(self.SIZE), Rotary(self.SIZE // 4)
        self.lm_head = nn.Linear(self.SIZE, self.WORDS, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor, padding: Tensor | None = None, caches: Any = None) -> Tensor:
        x: Tensor = self.embed_tokens(ids)
        past = caches[0]["k"].shape[2] if caches and caches[0] else 0
        total, new = past + ids.shape[1], ids.shape[1]
        hidden = torch.arange(total)[None, :] > torch.arange(past, total)[:, None]
        hidden = hidden[None, None].expand(len(ids), 1, new, total)
        if padding is not None:
            hidden = hidden | padding[:, None, None, :]
        format = getattr(x, "format", None)
        least = torch.finfo(x.dtype).min if format is None else lptensor.finfo(format).min
        mask = torch.zeros(hidden.shape).masked_fill(hidden, least)
        rotary = self.rotary(x, torch.arange(past, total)[None, :].expand(len(ids), -1))
        for i, layer in enumerate(self.layers):
            x = layer(x, mask=mask, rotary=rotary, cache=caches[i] if caches else None)
        y: Tensor = self.lm_head(self.norm(x))
        return y

    @torch.no_grad()
    def generate(self, ids: Tensor, count: int, cached: bool) -> Tensor:
        caches: Any = [{}, {}] if cached else None
        for i in range(count):
            logits = self(ids[:, -1:] if cached and i else ids, caches=caches)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        return ids


# -- image models ----------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Leaves whole samples of a branch out."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        kept.div_(1 - self.rate)
        return x * kept


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 2, 2), LayerNorm2d(8, eps=1e-6))
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma, self.drop = nn.Parameter(0.1 * torch.ones(8)), DropPath(0.25)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1)))))
        x = x + self.drop((self.gamma * y).permute(0, 3, 1, 2))
        z: Tensor = self.head(x.mean([-2, -1]))
        return z


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.relu, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        y = self.bn2(self.conv2(x))
        y += self.shortcut(x)
        z: Tensor = self.fc(self.pool(self.relu(y)).flatten(1))
        return z


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 16) * 0.02)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(16, eps=1e-6) for _ in range(3))
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale1, self.scale2 = (nn.Parameter(1e-1 * torch.ones(16)) for _ in range(2))
        self.drop, self.head = DropPath(0.25), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        q, k, v = self.qkv(self.norm1(x)).reshape(len(x), 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 5, 16)
        x = x + self.drop(self.proj(y).mul(self.scale1))
        x = x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))).mul_(self.scale2))
        z: Tensor = self.head(self.norm(x)[:, 0])
        return z


# -- what each is trained on ---------------------------------------------------------------------------


def words(logits: Callable[..., Tensor]) -> Tensor:
    """Every word is followed by the next: loss of a decoder on sequences with padding in front."""
    start = torch.randint(1, 10, (6, 1))
    ids = (start + torch.arange(7)) % 10 + 1
    ids[:2, :2] = 0
    out = logits(ids[:, :-1], padding=ids[:, :-1] == 0)
    return F.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)


def images(logits: Callable[..., Tensor]) -> Tensor:
    """Bright, dark, upright stripes or level ones."""
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    kinds = torch.stack([torch.ones(8, 8), -torch.ones(8, 8), stripes, stripes.t()])
    where = torch.arange(12) % 4
    return F.cross_entropy(logits(kinds[where][:, None] + torch.randn(12, 1, 8, 8) * 0.3), where)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "decoder": (Decoder, words),
    "decoder, fused attention": (lambda: Decoder(eager=False), words),
    "convnext": (ConvNext, images),
    "resnet": (ResNet, images),
    "vision transformer": (VisionTransformer, images),
}


def made(name: str, arithmetic: Any = None, **how: Any) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    return model if arithmetic is None else convert(model, arithmetic, **how)


def watch(model: nn.Module) -> list[Any]:
    """Every tensor that any module returns from now on."""
    seen: list[Any] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        seen.extend(x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor))

    for module in model.modules():
        if not isinstance(module, Rotary):  # frequencies are fp32 buffers, and so are their cosines
            module.register_forward_hook(note)
    return seen


@pytest.mark.parametrize("arithmetic", [BOTH, NARROW], ids=["bf16", "e4m3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_and_every_output_is_on_its_grid(name: str, arithmetic: Arithmetic) -> None:
    model, loss_of = made(name, arithmetic), NETWORKS[name][1]
    assert arithmetic.forward is not None
    seen = watch(model)
    optimizer = convert(torch.optim.AdamW(model.parameters(), lr=0.02), {"exp_avg_sq": lptensor.FP32})
    losses = []
    for i in range(20):
        torch.manual_seed(i)
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    assert seen and all(is_low(x, arithmetic.forward) and values(x).isfinite().all() for x in seen)
    assert is_low(loss, arithmetic.forward)
    for p in model.parameters():
        assert is_low(p, arithmetic.forward) and is_low(p.grad, E5M2)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4]), losses


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_rounds_where_the_contract_says(name: str) -> None:
    """Two steps of SGD, gradients and statistics bit for bit those of plain tensors under the reference."""
    ours, theirs, loss_of = made(name, BOTH), made(name), NETWORKS[name][1]
    reference = AtenReference(by_cast(torch.bfloat16), by_cast(torch.float8_e5m2))
    for p in theirs.parameters():
        p.data = reference.low(p)
    least = torch.finfo(torch.bfloat16).min
    for seed in range(2):
        torch.manual_seed(seed)
        ours.zero_grad()
        got = loss_of(ours)
        got.backward()
        torch.manual_seed(seed)
        theirs.zero_grad()
        with reference:
            with _masking(least):
                want = loss_of(theirs)
            seed_of_graph = reference.low(torch.ones(()))
            with reference.gradients():
                want.backward(seed_of_graph)
        assert torch.equal(bits(values(got)), bits(values(want)))
        for (path, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(bits(values(p.grad)), bits(values(q.grad))), path
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(a, b)
        torch.optim.SGD(ours.parameters(), lr=0.1).step()
        with reference:
            torch.optim.SGD(theirs.parameters(), lr=0.1).step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(bits(values(p)), bits(values(q)))


class _masking:
    """torch.finfo says another least value, as it would for a model of another dtype."""

    def __init__(self, least: float) -> None:
        self._least, self._before = least, torch.finfo

    def __enter__(self) -> None:
        torch.finfo = lambda dtype: type("finfo", (), {"min": self._least})  # type: ignore[misc, assignment]

    def __exit__(self, *_: Any) -> None:
        torch.finfo = self._before  # type: ignore[misc]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_saved_and_loaded(name: str) -> None:
    model = made(name, NARROW, buffers=True)
    NETWORKS[name][1](model)
    other = made(name, NARROW, buffers=True)
    other.load_state_dict(through_file(model.state_dict()))
    outs = []
    for m in (model, other):
        torch.manual_seed(1)
        outs.append(NETWORKS[name][1](m.eval()))
    assert same(*outs)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("arithmetic", [BOTH, NARROW], ids=["bf16", "e4m3"])
def test_a_decoder_generates_and_its_cache_holds_low_precision(arithmetic: Arithmetic, eager: bool) -> None:
    torch.manual_seed(0)
    model: Any = convert(Decoder(eager), arithmetic).eval()
    ids = torch.tensor([[1, 2, 3], [5, 6, 7]])
    longer = model.generate(ids, 4, cached=True)
    assert longer.shape == (2, 7) and longer.dtype == torch.int64 and torch.equal(longer[:, :3], ids)
    caches: Any = [{}, {}]
    for part in ids.split(1, 1):
        last = model(part, caches=caches)
    assert all(is_low(t, arithmetic.forward) and t.shape[2] == 3 for c in caches for t in c.values())  # type: ignore[arg-type]
    whole = model(ids)[:, -1:]
    tolerance = {BF16: 2.0**-5, E4M3: 0.5}[arithmetic.forward]  # type: ignore[index]
    torch.testing.assert_close(values(last), values(whole), rtol=tolerance, atol=tolerance)  # sums in another order


def test_tied_embeddings_stay_one_parameter_through_training() -> None:
    model: Any = made("decoder", BOTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words(model).backward()
    optimizer.step()
    assert model.lm_head.weight is model.embed_tokens.weight
    assert is_low(model.embed_tokens.weight, BF16)
    assert type(model.rotary.inv_freq) is Tensor and "rotary.inv_freq" not in model.state_dict()


def test_parts_of_a_network_may_stay_plain() -> None:
    """Norms and head in fp32, the rest in E4M3: the usual recipe."""
    model = made("vision transformer", {"norm*": None, "head": None, "*": NARROW})
    kinds = {name: isinstance(p, LPTensor) for name, p in model.named_parameters()}
    assert not kinds["norm1.weight"] and not kinds["head.weight"] and kinds["qkv.weight"] and kinds["cls_token"]
    out = images(model)
    out.backward()
    assert is_low(out, E4M3)  # what leaves the head comes back into the arithmetic around it
    for name, p in model.named_parameters():
        assert isinstance(p.grad, LPTensor) is kinds[name]
    assert same(rounded(values(model.get_parameter("qkv.weight")), E4M3), model.get_parameter("qkv.weight"))
