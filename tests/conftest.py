"""Fixtures and markers that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from rounders import NATIVE_BUILDS, choose_build, chosen_build

# Deadlines measure a shared machine, not the code.
settings.register_profile("lptensor", deadline=None, print_blob=True, database=None)
settings.load_profile("lptensor")


@pytest.fixture(params=["reference", *NATIVE_BUILDS])
def rounder(request: pytest.FixtureRequest) -> Iterator[str]:
    """The code that rounds: the reference, or one build of the kernels."""
    yield request.param


@pytest.fixture(autouse=True)
def _global_state_survives() -> Iterator[None]:
    """Every test starts with the same seed, and leaves torch and the kernels as it found them."""
    build, threads = chosen_build(), torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    choose_build(build)


@pytest.fixture
def flush_denormal() -> Iterator[None]:
    """A machine that takes subnormal numbers for zero, on input and on output."""
    assert torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
