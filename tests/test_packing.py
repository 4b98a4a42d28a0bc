"""Packing without gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from lptensor.codes import encode
from lptensor.formats import BF16, E2M3, E3M2, FixedPoint
from lptensor.packing import pack, packed_bytes, unpack
from lptensor.posits import Posit

lists_of_codes = st.integers(1, 16).flatmap(
    lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=70))
)


@given(lists_of_codes)
def test_the_bits_are_one_number_with_the_first_code_lowest(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    number = sum(code << i * bits for i, code in enumerate(codes))
    packed = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert bytes(packed.tolist()) == number.to_bytes(packed_bytes(len(codes), bits), "little")


@given(lists_of_codes, st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int64]))
def test_unpacking_gives_the_codes_back(case: tuple[int, list[int]], dtype: torch.dtype) -> None:
    bits, codes = case
    if dtype.itemsize * 8 < bits or dtype == torch.int8 and bits > 8:
        dtype = torch.int16
    packed = pack(torch.tensor(codes, dtype=torch.int64).to(dtype), bits)  # of whole dtypes the bit patterns
    codes_again = unpack(packed, bits, len(codes))
    assert [code % 2**bits for code in codes_again.tolist()] == codes
    assert codes_again.dtype == (torch.uint8 if bits <= 8 else torch.int16)


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_memory_is_what_the_bits_take_rounded_up_to_a_byte(bits: int, count: int) -> None:
    packed = pack(torch.zeros(count, dtype=torch.int16), bits)
    assert packed.numel() == packed_bytes(count, bits) == (count * bits + 7) // 8
    assert packed.dtype == torch.uint8


@pytest.mark.parametrize(
    "format",
    [
        FixedPoint(3, 0),
        FixedPoint(5, 2),
        E3M2,
        E2M3,
        FixedPoint(7, 3),
        FixedPoint(10, 5),
        FixedPoint(12, 4),
        BF16,
        Posit(15),
    ],
    ids=repr,
)
def test_codes_of_a_tensor_keep_their_places(format: FixedPoint) -> None:
    codes = encode(torch.randn(3, 5, 7).transpose(0, 2), format)
    assert torch.equal(unpack(pack(codes, format.bits), format.bits, codes.shape), codes)


def test_bytes_of_any_shape_and_device_are_unpacked_there() -> None:
    packed = pack(torch.arange(16), 5)
    assert torch.equal(unpack(packed.view(5, 2), 5, 16), torch.arange(16, dtype=torch.uint8))
    assert unpack(packed.to("meta"), 5, (4, 4)).device.type == "meta"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pack(torch.tensor([3, 8, 9]), 3), ValueError, "codes of 3 bits are 0 to 7, got 8"),
        (lambda: pack(torch.tensor([-1]), 3), ValueError, "got -1"),
        (lambda: pack(torch.tensor([-1], dtype=torch.int8), 9), ValueError, "codes of 9 bits are 0 to 511, got -1"),
        (lambda: pack(torch.tensor([1]), 17), ValueError, "bits must be from 1 to 16, got 17"),
        (lambda: pack(torch.tensor([9]), -3), ValueError, "bits must be from 1 to 16, got -3"),
        (lambda: pack([1, 2], 3), TypeError, "tensor of integers, got list"),  # type: ignore[arg-type]
        (lambda: pack(torch.tensor([1j]), 3), TypeError, "tensor of integers, got torch.complex64"),
        (lambda: pack(torch.tensor([1.0]), 3), TypeError, "tensor of integers, got torch.float32"),
        (lambda: pack(torch.tensor([True]), 1), TypeError, "tensor of integers, got torch.bool"),
        (lambda: unpack(torch.zeros(3, dtype=torch.uint8), 3, 9), ValueError, r"shape \(9,\) take 4 bytes, got 3"),
        (lambda: unpack(torch.zeros(3), 3, 8), TypeError, "uint8 tensor, got torch.float32"),
        (lambda: unpack(torch.zeros(3, dtype=torch.int8), 3, 8), TypeError, "uint8 tensor, got torch.int8"),
        (lambda: unpack(b"abc", 3, 8), TypeError, "uint8 tensor, got bytes"),  # type: ignore[arg-type]
        (lambda: packed_bytes(8, 17), ValueError, "bits must be from 1 to 16, got 17"),
        (lambda: packed_bytes(8, 0), ValueError, "bits must be from 1 to 16, got 0"),
        (lambda: packed_bytes(8, 2.5), TypeError, "bits must be an integer"),  # type: ignore[arg-type]
        (lambda: packed_bytes((3, -1), 5), ValueError, r"no negative sizes, got \(3, -1\)"),
    ],
)
def test_bad_input_is_named(call: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]


def test_bytes_are_counted_of_any_integers_and_negative_sizes_are_refused() -> None:
    assert packed_bytes(np.int64(5), 5) == packed_bytes([5], 5) == packed_bytes(torch.Size([5]), 5) == 4
    assert packed_bytes(torch.tensor(5), 5) == packed_bytes(np.array(5), 5) == 4  # type: ignore[arg-type]
    assert packed_bytes((), 3) == 1 and packed_bytes((0, 7), 3) == 0 and packed_bytes(2**40, 4) == 2**39
    with pytest.raises(ValueError, match=r"no negative sizes, got \(-1, 3\)"):
        packed_bytes((-1, 3), 5)


def test_bytes_that_no_code_fills_are_refused() -> None:
    for packed in (torch.zeros(3, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="take 2 bytes, got"):  # 4 codes of 3 bits are 12 bits
            unpack(packed, 3, (2, 2))
