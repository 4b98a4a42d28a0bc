"""Techniques of low-precision training, one file each."""

from lptensor.training.blockwise import Blockwise as Blockwise
from lptensor.training.expansion import Expansion as Expansion

__all__ = ["Blockwise", "Expansion"]
