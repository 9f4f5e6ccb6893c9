"""Sources that lie in memory whole: arrays of samples and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.checks import are_classes, check_finite, check_labels, check_targets, digest
from compress.data.options import DataOptions
from compress.data.partition import Pools
from compress.data.preprocessing import ImagePreprocessing, refuse_image_options, scaled
from compress.data.samples import Samples, assemble
from compress.data.splits import Batch, Data
from compress.errors import DataError
from compress.values import InputSpec


@dataclass(frozen=True)
class Arrays:
    """Samples and their labels."""

    x: NDArray[Any]  # (N, …)
    y: NDArray[Any] | None = None  # (N,) class numbers, or (N, …) for a metric


@dataclass(frozen=True)
class About:
    """What a source says about its arrays."""

    name: str
    input_name: str = "input"
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


def from_arrays(about: About, train: Arrays, test: Arrays | None, options: DataOptions) -> Data:
    """Check arrays and split them.

    8-bit samples are kept so and scaled to 0..1 a batch at a time, floats become float32, whole numbers int64.
    (N, H, W) is taken for grey images and gets its channel axis; an image is (N, C, H, W), never turned.

    Args:
        about: the source's name and what belongs to it.
        train: samples of the source, all of them where ``test`` is None.
        test: the source's own test samples.

    Raises:
        DataError: empty, NaN, unequal shapes, labels that are no class numbers, options that do not fit.
    """
    pools = Pools(len(train.x), test=len(test.x) if test else 0)
    x, notes = _samples(about.name, train, test)
    y = _labels(about.name, train, test, options) if options.labels else None
    classes = _classes(y, about, options)
    prepare = _preparation(about.name, x, options)

    def fetch(indices: NDArray[np.int64]) -> Batch:
        labels = None if y is None else torch.from_numpy(y[indices])
        return (prepare(torch.from_numpy(x[indices])),), labels

    first = fetch(np.zeros(1, dtype=np.int64))[0][0]
    dtype = str(first.dtype).removeprefix("torch.")
    samples = Samples(
        name=about.name,
        fetch=fetch,
        pools=pools,
        inputs=(InputSpec(about.input_name, tuple(first.shape[1:]), dtype),),
        content=digest(x) if y is None else digest(x, y),
        classes=classes,
        class_names=() if classes is None else about.class_names,
        notes=(*about.notes, *notes),
        files=about.files,
    )
    return assemble(samples, options)


def _samples(name: str, train: Arrays, test: Arrays | None) -> tuple[NDArray[Any], tuple[str, ...]]:
    parts = {"train": train.x} if test is None else {"train": train.x, "test": test.x}
    for part, x in parts.items():
        if len(x.shape) < 2 or x.size == 0:
            raise DataError(f"{name}: {part} samples of shape {x.shape}; at least one sample of one value is needed.")
    if test is not None and train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"{name}: train samples are {train.x.shape[1:]} and test samples {test.x.shape[1:]}; make them the same."
        )
    typed = {part: _typed(f"{name}: {part}", x) for part, x in parts.items()}
    x = typed["train"] if test is None else np.concatenate([typed["train"], typed["test"]])
    if x.ndim == 3 and x.dtype != np.int64:
        return x[:, np.newaxis], (f"Samples {x.shape[1:]} were taken for grey images: a channel axis was added.",)
    return x, ()


def _typed(where: str, x: NDArray[Any]) -> NDArray[Any]:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "fb":
        with np.errstate(over="ignore"):  # too large for float32 becomes infinity, which is refused below
            x = x.astype(np.float32, copy=False)
        check_finite(x, where)
        return x
    if x.dtype.kind in "iu":
        return x.astype(np.int64, copy=False)
    raise DataError(f"{where}: samples of type {x.dtype}; numbers are needed.")


def _labels(name: str, train: Arrays, test: Arrays | None, options: DataOptions) -> NDArray[Any] | None:
    parts = {"train": train} if test is None else {"train": train, "test": test}
    labelled = [part for part, arrays in parts.items() if arrays.y is not None]
    if not labelled:
        return None
    if len(labelled) < len(parts):
        raise DataError(f"{name}: only {labelled[0]} has labels. Give them for both, or ignore them with --no-labels.")
    found = {part: (a.y, len(a.x)) for part, a in parts.items() if a.y is not None}
    free = options.labels == "any" and not all(are_classes(*labels) for labels in found.values())
    check = check_targets if free else check_labels
    checked = [check(*labels, f"{name}: {part}") for part, labels in found.items()]
    if len({labels.shape[1:] for labels in checked}) > 1:
        raise DataError(f"{name}: the labels of train and test differ in shape; make them the same.")
    return np.concatenate(checked)


def _classes(y: NDArray[Any] | None, about: About, options: DataOptions) -> int | None:
    if y is None or (options.labels == "any" and not are_classes(y, len(y))):
        return None
    return max(len(about.class_names), int(y.max()) + 1)


def _preparation(name: str, x: NDArray[Any], options: DataOptions) -> Callable[[Tensor], Tensor]:
    if x.ndim == 4 and x.dtype != np.int64:
        return ImagePreprocessing.of(options)
    refuse_image_options(options, f"{name}: a sample has the shape {x.shape[1:]}")
    return scaled
