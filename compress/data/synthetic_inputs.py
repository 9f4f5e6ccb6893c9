"""Made-up inputs, for a model that comes without data: sizes, latencies and fidelity can be measured on them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.data.options import DataOptions
from compress.data.partition import Pools
from compress.data.samples import Samples, assemble
from compress.data.splits import Batch, Data
from compress.errors import DataError
from compress.values import InputSpec


def synthetic(inputs: tuple[InputSpec, ...], count: int = 512, seed: int = 0, bound: int = 2) -> Data:
    """Unlabelled samples for ``inputs``: standard normal floats, whole numbers of 0..bound-1.

    Args:
        inputs: what the model takes.
        count: samples, over all splits.
        seed: of the samples and of the splits.
        bound: whole numbers are below this, as the rows of an embedding are; 2 fits every embedding.
    """
    for spec in inputs:
        if np.dtype(spec.dtype).kind not in "fiub":
            raise DataError(
                f"synthetic: input {spec.name!r} of type {spec.dtype}; floats and whole numbers can be made."
            )

    def fetch(indices: NDArray[np.int64]) -> Batch:
        samples = [_sample(inputs, np.random.default_rng((seed, int(index))), bound) for index in indices]
        return tuple(torch.stack(column) for column in zip(*samples, strict=True)), None

    made = Samples(
        name="synthetic",
        fetch=fetch,
        pools=Pools(count),
        inputs=inputs,
        content=hashlib.sha256(repr((inputs, count, seed, bound)).encode()).hexdigest(),
    )
    note = "The inputs are made up: standard normal floats, random whole numbers. Fidelity on real data may differ."
    return replace(assemble(made, DataOptions(split_seed=seed)), notes=(note,))


def _sample(inputs: tuple[InputSpec, ...], generator: np.random.Generator, bound: int) -> list[Tensor]:
    """One sample of each input, drawn when it is needed: a set of large images would not fit into memory."""
    return [torch.from_numpy(_draw(spec, generator, bound)) for spec in inputs]


def _draw(spec: InputSpec, generator: np.random.Generator, bound: int) -> NDArray[np.generic]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(spec.shape)).astype(dtype)
    return np.asarray(generator.integers(0, bound, spec.shape)).astype(dtype)
