"""``fashion-mnist``: 60,000 + 10,000 grey 28x28 images of clothes (Xiao et al. 2017, arXiv:1708.07747)."""

from __future__ import annotations

import sys
from pathlib import Path

from compress.data.arrays import About, from_arrays
from compress.data.idx import find_idx
from compress.data.options import DataOptions
from compress.data.splits import Data
from compress.data.torchvision_sets import data_root, open_torchvision
from compress.errors import DataError

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PREFIXES = ("/usr", sys.prefix)  # where packages put their share folder
ADVICE = (
    "Install it with `apt install dataset-fashion-mnist`, name the folder of its idx files with --data-root, "
    "or allow --download."
)


def load(options: DataOptions) -> Data:
    """Images (N, 1, 28, 28) scaled to 0..1, ten classes, the set's own test split.

    The idx files are looked for in ``root``, in ``root``/FashionMNIST/raw (torchvision's place) and in the folder of
    Debian's package dataset-fashion-mnist.
    """
    folders = _folders(options)
    found = find_idx(folders)
    if found is None and options.download:
        for train in (True, False):
            open_torchvision("FashionMNIST", train, options, ADVICE)
        found = find_idx(folders)
    if found is None:
        raise DataError(f"fashion-mnist: not found in {', '.join(map(str, folders))}. {ADVICE}")
    return from_arrays(About("fashion-mnist", class_names=CLASS_NAMES), *found, options)


def _folders(options: DataOptions) -> list[Path]:
    root = data_root(options)
    packaged = [Path(prefix) / "share" / "datasets" / "fashion-mnist" for prefix in PREFIXES]
    return [root, root / "FashionMNIST" / "raw", *packaged]
