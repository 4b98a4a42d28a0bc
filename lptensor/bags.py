"""The sparse gradient of ``nn.EmbeddingBag(sparse=True)``, whose entries round as those of ``nn.Embedding`` do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def entry_by_entry(run: Callable[..., Any]) -> Callable[..., Any]:
    """The op as those that torch makes a sparse gradient of; one kernel makes a dense one."""

    def parts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        grad, indices, offsets, bags, sizes, _, rows, scales, mode, sparse, weights, *padding = args
        if not sparse:
            return run(args, kwargs)
        if not bags.numel():  # the forward pass has not said in which bag each index is
            places = torch.arange(len(indices), dtype=offsets.dtype, device=offsets.device)
            bags = torch.searchsorted(offsets, places, right=True).to(offsets.dtype) - 1
        entries = torch.ops.aten._embedding_bag_sparse_backward
        return entries(grad, indices, offsets, bags, sizes, rows, scales, mode, weights, *padding)

    return parts
