"""Philox4x32-10 in plain integers, from Salmon, Moraes, Dror and Shaw, SC 2011, section 3.3 and table 2."""

from __future__ import annotations

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1, as 0.32 fixed point

# Known answers of Random123 (kat_vectors, "philox4x32 10"): counter, key, result.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    left0, right0, left1, right1 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = left0 * MULTIPLIERS[0], left1 * MULTIPLIERS[1]
        left0, right0, left1, right1 = (
            (product1 >> 32) ^ right0 ^ k0,
            product1 % 2**32,
            (product0 >> 32) ^ right1 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + WEYL[0]) % 2**32, (k1 + WEYL[1]) % 2**32
    return left0, right0, left1, right1


def word_of_element(element: int, seed: int, offset: int) -> int:
    """The random word of an element: lane l of group b has counter 32 b + l; its word w serves 128 b + 32 w + l."""
    group, place = divmod(element, 128)
    word, lane = divmod(place, 32)
    index = 32 * group + lane
    counter = (index % 2**32, index >> 32, offset % 2**32, offset >> 32)
    return philox(counter, (seed % 2**32, seed >> 32))[word]
