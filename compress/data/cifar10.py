"""``cifar10``: 50,000 + 10,000 colour 32x32 images in ten classes (Krizhevsky 2009)."""

from __future__ import annotations

import numpy as np

from compress.data.arrays import About, Arrays, from_arrays
from compress.data.options import DataOptions
from compress.data.splits import Data
from compress.data.torchvision_sets import open_torchvision

ADVICE = "Name the folder that holds cifar-10-batches-py with --data-root, or allow --download."


def load(options: DataOptions) -> Data:
    """Images (N, 3, 32, 32) scaled to 0..1, ten classes, the set's own test split."""
    parts = [open_torchvision("CIFAR10", train, options, ADVICE) for train in (True, False)]
    # torchvision's arrays are (N, H, W, C)
    arrays = [Arrays(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets)) for part in parts]
    about = About("cifar10", class_names=tuple(parts[0].classes))
    return from_arrays(about, arrays[0], arrays[1], options)
