"""The random words: known answers, one layout everywhere, and nothing shared between keys."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from lptensor import _native, ops, reference
from lptensor.formats import E4M3, FixedPoint
from lptensor.ops import draw_key
from lptensor.rounding import Stochastic
from oracles.philox import KNOWN, philox, word_of_element
from rounders import NATIVE_BUILDS, assert_same_bits, run

word32 = st.integers(0, 2**32 - 1)


class Key(ctypes.Structure):
    _fields_ = (("seed", ctypes.c_uint64), ("offset", ctypes.c_uint64))


def native_words(index: int, seed: int, offset: int) -> tuple[int, ...]:
    out = (ctypes.c_uint32 * 4)()
    _native.library().lpt_philox_words(index, ctypes.byref(Key(seed, offset)), out)
    return tuple(out)


def native_word(element: int, seed: int, offset: int) -> int:
    return int(_native.library().lpt_random_word(element, ctypes.byref(Key(seed, offset))))


def reference_words(index: int, seed: int, offset: int) -> tuple[int, ...]:
    signed = index - 2**64 if index >= 2**63 else index
    return tuple(int(word) for word in reference.philox(torch.tensor([signed]), (seed, offset)))


def joined(low: int, high: int) -> int:
    return low | high << 32


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    index, offset, seed = joined(*counter[:2]), joined(*counter[2:]), joined(*key)
    assert philox(counter, key) == expected
    assert reference_words(index, seed, offset) == expected
    assert native_words(index, seed, offset) == expected


@settings(max_examples=200)
@given(st.tuples(word32, word32, word32, word32), st.tuples(word32, word32))
def test_all_implementations_agree_on_any_counter(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    index, offset, seed = joined(*counter[:2]), joined(*counter[2:]), joined(*key)
    expected = philox(counter, key)
    assert reference_words(index, seed, offset) == expected
    assert native_words(index, seed, offset) == expected


def test_the_word_of_an_element_is_the_same_everywhere() -> None:
    seed, offset = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    expected = [word_of_element(i, seed, offset) for i in range(700)]
    assert reference.random_words(700, (seed, offset)).tolist() == expected
    assert [native_word(i, seed, offset) for i in range(700)] == expected


@pytest.mark.parametrize("element", [2**31 - 1, 2**31, 2**32 + 77, 2**40 + 129])
def test_elements_beyond_31_bits_have_words_of_their_own(element: int) -> None:
    assert native_word(element, 1, 2) == word_of_element(element, 1, 2)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 127, 128, 129, 255, 300])
def test_each_element_is_rounded_by_its_word(n: int, rounder: str) -> None:
    """With 32 bits and half a spacing to go, the leading bit of the word is the decision."""
    y = run(rounder, torch.full((n,), 0.5), FixedPoint(8, 0), "stochastic", (11, 12))
    assert y.tolist() == [float(word_of_element(i, 11, 12) >> 31) for i in range(n)]


@pytest.mark.parametrize("whole", [0, 1], ids=["below the spacing", "above it"])
def test_a_value_goes_up_if_fraction_and_word_carry_over(whole: int, rounder: str) -> None:
    """At the one fraction where they sum to 2**32 - 1 it stays, at the next one it goes."""
    size = 8192
    words = torch.tensor([word_of_element(i, 21, 22) for i in range(size)])
    fit = words & 511 == 511  # then the fraction is one that float32 has
    assert fit.sum() > 5
    last = 2**32 - 1 - words
    for fraction, up in ((last, 0.0), (last + 512, 1.0)):
        x = torch.where(fit, whole + fraction / 2**32, 0).float()
        y = run(rounder, x, FixedPoint(8, 0), "stochastic", (21, 22))
        assert (y[fit] == whole + up).all()


@pytest.mark.parametrize("key", [(-1, -(2**63)), (2**63 - 1, -5), (0, 0)])
def test_negative_keys_mean_their_64_bits(key: tuple[int, int]) -> None:
    """torch draws keys as signed integers."""
    x = torch.linspace(-1, 1, 300)
    expected = [word_of_element(i, key[0] % 2**64, key[1] % 2**64) for i in range(300)]
    assert reference.random_words(300, key).tolist() == expected
    for build in NATIVE_BUILDS:
        assert_same_bits(run(build, x, E4M3, "stochastic", key), run("reference", x, E4M3, "stochastic", key))


@pytest.mark.parametrize(
    "other", [(6, 7), (5, 8), (4, 7), (5, 6), (7, 5), (5 ^ 2**32, 7), (5, 7 ^ 2**32), (5 ^ 2**63, 7)], ids=str
)
def test_neighbouring_keys_share_no_words_beyond_chance(other: tuple[int, int]) -> None:
    """A stream that is another one reordered passes tests of correlation, but not this one."""
    n = 2**16
    a, b = (reference.random_words(n, key).numpy() for key in ((5, 7), other))
    expected = n * n / 2**32
    assert len(np.intersect1d(a, b)) < expected + 6 * expected**0.5
    assert (a == b).sum() <= 2
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5


def test_words_are_uniform() -> None:
    words = reference.random_words(2**18, (1, 0)).numpy()
    for shift in (0, 8, 16, 24):
        counts = np.bincount(words >> shift & 255, minlength=256)
        expected = len(words) / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5
    assert len(np.unique(words)) > 2**18 - 40  # about eight repeats by chance


def test_keys_follow_the_generator_and_never_repeat() -> None:
    keys = [draw_key() for _ in range(1000)]
    torch.manual_seed(0)
    assert [draw_key() for _ in range(1000)] == keys
    assert len({half for key in keys for half in key}) == 2000


def in_inference_mode() -> None:
    with torch.inference_mode():
        draw_key()


def in_a_gradient() -> None:
    torch.func.grad(lambda x: (draw_key(), x)[1])(torch.tensor(1.0))


@pytest.mark.parametrize("first", [in_inference_mode, in_a_gradient, draw_key])
@pytest.mark.parametrize("then", [in_inference_mode, in_a_gradient, draw_key])
def test_a_thread_draws_wherever_it_drew_first(first: Any, then: Any) -> None:
    def draws() -> tuple[int, int]:
        first()
        then()
        torch.manual_seed(5)
        return draw_key()

    with ThreadPoolExecutor(1) as pool:
        key = pool.submit(draws).result()
    assert key == drawn(5)


def drawn(seed: int) -> tuple[int, ...]:
    torch.manual_seed(seed)
    return tuple(torch.empty(2, dtype=torch.int64).random_().tolist())


def test_a_draw_among_fakes_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ops._local, "words", raising=False)  # PyTorch 2.11 has no fakes in a second thread
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        draw_key()
    torch.manual_seed(5)
    assert draw_key() == drawn(5)


@settings(max_examples=30)
@given(st.integers(0, 2**63 - 1), st.integers(1, 32))
def test_a_prefix_of_a_tensor_rounds_as_it_does_alone(seed: int, bits: int) -> None:
    x = torch.linspace(-300, 300, 515)
    for rounder in ("reference", *NATIVE_BUILDS):
        whole = run(rounder, x, E4M3, Stochastic(bits), (seed, 1))
        for n in (1, 31, 130, 384):
            assert_same_bits(run(rounder, x[:n], E4M3, Stochastic(bits), (seed, 1)), whole[:n])
