"""Training in several processes: what FSDP asks of a parameter, and gradients that come back plain."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.watch import round_


class Sharded:
    """Methods by which ``torch.distributed.fsdp.fully_shard`` gathers the parts of a low-precision weight.

    The parts travel as they are and need no rounding where they arrive. Gradients are rounded by each process
    before they are added up, in fp32, and once after.
    """

    _inner: Tensor
    _arithmetic: Arithmetic

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: Any, module: torch.nn.Module, mp_policy: Any
    ) -> tuple[tuple[Tensor], tuple[Arithmetic]]:
        """The values of this part, with zeros up to the size of the largest, and what they are."""
        if mp_policy.param_dtype not in (None, torch.float32):
            raise TypeError(
                f"MixedPrecisionPolicy(param_dtype={mp_policy.param_dtype}) and an LPTensor, whose precision is its "
                "format; leave param_dtype out, or convert the model to that format"
            )
        for p in module.parameters(recurse=False):
            if _compat.local_part(p) is self and not hasattr(p, "_rounds_gradient"):
                p._rounds_gradient = p.register_post_accumulate_grad_hook(_round_gradient)  # type: ignore[attr-defined]
        values, rows = self._inner, -(-outer_size[0] // mesh.size())
        if values.shape[1:] == outer_size[1:] and len(values) < rows:
            values = torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])
        return (values,), (self._arithmetic,)

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor], arithmetic: tuple[Arithmetic], dtype: torch.dtype, *, out: Any = None
    ) -> tuple[Any, tuple[Tensor]] | None:
        """The whole weight; None where ``out`` is it already, as FSDP has filled the same memory again."""
        if out is not None:
            return None
        return type(self)(*gathered, *arithmetic), gathered  # type: ignore[call-arg]


def _round_gradient(p: Any) -> None:
    """A sum of the gradients of all processes becomes the gradient of a low-precision weight."""
    from torch.distributed.tensor import DTensor

    weight, grad = p.detach().to_local(), p.grad.to_local()
    if type(grad) is type(weight):
        return  # it was added to one of its kind, and rounded
    local = type(weight)(round_(grad.clone(), weight._arithmetic, True), weight._arithmetic, True)
    form = {"run_check": False, "shape": p.grad.shape, "stride": p.grad.stride()}
    p.grad = DTensor.from_local(local, p.grad.device_mesh, p.grad.placements, **form)


def refuse_distributed(x: Tensor) -> None:
    """Say that a DTensor may hold LPTensors, while an LPTensor holds no DTensor."""
    # None too while another thread imports the module, as the first use of an optimizer or a compiler may.
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is not None and isinstance(x, kind):
        raise TypeError(
            "a DTensor cannot become low precision, but it can hold what is: convert the model before fully_shard() "
            "or distribute_module(), a tensor before distribute_tensor()"
        )


def refuse_sharded(parameters: Iterable[Tensor], what: str) -> None:
    """Say that a step which rounds values itself cannot take DTensors, of which each process has a part."""
    if any(_compat.local_part(p) is not None for p in parameters):
        raise TypeError(
            f"{what} takes whole tensors, got a DTensor as fully_shard() makes them; convert the model before that, "
            "and step it with a torch optimizer as it is: weights and state are then rounded to the weights' formats"
        )


def broadcast_values(cls: type) -> None:
    """Let DistributedDataParallel send the values of low-precision tensors as they are, as it does other tensors'."""
    _compat.broadcast_as(lambda x: x._inner if type(x) is cls else x)  # type: ignore[attr-defined]


def refuse_views_of_buckets(cls: type) -> None:
    """Let no optimizer step with gradients that DistributedDataParallel has replaced by unrounded, plain ones."""

    def before_step(optimizer: Any, *_: Any) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        for group in optimizer.param_groups:
            for p in group["params"]:
                grad = p.grad
                if type(p) is cls and type(grad) is Tensor and _compat.is_view(grad):
                    raise RuntimeError(
                        "the gradient of an LPTensor is a plain view of other memory, and was not rounded; say "
                        "DistributedDataParallel(..., gradient_as_bucket_view=False)"
                    )

    register_optimizer_step_pre_hook(before_step)
