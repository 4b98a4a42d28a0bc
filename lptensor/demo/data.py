"""The 1,797 handwritten digits that scikit-learn ships, as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lptensor.extra import need

TEST_SIZE, SPLIT_SEED = 450, 0


class Digits(NamedTuple):
    """Images are float32 (n, 1, 8, 8) in [0, 1], labels int64 (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The digits in one fixed split, the same share of every class on both sides.

    The scaling is the scanner's range (0 to 16), so nothing of the test images reaches the training.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    digits = need("sklearn.datasets").load_digits()
    split = need("sklearn.model_selection").train_test_split
    train_images, test_images, train_labels, test_labels = split(
        digits.images / 16.0, digits.target, test_size=TEST_SIZE, stratify=digits.target, random_state=SPLIT_SEED
    )
    return Digits(_images(train_images), torch.tensor(train_labels), _images(test_images), torch.tensor(test_labels))


def _images(pixels: object) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).unsqueeze(1)
