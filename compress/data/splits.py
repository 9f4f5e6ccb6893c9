"""What every data source returns: four disjoint, deterministic splits of one data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.values import InputSpec

# The model's inputs, each (N, …), and labels: (N,) int64, or whatever a metric takes, or None.
Batch = tuple[tuple[Tensor, ...], Tensor | None]
Fetch = Callable[[NDArray[np.int64]], Batch]


@dataclass(frozen=True)
class Split:
    """Some samples of a source, in a fixed order.

    ``fetch`` maps an array of sample numbers (N,) to a batch; it must be deterministic.
    """

    name: str
    fetch: Fetch
    indices: NDArray[np.int64]  # (N,) sample numbers in the source
    labelled: bool = True  # with class numbers

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield every sample once, ``batch_size`` at a time (the last batch may be smaller).

        With a ``generator`` the order is a permutation drawn from it, else it is the split's own.
        """
        order = self.indices
        if generator is not None:
            order = order[torch.randperm(len(order), generator=generator).numpy()]
        for start in range(0, len(order), batch_size):
            yield self.fetch(order[start : start + batch_size])

    def take(self, count: int) -> Split:
        """The first ``count`` samples, as a split of the same name."""
        return Split(self.name, self.fetch, self.indices[:count], self.labelled)


@dataclass(frozen=True)
class Data:
    """A data set in four splits that never overlap, but for calibration, which is part of train."""

    name: str
    train: Split
    calibration: Split  # part of train: ranges for quantization
    validation: Split  # steers every choice
    test: Split  # scored once, for the report
    inputs: tuple[InputSpec, ...]
    sha256: str  # of the samples and of how they are preprocessed
    classes: int | None = None  # None: no labels
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was done to the data, one line each, for the report
    files: Mapping[str, bytes] = field(default_factory=dict)  # name -> content that must ship beside the model

    @property
    def labelled(self) -> bool:
        return self.classes is not None
