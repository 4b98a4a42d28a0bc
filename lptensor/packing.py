"""True bit packing: codes of 1 to 16 bits without the gaps that bytes would leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from lptensor.base import as_int, check_int
from lptensor.codes import code_dtype


def packed_bytes(shape: int | Sequence[int], bits: int) -> int:
    """How many bytes ``pack`` takes for codes of this shape (or count).

    Raises:
        TypeError: what is not an integer.
        ValueError: a negative size, or bits outside 1 to 16.

    >>> packed_bytes((3, 100), 5)
    188
    """
    return -(-prod(_sizes(shape)) * check_int("bits", bits, 1, 16) // 8)


def _sizes(shape: int | Sequence[int]) -> list[int]:
    given = [*shape] if isinstance(shape, Iterable) and as_int(shape) is None else [shape]
    sizes = [check_int("a size", size, -(2**62), 2**62) for size in given]
    if any(size < 0 for size in sizes):
        raise ValueError(f"a shape has no negative sizes, got {shape!r}")
    return sizes


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of ``bits`` bits as one row of bytes, ``packed_bytes(codes.shape, bits)`` of them.

    Element i, in contiguous order, has the bits ``i * bits`` to ``(i + 1) * bits - 1``, counted from the
    lowest bit of the first byte. What is left of the last byte is 0.

    Args:
        codes: integers from 0 to 2**bits - 1, any integer dtype, shape and device; where the codes
            fill a signed dtype, its bit patterns.
        bits: 1 to 16.

    Raises:
        TypeError: codes or bits are not integers.
        ValueError: a code out of range, bits outside 1 to 16.

    >>> pack(torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]), 3).tolist()
    [209, 88, 31]
    """
    bits = check_int("bits", bits, 1, 16)
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"codes must be a tensor of integers, got {got}")
    flat = codes.reshape(-1).long()
    if codes.dtype.itemsize * 8 == bits:
        flat = flat & 2**bits - 1
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 2**bits:
        outside = (flat < 0) | (flat >= 2**bits)
        raise ValueError(f"codes of {bits} bits are 0 to {2**bits - 1}, got {flat[outside][0].item()}")
    halves = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 2, 4)  # 8 codes fill `bits` bytes
    places, octets = _places(bits, flat.device)
    words = (halves << places).sum(-1, keepdim=True) >> octets
    groups, wide = words.new_zeros(len(words), bits), len(octets)
    groups[:, :wide] = words[:, 0]
    groups[:, bits - wide :] += words[:, 1]  # both have bits in the byte in the middle, if `bits` is odd
    return groups.to(torch.uint8).reshape(-1)[: packed_bytes(flat.numel(), bits)]


def _places(bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where, in the words that hold four codes of a group each, the codes begin, and where the bytes of a word do."""
    four = torch.arange(4, device=device) * bits
    return torch.stack((four, four + 4 * bits % 8)), torch.arange(-(-bits // 2), device=device) * 8


def unpack(packed: Tensor, bits: int, shape: int | Sequence[int]) -> Tensor:
    """The codes that ``pack`` put into ``packed``, in the given shape: uint8 to 8 bits, int16 beyond, as of ``encode``.

    Args:
        packed: uint8, ``packed_bytes(shape, bits)`` elements.
        bits: of a code, 1 to 16.
        shape: of the codes, or how many there are.

    Raises:
        TypeError: packed is not a uint8 tensor, or bits or a size not an integer.
        ValueError: its length does not fit the shape, bits out of range, a negative size.

    >>> unpack(torch.tensor([209, 88, 31], dtype=torch.uint8), 3, (2, 4))
    tensor([[1, 2, 3, 4],
            [5, 6, 7, 0]], dtype=torch.uint8)
    """
    shape, bits = _sizes(shape), check_int("bits", bits, 1, 16)
    wanted = packed_bytes(shape, bits)
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        raise TypeError(f"packed codes are a uint8 tensor, got {getattr(packed, 'dtype', type(packed).__name__)}")
    if packed.numel() != wanted:
        raise ValueError(f"codes of {bits} bits and shape {tuple(shape)} take {wanted} bytes, got {packed.numel()}")
    flat = packed.reshape(-1)
    groups = torch.nn.functional.pad(flat, (0, -flat.numel() % bits)).reshape(-1, bits)
    places, octets = _places(bits, flat.device)
    wide = len(octets)
    halves = torch.stack((groups[:, :wide], groups[:, bits - wide :]), 1)
    codes: Tensor = (halves << octets).sum(-1, keepdim=True) >> places & 2**bits - 1
    return codes.to(code_dtype(bits)).reshape(-1)[: prod(shape)].reshape(shape)
