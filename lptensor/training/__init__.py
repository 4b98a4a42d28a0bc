"""Techniques of low-precision training, one file each."""

from lptensor.training.blockwise import Blockwise as Blockwise
from lptensor.training.expansion import Expansion as Expansion
from lptensor.training.loss_scaling import (
    Automatic as Automatic,
    Dynamic as Dynamic,
    LossScaler as LossScaler,
    Static as Static,
)

__all__ = ["Automatic", "Blockwise", "Dynamic", "Expansion", "LossScaler", "Static"]
