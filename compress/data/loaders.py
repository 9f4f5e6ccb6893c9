"""torch DataLoaders and datasets as pools of numbered, repeatable samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from compress.data.options import DataOptions
from compress.data.splits import Batch, Fetch
from compress.errors import CompressError, DataError

_WHOLE = (SequentialSampler, RandomSampler, WeightedRandomSampler)  # samplers that draw from all of a dataset
_READ_BATCH = 256


@dataclass(frozen=True)
class Pool:
    """The samples 0..count-1 of one loader or dataset."""

    count: int
    fetch: Fetch
    origin: object  # the dataset underneath, and
    numbers: frozenset[int]  # which of its samples these are: to find splits that overlap


def pool_of(where: str, source: object, options: DataOptions) -> Pool:
    """The samples of ``source``, a DataLoader or a dataset.

    Raises:
        DataError: neither of the two, empty, or drawn by a sampler whose choice cannot be known.
    """
    if isinstance(source, DataLoader):
        if isinstance(source.dataset, IterableDataset) or source.batch_size is None:
            return _stored(where, source, options)
        return _indexed(where, source.dataset, _sampled(where, source), source.collate_fn, options)
    if isinstance(source, IterableDataset):
        return _stored(where, DataLoader(source, batch_size=_READ_BATCH), options)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (Mapping, Tensor, str)):
        return _indexed(where, source, range(len(source)), default_collate, options)
    raise DataError(f"{where}: found {type(source).__name__}; allowed are a torch DataLoader or a dataset.")


def refuse_overlap(name: str, pools: Mapping[str, Pool]) -> None:
    """Refuse splits that share samples of the same dataset object."""
    for (one, first), (other, second) in combinations(pools.items(), 2):
        shared = len(first.numbers & second.numbers) if first.origin is second.origin else 0
        if shared:
            raise DataError(f"{name}: {one} and {other} share {shared} samples of one dataset. Give each its own.")


@contextmanager
def frozen_randomness(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, numpy and random, and put their states back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        _seed(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU too
    np.random.seed(seed)
    random.seed(seed)


def _sampled(where: str, loader: DataLoader[Any]) -> list[int] | range:
    """The numbers of the dataset's samples that a loader draws from, in ascending order."""
    if isinstance(loader.sampler, SubsetRandomSampler):
        return sorted(int(index) for index in loader.sampler.indices)
    if isinstance(loader.sampler, _WHOLE):
        return range(len(loader.dataset))  # type: ignore[arg-type]  # has a length: it is indexed
    raise DataError(
        f"{where}: samples drawn by {type(loader.sampler).__name__}, whose choice cannot be known. Return the dataset "
        "itself, or a torch.utils.data.Subset of it."
    )


def _indexed(
    where: str, dataset: Any, chosen: list[int] | range, collate: Callable[[list[Any]], Any], options: DataOptions
) -> Pool:
    if len(chosen) == 0:
        raise DataError(f"{where}: empty. At least one sample is needed.")

    def fetch(indices: NDArray[np.int64]) -> Batch:
        with frozen_randomness(0):
            samples = []
            for index in indices:
                _seed(int(index))  # each sample is the same in every batch
                with users_code(f"{where}: reading sample {index}"):
                    samples.append(dataset[chosen[int(index)]])
            with users_code(f"{where}: making a batch of the samples"):
                raw = collate(samples)
        return _as_batch(where, raw, options)

    origin: Any = dataset
    numbers = list(chosen)
    while type(origin) is Subset:
        numbers = [origin.indices[number] for number in numbers]
        origin = origin.dataset
    return Pool(len(chosen), fetch, origin, frozenset(int(number) for number in numbers))


@contextmanager
def users_code(doing: str) -> Iterator[None]:
    """Tell a failure of the user's own code, which may raise anything, as a DataError."""
    try:
        yield
    except CompressError:
        raise
    except Exception as error:
        cause = "".join(str(error).splitlines()[:1])
        raise DataError(f"{doing} failed with {type(error).__name__}: {cause}") from error


def _stored(where: str, batches: Iterable[Any], options: DataOptions) -> Pool:
    """Read every batch into memory."""
    with frozen_randomness(options.split_seed), users_code(f"{where}: reading the batches"):
        read = [_as_batch(where, batch, options) for batch in batches]
    if not read:
        raise DataError(f"{where}: empty. At least one sample is needed.")
    try:
        inputs = tuple(torch.cat(column) for column in zip(*(batch[0] for batch in read), strict=True))
        labels = [batch[1] for batch in read if batch[1] is not None]
        y = torch.cat(labels) if len(labels) == len(read) else None
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{where}: the batches do not fit together ({error}). Give the samples one shape.") from error

    def fetch(indices: NDArray[np.int64]) -> Batch:
        chosen = torch.from_numpy(indices)
        return tuple(x[chosen] for x in inputs), None if y is None else y[chosen]

    return Pool(len(inputs[0]), fetch, inputs, frozenset())


def _as_batch(where: str, raw: Any, options: DataOptions) -> Batch:
    """A collated batch, x or (x,) or (x, y) where x is one tensor or several, as (inputs, labels)."""
    parts = (raw,) if isinstance(raw, Tensor) else tuple(raw) if isinstance(raw, (tuple, list)) else ()
    if len(parts) in (1, 2):
        inputs = (parts[0],) if isinstance(parts[0], Tensor) else parts[0]
        labels = parts[1] if len(parts) == 2 and options.labels else None
        if _are_tensors(inputs) and (labels is None or isinstance(labels, Tensor)):
            return tuple(x.float() if x.is_floating_point() else x for x in inputs), labels
    raise DataError(
        f"{where}: a batch is {_described(raw)}; allowed are inputs, (inputs,) and (inputs, labels), where inputs is a "
        "tensor or a tuple of tensors and labels a tensor. Wrap the dataset so that it returns this."
    )


def _are_tensors(values: object) -> bool:
    return isinstance(values, (tuple, list)) and len(values) > 0 and all(isinstance(x, Tensor) for x in values)


def _described(raw: object) -> str:
    if isinstance(raw, Mapping):
        return f"a dict of {', '.join(map(str, raw))}"
    if isinstance(raw, (tuple, list)):
        return f"a {type(raw).__name__} of {', '.join(type(part).__name__ for part in raw)}"
    return f"a {type(raw).__name__}"
