"""Layers and optimizer steps in low precision, written out by hand with PyTorch's own 8- and 16-bit dtypes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def through(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounding to nearest even, done by a cast to ``dtype`` and back."""
    return lambda x: x.to(dtype).to(x.dtype)


def fixed(fraction_bits: int, word_bits: int) -> Callable[[Tensor], Tensor]:
    """Two's complement fixed point to nearest even: scale, round to an integer, clamp, scale back."""
    top = 2 ** (word_bits - 1)
    return lambda x: (x.double() * 2**fraction_bits).round().clamp(-top, top - 1).div(2**fraction_bits).to(x.dtype)


class CastBothWays(torch.autograd.Function):
    """Casts the value to one dtype going forward, and the gradient to another going back."""

    @staticmethod
    def forward(ctx, x, forward_dtype, backward_dtype):
        ctx.dtype = backward_dtype
        return x.to(forward_dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).to(grad.dtype), None, None


def sgd(weight, gradients, lr, momentum, weight_decay, grad, acc, store, buf, scale=1.0):
    """The weights after each of SGD's steps, in double precision, with the four roundings in between.

    v = momentum * v + (g + weight_decay * a);  a = acc(a - lr * v);  w = store(a);  v = buf(v).
    """
    a, v, weights = weight.double(), torch.zeros_like(weight).double(), []
    for g in gradients:
        v = momentum * v + grad(g.double() * scale) + weight_decay * a
        a = acc(a - lr * v)
        weights.append(store(a))
        v = buf(v)
    return weights


class HandLP:
    """The bare optimizer, with every rounding of a low-precision step done around it."""

    def __init__(self, optim, params, grad, acc, weight, momentum, momentum_keys, scale=1.0):
        self.optim, self.params, self.scale = optim, params, scale
        self.grad, self.acc, self.weight, self.momentum = grad, acc, weight, momentum
        self.momentum_keys = momentum_keys
        self.accumulators = [p.detach().clone() for p in params]

    @torch.no_grad()
    def _round_gradients(self):
        for p in self.params:
            p.grad = self.grad(p.grad * self.scale)

    def step(self, closure):
        self.evaluations = 0

        def evaluate():
            here = [p.detach().clone() for p in self.params]
            with torch.no_grad():
                for p, w, x in zip(self.params, weights, here, strict=True):
                    p.copy_(w if self.evaluations == 0 else self.weight(self.acc(x)))
            self.evaluations += 1
            with torch.enable_grad():
                loss = closure()
            self._round_gradients()
            with torch.no_grad():
                for p, x in zip(self.params, here, strict=True):
                    p.copy_(x)
            return loss

        weights = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, a in zip(self.params, self.accumulators, strict=True):
                p.copy_(a)
        self.optim.step(evaluate)
        with torch.no_grad():
            self.accumulators = [self.acc(p.clone()) for p in self.params]
            for p, a in zip(self.params, self.accumulators, strict=True):
                p.copy_(self.weight(a))
                for key in self.momentum_keys:
                    self.optim.state[p][key].copy_(self.momentum(self.optim.state[p][key]))
