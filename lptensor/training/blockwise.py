"""Blockwise quantization: what 8-bit optimizers keep their moments in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lptensor.base import no_format, set_int
from lptensor.codebooks import DYNAMIC8, UDYNAMIC8, TableFormat
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding, as_rounding


@dataclass(frozen=True)
class Blockwise:
    """A function that rounds runs of elements to a table's values times the run's largest magnitude.

    Runs are those of the flattened tensor, the last may be short; x becomes s * R(x / s), s being
    the run's max|x|, in fp32 (Dettmers et al., 8-bit Optimizers via Block-wise Quantization,
    2110.02861, section 2). Give it to ``OptimLP`` for a state: ``momentum_quant=Blockwise.adam()``.

    Float32 and float64 tensors of any shape; the result is float32's values in the tensor's dtype.
    A run of zeros stays zero, one with NaN or an infinity becomes NaN. A table of positive values
    takes what is negative to its smallest value.

    Args:
        table: the values, from -1 (or 0) to 1: DYNAMIC8 for what has signs, UDYNAMIC8 for what has none.
        block_size: elements per run; the paper has 2048, its authors' library 256 since then;
            None is the whole tensor.
        min_size: smaller tensors stay as they are; both have 4096.
        rounding: to nearest by default.

    Raises:
        TypeError: a table that lists no values, sizes that are not integers.
        ValueError: a largest value other than 1, a block size below 1, a negative min_size, an unknown rounding.

    >>> state = Blockwise(DYNAMIC8, block_size=2, min_size=1)(torch.tensor([1.0, 0.5, 100.0, -50.0]))
    >>> state / state.abs().amax()
    tensor([ 0.0100,  0.0050,  1.0000, -0.5008])
    """

    table: TableFormat = DYNAMIC8
    block_size: int | None = 256
    min_size: int = 4096
    rounding: Rounding | Mode | str = "nearest"

    def __post_init__(self) -> None:
        if not isinstance(self.table, TableFormat):
            raise TypeError(
                "table must be a format that lists its values, such as DYNAMIC8 or "
                f"Codebook(E4M3.values() / 448), got {no_format(self.table)}"
            )
        if self.table.max != 1:
            raise ValueError(f"table must have 1 as its largest value, which is to be a run's, got {self.table.max}")
        if self.block_size is not None:
            set_int(self, "block_size", 1, 2**31)
        set_int(self, "min_size", 0, 2**62)
        object.__setattr__(self, "rounding", as_rounding(self.rounding))

    @classmethod
    def adam(cls, block_size: int = 256, min_size: int = 4096) -> dict[str, Blockwise]:
        """What the two moments of Adam and AdamW are kept in, by the names of their states."""
        return {
            "exp_avg": cls(DYNAMIC8, block_size, min_size),
            "exp_avg_sq": cls(UDYNAMIC8, block_size, min_size),
        }

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.table)
        n = x.numel()
        if n < max(self.min_size, 1):
            return x.clone()
        flat = x.reshape(-1).float()
        wide = min(self.block_size or n, n)
        runs = pad(flat, (0, -n % wide)).view(-1, wide)
        largest = runs.abs().amax(1, keepdim=True)
        scale = torch.where(largest == 0, torch.ones_like(largest), largest)
        rounded = round_fresh(runs / scale, self.table, as_rounding(self.rounding)) * scale
        rounded = torch.where(largest.isfinite(), rounded, torch.full_like(rounded, torch.nan))
        return rounded.view(-1)[:n].view(x.shape).to(x.dtype)
