"""The checks that every source makes on arrays before they are used."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError


def check_finite(values: NDArray[Any], where: str, first: int = 0) -> None:
    """Refuse NaN and infinity in ``values`` (N, …), naming the first sample, counted from ``first``, and how many."""
    if not np.issubdtype(values.dtype, np.floating):
        return
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)  # (N,)
    if not finite.all():
        broken = np.flatnonzero(~finite)
        raise DataError(
            f"{where}: {len(broken)} samples hold NaN or infinity, the first is sample {first + broken[0]}. "
            "Remove or repair them."
        )


def check_labels(labels: NDArray[Any], count: int, where: str, first: int = 0) -> NDArray[np.int64]:
    """Return ``labels`` as (N,) int64, all at least 0; samples are counted from ``first``.

    Raises:
        DataError: not one whole number from 0 for each of the ``count`` samples.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels of shape {labels.shape}; one class number a sample is needed, ({count},). "
            "One-hot labels become class numbers with argmax(axis=1)."
        )
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} samples; one a sample is needed.")
    if labels.dtype.kind not in "iufb":
        raise DataError(f"{where}: labels of type {labels.dtype}; whole numbers from 0 are needed.")
    broken = np.flatnonzero(~np.isfinite(labels) | (labels < 0) | (labels != np.floor(labels)))
    if len(broken):
        raise DataError(
            f"{where}: {len(broken)} labels are no class number, the first is {labels[broken[0]]} of sample "
            f"{first + broken[0]}; "
            "classes are whole numbers from 0."
        )
    return labels.astype(np.int64)


def are_classes(labels: NDArray[Any], count: int) -> bool:
    """Whether `check_labels` takes ``labels``."""
    try:
        check_labels(labels, count, "")
    except DataError:
        return False
    return True


def check_targets(targets: NDArray[Any], count: int, where: str, first: int = 0) -> NDArray[Any]:
    """Return labels for a metric, (N, …): whole numbers as int64, others as float32.

    Raises:
        DataError: not one for each of the ``count`` samples, not numbers, or not finite.
    """
    if targets.ndim < 1 or len(targets) != count:
        raise DataError(f"{where}: labels of shape {targets.shape} for {count} samples; one a sample is needed.")
    if targets.dtype.kind not in "iufb":
        raise DataError(f"{where}: labels of type {targets.dtype}; numbers are needed.")
    check_finite(targets, where, first)
    return targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64)


def digest(*arrays: NDArray[Any]) -> str:
    """Hex sha256 of the types, shapes and bytes of ``arrays``."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
