"""Composite operators that need more than to round each op that they are made of.

torch takes them apart above the level at which LPTensors see ops. Some fill plain memory, in which the format would be
lost, as a write there looks like any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lptensor import _compat
from lptensor.process_wide import without_cudnn, without_onednn


def _vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:  # torch's name
    n = len(x) if N is None else N
    if x.dim() != 1 or n < 0:
        raise RuntimeError(f"vander takes a vector and N of at least 0, got shape {tuple(x.shape)} and N={n}")
    dtype = torch.promote_types(x.dtype, torch.int64)
    columns = [torch.ones_like(x, dtype=dtype)[:, None]] if n else [x.new_empty((len(x), 0), dtype=dtype)]
    if n > 1:
        columns.append(x[:, None].expand(-1, n - 1).cumprod(1))
    powers = torch.cat(columns, 1)
    return powers if increasing else powers.flip(1)


def _pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    if not sequences or padding_side not in ("left", "right"):
        raise ValueError(f"pad_sequence takes some sequences and the side 'left' or 'right', got {padding_side!r}")
    first, longest = sequences[0], max(x.shape[0] for x in sequences)

    def padded(x: Tensor) -> Tensor:
        missing = longest - x.shape[0]
        x = x.to(first.dtype)
        if x.shape[1:] != first.shape[1:]:  # a view for nothing costs as much as an op
            x = x.expand(x.shape[0], *first.shape[1:])
        around = (missing, 0) if padding_side == "left" else (0, missing)
        return pad(x, (*(0, 0) * (x.dim() - 1), *around), value=padding_value) if missing else x

    return torch.stack([padded(x) for x in sequences], 0 if batch_first else 1)


def _pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    present = batch_sizes.tolist()  # how many sequences there are at each time
    missing = total_length - len(present) if total_length > 0 else 0
    if missing < 0:
        raise RuntimeError(f"a total_length of {total_length} is less than the longest sequence, {len(present)}")
    output = _pad_sequence(data.split(present), True, padding_value)
    if missing:
        output = pad(output, (*(0, 0) * (output.dim() - 1), 0, missing), value=padding_value)
    lengths = (batch_sizes[:, None] > torch.arange(present[0], device=batch_sizes.device)).sum(0)
    return output.transpose(0, 1) if batch_first else output, lengths


def _pack_padded_sequence_backward(
    grad: Tensor, input_size: Sequence[int], batch_sizes: Tensor, batch_first: bool
) -> Tensor:
    return _pad_packed_sequence(grad, batch_sizes, batch_first, 0.0, input_size[batch_first])[0]


FORMULAS: dict[str, Callable[..., Any]] = {
    "vander": _vander,
    "pad_sequence": _pad_sequence,
    "_pad_packed_sequence": _pad_packed_sequence,
    "_pack_padded_sequence_backward": _pack_padded_sequence_backward,
}


def _amid_zeros(view: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradient of a view: that of what it shows, and zeros elsewhere."""

    def formula(grad: Tensor, size: Sequence[int], *where: int) -> Tensor:
        whole = grad.new_zeros(size)
        view(whole, *where).copy_(grad)
        return whole

    return formula


BATCHES = {
    "slice_backward": _amid_zeros(torch.ops.aten.slice),
    "select_backward": _amid_zeros(torch.select),
    "diagonal_backward": _amid_zeros(torch.diagonal),
    "trace_backward": _amid_zeros(torch.diagonal),
}

# Recurrent layers and cells, and where their state stands among the arguments. What comes of the input is added in
# place to what comes of the state, which is as plain as state and weights are.
_RECURRENT = ("rnn_tanh", "rnn_relu", "gru", "lstm")
CELLS = {f"{kind}_cell": 1 for kind in _RECURRENT}
LAYERS = {f"{kind}.{data}": place for kind in _RECURRENT for data, place in (("input", 1), ("data", 2))}

# Those that answer yes or no: what they work out on the way is no result, and is not rounded.
QUESTIONS = {"isclose": 0, "isfinite": 0}


def with_values(cls: Any, place: int, args: tuple[Any, ...]) -> Any:
    """An operator's arguments, with the plain values of tensors in low precision."""
    return _compat.tree_map(lambda x: x._inner if type(x) is cls else x, args, Tensor)


def with_low_state(cls: Any, place: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A recurrent operator's arguments, the state in the format of the input or of a weight, if not all weights are."""
    low = next((x for x in _compat.leaves(args, Tensor) if type(x) is cls), None)
    weights = [x for x in _compat.leaves(args[place + 1 :], Tensor) if isinstance(x, Tensor)]
    if low is None or all(type(x) is cls for x in weights):
        return args
    state = _compat.tree_map(lambda x: x if type(x) is cls else x.to_lp(low.arithmetic), args[place], Tensor)
    return (*args[:place], state, *args[place + 1 :])


def step_by_step(cls: Any, args: tuple[Any, ...]) -> AbstractContextManager[None]:
    """A context in which a low-precision recurrent layer is some ops per time step, and not one for all."""
    given = [x for x in _compat.leaves(args, Tensor) if isinstance(x, Tensor)]
    low = next((x for x in given if isinstance(_compat.innermost(x), cls)), None)
    return nullcontext() if low is None else _WITHOUT_KERNELS.get(low.device.type, nullcontext())


_WITHOUT_KERNELS: dict[str, AbstractContextManager[None]] = {"cpu": without_onednn, "cuda": without_cudnn}
