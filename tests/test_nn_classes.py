"""Every module class of torch.nn, converted, against the contract on plain tensors: forward, backward, buffers."""

from __future__ import annotations

import pytest
from torch import Tensor

from module_samples import module_classes, samples_of
from twins import COARSE, NARROW, Case, Twins

pytestmark = pytest.mark.filterwarnings("ignore")  # the samples use what torch deprecates

NAMES = list(module_classes())


def test_every_class_has_a_sample() -> None:
    """A class that a new PyTorch brings is decided here: it gets a sample, or a place in a list of those without."""
    without = [name for name in NAMES if not samples_of(name, True, 1)]
    assert not without and len(NAMES) > 140


@pytest.fixture(autouse=True)
def _plain_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """``x.new()`` makes a tensor of x's kind, of which the reference sees nothing: here it asks new_empty()."""
    monkeypatch.setattr(Tensor, "new", lambda self, *shape: self.new_empty(shape or (0,)))


# How many samples of each class, in which formats, with buffers or without.
DEPTHS = [
    pytest.param(2, NARROW, False, id="fast"),
    pytest.param(2, NARROW, True, id="buffers", marks=pytest.mark.slow),
    pytest.param(2, COARSE, False, id="saturating", marks=pytest.mark.slow),
    pytest.param(40, NARROW, True, id="whole", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "case", "buffers"), DEPTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_converted_module_rounds_where_the_contract_says(name: str, count: int, case: Case, buffers: bool) -> None:
    for training in (True, False):
        for sample in samples_of(name, training, count):
            wrong = Twins(sample, case, training, buffers).run()
            assert not wrong, f"{name}, {'training' if training else 'evaluation'}: {wrong}"
