"""Three classes of Fashion-MNIST as an .npz file, for networks that are too large for all ten on a small machine."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data import Data, DataOptions, Split, load_data
from compress.files import write_atomically

CLASSES = (0, 1, 2)  # T-shirt/top, trouser, pullover
FILE_NAME = "fashion-mnist-3.npz"


def fetch_three_classes(folder: Path) -> Path:
    """``folder``/fashion-mnist-3.npz: x_train (18000, 1, 28, 28), x_test (3000, 1, 28, 28) uint8 and their labels."""
    target = folder / FILE_NAME
    if not target.exists():
        data: Data = load_data("fashion-mnist", DataOptions())
        x_train, y_train = _chosen(data.train, data.validation)
        x_test, y_test = _chosen(data.test)
        content = io.BytesIO()
        np.savez_compressed(content, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        write_atomically(target, content.getvalue())
    return target


def _chosen(*splits: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for split in splits:
        (x,), y = split.fetch(split.indices)
        assert y is not None
        wanted = np.isin(y.numpy(), CLASSES)
        images.append((x.numpy()[wanted] * 255).round().astype(np.uint8))
        labels.append(y.numpy()[wanted].astype(np.int64))
    return np.concatenate(images), np.concatenate(labels)
