"""The state of an optimizer that is rounded after each step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from lptensor.observe import saying
from lptensor.optimizer_state import BOOKKEEPING, known_keys
from lptensor.parameters import round_values
from lptensor.quantizer import Quant, Step, as_step


@dataclass(frozen=True)
class Momenta:
    """What rounds which state: every one of its parameter's shape alike, or each key its own way."""

    every: Step | None = None
    by_key: dict[str, Step | None] = field(default_factory=dict)

    def rules(self) -> Iterator[Step | None]:
        yield from (self.every, *self.by_key.values())

    def check(self, optimizer: Optimizer) -> None:
        """Refuse a key that ``optimizer`` does not keep, as far as that is known by now.

        Raises:
            ValueError: such a key.
        """
        known = known_keys(optimizer) if self.by_key else set()
        for key in self.by_key:
            if known and key not in known:
                raise ValueError(f"momentum_quant names {key!r}, {type(optimizer).__name__} keeps {sorted(known)}")

    def surely_fits(self, optimizer: Optimizer) -> bool:
        """Whether it is known by now that ``optimizer`` keeps whatever is named."""
        return not self.by_key or bool(known_keys(optimizer))

    def round(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Round what ``optimizer`` keeps for these parameters, and warn if a rule for all of it finds nothing.

        Raises:
            ValueError: a key that it does not keep.
        """
        self.check(optimizer)
        stepped, found = False, False
        for p in parameters:
            stepped = True
            for key, value in optimizer.state.get(p, {}).items():
                if key in self.by_key:
                    rule, tensors = self.by_key[key], value if isinstance(value, list) else [value]
                elif isinstance(value, Tensor) and value.shape == p.shape and key not in BOOKKEEPING:
                    rule, tensors, found = self.every, [value], True
                else:
                    continue
                for tensor in tensors:
                    if rule is not None and isinstance(tensor, Tensor) and tensor.is_floating_point():
                        with saying("state", p):
                            round_values(tensor, rule)
        if self.every is not None and stepped and not found:
            warnings.warn(
                f"momentum_quant rounds nothing: {type(optimizer).__name__} keeps no state of its parameters' shapes; "
                "leave momentum_quant out, or let the optimizer have its momentum",
                stacklevel=2,
            )


def as_momenta(quant: Quant | Mapping[str, Quant | None] | None) -> Momenta:
    """What ``momentum_quant`` stands for: one rule for all, or a dict of rules by key."""
    if isinstance(quant, Mapping):
        return Momenta(None, {key: as_step(f"momentum_quant[{key!r}]", rule) for key, rule in quant.items()})
    return Momenta(as_step("momentum_quant", quant))
