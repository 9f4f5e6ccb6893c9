"""``digits``: 1,797 real 8x8 images of handwritten digits, inside scikit-learn. Nothing to fetch."""

from __future__ import annotations

import numpy as np

from compress.data.arrays import About, Arrays, from_arrays
from compress.data.options import DataOptions
from compress.data.splits import Data

CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load(options: DataOptions) -> Data:
    """Images (N, 1, 8, 8) scaled to 0..1, ten classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)  # (N, 64) of 0..16
    images = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return from_arrays(About("digits", class_names=CLASS_NAMES), Arrays(images, y), None, options)
