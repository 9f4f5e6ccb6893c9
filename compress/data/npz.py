"""``npz:FILE``: arrays saved with ``numpy.savez``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.arrays import About, Arrays, from_arrays
from compress.data.options import DataOptions
from compress.data.splits import Data
from compress.errors import DataError

ALLOWED = "x and y, or x_train, y_train, x_test and y_test (y may be left out)"


def load(target: str, options: DataOptions) -> Data:
    """Samples and labels of one .npz file: see ``from_arrays`` for shapes and types.

    The file holds x and y, or x_train, y_train, x_test, y_test. Without y the data is unlabelled. Pickled objects
    in it are refused.
    """
    path = Path(target).expanduser()
    arrays = _read(path)
    y_names = {"x": "y", "x_train": "y_train", "x_test": "y_test"}
    parts = {x: Arrays(arrays[x], arrays.get(y)) for x, y in y_names.items() if x in arrays}
    if set(parts) not in ({"x"}, {"x_train", "x_test"}, {"x_train"}):
        raise DataError(f"{path}: found the arrays {', '.join(sorted(arrays)) or 'none'}; needed are {ALLOWED}.")
    train = parts.get("x") or parts["x_train"]
    return from_arrays(About(f"npz:{path.name}"), train, parts.get("x_test"), options)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream:  # numpy leaves a file open whose zip directory it cannot read
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. --data npz:FILE names a file of numpy.savez.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error}).") from error
    raise DataError(f"{path}: a single array; needed is a file of numpy.savez with {ALLOWED}.")
