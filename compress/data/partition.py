"""Which sample goes to which split: index arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.data.options import DataOptions
from compress.errors import DataError

Indices = NDArray[np.int64]  # (n,) sample numbers


@dataclass(frozen=True)
class Pools:
    """How many samples the parts of a source hold. They are numbered train first, then validation, then test."""

    train: int
    validation: int = 0  # 0: the source has none of its own
    test: int = 0

    @property
    def held_out(self) -> bool:
        return self.validation + self.test > 0


@dataclass(frozen=True)
class Partition:
    """The sample numbers of each split; calibration is part of train, the others are disjoint."""

    train: Indices
    calibration: Indices
    validation: Indices
    test: Indices


def partition(name: str, pools: Pools, options: DataOptions) -> Partition:
    """Deal the samples of ``pools`` out to the splits, by ``options.split_seed``.

    - train, validation and test of its own: kept as they are.
    - train and one held-out part, whatever it is called: that part is test, since the model has not seen it, and
      validation is the share ``options.validation`` of train.
    - train alone: test and validation are ``options.test`` of it each.

    Train is shuffled; ``limit`` cuts train alone. No split is ever empty.

    Raises:
        DataError: too few samples, with the counts.
    """
    shuffled = np.random.default_rng(options.split_seed).permutation(pools.train).astype(np.int64)
    held_out = np.arange(pools.train, pools.train + pools.validation + pools.test, dtype=np.int64)
    if pools.validation and pools.test:
        validation, test, train = held_out[: pools.validation], held_out[pools.validation :], shuffled
    elif pools.held_out:
        count = _share(pools.train, options.validation)
        validation, test, train = shuffled[:count], held_out, shuffled[count:]
    else:
        count = _share(pools.train, options.test)
        validation, test, train = shuffled[:count], shuffled[count : 2 * count], shuffled[2 * count :]
    if min(len(train), len(validation), len(test)) == 0:
        raise DataError(
            f"{name}: {pools.train} train, {pools.validation} validation and {pools.test} test samples would leave "
            f"{len(train)} to train, {len(validation)} to validate and {len(test)} to test. Give more samples."
        )
    train = train[: options.limit]
    return Partition(train, train[: options.calibration], validation, test)


def describe(pools: Pools, options: DataOptions) -> str:
    """One line for the report: where the splits come from."""
    if pools.validation and pools.test:
        return "Train, validation and test are the source's own."
    if pools.held_out:
        return (
            f"Test is the source's own; validation is {options.validation:.0%} of train, by seed {options.split_seed}."
        )
    return (
        f"The source has no test split: validation and test are {options.test:.0%} each, by seed {options.split_seed}. "
        "They are unseen only by a model that was trained on this same train split."
    )


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))
