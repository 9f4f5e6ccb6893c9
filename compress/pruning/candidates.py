"""What the rounds of the prune stage try, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from compress.pruning.values import Kept


@dataclass(frozen=True)
class Round:
    """One reduction, fine-tuned."""

    left: float  # share 0..1 of what the goal counts
    macs: int  # of one sample, in the layers with weights
    parameters: int
    drop: float  # on validation, against the original model
    loss: float  # mean over the last tenth of its steps
    steps: int
    within: bool  # drop <= its share of the budget


@dataclass(frozen=True)
class Failure:
    """A share that was not within the budget."""

    left: float
    drop: float | None  # None: there is no such model
    base: float  # the share of the model that it was cut from


@dataclass(frozen=True)
class Candidate:
    """A model with fewer channels, before or after training."""

    module: nn.Module
    kept: Kept  # of the original
    left: float  # share of what the goal counts
    widths: Mapping[str, int]
    skipped: tuple[str, ...] = ()  # residual blocks that were left out
