"""The idx files of MNIST and of the sets made in its shape: http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.arrays import Arrays
from compress.errors import DataError

_UINT8 = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one idx file of 8-bit values, gzipped or plain.

    Raises:
        DataError: not such a file, or cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, offset=4)
        values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path}: no readable idx file ({error}). Fetch it again.") from error
    if (zero, kind) != (0, _UINT8) or values.size != int(np.prod(shape)):
        raise DataError(f"{path}: no idx file of 8-bit values, or cut short. Fetch it again.")
    return values.reshape(shape)


def find_idx(folders: list[Path]) -> tuple[Arrays, Arrays] | None:
    """Train and test, images (N, 1, H, W), of the first folder with all four files; None where no folder has them."""
    for folder in folders:
        stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        files = [file for stem in stems if (file := _existing(folder, f"{stem}-ubyte")) is not None]
        if len(files) == len(stems):
            train_x, train_y, test_x, test_y = map(read_idx, files)
            return Arrays(train_x[:, np.newaxis], train_y), Arrays(test_x[:, np.newaxis], test_y)
    return None


def _existing(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
