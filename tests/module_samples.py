"""Every module class of torch.nn with samples of its construction and call: PyTorch's own, and ours for the rest."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# They hold other modules or parameters, or need a process group or several devices.
CONTAINERS = {"Module", "Container", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"}
ABSTRACT = {"RNNBase", "RNNCellBase"}
NEEDS_DEVICES = {"DataParallel", "SyncBatchNorm"}


@dataclass(frozen=True)
class Sample:
    """How a module is made, and what it is called with. ``build`` draws from torch's generator."""

    build: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def module_classes() -> dict[str, type[nn.Module]]:
    """Every public module class of torch.nn, those without a definite call left out."""
    left_out = CONTAINERS | ABSTRACT | NEEDS_DEVICES
    return {
        name: kind
        for name, kind in sorted(vars(nn).items())
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and name not in left_out
    }


def samples_of(name: str, training: bool, count: int) -> list[Sample]:
    """Up to ``count`` samples of a class, none if nobody has written any."""
    kind = module_classes()[name]
    if name in _OWN:
        torch.manual_seed(0)
        return [Sample(build, args) for build, args in _OWN[name]()][:count]
    return list(islice(_of_the_database(kind, training), count))


def _of_the_database(kind: type[nn.Module], training: bool) -> Iterator[Sample]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_modules import module_db
    for info in module_db:
        if info.module_cls is kind:
            torch.manual_seed(0)
            given = info.module_inputs_func(info, "cpu", torch.float32, True, training)
            for sample in given:
                made, call = sample.constructor_input, sample.forward_input
                if call is not None:
                    yield Sample(lambda made=made: kind(*made.args, **made.kwargs), call.args, call.kwargs)


def _pooled(pool: Callable[..., Any], *shape: int) -> tuple[Tensor, Tensor]:
    values, indices = pool(torch.randn(shape), 2, return_indices=True)
    return values.requires_grad_(), indices


def _images(*shape: int) -> tuple[Tensor]:
    return (torch.randn(shape, requires_grad=True),)


def _three() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(4, 5, requires_grad=True) for _ in range(3))  # type: ignore[return-value]


_Rows = list[tuple[Callable[[], nn.Module], tuple[Any, ...]]]

_OWN: dict[str, Callable[[], _Rows]] = {
    "AdaptiveLogSoftmaxWithLoss": lambda: [
        (lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 6]), (*_images(5, 8), torch.tensor([0, 2, 4, 7, 9])))
    ],
    "AlphaDropout": lambda: [(lambda: nn.AlphaDropout(0.4), _images(3, 4))],
    "ChannelShuffle": lambda: [(lambda: nn.ChannelShuffle(2), _images(2, 4, 3, 3))],
    "CosineSimilarity": lambda: [(lambda: nn.CosineSimilarity(), _three()[:2])],
    "CrossMapLRN2d": lambda: [(lambda: nn.CrossMapLRN2d(3), _images(2, 5, 4, 4))],
    "Dropout": lambda: [
        (lambda: nn.Dropout(0.4), _images(3, 4)),
        (lambda: nn.Dropout(0.4, True), (torch.randn(3, 4),)),
    ],
    "Dropout1d": lambda: [(lambda: nn.Dropout1d(0.4), _images(3, 4, 5))],
    "Dropout2d": lambda: [(lambda: nn.Dropout2d(0.4), _images(3, 4, 5, 2))],
    "Dropout3d": lambda: [(lambda: nn.Dropout3d(0.4), _images(3, 4, 2, 2, 2))],
    "EmbeddingBag": lambda: [
        (lambda: nn.EmbeddingBag(7, 4, mode="sum"), (torch.tensor([[0, 2], [6, 6]]),)),
        (lambda: nn.EmbeddingBag(7, 4, mode="mean"), (torch.tensor([0, 2, 6, 6, 1]), torch.tensor([0, 3]))),
        (lambda: nn.EmbeddingBag(7, 4, mode="max"), (torch.tensor([[0, 2], [6, 5]]),)),
    ],
    "FeatureAlphaDropout": lambda: [(lambda: nn.FeatureAlphaDropout(0.4), _images(3, 4, 5))],
    "Flatten": lambda: [(lambda: nn.Flatten(), _images(2, 3, 4))],
    "Fold": lambda: [(lambda: nn.Fold((4, 5), (2, 2)), _images(2, 3 * 4, 12))],
    "FractionalMaxPool2d": lambda: [(lambda: nn.FractionalMaxPool2d(2, output_size=3), _images(2, 3, 7, 7))],
    "FractionalMaxPool3d": lambda: [(lambda: nn.FractionalMaxPool3d(2, output_size=3), _images(2, 2, 7, 7, 7))],
    "Hardsigmoid": lambda: [(lambda: nn.Hardsigmoid(), (torch.randn(4, 5).mul(4).requires_grad_(),))],
    "Identity": lambda: [(lambda: nn.Identity(), _images(3, 4))],
    "LazyBatchNorm1d": lambda: [(lambda: nn.LazyBatchNorm1d(), _images(6, 4))],
    "LazyBatchNorm2d": lambda: [(lambda: nn.LazyBatchNorm2d(), _images(3, 4, 5, 5))],
    "LazyBatchNorm3d": lambda: [(lambda: nn.LazyBatchNorm3d(), _images(3, 2, 3, 3, 3))],
    "LazyInstanceNorm1d": lambda: [(lambda: nn.LazyInstanceNorm1d(affine=True), _images(2, 4, 6))],
    "LazyInstanceNorm2d": lambda: [(lambda: nn.LazyInstanceNorm2d(affine=True), _images(2, 4, 5, 5))],
    "LazyInstanceNorm3d": lambda: [(lambda: nn.LazyInstanceNorm3d(track_running_stats=True), _images(2, 2, 3, 3, 3))],
    "LazyLinear": lambda: [(lambda: nn.LazyLinear(3), _images(4, 5))],
    "MaxUnpool1d": lambda: [(lambda: nn.MaxUnpool1d(2), _pooled(F.max_pool1d, 2, 3, 8))],
    "MaxUnpool2d": lambda: [(lambda: nn.MaxUnpool2d(2), _pooled(F.max_pool2d, 2, 3, 8, 8))],
    "MaxUnpool3d": lambda: [(lambda: nn.MaxUnpool3d(2), _pooled(F.max_pool3d, 2, 2, 4, 4, 4))],
    "NLLLoss2d": lambda: [(lambda: nn.NLLLoss2d(), (*_images(2, 3, 4, 4), torch.randint(3, (2, 4, 4))))],
    "PairwiseDistance": lambda: [(lambda: nn.PairwiseDistance(), _three()[:2])],
    "PixelShuffle": lambda: [(lambda: nn.PixelShuffle(2), _images(2, 8, 3, 3))],
    "PixelUnshuffle": lambda: [(lambda: nn.PixelUnshuffle(2), _images(2, 2, 4, 6))],
    "RReLU": lambda: [(lambda: nn.RReLU(), _images(4, 5)), (lambda: nn.RReLU(inplace=True), (torch.randn(4, 5),))],
    "TransformerDecoder": lambda: [
        (
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True), 2),
            (*_images(2, 3, 8), *_images(2, 4, 8)),
        )
    ],
    "TripletMarginLoss": lambda: [(lambda: nn.TripletMarginLoss(swap=True), _three())],
    "TripletMarginWithDistanceLoss": lambda: [(lambda: nn.TripletMarginWithDistanceLoss(), _three())],
    "Unflatten": lambda: [(lambda: nn.Unflatten(1, (2, 3)), _images(4, 6))],
    "Unfold": lambda: [(lambda: nn.Unfold((2, 2), padding=1), _images(2, 3, 4, 4))],
    "Upsample": lambda: [
        (lambda mode=mode: nn.Upsample(scale_factor=2, mode=mode), _images(1, 2, 4, 5))
        for mode in ("nearest", "bilinear", "bicubic")
    ],
    "UpsamplingBilinear2d": lambda: [(lambda: nn.UpsamplingBilinear2d(scale_factor=2), _images(1, 2, 4, 5))],
    "UpsamplingNearest2d": lambda: [(lambda: nn.UpsamplingNearest2d(scale_factor=2), _images(1, 2, 4, 5))],
}
