"""``python:module:function`` and ``python:./file.py:function``: the user's own loaders or datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.data.checks import are_classes, check_finite, check_labels, check_targets, digest
from compress.data.loaders import Pool, frozen_randomness, pool_of, refuse_overlap, users_code
from compress.data.options import DataOptions
from compress.data.partition import Pools
from compress.data.samples import Samples, assemble
from compress.data.splits import Batch, Data, Fetch
from compress.errors import DataError, ModelError
from compress.models.factory import import_named, importable_from
from compress.values import InputSpec

PARTS = ("train", "validation", "test")
_READ_BATCH = 256


def load(target: str, options: DataOptions) -> Data:
    """Samples of the loaders or datasets that a function of the user returns.

    The function takes no arguments and returns a dict with "train" and optionally "validation" and "test", or a tuple
    (train, test) or (train, validation, test), of torch DataLoaders or datasets. A sample is inputs, (inputs,) or
    (inputs, label), where inputs is a tensor or a tuple of tensors, used as they come (floats as float32).

    Order, batch size and sampling are ours: a loader lends its dataset and its collate_fn. Iterable datasets are read
    into memory. Every sample is read once here, for the checks and the sha256. Random numbers are seeded by
    ``split_seed`` while the function runs and by the sample's number while it is read, so that an augmentation gives
    the same sample each time.

    Raises:
        DataError: the function cannot be found, fails, or returns what cannot be used.
    """
    name = f"python:{target}"
    with importable_from(Path.cwd()):
        parts = _parts(name, _call(name, target, options))
        pools = {part: pool_of(f"{name}: {part}", source, options) for part, source in parts.items()}
        refuse_overlap(name, pools)
        scans = {part: _scan(f"{name}: {part}", pool, options) for part, pool in pools.items()}
    _refuse_different(name, scans)
    classes = _classes(scans)
    samples = Samples(
        name=name,
        fetch=_joined(list(pools.values()), classes is not None),
        pools=Pools(**{part: pool.count for part, pool in pools.items()}),
        inputs=_specs(scans["train"].shapes),
        content=" ".join(scan.content for scan in scans.values()),
        classes=classes,
    )
    return assemble(samples, options)


@dataclass(frozen=True)
class _Scan:
    """What reading a pool from end to end showed."""

    shapes: tuple[tuple[tuple[int, ...], str], ...]  # shape of one sample and type, for each input
    labelled: bool
    classes: int | None  # None: no labels, or others than class numbers
    content: str  # hex sha256


def _scan(where: str, pool: Pool, options: DataOptions) -> _Scan:
    first = pool.fetch(np.zeros(1, dtype=np.int64))
    sha, most = hashlib.sha256(), 0
    classes = first[1] is not None
    for start in range(0, pool.count, _READ_BATCH):
        indices = np.arange(start, min(start + _READ_BATCH, pool.count))
        inputs, labels = pool.fetch(indices)
        for x in inputs:
            check_finite(x.numpy(), where, start)
        sha.update(digest(*(x.numpy() for x in inputs)).encode())
        if labels is not None:
            free = options.labels == "any" and not are_classes(labels.numpy(), len(indices))
            checked = (check_targets if free else check_labels)(labels.numpy(), len(indices), where, start)
            sha.update(digest(checked).encode())
            classes, most = classes and not free, max(most, int(checked.max()) + 1)
    again = pool.fetch(np.zeros(1, dtype=np.int64))
    if not all(torch.equal(x, same) for x, same in zip(first[0], again[0], strict=True)):
        raise DataError(f"{where}: sample 0 differs from read to read. Return the samples without augmentation.")
    shapes = tuple((tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")) for x in first[0])
    return _Scan(shapes, first[1] is not None, most if classes else None, sha.hexdigest())


def _classes(scans: Mapping[str, _Scan]) -> int | None:
    """How many classes the labels name; None where there are no labels, or one of the splits has others."""
    found = [scan.classes for scan in scans.values() if scan.classes is not None]
    return max(found) if len(found) == len(scans) else None


def _refuse_different(name: str, scans: Mapping[str, _Scan]) -> None:
    if len({scan.shapes for scan in scans.values()}) > 1:
        found = "; ".join(f"{part} {_listed(scan)}" for part, scan in scans.items())
        raise DataError(f"{name}: the splits' samples differ in shape or type: {found}. Make them the same.")
    if len({scan.labelled for scan in scans.values()}) > 1:
        found = ", ".join(part for part, scan in scans.items() if not scan.labelled)
        raise DataError(f"{name}: no labels in {found}. Give them everywhere, or ignore them with --no-labels.")


def _listed(scan: _Scan) -> str:
    return ", ".join(f"{shape} {dtype}" for shape, dtype in scan.shapes)


def _joined(pools: list[Pool], classes: bool) -> Fetch:
    """Number the samples through all pools. A batch lies in one pool, since no split draws from two."""
    starts = np.cumsum([0, *(pool.count for pool in pools)])

    def fetch(indices: NDArray[np.int64]) -> Batch:
        which = int(np.searchsorted(starts, indices[0], side="right")) - 1
        inputs, labels = pools[which].fetch(indices - starts[which])
        return inputs, labels.reshape(-1).long() if labels is not None and classes else labels

    return fetch


def _specs(shapes: tuple[tuple[tuple[int, ...], str], ...]) -> tuple[InputSpec, ...]:
    names = ["input"] if len(shapes) == 1 else [f"input_{index}" for index in range(len(shapes))]
    return tuple(InputSpec(name, shape, dtype) for name, (shape, dtype) in zip(names, shapes, strict=True))


def _parts(name: str, returned: object) -> dict[str, object]:
    """What the function returned, by split and in the order of PARTS."""
    parts: dict[Any, object] = {}
    if isinstance(returned, Mapping):
        parts = dict(returned)
    elif isinstance(returned, (tuple, list)) and len(returned) in (2, 3):
        parts = dict(zip(("train", "test") if len(returned) == 2 else PARTS, returned, strict=True))
    if "train" not in parts or not set(parts) <= set(PARTS):
        found = f"a dict of {', '.join(map(str, parts))}" if parts else f"a {type(returned).__name__}"
        raise DataError(
            f'{name}: returned {found}; allowed are a dict with "train" and optionally "validation" and "test", '
            "(train, test) and (train, validation, test)."
        )
    return {part: parts[part] for part in PARTS if part in parts}


def _call(name: str, target: str, options: DataOptions) -> object:
    """What the function returns, or a DataError that names what failed."""
    try:
        function = import_named(target, option="--data python:")
    except ModelError as error:
        raise DataError(str(error)) from error
    if not callable(function):
        raise DataError(f"{name}: a {type(function).__name__}; needed is a function that returns loaders or datasets.")
    with frozen_randomness(options.split_seed), users_code(f"{name}: the function"):
        return function()
