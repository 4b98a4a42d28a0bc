"""Operands for the functions that the contract "function" lists."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Tensor]
S = (2, 4, 6)

# Each listed function, with the shapes of its float operands.
FUNCTIONS: dict[str, tuple[Function, tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, ((3, 5), (4, 5), (4,))),
    "bilinear": (F.bilinear, ((3, 4), (3, 5), (2, 4, 5), (2,))),
    "conv1d": (F.conv1d, ((2, 3, 8), (4, 3, 3), (4,))),
    "conv2d": (F.conv2d, ((2, 3, 6, 6), (4, 3, 3, 3), (4,))),
    "conv3d": (F.conv3d, ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), (3,))),
    "conv_transpose1d": (F.conv_transpose1d, ((2, 3, 5), (3, 4, 3), (4,))),
    "conv_transpose2d": (F.conv_transpose2d, ((2, 3, 5, 5), (3, 4, 3, 3), (4,))),
    "conv_transpose3d": (F.conv_transpose3d, ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), (3,))),
    "conv_tbc": (F.conv_tbc, ((5, 2, 3), (3, 3, 4), (4,))),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, ((2, 2, 5, 4),) * 3),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (6,), w, b), (S, (6,), (6,))),
    "rms_norm": (lambda x, w: F.rms_norm(x, (6,), w), (S, (6,))),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (S, (4,), (4,))),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (S, (4,), (4,))),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), (S, (4,), (4,))),
    "local_response_norm": (lambda x: F.local_response_norm(x, 3), (S,)),
    "normalize": (F.normalize, (S,)),
    "softmax": (lambda x: F.softmax(x, -1), (S,)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), (S,)),
    "softmin": (lambda x: F.softmin(x, -1), (S,)),
    "gumbel_softmax": (lambda x: F.gumbel_softmax(x), (S,)),
    "dropout": (F.dropout, (S,)),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, training=True), (S,)),
    "feature_alpha_dropout": (lambda x: F.feature_alpha_dropout(x, training=True), (S,)),
    "dropout1d": (F.dropout1d, (S,)),
    "dropout2d": (F.dropout2d, ((2, 4, 3, 3),)),
    "dropout3d": (F.dropout3d, ((2, 4, 2, 2, 2),)),
    "gelu": (F.gelu, (S,)),
    "silu": (F.silu, (S,)),
    "mish": (F.mish, (S,)),
    "elu": (F.elu, (S,)),
    "celu": (lambda x: F.celu(x, 0.7), (S,)),
    "selu": (F.selu, (S,)),
    "leaky_relu": (F.leaky_relu, (S,)),
    "prelu": (F.prelu, (S, (4,))),
    "rrelu": (lambda x: F.rrelu(x, training=True), (S,)),
    "relu6": (F.relu6, (S,)),
    "softplus": (F.softplus, (S,)),
    "softshrink": (F.softshrink, (S,)),
    "softsign": (F.softsign, (S,)),
    "tanhshrink": (F.tanhshrink, (S,)),
    "log_sigmoid": (F.logsigmoid, (S,)),
    "glu": (F.glu, (S,)),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), (S,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3), ((2, 3, 6, 6),)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 3), ((2, 3, 6, 6, 6),)),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 4), (S,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 4), ((2, 3, 6, 6),)),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), ((2, 3, 5, 5, 5),)),
    "lp_pool1d": (lambda x: F.lp_pool1d(x.abs(), 2.0, 2), (S,)),
    "lp_pool2d": (lambda x: F.lp_pool2d(x.abs(), 2.0, 2), ((2, 3, 6, 6),)),
    "lp_pool3d": (lambda x: F.lp_pool3d(x.abs(), 2.0, 2), ((2, 3, 6, 6, 6),)),
    "mse_loss": (F.mse_loss, (S, S)),
    "l1_loss": (F.l1_loss, (S, S)),
    "smooth_l1_loss": (F.smooth_l1_loss, (S, S)),
    "huber_loss": (F.huber_loss, (S, S)),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="batchmean", log_target=True), (S, S)),
    "poisson_nll_loss": (lambda x: F.poisson_nll_loss(x, torch.ones(S), full=True), (S,)),
    "gaussian_nll_loss": (lambda x, y: F.gaussian_nll_loss(x, y, torch.ones(S)), (S, S)),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([1, 4, 0])), ((3, 6),)),
    "nll_loss": (lambda x: F.nll_loss(x, torch.tensor([1, 4, 0])), ((3, 6),)),
    "binary_cross_entropy_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(S)), (S,)),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, torch.ones(S)), (S,)),
    "hinge_embedding_loss": (lambda x: F.hinge_embedding_loss(x, -torch.ones(S)), (S,)),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, torch.tensor([1, 4, 0])), ((3, 6),)),
    "multilabel_margin_loss": (lambda x: F.multilabel_margin_loss(x, torch.tensor([[1, -1, 0, 2]])), ((1, 4),)),
    "multilabel_soft_margin_loss": (lambda x: F.multilabel_soft_margin_loss(x, torch.ones(3, 6)), ((3, 6),)),
    "margin_ranking_loss": (lambda x, y: F.margin_ranking_loss(x, y, torch.ones(5)), ((5,), (5,))),
    "cosine_embedding_loss": (lambda x, y: F.cosine_embedding_loss(x, y, torch.ones(3)), ((3, 6), (3, 6))),
    "triplet_margin_loss": (F.triplet_margin_loss, ((3, 6),) * 3),
    "triplet_margin_with_distance_loss": (F.triplet_margin_with_distance_loss, ((3, 6),) * 3),
    "ctc_loss": (
        lambda x: F.ctc_loss(
            x.view(5, 2, 4), torch.tensor([[1, 2], [3, 1]]), torch.tensor([5, 5]), torch.tensor([2, 2])
        ),
        ((5, 2, 4),),
    ),
    "cosine_similarity": (F.cosine_similarity, (S, S)),
    "pairwise_distance": (F.pairwise_distance, ((3, 6), (3, 6))),
    "pdist": (F.pdist, ((4, 6),)),
    "embedding_bag": (lambda w: F.embedding_bag(torch.tensor([[0, 2], [1, 1]]), w), ((4, 3),)),
    "grid_sample": (lambda x, g: F.grid_sample(x, g, align_corners=False), ((1, 2, 4, 4), (1, 3, 3, 2))),
    "affine_grid": (lambda t: F.affine_grid(t, [1, 2, 3, 3], align_corners=False), ((1, 2, 3),)),
}
